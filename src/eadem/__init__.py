"""Eadem: parameter sharing as one linear map from free values to the places they are used.

>>> import torch
>>> from torch import nn
>>> model = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8))
>>> t = tie(model, "2.weight", to="0.weight", via=Transpose())
>>> counts(model).free, counts(model).expanded
(35, 59)
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .errors import DataError as DataError
from .errors import EademError as EademError
from .errors import GroupError as GroupError
from .errors import MissingPackage as MissingPackage
from .errors import NoEquivariantMap as NoEquivariantMap
from .errors import NoSuchSite as NoSuchSite
from .errors import NotAParameter as NotAParameter
from .errors import NotARepresentation as NotARepresentation
from .errors import OutOfRange as OutOfRange
from .errors import RecordError as RecordError
from .errors import ShapeError as ShapeError
from .errors import SymmetryBroken as SymmetryBroken
from .errors import TieBroken as TieBroken
from .errors import TieConflict as TieConflict
from .errors import TooLarge as TooLarge
from .errors import Unsupported as Unsupported
from .integrations import on_import as _on_import

if _TYPE_CHECKING:
    from .bind import Counts as Counts
    from .bind import Tie as Tie
    from .bind import check as check
    from .bind import check_optimizers as check_optimizers
    from .bind import counts as counts
    from .bind import expanded as expanded
    from .bind import explain as explain
    from .bind import plan as plan
    from .bind import tie as tie
    from .bind import tie_modules as tie_modules
    from .bind import ties as ties
    from .bind import twin as twin
    from .bind import untie as untie
    from .evidence._relax import penalty as penalty
    from .evidence._relax import relax as relax
    from .evidence._score_test import score_test as score_test
    from .evidence._suggest import suggest_ties as suggest_ties
    from .evidence._trace import trace as trace
    from .evidence.certificate import Shifts as Shifts
    from .evidence.certificate import certify as certify
    from .evidence.nested import compare as compare
    from .evidence.nested import likelihood_ratio_test as likelihood_ratio_test
    from .evidence.nested import wald_test as wald_test
    from .fits import Fit as Fit
    from .fits import least_squares as least_squares
    from .groups import Equivariant as Equivariant
    from .groups import Orbit as Orbit
    from .joint import Joint as Joint
    from .maps import Affine as Affine
    from .maps import Block as Block
    from .maps import Bounded as Bounded
    from .maps import Factored as Factored
    from .maps import Fixed as Fixed
    from .maps import Flip as Flip
    from .maps import Function as Function
    from .maps import Gather as Gather
    from .maps import LinearMap as LinearMap
    from .maps import Local1d as Local1d
    from .maps import Local2d as Local2d
    from .maps import LowRank as LowRank
    from .maps import Map as Map
    from .maps import Near as Near
    from .maps import Palindrome as Palindrome
    from .maps import Permute as Permute
    from .maps import Positive as Positive
    from .maps import ReverseComplement as ReverseComplement
    from .maps import Rotate as Rotate
    from .maps import Same as Same
    from .maps import Scale as Scale
    from .maps import Subspace as Subspace
    from .maps import SumToOne as SumToOne
    from .maps import Toeplitz1d as Toeplitz1d
    from .maps import Toeplitz2d as Toeplitz2d
    from .maps import Transpose as Transpose
    from .report.summary import summary as summary
    from .store import apply as apply
    from .store import load as load
    from .store import materialize as materialize
    from .store import record as record
    from .store import save as save

__version__ = "0.1.0"

_on_import.watch()

# Everything that needs torch is loaded on first use, so that the command line answers at once.
_HOME = {
    "_share": ("share",),
    "bind": (
        "Counts",
        "Tie",
        "check",
        "check_optimizers",
        "counts",
        "expanded",
        "explain",
        "plan",
        "tie",
        "tie_modules",
        "ties",
        "twin",
        "untie",
    ),
    "fits": (
        "Fit",
        "least_squares",
    ),
    "joint": ("Joint",),
    "groups": (
        "Equivariant",
        "Orbit",
    ),
    "maps": (
        "Affine",
        "Block",
        "Bounded",
        "Factored",
        "Fixed",
        "Flip",
        "Function",
        "Gather",
        "LinearMap",
        "Local1d",
        "Local2d",
        "LowRank",
        "Map",
        "Near",
        "Palindrome",
        "Permute",
        "Positive",
        "ReverseComplement",
        "Rotate",
        "Same",
        "Scale",
        "Subspace",
        "SumToOne",
        "Toeplitz1d",
        "Toeplitz2d",
        "Transpose",
    ),
    "store": (
        "apply",
        "load",
        "materialize",
        "record",
        "save",
    ),
    "evidence": (
        "Shifts",
        "certify",
        "compare",
        "likelihood_ratio_test",
        "penalty",
        "relax",
        "score_test",
        "suggest_ties",
        "trace",
        "wald_test",
    ),
    "report.summary": ("summary",),
}
_NAMES = {name: room for room, names in _HOME.items() for name in names}
_ROOMS = (
    "bind",
    "errors",
    "evidence",
    "fits",
    "groups",
    "hmm",
    "joint",
    "maps",
    "nn",
    "powder",
    "recipes",
    "report",
    "solvers",
    "store",
    "testing",
    "theory",
)


def __getattr__(name: str) -> _Any:
    if name in _NAMES:
        value = getattr(_import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return _import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'eadem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES, *_ROOMS})
