"""Hidden Markov models of vectors: states that are mixtures of Gaussians."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from torch import Tensor

from eadem.hmm.base import HMM, Stats, site
from eadem.hmm.data import Data, HMMError
from eadem.hmm.discrete import _given
from eadem.hmm.estimator import random
from eadem.hmm.mstep import over
from eadem.hmm.normal import Normal
from eadem.hmm.start import centres
from eadem.hmm.vectors import Vectors, like, spread

__all__ = ["MixtureHMM"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class MixtureHMM(Vectors):
    """Every state emits vectors of a mixture of `n_mix` Gaussians: hmmlearn's GMMHMM.

    Sites: `weights` (K, n_mix), `means` (K, n_mix, F) and `covars`, (K, n_mix),
    (K, n_mix, F), (K, n_mix, F, F) by `covariance_type`, or (K, F, F) for "tied": one matrix
    for all components of a state. The M-step of the covariances is about the new means, so
    that no step lowers the likelihood; hmmlearn's is about the old ones. Without priors (the
    default) it is maximum likelihood.

    >>> hmm = MixtureHMM(1, n_mix=2, n_features=1, random_state=0)
    >>> hmm.fit(np.array([0.0, 0.1, 5.0, 5.1])).means_.shape
    (1, 2, 1)
    """

    letters: ClassVar[Mapping[str, str]] = {
        **HMM.letters,
        "means": "m",
        "covars": "c",
        "weights": "w",
    }
    site_constraints: Mapping[str, str] = {**HMM.site_constraints, "weights": "rows"}
    _linear: ClassVar[Mapping[str, str]] = {**Vectors._linear, "mixed": "weights_prior"}
    n_mix: int
    weights_prior: Any
    weights_ = site("weights")
    covars_ = site("covars")

    def __init__(
        self,
        n_components: int = 1,
        n_mix: int = 1,
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        weights_prior: Any = 1.0,
        means_prior: Any = 0.0,
        means_weight: Any = 0.0,
        covars_prior: Any = None,
        covars_weight: Any = None,
        algorithm: str = "viterbi",
        covariance_type: str = "diag",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmcw",
        init_params: str = "stmcw",
        implementation: str = "log",
        *,
        n_features: int | None = None,
        n_init: int = 1,
    ) -> None:
        if n_mix < 1:
            raise HMMError(f"n_mix={n_mix}; a mixture has at least one component")
        super().__init__(**_given(locals()))

    @property
    def _normal(self) -> Normal:
        K, m = self.n_components, self.n_mix
        tied = self.covariance_type == "tied"
        return Normal(
            self.covariance_type, np.repeat(np.arange(K), m) if tied else np.arange(K * m)
        )

    def _shape(self, name: str) -> tuple[int, ...] | None:
        K, m, F = self.n_components, self.n_mix, self.n_features
        if name == "weights" or (name == "covars" and self.covariance_type == "spherical"):
            return (K, m)
        if name not in ("means", "covars"):
            return super()._shape(name)
        if F is None:
            return None
        if name == "means" or self.covariance_type == "diag":
            return (K, m, F)
        return (K, m, F, F) if self.covariance_type == "full" else (K, F, F)

    def _weighted(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        """log(weight·density), (rows, K, n_mix)."""
        each = self._components(data, at, values)
        with np.errstate(divide="ignore"):
            logs = np.log(values["weights"])
        return each.reshape(len(each), self.n_components, self.n_mix) + logs

    def _log_table(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        found: Floats = logsumexp(self._weighted(data, at, values), axis=2)
        return found

    def _log_torch(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        each = self._torch_components(data, values)
        each = each.reshape(-1, self.n_components, self.n_mix)
        return torch.logsumexp(each + values["weights"].log(), dim=2)

    def _moments(
        self, data: Data, at: slice, posterior: Floats, values: Mapping[str, Floats]
    ) -> Stats:
        each = self._weighted(data, at, values)
        top = each.max(axis=2, keepdims=True)
        share = np.exp(each - np.where(np.isfinite(top), top, 0.0))
        share /= np.maximum(share.sum(axis=2, keepdims=True), 1e-300)
        share *= posterior[:, :, None]
        seen = None if data.seen is None else data.seen[at]
        flat = share.reshape(len(share), -1)
        found = self._normal.moments(data.rows[at], seen, flat)
        return {
            "n": found.n,
            "s": found.s,
            "ss": found.ss,
            "centre": data.centre,
            "mixed": share.sum(0),
        }

    def _alike(self, models: Sequence[Any], sites: Mapping[str, Ints]) -> dict[str, Ints]:
        return {**super()._alike(models, sites), "mixed": sites["weights"]}

    def _slopes(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        found = super()._slopes(stats, values)
        return {**found, "weights": over(stats["mixed"], values["weights"])}

    def _counts(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        mixed = np.maximum(stats["mixed"] + np.asarray(self.weights_prior) - 1.0, 0.0)
        return {**super()._counts(stats, values), "weights": mixed}

    def _mean_prior(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        K, m, F = self.n_components, self.n_mix, shape[1]
        prior = np.broadcast_to(np.asarray(self.means_prior, float), (K, m, F))
        weight = np.asarray(self.means_weight, float)
        weight = np.broadcast_to(weight[..., None] if weight.ndim else weight, (K, m, F))
        return prior.reshape(shape), weight.reshape(shape)

    def _covar_prior(self, shape: tuple[int, ...], per: Floats) -> tuple[Any, Any]:
        """As hmmlearn's: an inverse gamma (shape `covars_prior`, scale `covars_weight`), or an
        inverse Wishart (matrix `covars_prior`, degrees `covars_weight`).
        """
        assert self.n_features is not None
        F, prior, weight = self.n_features, self.covars_prior, self.covars_weight
        if self.covariance_type in ("spherical", "diag"):
            more = 0.0 if weight is None else 2.0 * np.asarray(weight, float)
            if prior is None:
                return like(more, shape), 0.0
            extra = 1.0 if self.covariance_type == "diag" else float(F)
            return like(more, shape), extra + 2.0 * (like(np.asarray(prior, float), shape) + 1)
        more = 0.0 if prior is None else np.swapaxes(np.asarray(prior, float), -1, -2)
        extra = F + 2.0 if self.covariance_type == "full" else F + 1.0 + self.n_mix
        heavier = 0.0 if weight is None else np.asarray(weight, float).reshape(-1) + extra
        return like(more, shape), heavier

    def _start_values(self, data: Data, names: Any) -> dict[str, Floats]:
        found = super()._start_values(data, names)
        K, m = self.n_components, self.n_mix
        rng = random(self.random_state)
        if "weights" in names:
            found["weights"] = np.full((K, m), 1.0 / m)
        if "means" in names:
            drawn = centres(data, K * m, rng) + data.centre
            order = np.argsort(drawn[:, 0], kind="stable")
            found["means"] = drawn[order].reshape(K, m, -1)
        if "covars" in names:
            shape = self._shape("covars")
            assert shape is not None
            found["covars"] = spread(data, self.min_covar, self.covariance_type, shape)
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        part = rng.choice(self.n_mix, p=self.weights_[state])
        assert self.n_features is not None
        values = {"means": self.means_, "covars": self.covars_}
        means, covars = self._flat(values)
        c = state * self.n_mix + part
        matrix = self._normal.matrices(covars, self.n_features)[c]
        return rng.multivariate_normal(means[c], matrix)
