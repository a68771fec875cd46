"""Finite groups and Lie algebras, their representations, and the maps they make.

>>> C4 = Cyclic(4)
>>> Equivariant(C4.trivial(1), C4.regular(8)).bind((32, 1, 5, 5)).rank
200
"""

from .equivariant import Equivariant as Equivariant
from .generated import Generated as Generated
from .generated import generated as generated
from .group import Cyclic as Cyclic
from .group import Dihedral as Dihedral
from .group import Group as Group
from .group import Octahedral as Octahedral
from .group import Product as Product
from .group import ReverseComplement as ReverseComplement
from .group import Symmetric as Symmetric
from .lie import Lie as Lie
from .lie import lie as lie
from .lie import lorentz as lorentz
from .lie import so as so
from .orbit import Orbit as Orbit
from .representation import Representation as Representation
