"""Maps φ from free values θ to the value at a site."""

from .base import LinearMap as LinearMap
from .base import Map as Map
from .factored import Block as Block
from .factored import Factored as Factored
from .nonlinear import Bounded as Bounded
from .nonlinear import Function as Function
from .nonlinear import Positive as Positive
from .remainder import LowRank as LowRank
from .remainder import Near as Near
from .simplex import SumToOne as SumToOne
from .structured import Fixed as Fixed
from .structured import Gather as Gather
from .structured import Local1d as Local1d
from .structured import Local2d as Local2d
from .structured import Palindrome as Palindrome
from .structured import Subspace as Subspace
from .structured import Toeplitz1d as Toeplitz1d
from .structured import Toeplitz2d as Toeplitz2d
from .view import Affine as Affine
from .view import Flip as Flip
from .view import Permute as Permute
from .view import ReverseComplement as ReverseComplement
from .view import Rotate as Rotate
from .view import Same as Same
from .view import Scale as Scale
from .view import Transpose as Transpose
