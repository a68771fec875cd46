"""Gaussian emissions of several components, some of which may share a covariance.

`means` (C, F); `covars` by kind: "spherical" (C,), "diag" (C, F), "full" (C, F, F), and "tied"
(Q, F, F), where `of` (C,) says which matrix each component has. Observations are taken about
their centre, so that a large offset costs no digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from numba import njit
from scipy.linalg import solve_triangular

from eadem.hmm.data import HMMError
from eadem.hmm.mstep import Affine

__all__ = ["KINDS", "Moments", "Normal", "closed_covars", "step_means"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
KINDS = ("spherical", "diag", "full", "tied")
_jit: Any = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


@_jit
def _squares(X, seen, some, means, weight, out):  # type: ignore[no-untyped-def]
    """out[t, k] −= ½ Σ_f weight[f, k]·(X[t, f] − means[f, k])², over what is seen."""
    for t in range(X.shape[0]):
        for f in range(X.shape[1]):
            if some and not seen[t, f]:
                continue
            x = X[t, f]
            for k in range(out.shape[1]):
                d = x - means[f, k]
                out[t, k] -= 0.5 * weight[f, k] * d * d


@_jit
def _sums(X, seen, some, posterior, n, s, ss):  # type: ignore[no-untyped-def]
    """n, s and ss (F, C) += Σ γ, Σ γx and Σ γx², over what is seen."""
    for t in range(X.shape[0]):
        for f in range(X.shape[1]):
            if some and not seen[t, f]:
                continue
            x = X[t, f]
            for k in range(posterior.shape[1]):
                g = posterior[t, k]
                w = g * x
                n[f, k] += g
                s[f, k] += w
                ss[f, k] += w * x


@dataclass(frozen=True)
class Moments:
    """Σ γ, Σ γx and Σ γxx of each component, x about the centre.

    `n` and `s` (C, F); `ss` (C, F), or (C, F, F) for full matrices.
    """

    n: Floats
    s: Floats
    ss: Floats

    def about(self, diff: Floats) -> Floats:
        """Σ γ(x − μ)(x − μ), for μ less the centre: squares, or matrices."""
        if self.ss.ndim == 2:
            found: Floats = self.ss - 2 * diff * self.s + diff**2 * self.n
            return found
        cross = self.s[:, :, None] * diff[:, None, :]
        outer = diff[:, :, None] * diff[:, None, :] * self.n[:, :1, None]
        matrices: Floats = self.ss - cross - cross.transpose(0, 2, 1) + outer
        return matrices


@dataclass(frozen=True)
class Normal:
    """The arithmetic of one kind of covariance."""

    kind: str
    of: Ints

    @property
    def count(self) -> int:
        """The number of covariances."""
        return int(self.of.max()) + 1

    def variances(self, covars: Floats, features: int) -> Floats:
        """(C, F), of the kinds without correlations."""
        if self.kind == "spherical":
            return np.repeat(covars[:, None], features, axis=1)
        return covars

    def matrices(self, covars: Floats, features: int) -> Floats:
        """(C, F, F), of every kind."""
        if self.kind in ("full", "tied"):
            return covars[self.of]
        found = np.zeros((len(self.of), features, features))
        i = np.arange(features)
        found[:, i, i] = self.variances(covars, features)
        return found

    def log_density(self, X: Floats, seen: Any, means: Floats, covars: Floats) -> Floats:
        """(N, C). Raises HMMError where a covariance is not positive definite."""
        C, F = means.shape
        if self.kind in ("spherical", "diag"):
            v = self.variances(covars, F)
            if not (v > 0).all():
                raise HMMError("variances must be positive")
            level = -0.5 * (np.log(2 * np.pi) + np.log(v))  # (C, F)
            if seen is None:
                out = np.empty((len(X), C))
                out[:] = level.sum(1)
                mask = np.zeros((1, 1), dtype=bool)
            else:
                out, mask = seen @ level.T, seen
            _squares(
                X,
                mask,
                seen is not None,
                np.ascontiguousarray(means.T),
                np.ascontiguousarray(1.0 / v.T),
                out,
            )
            return out
        out = np.empty((len(X), C))
        for c in range(C):
            root = _root(covars[self.of[c]])
            z = solve_triangular(root, (X - means[c]).T, lower=True)
            level = -0.5 * F * np.log(2 * np.pi) - np.log(root.diagonal()).sum()
            out[:, c] = level - 0.5 * (z * z).sum(0)
        if seen is not None:
            out[~seen.all(1)] = 0.0
        return out

    def moments(self, X: Floats, seen: Any, posterior: Floats) -> Moments:
        """From posteriors (N, C)."""
        if self.kind in ("spherical", "diag"):
            mask = np.zeros((1, 1), dtype=bool) if seen is None else seen
            total = np.zeros((3, X.shape[1], posterior.shape[1]))
            _sums(X, mask, seen is not None, posterior, *total)
            n, s, ss = (np.ascontiguousarray(v.T) for v in total)
            return Moments(n, s, ss)
        if seen is not None:
            posterior = posterior * seen.all(1)[:, None]
        n = np.repeat(posterior.sum(0)[:, None], X.shape[1], axis=1)
        ss = np.stack([(X * g[:, None]).T @ X for g in posterior.T])
        return Moments(n, posterior.T @ X, ss)

    def precision(self, covars: Floats, features: int) -> Any:
        """Block-diagonal precision of all components' means, flat (sparse)."""
        if self.kind in ("spherical", "diag"):
            return sp.diags_array(1.0 / self.variances(covars, features).reshape(-1)).tocsr()
        return sp.block_diag(np.linalg.inv(covars)[self.of], format="csr")

    def pooled(self, each: Floats, per: Floats, count: int) -> tuple[Floats, Floats]:
        """Sums over the components of one covariance of the numerators `each` and of the
        weights `per`, both shaped as `Moments.about`'s result and (C, F) or (C,).
        """
        if self.kind == "diag":
            return each, per
        if self.kind == "spherical":
            return each.sum(1), per.sum(1)
        total, weight = np.zeros((count, *each.shape[1:])), np.zeros(count)
        np.add.at(total, self.of, each)
        np.add.at(weight, self.of, per)
        return total, weight

    def slopes(self, m: Moments, diff: Floats, covars: Floats) -> tuple[Floats, Floats]:
        """∂ℓ/∂means (C, F) and ∂ℓ/∂covars."""
        F = diff.shape[1]
        residual = m.s - m.n * diff
        scatter = m.about(diff)
        if self.kind in ("spherical", "diag"):
            v = self.variances(covars, F)
            slope = 0.5 * (scatter / v - m.n) / v
            return residual / v, slope.sum(1) if self.kind == "spherical" else slope
        inverse = np.linalg.inv(covars)
        total, weight = self.pooled(scatter, m.n[:, 0], len(covars))
        slope = 0.5 * (inverse @ total @ inverse - weight[:, None, None] * inverse)
        return np.einsum("cij,cj->ci", inverse[self.of], residual), slope

    def curvature(self, m: Moments, covars: Floats) -> tuple[Any, Any]:
        """Fisher's information of the complete data, of means and of covariances (sparse)."""
        F = m.n.shape[1]
        means = self.precision(covars, F).multiply(m.n.reshape(-1, 1)).tocsr()
        if self.kind == "spherical":
            return means, sp.diags_array(m.n.sum(1) / (2 * covars**2))
        if self.kind == "diag":
            return means, sp.diags_array((m.n / (2 * covars**2)).reshape(-1))
        inverse = np.linalg.inv(covars)
        weight = np.bincount(self.of, m.n[:, 0], minlength=len(covars))
        blocks = [0.5 * w * np.kron(i, i) for w, i in zip(weight, inverse, strict=True)]
        return means, sp.block_diag(blocks, format="csr")

    def objective(self, total: Floats, weight: Floats, covars: Floats) -> Any:
        """−½(weight·log v + total/v), its gradient and information; −∞ where not defined."""
        flat = sp.csr_matrix((covars.size, covars.size))
        if self.kind in ("spherical", "diag"):
            if not (covars > 0).all():
                return -np.inf, np.zeros(covars.size), flat
            value = -0.5 * float((weight * np.log(covars) + total / covars).sum())
            slope = 0.5 * (total / covars - weight) / covars
            return (
                value,
                slope.reshape(-1),
                sp.diags_array((weight / (2 * covars**2)).reshape(-1)),
            )
        try:
            roots = np.linalg.cholesky(covars)
        except np.linalg.LinAlgError:
            return -np.inf, np.zeros(covars.size), flat
        inverse = np.linalg.inv(covars)
        logs = 2 * np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(1)
        value = -0.5 * float((weight * logs).sum() + (inverse * total).sum())
        slope = 0.5 * (inverse @ total @ inverse - weight[:, None, None] * inverse)
        blocks = [0.5 * w * np.kron(i, i) for w, i in zip(weight, inverse, strict=True)]
        return value, slope.reshape(-1), sp.block_diag(blocks, format="csr")


