"""Hidden Markov models with tied parts; everything loads on first use."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from .alignment import Alignment as Alignment
    from .alignment import Posterior as Posterior
    from .alphabet import DNA as DNA
    from .alphabet import PROTEIN as PROTEIN
    from .alphabet import Alphabet as Alphabet
    from .alphabet import SequenceError as SequenceError
    from .pair import PairHMM as PairHMM
    from .sequences import read_fasta as read_fasta
    from .sequences import read_sequences as read_sequences
    from .sequences import read_stockholm as read_stockholm

_HOME = {
    "alignment": ("Alignment", "Posterior"),
    "alphabet": ("DNA", "PROTEIN", "Alphabet", "SequenceError"),
    "pair": ("PairHMM",),
    "sequences": ("read_fasta", "read_sequences", "read_stockholm"),
}
_NAMES = {name: home for home, names in _HOME.items() for name in names}


def __getattr__(name: str) -> _Any:
    if name in _NAMES:
        value = getattr(_import_module(f"{__name__}.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'eadem.hmm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
