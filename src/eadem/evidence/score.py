"""The score test of a tie: what φᵀ throws away, weighed by the information in the data.

At a tied fit the pooled gradient φᵀg is zero, but the gradient g at the sites is not. Its
part along the directions that the tie forbids is the data's case against the tie, and needs
no untied fit. One function serves every model, because it sees only a map and tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from eadem.errors import EademError, TooLarge
from eadem.maps.base import DENSE_LIMIT, LinearMap, numel

__all__ = [
    "ChiSquare",
    "EvidenceError",
    "NullFit",
    "Projection",
    "ScoreResult",
    "chi_square",
    "columns",
    "holm",
    "range_basis",
    "sandwich",
    "score_statistic",
]

#: Directions whose information, in units of the sites' own, is below this are unidentified.
IDENTIFIED = 1e-9
#: Sines of angles between subspaces below this are zero.
NESTED = 1e-8
#: A tied fit that could still gain this much in 2·log-likelihood is noted.
STATIONARY = 1e-2


class EvidenceError(EademError, ValueError):
    """A test cannot be made of what it was given."""


@dataclass(frozen=True)
class ChiSquare:
    """A statistic with its degrees of freedom and the χ² tail above it."""

    statistic: float
    df: int
    pvalue: float


@dataclass(frozen=True)
class ScoreResult:
    """The verdict of a score test.

    `expected_change` is, at every site (the map's `out_shape`), how far its value is expected
    to move when the constraint is let go and everything is fitted again, to first order;
    `stderr` is its standard error. `unidentified` has one column per released direction that
    the data do not identify, in site coordinates. `stationarity` is what the tied fit could
    still gain in 2·log-likelihood: about zero at its maximum. `robust` is the same test with
    the sandwich variance, where one was asked for and could be made. `notes` says in words
    what a reader must know.
    """

    statistic: float
    df: int
    pvalue: float
    expected_change: Tensor
    stderr: Tensor
    unidentified: Tensor
    stationarity: float
    robust: ChiSquare | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"score test: χ²({self.df}) = {self.statistic:.4g}, p = {self.pvalue:.3g}"]
        if self.robust is not None:
            r = self.robust
            lines.append(f"robust:     χ²({r.df}) = {r.statistic:.4g}, p = {r.pvalue:.3g}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def score_statistic(
    null: LinearMap,
    gradient: Tensor,
    information: Tensor,
    alternative: LinearMap | None = None,
    release: Tensor | None = None,
    middle: Tensor | None = None,
) -> ScoreResult:
    """The score statistic of `null` against `alternative`, at a fit under `null`.

    `null` is the tie's bound linear map φ (of a non-linear tie, `map.linearize(theta)`);
    `gradient` g is that of the log-likelihood at the sites, of n values; `information` I is
    the sites' (n, n). What is released is the part of range(`alternative`) outside range(φ):
    a wider plan, or φ and the columns of `release` (n, q), or, with neither, every direction
    of the site space. `middle` B (n, n) is Σ s sᵀ over independent observations or clusters,
    s their gradients; it makes the sandwich form, which holds if the model is wrong.

    With N the released directions and C = Nᵀ(Id − Iφ(φᵀIφ)⁻¹φᵀ): u = Cg, V = CICᵀ,
    LM = uᵀV⁻¹u ~ χ² with rank(V) degrees of freedom (Rao 1948; Aitchison & Silvey 1958), and
    robust LM = uᵀ(CBCᵀ)⁻¹u (White 1982; Boos, Amer. Statist. 46, 1992). u is Nᵀg where
    φᵀg = 0; Cg allows for a fit that has not quite converged (Neyman's C(α)). The result does
    not depend on the bases of φ and N or on the units of the sites: the sites are first
    scaled to unit information. float64 throughout.

    Raises EvidenceError where the arguments do not fit together, TooLarge above DENSE_LIMIT
    sites.

    Two counts, tied: is Poisson 30 against Poisson 50 one rate? (50 − 30)²/80 = 5.

    >>> from eadem.maps import Same
    >>> from eadem.maps.algebra import stack
    >>> tie = stack([Same().bind(()), Same().bind(())])
    >>> counts, rate = torch.tensor([30.0, 50.0]), 40.0
    >>> result = score_statistic(tie, counts / rate - 1, torch.eye(2) / rate)
    >>> print(result)
    score test: χ²(1) = 5, p = 0.0253
    >>> result.expected_change.round(decimals=6)
    tensor([-10.,  10.], dtype=torch.float64)
    """
    _check(null, alternative, release)
    fit = NullFit(null, information)
    columns = fit.directions(alternative, release)
    found = fit.project(gradient, columns)
    robust, notes = None, list(found.notes)
    if middle is not None:
        b = _symmetric(middle, fit.n, "the middle matrix")
        robust = sandwich(found.along.T @ b @ found.along, found.z, notes)
    return found.result(robust, notes)


@dataclass(frozen=True)
class Projection:
    """The gradient at a tied fit, along what is released and identified.

    `along` (n, df): the directions C, in site coordinates, combined so that `z` = alongᵀg
    (df,) has unit variance under the model. `lost` (n, k): released directions that the data
    do not identify. `shape`: that of the sites' values.
    """

    along: Tensor
    z: Tensor
    lost: Tensor
    stationarity: float
    notes: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def change(self) -> Tensor:
        """The expected change of every site's value, flat."""
        return self.along @ self.z

    def result(self, robust: ChiSquare | None, notes: list[str]) -> ScoreResult:
        """The verdict."""
        return ScoreResult(
            **vars(chi_square(float(self.z @ self.z), self.z.numel())),
            expected_change=self.change.reshape(self.shape),
            stderr=self.along.norm(dim=1).reshape(self.shape),
            unidentified=self.lost,
            stationarity=self.stationarity,
            robust=robust,
            notes=tuple(notes),
        )


class NullFit:
    """A tied fit's map and information, prepared once for any number of releases.

    Raises TooLarge above DENSE_LIMIT sites.
    """

    def __init__(self, null: LinearMap, information: Tensor) -> None:
        self.shape, n = null.out_shape, numel(null.out_shape)
        if n > DENSE_LIMIT:
            raise TooLarge(f"a score test over {n} sites; the dense one takes {DENSE_LIMIT}")
        self.n = n
        info = _symmetric(information, n, "the information")
        unit = info.diagonal().abs().sqrt()
        self.unit = torch.where(unit > 0, unit, 1.0)
        self.info = info / self.unit / self.unit.unsqueeze(1)
        self.tied = range_basis(self.unit.unsqueeze(1) * null.dense())
        self.across = self.info @ self.tied
        self.inverse, self.loose = _pseudo_inverse(self.tied.T @ self.across)

    @property
    def identified(self) -> int:
        """The number of free values that the data identify: rank(φᵀIφ)."""
        return self.tied.shape[1] - self.loose.shape[1]

    def directions(
        self, alternative: LinearMap | None = None, release: Tensor | None = None
    ) -> Tensor:
        """Orthonormal directions, in scaled sites, that complete range(φ) to what is let go."""
        return _released(self.tied, self.unit, alternative, release)

    def project(self, gradient: Tensor, released: Tensor) -> Projection:
        """The gradient of the log-likelihood at the sites (n,), along `directions(…)`."""
        g = _as(gradient, (self.n,), "the gradient") / self.unit
        # Cᵀ: each released direction, less what the tied parameters do to make up for it.
        effective = released - self.tied @ (self.inverse @ (self.across.T @ released))
        pulled = self.tied.T @ g
        stationarity = float(pulled @ self.inverse @ pulled)
        v = effective.T @ self.info @ effective
        values, vectors = torch.linalg.eigh((v + v.T) / 2)
        kept = values > IDENTIFIED
        directions = effective @ vectors
        stray = float(((self.loose.T @ pulled) ** 2).sum())
        notes = _notes(values, kept, stationarity, stray)
        along = directions[:, kept] * values[kept].rsqrt()  # unit information, uncorrelated
        lost = directions[:, ~kept] / self.unit.unsqueeze(1)
        if not released.shape[1]:
            notes.append("there is nothing to release")
        return Projection(
            along / self.unit.unsqueeze(1),
            along.T @ g,
            lost / lost.norm(dim=0).clamp(min=1e-300),
            stationarity,
            tuple(notes),
            self.shape,
        )


def _check(null: LinearMap, alternative: LinearMap | None, release: Tensor | None) -> None:
    if alternative is not None and release is not None:
        raise EvidenceError("give either `alternative` or `release`, not both")
    for name, phi in (("null", null), ("alternative", alternative)):
        if phi is not None and not isinstance(phi, LinearMap):
            raise EvidenceError(
                f"`{name}` is {phi!r}, which is not linear; pass its map at the fit, "
                f"{name}.linearize(theta)"
            )
    n = numel(null.out_shape)
    if alternative is not None and numel(alternative.out_shape) != n:
        raise EvidenceError(
            f"`null` has {n} values at its sites, `alternative` "
            f"{numel(alternative.out_shape)}; both must be plans of the same sites"
        )


def _as(value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    value = value.detach().to(torch.float64).cpu()
    if value.numel() != numel(shape):
        raise EvidenceError(f"{what} has shape {tuple(value.shape)}; expected {shape}")
    if not bool(torch.isfinite(value).all()):
        raise EvidenceError(f"{what} is not finite; the fit is at a boundary or has diverged")
    return value.reshape(shape)


def _symmetric(value: Tensor, n: int, what: str) -> Tensor:
    matrix = _as(value, (n, n), what)
    mean: Tensor = (matrix + matrix.T) / 2
    return mean


def columns(release: Tensor, n: int) -> Tensor:
    """Released directions (n, q), checked."""
    if release.ndim != 2 or release.shape[0] != n:
        raise EvidenceError(
            f"`release` has shape {tuple(release.shape)}; it needs one row for each of the "
            f"{n} values at the sites and one column for each direction"
        )
    found = release.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise EvidenceError("`release` is not finite; its columns are directions at the sites")
    return found


def range_basis(matrix: Tensor) -> Tensor:
    """An orthonormal basis of range(matrix); its columns may have any lengths."""
    lengths = matrix.norm(dim=0)
    matrix = matrix[:, lengths > 0] / lengths[lengths > 0]
    if not matrix.shape[1]:
        return matrix
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    basis: Tensor = u[:, s > 1e-10 * s[0]]
    return basis


def _released(
    tied: Tensor, unit: Tensor, alternative: LinearMap | None, release: Tensor | None
) -> Tensor:
    """Orthonormal directions, in scaled sites, that complete range(φ) to the alternative."""
    n = unit.numel()
    if release is not None:
        wide = range_basis(unit.unsqueeze(1) * columns(release, n))
    elif alternative is not None:
        wide = range_basis(unit.unsqueeze(1) * alternative.dense())
        outside = tied - wide @ (wide.T @ tied)
        if outside.numel() and float(torch.linalg.matrix_norm(outside, 2)) > NESTED:
            raise EvidenceError(
                "`null` allows directions that `alternative` forbids, so the two are not "
                "nested; the alternative must be the null with some constraints left out"
            )
    else:
        wide = torch.eye(n, dtype=torch.float64)
    rest = wide - tied @ (tied.T @ wide)
    u, s, _ = torch.linalg.svd(rest, full_matrices=False)
    basis: Tensor = u[:, s > NESTED]
    return basis


def _pseudo_inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse on identified directions, and a basis of the others."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    kept = values > IDENTIFIED
    basis = vectors[:, kept]
    return (basis / values[kept]) @ basis.T, vectors[:, ~kept]


def _notes(values: Tensor, kept: Tensor, stationarity: float, stray: float) -> list[str]:
    notes = []
    if stationarity > STATIONARY or stray > STATIONARY:
        notes.append(
            f"φᵀg is not zero: the tied fit could still gain about {stationarity:.2g} in "
            "2·log-likelihood; converge it further (the statistic is corrected to first order)"
        )
    lost = int((~kept).sum())
    if lost:
        notes.append(
            f"{lost} of the {kept.numel()} released directions are not identified by the data "
            "and are left out (see .unidentified)"
        )
    negative = int((values < -IDENTIFIED).sum())
    if negative:
        notes.append(
            f"the information is negative along {negative} of them: the tied fit is not a "
            "maximum there; expected instead of observed information avoids this"
        )
    return notes


def chi_square(statistic: float, df: int) -> ChiSquare:
    """The χ² tail above a statistic; NaN without degrees of freedom."""
    return ChiSquare(statistic, df, float(chi2.sf(statistic, df)) if df else float("nan"))


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values adjusted for their number: the k-th smallest of m times m − k + 1, and no less
    than the one before it (S. Holm, Scand. J. Statist. 6, 65, 1979).

    >>> holm([0.01, 0.04, 0.5])
    [0.03, 0.08, 0.5]
    """
    order = sorted(range(len(pvalues)), key=pvalues.__getitem__)
    found, least = [0.0] * len(pvalues), 0.0
    for k, i in enumerate(order):
        least = max(least, min(1.0, (len(pvalues) - k) * pvalues[i]))
        found[i] = least
    return found


def sandwich(variance: Tensor, z: Tensor, notes: list[str]) -> ChiSquare | None:
    """zᵀ·variance⁻¹·z, or None, with a note, where the variance is singular."""
    values, vectors = torch.linalg.eigh((variance + variance.T) / 2)
    if not z.numel():
        return chi_square(0.0, 0)
    rank = int((values > IDENTIFIED * values[-1]).sum()) if float(values[-1]) > 0 else 0
    if rank < z.numel():
        notes.append(
            f"no robust statistic: the middle matrix spans {rank} of {z.numel()} directions; "
            "it needs more clusters than degrees of freedom"
        )
        return None
    standard = (vectors.T @ z) * values.rsqrt()
    return chi_square(float(standard @ standard), z.numel())
