"""Hidden Markov models whose parameters are sites: tied by name and index, like any others.

Probabilities, means and rates are the parameters themselves, so `"emissionprob[1]"` or
`"transmat[0, 1]"` is all that a tie needs to say. Rows sum to one because the solver keeps
that beside the ties. Methods and attributes are hmmlearn's. `PairHMM` emits two sequences at
once and aligns them.
"""

try:
    import numba as _numba
except ImportError as _error:
    from eadem.errors import MissingPackage as _MissingPackage

    raise _MissingPackage(
        "eadem.hmm needs the package 'numba', which is not installed: "
        'pip install "eadem[hmm]"'
    ) from _error

from .alignment import Alignment as Alignment
from .alignment import Posterior as Posterior
from .alphabet import DNA as DNA
from .alphabet import PROTEIN as PROTEIN
from .alphabet import Alphabet as Alphabet
from .alphabet import SequenceError as SequenceError
from .base import HMM as HMM
from .data import HMMError as HMMError
from .data import NotFitted as NotFitted
from .discrete import CategoricalHMM as CategoricalHMM
from .discrete import PoissonHMM as PoissonHMM
from .fitting import fit as fit
from .gaussian import GaussianHMM as GaussianHMM
from .mixture import MixtureHMM as MixtureHMM
from .monitor import ConvergenceMonitor as ConvergenceMonitor
from .pair import PairHMM as PairHMM
from .peer import from_hmmlearn as from_hmmlearn
from .sequences import read_fasta as read_fasta
from .sequences import read_sequences as read_sequences
from .sequences import read_stockholm as read_stockholm

del _numba
