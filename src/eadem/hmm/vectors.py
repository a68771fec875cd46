"""What hidden Markov models of vectors share: observations, means and covariances."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eadem.hmm.base import HMM, Stats, site
from eadem.hmm.data import Data, HMMError
from eadem.hmm.mstep import Affine
from eadem.hmm.normal import KINDS, Moments, Normal, closed_covars, step_means

__all__ = ["Vectors", "like", "spread", "stacked", "wide"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Vectors(HMM):
    """A model whose states emit vectors, of one Gaussian or a mixture of them."""

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
    @abstractmethod
    def _normal(self) -> Normal:
        """The arithmetic of the kind of covariance."""

    def _flat(self, values: Mapping[str, Floats]) -> tuple[Floats, Floats]:
        """Means (C, F) and covariances of all components."""
        means, covars = values["means"], values["covars"]
        F, kind = means.shape[-1], self.covariance_type
        shape: tuple[int, ...] = {"spherical": (-1,), "diag": (-1, F)}.get(kind, (-1, F, F))
        return means.reshape(-1, F), covars.reshape(shape)

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
        first, second = self._normal.slopes(_moments(stats), means - stats["centre"], covars)
        shapes = {n: values[n].shape for n in ("means", "covars")}
        return {
            "means": first.reshape(shapes["means"]),
            "covars": second.reshape(shapes["covars"]),
        }

    def _curvature(self, stats: Stats, values: Mapping[str, Floats]) -> dict[str, Any]:
        _, covars = self._flat(values)
        means, second = self._normal.curvature(_moments(stats), covars)
        return {"means": means, "covars": second}

    def _alike(self, models: Sequence[Any], sites: Mapping[str, Ints]) -> dict[str, Ints]:
        F, kind = self.n_features, self.covariance_type
        assert F is not None
        means, covars = sites["means"].reshape(-1, F), sites["covars"]
        C = len(means)
        found = super()._alike(models, sites)
        if kind in ("spherical", "diag"):
            each = np.broadcast_to(covars.reshape(C, -1), (C, F))
            both = _numbered(np.stack([means.ravel(), each.ravel()], 1))
            return {**found, "n": both, "s": both, "ss": each.ravel()}
        # A mean's entries are weighted by the inverse of a whole matrix.
        whole = _numbered(covars.reshape(-1, F * F))[_normal(models).of]
        both = _numbered(np.column_stack([means, whole]))[:, None] * F + np.arange(F)
        squares = whole[:, None] * F * F + np.arange(F * F)
        return {**found, "n": both.ravel(), "s": both.ravel(), "ss": squares.ravel()}

    def _emissions(
        self,
        models: Sequence[Vectors],
        stats: Sequence[Stats],
        affine: Affine,
        theta: Floats,
        free: Any,
    ) -> Floats:
        together = _Together.of(models, stats)
        theta = self._means_step(together, affine, theta, free)
        return self._covars_step(together, affine, theta, free)

    @abstractmethod
    def _mean_prior(self, shape: tuple[int, ...]) -> tuple[Floats, Floats]:
        """Prior means and their weights, (C, F)."""

    @abstractmethod
    def _covar_prior(self, shape: tuple[int, ...], per: Floats) -> tuple[Any, Any]:
        """What is added to Σγ(x − μ)² of each covariance, and to its weight."""

    def _means_step(self, given: _Together, affine: Affine, theta: Floats, free: Any) -> Floats:
        m, normal = given.moments, given.normal
        values = affine.split(affine.expand(theta))
        weight = given.strength + m.n
        target = given.strength * given.prior + m.s + m.n * given.centre
        target = np.divide(target, weight, out=np.zeros_like(target), where=weight > 0)
        _, covars = self._flat(values)
        precision = normal.precision(covars, m.n.shape[1])
        flat = target.reshape(-1), weight.reshape(-1)
        return step_means(affine, theta, free, *flat, precision)

    def _covars_step(
        self, given: _Together, affine: Affine, theta: Floats, free: Any
    ) -> Floats:
        m, normal = given.moments, given.normal
        means, covars = self._flat(affine.split(affine.expand(theta)))
        away = means - given.prior
        scatter = m.about(means - given.centre)
        if scatter.ndim == 2:
            scatter = scatter + given.strength * away**2
            total, weight = normal.pooled(scatter, m.n, len(covars))
        else:
            outer = away[:, :, None] * away[:, None, :]
            scatter = scatter + given.strength[:, :1, None] * outer
            total, weight = normal.pooled(scatter, m.n[:, 0], len(covars))
        more, heavier = given.covar_prior(total, weight)
        total, weight = total + more, weight + heavier
        found = closed_covars(affine, theta, free, normal.kind, total, weight)
        if found is not None:
            return found

        def objective(values: Mapping[str, Floats]) -> Any:
            return normal.objective(total, weight, values["covars"].reshape(total.shape))

        return self._score(affine, "covars", theta, free, objective)


@dataclass(frozen=True)
class _Together:
    """Statistics and priors of the components of several models, one after the other."""

    models: Sequence[Vectors]
    normal: Normal
    moments: Moments
    centre: Any
    prior: Floats
    strength: Floats

    @staticmethod
    def of(models: Sequence[Vectors], stats: Sequence[Stats]) -> _Together:
        n, s, ss = (np.concatenate([given[k] for given in stats]) for k in ("n", "s", "ss"))
        shapes = [given["n"].shape for given in stats]
        priors = [m._mean_prior(s) for m, s in zip(models, shapes, strict=True)]
        mean, strength = (np.concatenate(p) for p in zip(*priors, strict=True))
        moments, centre = Moments(n, s, ss), stats[0]["centre"]
        return _Together(models, _normal(models), moments, centre, mean, strength)

    def covar_prior(self, total: Floats, weight: Floats) -> tuple[Floats, Floats]:
        """What each model adds to the sums and weights of its covariances."""
        more, heavier, low = np.zeros_like(total), np.zeros_like(weight), 0
        for model in self.models:
            at = slice(low, low + model._normal.count)
            more[at], heavier[at] = model._covar_prior(total[at].shape, weight[at])
            low = at.stop
        return more, heavier


def _normal(models: Sequence[Vectors]) -> Normal:
    """The arithmetic of the components of several models."""
    of, low = [], 0
    for model in models:
        of.append(model._normal.of + low)
        low += model._normal.count
    return Normal(models[0].covariance_type, np.concatenate(of))


def _numbered(rows: Ints) -> Ints:
    """Equal numbers for equal rows."""
    found: Ints = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)
    return found


def _moments(stats: Stats) -> Moments:
    return Moments(stats["n"], stats["s"], stats["ss"])


def stacked(covars: Floats, kind: str) -> Floats:
    """Covariances with a leading axis."""
    return covars[None] if kind == "tied" and covars.ndim == 2 else covars


def like(value: Any, shape: tuple[int, ...]) -> Any:
    """A prior in a shape, where it has that many values."""
    value = np.asarray(value, dtype=float)
    return value.reshape(shape) if value.size == int(np.prod(shape)) else value


def wide(value: Any, shape: tuple[int, ...]) -> Floats:
    """A prior of each state, or of each feature, for all of both."""
    given = np.asarray(value, dtype=float)
    if given.ndim == 1 and given.shape != shape[1:]:
        given = given[:, None]
    return np.broadcast_to(given, shape)


def spread(data: Data, floor: float, kind: str, shape: tuple[int, ...]) -> Floats:
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
