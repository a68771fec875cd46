"""Hidden Markov models of symbols and of counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.special import gammaln
from torch import Tensor

from eadem.hmm.base import HMM, Stats, site
from eadem.hmm.data import Data, HMMError
from eadem.hmm.estimator import random
from eadem.hmm.mstep import Affine, over

__all__ = ["CategoricalHMM", "PoissonHMM"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class CategoricalHMM(HMM):
    """Every state emits symbols 0 … M − 1 with probabilities `emissionprob` (K, M).

    Arguments, methods and attributes are hmmlearn's. Observations are integers (frames, 1); a
    float array may have NaN where one is missing. `n_features` is M: given, ties can be
    declared before the first fit; otherwise it is learned from the first data. `n_init` starts
    are drawn, and the best fit kept.

    >>> import eadem
    >>> hmm = CategoricalHMM(2, n_features=3, random_state=0, n_iter=200)
    >>> _ = eadem.tie(hmm, "emissionprob[0, 0]", "emissionprob[1, 1]")
    >>> X = np.array([0, 0, 2, 1, 1, 2, 0, 0, 0, 2, 1, 1, 1, 1, 2])
    >>> hmm = hmm.fit(X)
    >>> bool(hmm.emissionprob_[0, 0] == hmm.emissionprob_[1, 1]), eadem.counts(hmm).free
    (True, 6)
    >>> bool((np.diff(hmm.monitor_.history) >= 0).all())
    True
    """

    letters: ClassVar[Mapping[str, str]] = {**HMM.letters, "emissionprob": "e"}
    site_constraints: Mapping[str, str] = {**HMM.site_constraints, "emissionprob": "rows"}
    _linear: ClassVar[Mapping[str, str]] = {**HMM._linear, "obs": "emissionprob_prior"}
    emissionprob_prior: Any
    emissionprob_ = site("emissionprob")

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        *,
        emissionprob_prior: Any = 1.0,
        n_features: int | None = None,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "ste",
        init_params: str = "ste",
        implementation: str = "log",
        n_init: int = 1,
    ) -> None:
        super().__init__(**_given(locals()))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name != "emissionprob":
            return super()._shape(name)
        return None if self.n_features is None else (self.n_components, self.n_features)

    def _infer_features(self, name: str, value: Floats) -> None:
        if name == "emissionprob" and self.n_features is None and value.ndim == 2:
            self.n_features = value.shape[1]

    def _data(self, X: Any, bounds: Ints) -> Data:
        if X.shape[1] != 1:
            raise HMMError(f"symbols have one column; X has shape {X.shape}")
        symbols = X[:, 0]
        missing = np.isnan(symbols) if symbols.dtype.kind == "f" else None
        if missing is not None and not missing.any():
            raise HMMError(f"symbols must be integers; X holds {X.dtype}")
        if missing is not None:
            whole = symbols[~missing]
            if (whole != np.floor(whole)).any():
                raise HMMError("symbols must be integers (NaN where missing)")
            symbols = np.where(missing, -1, np.nan_to_num(symbols)).astype(np.int64)
        present = symbols if missing is None else symbols[~missing]
        if present.size and present.min() < 0:
            raise HMMError(f"symbols start at 0; X holds {present.min()}")
        top = int(present.max(initial=0))
        if self.n_features is None:
            self.n_features = top + 1
        if top >= self.n_features:
            raise HMMError(
                f"the largest symbol is {top}, but the model emits symbols up to "
                f"{self.n_features - 1}; give a larger n_features"
            )
        M = self.n_features
        rows = np.arange(M if missing is None else M + 1)
        x = symbols.astype(np.int64)
        return Data(rows, bounds, x if missing is None else np.where(missing, M, x))

    def _log_table(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        p = values["emissionprob"].T
        p = np.vstack([p, np.ones((1, p.shape[1]))])
        with np.errstate(divide="ignore"):
            found: Floats = np.log(p[data.rows[at]])
        return found

    def _log_torch(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        p = values["emissionprob"].T
        p = torch.cat([p, torch.ones_like(p[:1])])
        found: Tensor = p[torch.from_numpy(data.rows)].log()
        return found

    def _moments(
        self, data: Data, at: slice, posterior: Floats, values: Mapping[str, Floats]
    ) -> Stats:
        assert self.n_features is not None
        return {"obs": posterior[: self.n_features].T}

    def _slopes(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"emissionprob": over(stats["obs"], values["emissionprob"])}

    def _curvature(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Any]:
        return {}

    def _counts(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        obs = np.maximum(stats["obs"] + np.asarray(self.emissionprob_prior) - 1.0, 0.0)
        return {**super()._counts(stats, values), "emissionprob": obs}

    def _alike(self, models: Sequence[Any], sites: Mapping[str, Ints]) -> dict[str, Ints]:
        return {**super()._alike(models, sites), "obs": sites["emissionprob"]}

    def _start_values(self, data: Data, names: Any) -> dict[str, Floats]:
        found = super()._start_values(data, names)
        if "emissionprob" in names:
            shape = self._shape("emissionprob")
            assert shape is not None
            drawn = random(self.random_state).rand(*shape)
            found["emissionprob"] = drawn / drawn.sum(axis=1, keepdims=True)
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        return [int((np.cumsum(self.emissionprob_[state]) > rng.rand()).argmax())]


class PoissonHMM(HMM):
    """Every state emits counts with rates `lambdas` (K, F), independent of each other.

    Observations are non-negative integers (frames, F), NaN where missing. `lambdas_prior` and
    `lambdas_weight` are the shape and rate of a Gamma prior: λ = (shape + Σγx)/(rate + Σγ).

    >>> hmm = PoissonHMM(1, n_features=1).fit(np.array([3, 5, 4]))
    >>> hmm.lambdas_
    array([[4.]])
    """

    letters: ClassVar[Mapping[str, str]] = {**HMM.letters, "lambdas": "l"}
    lambdas_prior: Any
    lambdas_weight: Any
    lambdas_ = site("lambdas")

    def __init__(
        self,
        n_components: int = 1,
        startprob_prior: Any = 1.0,
        transmat_prior: Any = 1.0,
        lambdas_prior: Any = 0.0,
        lambdas_weight: Any = 0.0,
        algorithm: str = "viterbi",
        random_state: Any = None,
        n_iter: int = 10,
        tol: float = 1e-2,
        verbose: bool = False,
        params: str = "stl",
        init_params: str = "stl",
        implementation: str = "log",
        *,
        n_features: int | None = None,
        n_init: int = 1,
    ) -> None:
        super().__init__(**_given(locals()))

    def _shape(self, name: str) -> tuple[int, ...] | None:
        if name != "lambdas":
            return super()._shape(name)
        return None if self.n_features is None else (self.n_components, self.n_features)

    def _default(self, name: str) -> Floats:
        if name != "lambdas":
            return super()._default(name)
        assert self.n_features is not None
        return np.ones((self.n_components, self.n_features))

    def _infer_features(self, name: str, value: Floats) -> None:
        if name == "lambdas" and self.n_features is None and value.ndim == 2:
            self.n_features = value.shape[1]

    def _valid(self, name: str, value: Floats) -> Floats:
        if name == "lambdas" and not (value >= 0).all():
            raise HMMError("rates must not be negative")
        return super()._valid(name, value)

    def _data(self, X: Any, bounds: Ints) -> Data:
        if self.n_features is None:
            self.n_features = X.shape[1]
        if X.shape[1] != self.n_features:
            raise HMMError(f"the model has {self.n_features} features; X has {X.shape[1]}")
        seen = ~np.isnan(X) if X.dtype.kind == "f" and np.isnan(X).any() else None
        counts = X.astype(np.float64) if seen is None else np.where(seen, X, 0.0)
        if (counts < 0).any() or (counts != np.floor(counts)).any():
            raise HMMError("counts must be integers, not negative (NaN where missing)")
        if seen is not None and X.shape[1] > 1:
            return Data(counts, bounds, None, seen)
        if X.shape[1] > 1:
            return Data(counts, bounds)
        keys = counts[:, 0] if seen is None else np.where(seen[:, 0], counts[:, 0], -1.0)
        rows, x = np.unique(keys, return_inverse=True)
        there = None if seen is None else (rows >= 0)[:, None]
        return Data(np.maximum(rows, 0.0)[:, None], bounds, x.astype(np.int64), there)

    def _log_table(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        X, rates = data.rows[at], values["lambdas"]
        if not (rates > 0).all():
            rates = np.maximum(rates, 1e-300)
        each = X @ np.log(rates).T
        if data.seen is None:
            found: Floats = each - rates.sum(1) - gammaln(X + 1).sum(1, keepdims=True)
            return found
        seen = data.seen[at]
        partly: Floats = each - seen @ rates.T - (gammaln(X + 1) * seen).sum(1, keepdims=True)
        return partly

    def _log_torch(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        X, rates = torch.from_numpy(data.rows), values["lambdas"]
        each = torch.special.xlogy(X.unsqueeze(1), rates) - rates
        each = each - torch.lgamma(X + 1).unsqueeze(1)
        if data.seen is not None:
            each = torch.where(torch.from_numpy(data.seen).unsqueeze(1), each, 0.0)
        total: Tensor = each.sum(-1)
        return total

    def _moments(
        self, data: Data, at: slice, posterior: Floats, values: Mapping[str, Floats]
    ) -> Stats:
        X = data.rows[at]
        if data.seen is None:
            n = np.repeat(posterior.sum(0)[:, None], X.shape[1], axis=1)
        else:
            n = posterior.T @ data.seen[at]
        return {"n": n, "obs": posterior.T @ X}

    def _slopes(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        return {"lambdas": over(stats["obs"], values["lambdas"]) - stats["n"]}

    def _curvature(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Any]:
        rates = np.maximum(values["lambdas"], 1e-150)
        curve = (stats["n"] / rates).reshape(-1)
        return {"lambdas": sp.diags_array(curve)}

    def _alike(self, models: Sequence[Any], sites: Mapping[str, Ints]) -> dict[str, Ints]:
        return {**super()._alike(models, sites), "obs": sites["lambdas"], "n": sites["lambdas"]}

    def _emissions(
        self,
        models: Sequence[PoissonHMM],
        stats: Sequence[Stats],
        affine: Affine,
        theta: Floats,
        free: Any,
    ) -> Floats:
        given = list(zip(models, stats, strict=True))
        top = np.concatenate([np.ravel(m.lambdas_prior + s["obs"]) for m, s in given])
        low = np.concatenate([np.ravel(m.lambdas_weight + s["n"]) for m, s in given])
        part = affine.phi[affine.where["lambdas"]]
        if affine.single("lambdas") and (part.data > 0).all():
            live, size = np.flatnonzero(np.diff(part.indptr) == 1), len(theta)
            pooled = np.bincount(part.indices, top[live], minlength=size)
            weight = np.bincount(part.indices, low[live] * part.data, minlength=size)
            seen = (weight > 0) & free
            theta = theta.copy()
            theta[seen] = pooled[seen] / weight[seen]
            return theta

        def objective(values: Mapping[str, Floats]) -> tuple[float, Floats, Any]:
            rates = values["lambdas"].reshape(-1)
            if not (rates > 0).all():
                return -np.inf, np.zeros_like(rates), sp.csr_matrix((len(rates),) * 2)
            value = float(top @ np.log(rates) - low @ rates)
            return value, top / rates - low, sp.diags_array(top / rates**2 + 1e-300)

        return self._score(affine, "lambdas", theta, free, objective)

    def _start_values(self, data: Data, names: Any) -> dict[str, Floats]:
        found = super()._start_values(data, names)
        if "lambdas" in names:
            X = data.rows if data.x is None else data.rows[data.x]
            mean, variance = max(float(X.mean()), 1e-3), max(float(X.var()), 1e-6)
            shape = self._shape("lambdas")
            found["lambdas"] = random(self.random_state).gamma(
                shape=mean**2 / variance, scale=variance / mean, size=shape
            )
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        return rng.poisson(self.lambdas_[state])


def _given(scope: dict[str, Any]) -> dict[str, Any]:
    """A constructor's arguments."""
    return {k: v for k, v in scope.items() if k not in ("self", "__class__")}
