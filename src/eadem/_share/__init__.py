"""Sharing what is already trained: ties across a pretrained transformer's own weights.

>>> Plan((Entry("factored", ("h.0.mlp.c_fc.weight",), 64),)).entries[0].rank
64
"""

from .families import Matrix as Matrix
from .families import matrices as matrices
from .plans import Entry as Entry
from .plans import Plan as Plan
from .plans import read_plan as read_plan
from .recover import recover as recover
from .run import Shared as Shared
from .run import share as share
from .samples import own_samples as own_samples
