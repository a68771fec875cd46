"""Hidden Markov models of vectors: Gaussian states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from eadem.hmm.base import HMM, Stats
from eadem.hmm.data import Data
from eadem.hmm.discrete import _given
from eadem.hmm.estimator import random
from eadem.hmm.normal import Normal
from eadem.hmm.start import centres
from eadem.hmm.vectors import Vectors, spread, stacked, wide

__all__ = ["GaussianHMM"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class GaussianHMM(Vectors):
    """Every state emits vectors of a Gaussian with `means` (K, F) and `covars`.

    The site `covars` is (K,) if `covariance_type` is "spherical", (K, F) if "diag", (K, F, F)
    if "full" and (F, F) if "tied"; `covars_` reads as full matrices and is set in the site's
    shape, as in hmmlearn, whose arguments, methods and attributes this has. NaN is missing:
    single features with "spherical" and "diag", else whole frames. The default priors are
    hmmlearn's; `covars_prior=0` gives maximum likelihood.

    >>> import eadem
    >>> hmm = GaussianHMM(2, n_features=1, random_state=0, covars_prior=0.0)
    >>> _ = eadem.tie(hmm, {"means[0]": eadem.Same(), "means[1]": eadem.Scale(-1.0)})
    >>> X = np.array([2.0, 2.1, 1.9, -2.0, -2.1, -1.9, 2.0, 2.05, 1.95])
    >>> hmm = hmm.fit(X)
    >>> float(abs(hmm.means_[0, 0] + hmm.means_[1, 0]))
    0.0
    """

    letters: ClassVar[Mapping[str, str]] = {**HMM.letters, "means": "m", "covars": "c"}

    def __init__(
        self,
        n_components: int = 1,
        covariance_type: str = "diag",
        min_covar: float = 1e-3,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        means_prior: Any = 0,
        means_weight: Any = 0,
        covars_prior: Any = 1e-2,
        covars_weight: Any = 1,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stmc",
        init_params: str = "stmc",
        implementation: str = "log",
        *,
        n_features: int | None = None,
        n_init: int = 1,
    ) -> None:
        super().__init__(**_given(locals()))

    @property
    def covars_(self) -> Floats:
        """Every state's covariance matrix, (K, F, F); set in the shape of the site."""
        covars = self._read("covars")
        assert self.n_features is not None
        return self._normal.matrices(stacked(covars, self.covariance_type), self.n_features)

    @covars_.setter
    def covars_(self, value: Any) -> None:
        found = np.asarray(value, dtype=np.float64)
        if self.covariance_type == "spherical" and found.ndim == 2:
            found = found.mean(axis=1)
        self._set({"covars": found})

    @property
    def _normal(self) -> Normal:
        tied = self.covariance_type == "tied"
        K = self.n_components
        return Normal(self.covariance_type, np.zeros(K, int) if tied else np.arange(K))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name not in ("means", "covars"):
            return super()._shape(name)
        K, F = self.n_components, self.n_features
        if name == "covars" and self.covariance_type == "spherical":
            return (K,)
        if F is None:
            return None
        if name == "means" or self.covariance_type == "diag":
            return (K, F)
        return (K, F, F) if self.covariance_type == "full" else (F, F)

    def _log_table(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        return self._components(data, at, values)

    def _log_torch(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        return self._torch_components(data, values)

    def _moments(
        self, data: Data, at: slice, posterior: Floats, values: Mapping[str, Floats]
    ) -> Stats:
        seen = None if data.seen is None else data.seen[at]
        found = self._normal.moments(data.rows[at], seen, posterior)
        return {"n": found.n, "s": found.s, "ss": found.ss, "centre": data.centre}

    def _mean_prior(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        return wide(self.means_prior, shape), wide(self.means_weight, shape)

    def _covar_prior(self, shape: tuple[int, ...], per: Floats) -> tuple[Any, Any]:
        assert self.n_features is not None
        more = np.asarray(self.covars_prior, dtype=float)
        if self.covariance_type == "diag":
            return more, max(self.covars_weight - 1, 0)
        F = self.n_features
        if self.covariance_type == "spherical":
            return F * more, F * max(self.covars_weight - 1, 0)
        return more, max(self.covars_weight - F, 0)

    def _start_values(self, data: Data, names: Any) -> dict[str, Floats]:
        found = super()._start_values(data, names)
        rng = random(self.random_state)
        if "means" in names:
            found["means"] = centres(data, self.n_components, rng) + data.centre
        if "covars" in names:
            shape = self._shape("covars")
            assert shape is not None
            found["covars"] = spread(data, self.min_covar, self.covariance_type, shape)
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        return rng.multivariate_normal(self.means_[state], self.covars_[state])
