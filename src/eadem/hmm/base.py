"""What all hidden Markov models share: hmmlearn's methods, on parameters that can be tied."""

from __future__ import annotations

import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

import eadem
from eadem.bind import free_vector, resolved, set_free_vector
from eadem.bind.access import base_class
from eadem.hmm import expect as e_step
from eadem.hmm.data import Data, HMMError, NotFitted, observations
from eadem.hmm.density import log_densities
from eadem.hmm.estimator import Estimator, random
from eadem.hmm.expect import Expected, Frames
from eadem.hmm.fitting import Fitting, Member, begin, centred, normalize, write
from eadem.hmm.gradient import climb
from eadem.hmm.identify import drawn_scores
from eadem.hmm.monitor import ConvergenceMonitor
from eadem.hmm.mstep import Affine, ascend, over, symmetric

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["HMM"]

_log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Stats = dict[str, Any]

#: How far the sum of a row may be from one.
ROW_SUM = 1e-6
_NOTHING = Data(np.zeros((0, 1)), np.zeros(1, np.int64))


def site(name: str) -> property:
    """hmmlearn's view of a site: an array to read, and to set."""

    def get(self: HMM) -> Floats:
        return self._read(name)

    def put(self: HMM, value: Any) -> None:
        self._set({name: np.asarray(value, dtype=np.float64)})

    return property(get, put, doc=f"The values at the site `{name}`.")


