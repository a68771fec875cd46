"""Hidden Markov models whose parameters are sites: tied by name and index, like any others.

Probabilities, means and rates are the parameters themselves, so `"emissionprob[1]"` or
`"transmat[0, 1]"` is all that a tie needs to say. Rows sum to one because the solver keeps
that beside the ties. Methods and attributes are hmmlearn's.
"""

try:
    import numba as _numba
except ImportError as _error:
    from eadem.errors import MissingPackage as _MissingPackage

    raise _MissingPackage(
        "eadem.hmm needs the package 'numba', which is not installed: "
        'pip install "eadem[hmm]"'
    ) from _error

from .base import HMM as HMM
from .data import HMMError as HMMError
from .data import NotFitted as NotFitted
from .discrete import CategoricalHMM as CategoricalHMM
from .discrete import PoissonHMM as PoissonHMM
from .gaussian import GaussianHMM as GaussianHMM
from .gaussian import MixtureHMM as MixtureHMM
from .monitor import ConvergenceMonitor as ConvergenceMonitor
from .peer import from_hmmlearn as from_hmmlearn

del _numba
