"""Hidden Markov models of vectors: Gaussian states, and states that are mixtures of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp
from torch import Tensor

from eadem.hmm.base import HMM, Stats, over, random, site
from eadem.hmm.data import Data, HMMError
from eadem.hmm.discrete import _given
from eadem.hmm.mstep import Affine
from eadem.hmm.normal import KINDS, Moments, Normal, closed_covars, step_means
from eadem.hmm.start import centres

__all__ = ["GaussianHMM", "MixtureHMM"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class _Vectors(HMM):
    """What Gaussian states and mixtures share: observations, means and covariances."""

    covariance_type: str
    min_covar: float
    means_prior: Any
    means_weight: Any
    covars_prior: Any
    covars_weight: Any
    means_ = site("means")

    def __init__(self, **given: Any) -> None:
        if given["covariance_type"] not in KINDS:
            raise HMMError(
                f"covariance_type={given['covariance_type']!r} is not known; use one of {KINDS}"
            )
        super().__init__(**given)
        full = self.covariance_type in ("full", "tied")
        kept = {"covars": "symmetric"} if full else {}
        self.site_constraints = {**type(self).site_constraints, **kept}

    @property
    def _normal(self) -> Normal:
        raise NotImplementedError

    def _flat(self, values: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Means (C, F) and covariances of all components."""
        raise NotImplementedError

    def _infer_features(self, name: str, value: Floats) -> None:
        if name == "means" and self.n_features is None and value.ndim >= 2:
            self.n_features = value.shape[-1]

    def _default(self, name: str) -> Floats:
        shape = self._shape(name)
        assert shape is not None
        if name == "means":
            return np.zeros(shape)
        if name == "covars":
            if self.covariance_type in ("full", "tied"):
                return np.broadcast_to(np.eye(shape[-1]), shape).copy()
            return np.ones(shape)
        return super()._default(name)

    def _valid(self, name: str, value: Floats) -> Floats:
        if not np.isfinite(value).all():
            raise HMMError(f"{name} must be finite")
        if name == "covars":
            if self.covariance_type in ("spherical", "diag"):
                if (value <= 0).any():
                    raise HMMError("variances must be positive")
            else:
                mirrored = np.swapaxes(value, -1, -2)
                if not np.allclose(value, mirrored):
                    raise HMMError("covariances must be symmetric")
                if (np.linalg.eigvalsh(value) <= 0).any():
                    raise HMMError("covariances must be positive definite")
                value = (value + mirrored) / 2
        return super()._valid(name, value)

    def _data(self, X: Any, bounds: Ints) -> Data:
        if self.n_features is None:
            self.n_features = X.shape[1]
        if X.shape[1] != self.n_features:
            raise HMMError(f"the model has {self.n_features} features; X has {X.shape[1]}")
        X = X.astype(np.float64)
        missing = np.isnan(X)
        if not missing.any():
            centre = X.mean(axis=0)
            return Data(X - centre, bounds, centre=centre)
        if (
            self.covariance_type in ("full", "tied")
            and (missing.any(1) & ~missing.all(1)).any()
        ):
            raise HMMError(
                "some frames lack some of their features, which covariance_type="
                f"{self.covariance_type!r} does not take; use 'diag', or make all features of "
                "such a frame NaN"
            )
        count = np.maximum((~missing).sum(0), 1)
        centre = np.where(missing, 0.0, X).sum(0) / count
        return Data(np.where(missing, 0.0, X - centre), bounds, None, ~missing, centre)

    def _components(self, data: Data, at: Any, values: Mapping[str, Floats]) -> Floats:
        """Log densities of all components, (rows, C)."""
        means, covars = self._flat(values)
        seen = None if data.seen is None else data.seen[at]
        return self._normal.log_density(data.rows[at], seen, means - data.centre, covars)

    def _torch_components(self, data: Data, values: Mapping[str, Tensor]) -> Tensor:
        F = data.rows.shape[1]
        means = values["means"].reshape(-1, F)
        away = torch.from_numpy(data.rows).unsqueeze(1) - (
            means - torch.from_numpy(np.asarray(data.centre))
        )  # (N, C, F)
        normal, covars = self._normal, values["covars"]
        level = float(np.log(2 * np.pi))
        if normal.kind in ("spherical", "diag"):
            v = covars.reshape(-1, 1) if normal.kind == "spherical" else covars.reshape(-1, F)
            each = -0.5 * (level + v.log() + away**2 / v)
            if data.seen is not None:
                each = torch.where(torch.from_numpy(data.seen).unsqueeze(1), each, 0.0)
            total: Tensor = each.sum(-1)
            return total
        matrices = covars.reshape(-1, F, F)[torch.from_numpy(normal.of)]
        inverse = torch.linalg.inv(matrices)
        squares = torch.einsum("nci,cij,ncj->nc", away, inverse, away)
        found = -0.5 * (F * level + torch.linalg.slogdet(matrices)[1] + squares)
        if data.seen is not None:
            found = torch.where(torch.from_numpy(data.seen.all(1)).unsqueeze(1), found, 0.0)
        result: Tensor = found
        return result

    def _slopes(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Floats]:
        means, covars = self._flat(values)
        first, second = self._normal.slopes(stats["moments"], means - stats["centre"], covars)
        shapes = {n: values[n].shape for n in ("means", "covars")}
        return {
            "means": first.reshape(shapes["means"]),
            "covars": second.reshape(shapes["covars"]),
        }

    def _curvature(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Any]:
        _, covars = self._flat(values)
        means, second = self._normal.curvature(stats["moments"], covars)
        return {"means": means, "covars": second}

    def _emissions(self, stats: Stats, affine: Affine, theta: Floats, free: Any) -> Floats:
        theta = self._means_step(stats, affine, theta, free)
        return self._covars_step(stats, affine, theta, free)

    def _mean_prior(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        """Prior means and their weights, (C, F)."""
        raise NotImplementedError

    def _covar_prior(self, shape: tuple[int, ...], per: Floats) -> tuple[Any, Any]:
        """What is added to Σγ(x − μ)² of each covariance, and to its weight."""
        raise NotImplementedError

    def _means_step(self, stats: Stats, affine: Affine, theta: Floats, free: Any) -> Floats:
        m: Moments = stats["moments"]
        values = affine.split(affine.expand(theta))
        prior, strength = self._mean_prior(m.n.shape)
        weight = strength + m.n
        target = strength * prior + m.s + m.n * stats["centre"]
        target = np.divide(target, weight, out=np.zeros_like(target), where=weight > 0)
        _, covars = self._flat(values)
        precision = self._normal.precision(covars, m.n.shape[1])
        flat = target.reshape(-1), weight.reshape(-1)
        return step_means(affine, theta, free, *flat, precision)

    def _covars_step(self, stats: Stats, affine: Affine, theta: Floats, free: Any) -> Floats:
        m: Moments = stats["moments"]
        normal, values = self._normal, affine.split(affine.expand(theta))
        means, covars = self._flat(values)
        prior, strength = self._mean_prior(m.n.shape)
        away = means - prior
        scatter = m.about(means - stats["centre"])
        if scatter.ndim == 2:
            scatter = scatter + strength * away**2
            total, weight = normal.pooled(scatter, m.n, len(covars))
        else:
            outer = away[:, :, None] * away[:, None, :]
            scatter = scatter + strength[:, :1, None] * outer
            total, weight = normal.pooled(scatter, m.n[:, 0], len(covars))
        more, heavier = self._covar_prior(total.shape, weight)
        total, weight = total + more, weight + heavier
        shape = affine.shapes["covars"]
        found = closed_covars(affine, theta, free, normal.kind, total, weight)
        if found is not None:
            return found

        def objective(given: Mapping[str, Floats]) -> Any:
            return normal.objective(total, weight, given["covars"].reshape(total.shape))

        assert len(shape)
        return self._score(stats, affine, "covars", theta, free, objective)


class GaussianHMM(_Vectors):
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
        return self._normal.matrices(_stacked(covars, self.covariance_type), self.n_features)

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

    def _flat(self, values: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        return values["means"], _stacked(values["covars"], self.covariance_type)

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
        return {"moments": found, "centre": data.centre}

    def _mean_prior(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        return _wide(self.means_prior, shape), _wide(self.means_weight, shape)

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
            found["covars"] = _spread(data, self.min_covar, self.covariance_type, shape)
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        return rng.multivariate_normal(self.means_[state], self.covars_[state])


class MixtureHMM(_Vectors):
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

    def _flat(self, values: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        means, covars = values["means"], values["covars"]
        F, kind = means.shape[-1], self.covariance_type
        shape: tuple[int, ...] = {"spherical": (-1,), "diag": (-1, F)}.get(kind, (-1, F, F))
        return means.reshape(-1, F), covars.reshape(shape)

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
        return {"moments": found, "centre": data.centre, "mixed": share.sum(0)}

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
                return _like(more, shape), 0.0
            extra = 1.0 if self.covariance_type == "diag" else float(F)
            return _like(more, shape), extra + 2.0 * (
                _like(np.asarray(prior, float), shape) + 1
            )
        more = 0.0 if prior is None else np.swapaxes(np.asarray(prior, float), -1, -2)
        extra = F + 2.0 if self.covariance_type == "full" else F + 1.0 + self.n_mix
        heavier = 0.0 if weight is None else np.asarray(weight, float).reshape(-1) + extra
        return _like(more, shape), heavier

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
            found["covars"] = _spread(data, self.min_covar, self.covariance_type, shape)
        return found

    def _draw(self, state: int, rng: np.random.RandomState) -> Any:
        part = rng.choice(self.n_mix, p=self.weights_[state])
        assert self.n_features is not None
        values = {"means": self.means_, "covars": self.covars_}
        means, covars = self._flat(values)
        c = state * self.n_mix + part
        matrix = self._normal.matrices(covars, self.n_features)[c]
        return rng.multivariate_normal(means[c], matrix)


def _stacked(covars: Floats, kind: str) -> Floats:
    """Covariances with a leading axis."""
    return covars[None] if kind == "tied" and covars.ndim == 2 else covars


def _like(value: Any, shape: tuple[int, ...]) -> Any:
    value = np.asarray(value, dtype=float)
    return value.reshape(shape) if value.size == int(np.prod(shape)) else value


def _wide(value: Any, shape: tuple[int, ...]) -> Floats:
    given = np.asarray(value, dtype=float)
    if given.ndim == 1 and given.shape != shape[1:]:
        given = given[:, None]
    return np.broadcast_to(given, shape)


def _spread(data: Data, floor: float, kind: str, shape: tuple[int, ...]) -> Floats:
    """The covariance of all observations, in the shape of a site."""
    X = data.rows if data.seen is None else data.rows[data.seen.all(1)]
    F = X.shape[1]
    cov = np.atleast_2d(np.cov(X.T)) if len(X) > 1 else np.eye(F)
    cov = cov + floor * np.eye(F)
    if kind == "spherical":
        return np.full(shape, cov.diagonal().mean())
    if kind == "diag":
        return np.broadcast_to(cov.diagonal(), shape).copy()
    return np.broadcast_to(cov, shape).copy()
