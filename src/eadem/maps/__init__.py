"""Maps φ from free values θ to the value at a site."""

from .base import LinearMap as LinearMap
from .base import Map as Map
from .view import Affine as Affine
from .view import Flip as Flip
from .view import Permute as Permute
from .view import Rotate as Rotate
from .view import Same as Same
from .view import Scale as Scale
from .view import Transpose as Transpose