def _root(covariance: Floats) -> Floats:
    try:
        found: Floats = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    except np.linalg.LinAlgError as error:
        raise HMMError(
            "a covariance is not positive definite: a state has too few observations; use "
            "another covariance_type, a larger covars_prior, or tie the covariances"
        ) from error
    return found


def step_means(
    affine: Affine,
    theta: Floats,
    free: Any,
    target: Floats,
    weight: Floats,
    precision: Any,
) -> Floats:
    """θ of the least Σ weight·(μ − target)ᵀ·precision·(μ − target): the M-step of the means.

    `target`, `weight` flat, as the site "means". Untied means are their targets; tied ones are
    weighted by precision. What has no weight stays.
    """
    at = affine.where["means"]
    part = affine.phi[at]
    plain = affine.single("means") and (part.data == 1).all()
    theta = theta.copy()
    if plain and part.nnz == part.shape[0]:
        use = np.bincount(part.indices, minlength=len(theta))
        if (use[part.indices] == 1).all():
            seen = (weight > 0) & free[part.indices]
            theta[part.indices[seen]] = target[seen]
            return theta
    moving = affine.columns("means")
    moving = moving[free[moving]]
    phi = part[:, moving]
    now = affine.expand(theta)[at]
    away = np.where(weight > 0, target - now, 0.0)
    root = sp.diags_array(np.sqrt(weight))
    metric = root @ precision @ root
    inner = (phi.T @ metric @ phi).tocsr()
    pulled = phi.T @ (metric @ away)
    diagonal = inner.diagonal()
    if inner.nnz == np.count_nonzero(diagonal):
        move = np.divide(pulled, diagonal, out=np.zeros_like(pulled), where=diagonal > 0)
    else:
        move = np.linalg.lstsq(inner.toarray(), pulled, rcond=1e-13)[0]
    theta[moving] += move
    return theta