class HMM(nn.Module, Estimator, ABC):
    """Start and transition probabilities; a model adds its emissions.

    The parameters are the probabilities and moments themselves, in float64: `startprob` (K,),
    `transmat` (K, K) and those of the emissions. They are tied by name and index, and
    `startprob_`, `transmat_`, … are the same values as arrays.
    """

    #: The letter in `params` and `init_params` of each site.
    letters: ClassVar[Mapping[str, str]] = {"startprob": "s", "transmat": "t"}
    site_constraints: Mapping[str, str] = {"startprob": "rows", "transmat": "rows"}

    n_components: int
    n_features: int | None
    startprob_prior: Any
    transmat_prior: Any
    algorithm: str
    random_state: Any
    n_iter: int
    tol: float
    verbose: bool
    params: str
    init_params: str
    implementation: str
    n_init: int

    startprob_ = site("startprob")
    transmat_ = site("transmat")

    def __init__(self, **given: Any) -> None:
        super().__init__()
        for name, value in given.items():
            setattr(self, name, value)
        if not isinstance(self.n_components, int | np.integer) or self.n_components < 1:
            raise HMMError(f"n_components={self.n_components!r}; a model has a state at least")
        self.monitor_ = ConvergenceMonitor(self.tol, self.n_iter, self.verbose)
        self._known: set[str] = set()
        for name in self.letters:
            self.register_parameter(name, None)
        self._allocate()

    # What a model says of its emissions.

    def _shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of a site; None while the number of features is not known."""
        K = self.n_components
        return {"startprob": (K,), "transmat": (K, K)}[name]

    def _default(self, name: str) -> Floats:
        """Values before any are set."""
        shape = self._shape(name)
        assert shape is not None
        return np.full(shape, 1.0 / shape[-1])

    @abstractmethod
    def _data(self, X: Any, bounds: Ints) -> Data:
        """Checked observations. Raises HMMError."""

    @abstractmethod
    def _log_table(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        """Log densities of the rows `at` in all states, a new array (rows, K)."""

    @abstractmethod
    def _log_torch(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        """The same by torch, differentiable in the sites' values."""

    @abstractmethod
    def _moments(
        self, data: Data, at: slice, posterior: Floats, values: Mapping[str, Floats]
    ) -> Stats:
        """Sufficient statistics of some rows with their posteriors (rows, K)."""

    @abstractmethod
    def _slopes(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """∂ log-likelihood / ∂ site of the emissions, from statistics."""

    @abstractmethod
    def _curvature(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Any]:
        """By emission site, a matrix that curves like its negative Hessian."""

    def _counts(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Expected counts of the sites that are probabilities, priors added."""
        start = stats["start"] + np.asarray(self.startprob_prior) - 1.0
        trans = stats["trans"] + np.asarray(self.transmat_prior) - 1.0
        return {
            "startprob": np.where(values["startprob"] > 0, np.maximum(start, 0.0), 0.0),
            "transmat": np.where(values["transmat"] > 0, np.maximum(trans, 0.0), 0.0),
        }

    def _emissions(
        self,
        models: Sequence[Any],
        stats: Sequence[Stats],
        affine: Affine,
        theta: Floats,
        free: Any,
    ) -> Floats:
        """θ after the M-step of what is not a probability, of models of one kind together,
        this the first; their sites of one name are one in `affine`. `free` says which θ may
        move.
        """
        return theta

    #: Statistics from which a prior is taken off, by the attribute with the prior.
    _linear: ClassVar[Mapping[str, str]] = {
        "start": "startprob_prior",
        "trans": "transmat_prior",
    }

    def _alike(self, models: Sequence[Any], sites: Mapping[str, Ints]) -> dict[str, Ints]:
        """Equal numbers where a statistic's entries are only ever used added up, from such
        numbers of the sites' entries: of models of one kind together, this the first.
        """
        return {"start": sites["startprob"], "trans": sites["transmat"]}

    def _start_values(self, data: Data, names: Sequence[str]) -> dict[str, Floats]:
        """Values to begin from, for these sites."""
        rng, K = random(self.random_state), self.n_components
        found = {}
        if "startprob" in names:
            found["startprob"] = rng.dirichlet(np.full(K, 1.0 / K))
        if "transmat" in names:
            found["transmat"] = rng.dirichlet(np.full(K, 1.0 / K), size=K)
        return found

    @abstractmethod
    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        """One observation of a state."""

    def _valid(self, name: str, value: Floats) -> Floats:
        """A value that may be set at a site. Raises HMMError."""
        if self.site_constraints.get(name) == "rows":
            if (value < 0).any() or not np.isfinite(value).all():
                raise HMMError(f"{name} must be probabilities: there is one below 0, or NaN")
            sums = value.sum(-1)
            if np.abs(sums - 1).max() > 1e-5:
                worst = sums.flat[np.abs(sums - 1).argmax()]
                raise HMMError(f"the rows of {name} must sum to 1; one sums to {worst:.6g}")
        return value

    # Values.

    def _allocate(self) -> None:
        """Make the parameters whose shape is known and that do not exist yet."""
        for name in self.letters:
            shape = self._shape(name)
            missing = shape is not None and name in self._parameters
            if missing and getattr(self, name) is None:
                value = torch.from_numpy(self._default(name))
                self.register_parameter(name, nn.Parameter(value))

    def _read(self, name: str) -> Floats:
        if name not in self._known:
            raise NotFitted(f"{name} has not been set; fit the model, or set {name}_")
        return self._value(name)

    def _value(self, name: str) -> Floats:
        value: Tensor = getattr(self, name)
        found: Floats = value.detach().cpu().double().numpy().copy()
        return found

    def _values(self) -> dict[str, Floats]:
        """Every site's value. Raises NotFitted, and HMMError where rows do not sum to one."""
        found = {name: self._read(name) for name in self.letters}
        for name, kind in self.site_constraints.items():
            if kind == "rows" and np.abs(found[name].sum(-1) - 1).max() > ROW_SUM:
                raise HMMError(
                    f"the rows of {name} do not sum to 1 (a tie may have changed some of their "
                    "entries); call normalize(), or fit"
                )
        return found

    def _set(self, given: Mapping[str, Floats]) -> None:
        for name, value in given.items():
            self._infer_features(name, value)
        self._allocate()
        checked = {}
        for name, value in given.items():
            shape = self._shape(name)
            if shape is None or value.shape != shape:
                raise HMMError(f"{name} has shape {shape}; got {value.shape}")
            checked[name] = self._valid(name, value)
        self._write(checked)
        self._known.update(checked)
        for name, value in checked.items():
            off = float(np.abs(self._value(name) - value).max())
            if off > 1e-6 * max(1.0, float(np.abs(value).max())):
                raise HMMError(
                    f"the ties of {name} cannot hold these values: they are {off:.3g} from the "
                    "nearest that can, which have been set; give values that satisfy the "
                    "ties, or untie first"
                )

    def _infer_features(self, name: str, value: Floats) -> None:
        """Learn the number of features from a value that is set."""

    def _write(self, values: Mapping[str, Floats]) -> None:
        write(self, values)
        self.normalize()

    def normalize(self) -> Self:
        """Make every row of probabilities sum to one, under the ties: the most likely
        probabilities were the values counts. Nothing changes where they do.
        """
        normalize(self, [Member("", self, _NOTHING)])
        return self

    def _load_from_state_dict(self, state: Any, prefix: str, *rest: Any) -> None:
        for name in self.letters:
            if prefix + name in state:
                self._known.add(name)
                if self._parameters.get(name) is None and name in self._parameters:
                    value = state[prefix + name]
                    self._infer_features(name, value.detach().cpu().numpy())
        self._allocate()
        super()._load_from_state_dict(state, prefix, *rest)

    # scikit-learn's parameters.

    def __sklearn_clone__(self) -> HMM:
        kind: Any = base_class(self)
        fresh: HMM = kind(**self.get_params(deep=False))
        if resolved(self).groups:
            for name in self.letters:
                if self._shape(name) is not None:
                    fresh._infer_features(name, self._value(name))
            fresh._allocate()
            eadem.apply(fresh, eadem.record(self))
            fresh.normalize()
        return fresh

    # Questions to a model.

    def _frames(self, data: Data, values: Mapping[str, Floats]) -> Frames:
        def logs(rows: Any) -> Floats:
            return self._log_table(data, rows, values)

        return Frames.lazily(logs, len(data.rows), data.bounds, data.x)

    def _given(self, X: Any, lengths: Any) -> tuple[Data, dict[str, Floats]]:
        values = self._values()
        return self._data(*observations(X, lengths)), values

    def score(self, X: Any, lengths: Sequence[int] | None = None) -> float:
        """The log-likelihood of all sequences together.

        `X` (frames, features) with `lengths`, or a list of sequences; NaN is missing. Raises
        HMMError for observations or values that the model cannot have.
        """
        data, values = self._given(X, lengths)
        each = e_step.log_likelihood(
            self._frames(data, values), values["startprob"], values["transmat"]
        )
        return float(each.sum())

    def score_samples(
        self, X: Any, lengths: Sequence[int] | None = None
    ) -> tuple[float, Floats]:
        """The log-likelihood, and each frame's posterior of the states (frames, K)."""
        data, values = self._given(X, lengths)
        frames = self._frames(data, values).alone()
        found = e_step.expect(frames, values["startprob"], values["transmat"])
        return float(found.log_likelihood.sum()), found.stat

    def decode(
        self, X: Any, lengths: Sequence[int] | None = None, algorithm: str | None = None
    ) -> tuple[float, Ints]:
        """The most likely states: as a sequence ("viterbi"), or of each frame alone ("map").

        With the log-probability of the sequence, or the sum of the posteriors.
        """
        algorithm = algorithm or self.algorithm
        if algorithm == "map":
            _, posterior = self.score_samples(X, lengths)
            return float(posterior.max(axis=1).sum()), posterior.argmax(axis=1)
        if algorithm != "viterbi":
            raise HMMError(f"algorithm={algorithm!r} is not known; use 'viterbi' or 'map'")
        data, values = self._given(X, lengths)
        found, states = e_step.decode(
            self._frames(data, values), values["startprob"], values["transmat"]
        )
        return float(found.sum()), states

    def predict(self, X: Any, lengths: Sequence[int] | None = None) -> Ints:
        """The states that `decode` finds."""
        return self.decode(X, lengths)[1]

    def predict_proba(self, X: Any, lengths: Sequence[int] | None = None) -> Floats:
        """The posteriors that `score_samples` finds."""
        return self.score_samples(X, lengths)[1]

    def sample(
        self, n_samples: int = 1, random_state: Any = None, currstate: int | None = None
    ) -> tuple[npt.NDArray[Any], Ints]:
        """Draw a sequence: observations (n_samples, features) and states (n_samples,)."""
        self._values()
        rng = random(self.random_state if random_state is None else random_state)
        moves = np.cumsum(self.transmat_, axis=1)
        if currstate is None:
            currstate = int((np.cumsum(self.startprob_) > rng.rand()).argmax())
        states, drawn = [currstate], [self._draw(currstate, rng)]
        for _ in range(n_samples - 1):
            currstate = int((moves[currstate] > rng.rand()).argmax())
            states.append(currstate)
            drawn.append(self._draw(currstate, rng))
        return np.atleast_2d(drawn), np.array(states, dtype=int)

    def aic(self, X: Any, lengths: Sequence[int] | None = None) -> float:
        """Akaike's criterion −2ℓ + 2k (1974): k counts free values by rank, ties and row sums
        taken off.
        """
        return -2 * self.score(X, lengths) + 2 * eadem.counts(self).free

    def bic(self, X: Any, lengths: Sequence[int] | None = None) -> float:
        """Schwarz's criterion −2ℓ + k·log(frames) (1978), with the same k."""
        frames = observations(X, lengths)[1][-1]
        return -2 * self.score(X, lengths) + eadem.counts(self).free * float(np.log(frames))

    def log_density(self, X: Any, lengths: Sequence[int] | None = None) -> Tensor:
        """The log-likelihood of each sequence, (sequences,), differentiable in the parameters.

        Its gradient at a probability p is expected count over p (Fisher's identity), from one
        E-step; a second derivative takes torch's recursion. Probabilities count as free of
        each other: that rows sum to one is the plan's to keep.
        """
        data = self._data(*observations(X, lengths))
        return log_densities(self, data, {name: getattr(self, name) for name in self.letters})

    #: What a tie that merges states makes the data forget; evidence asks it.
    drawn_scores = drawn_scores

    forward = log_density

    # Fitting.

    def fit(
        self,
        X: Any,
        lengths: Sequence[int] | None = None,
        *,
        method: str = "em",
        group: ProcessGroup | None = None,
    ) -> Self:
        """The parameters of greatest likelihood under the ties, from a start.

        Args:
            X: observations (frames, features), or a list of sequences; NaN is missing.
            lengths: of the sequences in `X`.
            method: "em" (Baum et al. 1970), or "gradient": ascent along count over
                probability within the simplex, which also takes non-linear ties of moments.
            group: processes that the data are spread over, each of which calls `fit` with its
                own sequences and gets the one fit to them all. Statistics are pooled to the
                free values, then summed. What is drawn is drawn by the first process, from
                its sequences.

        Sites in `init_params`, and those never set, are drawn first; only those in `params` are
        fitted. With `n_init` above one the best of several drawn starts is kept.
        `monitor_.history` has the log-likelihood before every step. Raises HMMError for
        observations that the model cannot have, SolverError where processes start from
        different values.
        """
        if method not in ("em", "gradient"):
            raise HMMError(f"method={method!r} is not known; use 'em' or 'gradient'")
        data = self._data(*observations(X, lengths))
        self._allocate()
        for name, letter in self.letters.items():
            if name in self._known and letter in self.init_params:
                _log.warning(
                    "%s is set and will be overwritten by a drawn start, since init_params has "
                    "%r; leave that out to start from what is set",
                    name,
                    letter,
                )
        members = centred([Member("", self, data)], group)
        best: tuple[float, Tensor, Any] | None = None
        rng = random(self.random_state) if self.n_init > 1 else None
        kept = self.random_state
        for _ in range(max(1, self.n_init)):
            if rng is not None:
                self.random_state = int(rng.randint(2**31 - 1))
            try:
                begin(self, members, group)
                reached = self._fit(members, method, group)
            finally:
                self.random_state = kept
            if best is None or reached > best[0]:
                best = (reached, free_vector(self).clone(), list(self.monitor_.history))
        if self.n_init > 1 and best is not None:
            set_free_vector(self, best[1])
            self.monitor_.history[:] = best[2]
            self.monitor_.iter = len(best[2])
        return self

    def _fit(self, members: list[Member], method: str, group: ProcessGroup | None) -> float:
        if type(self.monitor_) is ConvergenceMonitor:
            vars(self.monitor_).update(tol=self.tol, n_iter=self.n_iter, verbose=self.verbose)
        self.monitor_._reset()
        if self.verbose:
            print("the first call compiles the recursions, once", file=sys.stderr)
        if method == "gradient":
            return climb(self, members[0].data, group)
        return Fitting(self, members, group).run(self.monitor_)

    def _expected(self, data: Data, values: Mapping[str, Floats]) -> Stats:
        """Statistics of all sequences together."""
        found = e_step.expect(
            self._frames(data, values), values["startprob"], values["transmat"]
        )
        stats = self._moments(data, slice(None), found.stat, values)
        return {
            **stats,
            "start": found.start,
            "trans": found.trans,
            "log_likelihood": float(found.log_likelihood.sum()),
        }

    def _score(self, affine: Affine, name: str, theta: Floats, free: Any, of: Any) -> Floats:
        """Scoring steps on one emission site, for ties without a closed form."""
        columns = affine.columns(name)
        moving = columns[free[columns]]
        equations = None
        if self.site_constraints.get(name) == "symmetric":
            equations = symmetric(affine, name)
        return ascend(affine, (name,), theta, moving, of, equations)

    def _each(self, data: Data, values: Mapping[str, Floats]) -> tuple[Expected, list[Stats]]:
        """The E-step with every sequence's statistics."""
        found = e_step.expect(
            self._frames(data, values), values["startprob"], values["transmat"], each=True
        )
        every = []
        for i, (low, high) in enumerate(zip(data.bounds[:-1], data.bounds[1:], strict=True)):
            at = slice(None) if data.x is not None else slice(low, high)
            posterior = found.stat[i] if data.x is not None else found.stat[at]
            stats = self._moments(data, at, posterior, values)
            every.append({**stats, "start": found.start[i], "trans": found.trans[i]})
        return found, every

    def _gradient(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """∂ log-likelihood / ∂ site, of every site."""
        found = self._slopes(stats, values)
        for name, key in (("startprob", "start"), ("transmat", "trans")):
            found[name] = over(stats[key], values[name])
        return found
