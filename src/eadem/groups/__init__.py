"""Finite groups and Lie algebras, their representations, and the maps they make.

>>> C4 = Cyclic(4)
>>> Equivariant(C4.trivial(1), C4.regular(8)).bind((32, 1, 5, 5)).rank
200
"""

from .equivariant import Equivariant as Equivariant
from .families import Cyclic as Cyclic
from .families import Dihedral as Dihedral
from .families import Octahedral as Octahedral
from .families import Product as Product
from .families import ReverseComplement as ReverseComplement
from .families import Symmetric as Symmetric
from .generated import Generated as Generated
from .generated import generated as generated
from .group import Group as Group
from .lie import Lie as Lie
from .lie import lie as lie
from .lie import lorentz as lorentz
from .lie import so as so
from .orbit import Orbit as Orbit
from .representation import Representation as Representation