def closed_covars(
    affine: Affine, theta: Floats, free: Any, kind: str, total: Floats, weight: Floats
) -> Floats | None:
    """θ after the M-step of covariances where it has a closed form, else None.

    Variances that are one free value each, scaled, pool: θ = Σ total/scale / Σ weight. So do
    matrices tied as a whole.
    """
    at, shape = affine.where["covars"], affine.shapes["covars"]
    if not affine.single("covars"):
        return None
    part = affine.phi[at]
    entries = np.flatnonzero(np.diff(part.indptr) == 1)
    which = part.indices
    if not (part.data > 0).all():
        return None
    size, scale = len(theta), part.data
    if kind in ("spherical", "diag"):
        top = np.bincount(which, total.reshape(-1)[entries] / scale, minlength=size)
        low = np.bincount(which, weight.reshape(-1)[entries], minlength=size)
    else:
        matrix = np.full(part.shape[0], -1)
        matrix[entries] = which
        matrix = matrix.reshape(-1, shape[-1] ** 2)
        if not (scale == 1).all() or not _whole(matrix, shape[-1]):
            return None
        top = np.bincount(which, total.reshape(-1)[entries], minlength=size)
        each = np.repeat(weight, shape[-1] ** 2)[entries]
        low = np.bincount(which, each, minlength=size)
    found = theta.copy()
    seen = (low > 0) & free
    found[seen] = top[seen] / low[seen]
    return found


def _whole(matrix: Ints, side: int) -> bool:
    """Whether matrices of free values are constant, or equal or disjoint as a whole."""
    live = (matrix >= 0).all(axis=1)
    if not (live | (matrix < 0).all(axis=1)).all():
        return False
    kinds = np.unique(matrix[live], axis=0)
    upper = np.triu_indices(side)
    used: set[int] = set()
    for row in kinds:
        square = row.reshape(side, side)
        apart = set(row.tolist())
        alone = len(apart) == row.size
        mirrored = (square == square.T).all() and len(apart) == len(upper[0])
        if not (alone or mirrored) or used & apart:
            return False
        used |= apart
    return True
