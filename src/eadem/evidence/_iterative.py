"""The score test of a model with many values: the information only as products with vectors.

An information JᵀJ, with J the Jacobian of the log densities (the outer product of scores) or
of an embedding (the expected information), is applied to a vector by one forward and one
reverse derivative. What the tied parameters do to make up for a release is solved for by
conjugate gradients, or at once where there is room for J and for φᵀIφ.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import at_sites
from eadem.evidence._likelihood import Information, Likelihood
from eadem.evidence._release import trained
from eadem.evidence.score import (
    NESTED,
    STATIONARY,
    ChiSquare,
    Projection,
    ScoreResult,
    chi_square,
)
from eadem.maps.base import DENSE_LIMIT, LinearMap, numel

__all__ = ["EXACT", "KEPT", "ROWS", "Iterative", "Products", "solve"]

#: Values at the sites up to which the observed information is built as a matrix.
EXACT = 1024
#: Values up to which the others are, which take as many derivatives as there are observations.
ROWS = DENSE_LIMIT
#: Released directions up to which each is solved for by itself.
COLUMNS = 128
#: Free values up to which φᵀIφ is inverted, where the Jacobian is kept.
DIRECT = 2048
#: Numbers of a Jacobian that are kept, so that its products are matrix products: 256 MB.
KEPT = 2**25
#: Conjugate gradients stop at this relative residual.
TOLERANCE = 1e-9
#: Directions whose information, in units of their own, is below this are unidentified.
IDENTIFIED = 1e-6


class Products:
    """V ↦ JᵀJ V, for V with one row per vector, J the Jacobian of `at` over all batches."""

    def __init__(self, at: Likelihood, function: Callable[..., Tensor]) -> None:
        self.at, self.function = at, function
        self.jacobian = self._kept()

    def _kept(self) -> Tensor | None:
        """J (n, expanded), where it has one row per observation and there is room for it."""
        if self.at.n * self.at.values.numel() > KEPT:
            return None
        with torch.no_grad():
            found = self.function(self.at.values, next(self.at.batches()))
        if tuple(found.shape) != (self.at.sizes[0],):
            return None
        each = copy.copy(self.at)
        each.at = self.function
        return each.scores()

    def __call__(self, rows: Tensor) -> Tensor:
        if self.jacobian is not None:
            return (rows @ self.jacobian.T) @ self.jacobian
        total = torch.zeros_like(rows)
        for batch in self.at.batches():
            total += self._batch(batch, rows.to(self.at.device)).cpu()
        return total

    def _batch(self, batch: Any, rows: Tensor) -> Tensor:
        def flat(values: Tensor) -> Tensor:
            found: Tensor = self.function(values, batch).reshape(-1)
            return found

        pull: Any = torch.func.vjp(flat, self.at.values)[1]

        def one(v: Tensor) -> Tensor:
            moved = torch.func.jvp(flat, (self.at.values,), (v,))[1]
            found: Tensor = pull(moved)[0]
            return found

        return torch.stack([one(v).detach() for v in rows])

    def forward(self, rows: Tensor) -> Tensor:
        """J·v for each row v: (outputs, rows)."""
        if self.jacobian is not None:
            return self.jacobian @ rows.T
        parts = []
        for batch in self.at.batches():

            def flat(values: Tensor, batch: Any = batch) -> Tensor:
                found: Tensor = self.function(values, batch).reshape(-1)
                return found

            each = [
                torch.func.jvp(flat, (self.at.values,), (v.to(self.at.device),))[1].detach()
                for v in rows
            ]
            parts.append(torch.stack(each, dim=1).cpu())
        return torch.cat(parts)


def solve(
    product: Callable[[Tensor], Tensor], target: Tensor, limit: int = 500
) -> tuple[Tensor, float]:
    """X with product(X) = target, row by row, by conjugate gradients (Hestenes & Stiefel 1952).

    `product` is symmetric and positive semi-definite and `target` (k, p) in its range. Returns
    X and the largest relative residual.

    >>> diagonal = torch.tensor([1.0, 4.0], dtype=torch.float64)
    >>> x, left = solve(lambda v: v * diagonal, torch.ones(1, 2, dtype=torch.float64))
    >>> x
    tensor([[1.0000, 0.2500]], dtype=torch.float64)
    """
    x = torch.zeros_like(target)
    residual, size = target.clone(), target.norm(dim=1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    direction, square = residual.clone(), (residual**2).sum(1, keepdim=True)
    for _ in range(min(limit, 2 * target.shape[1] + 10)):
        open_rows = (residual.norm(dim=1, keepdim=True) > TOLERANCE * size).reshape(-1)
        if not bool(open_rows.any()):
            break
        along = direction[open_rows]
        image = product(along)
        curvature = (along * image).sum(1, keepdim=True)
        positive = curvature > 0
        step = torch.where(positive, square[open_rows] / curvature.clamp(min=1e-300), 0.0)
        x[open_rows] += step * along
        residual[open_rows] -= step * image
        fresh = (residual[open_rows] ** 2).sum(1, keepdim=True)
        direction[open_rows] = residual[open_rows] + fresh / square[open_rows] * along
        square[open_rows] = fresh
        if not bool(positive.any()):
            break
    return x, float((residual.norm(dim=1, keepdim=True) / size).max()) if len(x) else 0.0


class Iterative:
    """The pieces of a score test, by products."""

    def __init__(self, model: nn.Module, at: Likelihood, information: Information) -> None:
        self.at, self.gradient = at, at.gradient()
        self._inverse: Tensor | None = None
        self.null = trained(model)
        self.density = Products(at, at.at)
        self.kind, self.notes = "outer", ()
        self.information = self.density
        if callable(information):
            self.kind = "expected"
            self.information = Products(at, at_sites(model, information, torch.float64))
        elif information == "observed":
            self.notes = (
                f"with {at.values.numel()} values at the sites the outer product of scores is "
                "used instead of the observed information; an embedding gives the expected one",
            )
        pulled = self._adjoint(self.gradient.unsqueeze(0))
        gain, _ = self._solve(pulled)
        self.slack = self._forward(gain)  # where the tied fit would still move
        self.stationarity = float((gain * pulled).sum())
        if self.stationarity > STATIONARY:
            self.notes += (
                f"φᵀg is not zero: the tied fit could still gain about {self.stationarity:.2g} "
                "in 2·log-likelihood; converge it further (the statistic is corrected to first "
                "order)",
            )

    notes: tuple[str, ...]

    def _forward(self, rows: Tensor) -> Tensor:
        shape = self.null.in_shape
        return torch.stack([self.null.forward(r.reshape(shape)).reshape(-1) for r in rows])

    def _adjoint(self, rows: Tensor) -> Tensor:
        shape = self.null.out_shape
        return torch.stack([self.null.adjoint(r.reshape(shape)).reshape(-1) for r in rows])

    def _within(self, rows: Tensor) -> Tensor:
        return self._adjoint(self.information(self._forward(rows)))

    def _solve(self, target: Tensor) -> tuple[Tensor, float]:
        """(φᵀIφ)⁻¹ of each row: at once where J is kept and θ is small, else step by step."""
        if self.information.jacobian is None or target.shape[1] > DIRECT:
            return solve(self._within, target)
        if self._inverse is None:
            rows = self._adjoint(self.information.jacobian)
            unit = rows.norm(dim=0)
            unit = torch.where(unit > 0, unit, 1.0)
            values, vectors = torch.linalg.eigh((rows / unit).T @ (rows / unit))
            kept = values > TOLERANCE
            basis = vectors[:, kept] / unit.unsqueeze(1)
            self._inverse = (basis / values[kept]) @ basis.T
        return target @ self._inverse, 0.0

    def project(self, released: LinearMap) -> Projection:
        """The gradient along a release."""
        if numel(released.in_shape) > COLUMNS:
            return self._many(released)
        rows = self._complement(_columns(released))
        image = self.information(rows)
        unit = (rows * image).sum(1, keepdim=True).clamp(min=0).sqrt()
        unit = torch.where(unit > 0, unit, 1.0)
        rows, image = rows / unit, image / unit
        made_up, left = self._solve(self._adjoint(image))
        effective = rows - self._forward(made_up) if len(rows) else rows
        v = effective @ self.information(effective).T
        values, vectors = torch.linalg.eigh((v + v.T) / 2)
        kept = values > IDENTIFIED
        along = (effective.T @ vectors[:, kept]) * values[kept].rsqrt()
        lost = effective.T @ vectors[:, ~kept]
        notes = []
        if lost.shape[1]:
            notes.append(
                f"{lost.shape[1]} of the {len(rows)} released directions are not identified by "
                "the data and are left out (see .unidentified)"
            )
        notes += self._unsolved(left)
        if not len(rows):
            notes.append("there is nothing to release")
        return Projection(
            along,
            along.T @ self.gradient,
            lost / lost.norm(dim=0).clamp(min=1e-300),
            self.stationarity,
            tuple(notes),
            self.null.out_shape,
        )

    def _unsolved(self, left: float) -> list[str]:
        if left <= 1e-4:
            return []
        return [
            f"conjugate gradients stopped at a relative residual of {left:.1g}: the parameters "
            "are nearly collinear, and the statistic is approximate"
        ]

    def _complement(self, rows: Tensor) -> Tensor:
        """Orthonormal rows that span what the release adds to range(φ)."""
        lengths = rows.norm(dim=1)
        rows = rows[lengths > 0] / lengths[lengths > 0].unsqueeze(1)
        shape = self.null.out_shape
        offset = self.null.expand(torch.zeros(self.null.in_shape, dtype=torch.float64))
        rest = [
            r - self.null.forward(self.null.lift(r.reshape(shape) + offset)).reshape(-1)
            for r in rows
        ]
        if not rest:
            return rows
        _, s, basis = torch.linalg.svd(torch.stack(rest), full_matrices=False)
        found: Tensor = basis[s > NESTED]
        return found

    def along(self, found: Projection) -> Tensor | None:
        """(n, df): every observation's score along the projection."""
        if isinstance(found, _Many):
            return None
        return self.density.forward(found.along.T)

    def _many(self, released: LinearMap) -> Projection:
        """LM as what Newton steps gain in 2·log-likelihood, with the release and without."""
        free = numel(self.null.in_shape)

        def forward(rows: Tensor) -> Tensor:
            out = [released.forward(r[free:].reshape(released.in_shape)) for r in rows]
            return self._forward(rows[:, :free]) + torch.stack([o.reshape(-1) for o in out])

        def adjoint(rows: Tensor) -> Tensor:
            out = [released.adjoint(r.reshape(released.out_shape)).reshape(-1) for r in rows]
            return torch.cat([self._adjoint(rows), torch.stack(out)], 1)

        target = adjoint(self.gradient.unsqueeze(0))
        step, left = solve(lambda rows: adjoint(self.information(forward(rows))), target)
        gained = float((step * target).sum())
        df = self._added(released)
        notes = self._unsolved(left)
        if df > self.at.n // 4:
            notes.append(
                f"{df} degrees of freedom and {self.at.n} observations: χ² does not hold; "
                "use eadem.evidence.site_mean_test"
            )
        return _Many(
            along=torch.zeros(self.at.values.numel(), 0, dtype=torch.float64),
            z=torch.zeros(0, dtype=torch.float64),
            lost=torch.zeros(self.at.values.numel(), 0, dtype=torch.float64),
            stationarity=self.stationarity,
            notes=tuple(notes),
            shape=self.null.out_shape,
            verdict=chi_square(gained - self.stationarity, df),
            moved=(forward(step) - self.slack).reshape(-1),
        )

    def _added(self, released: LinearMap) -> int:
        """rank[φ, N] − rank φ, for index maps: coordinates let go, less θ used only there."""
        generator = torch.Generator().manual_seed(0)
        some = torch.rand(
            numel(released.in_shape), generator=generator, dtype=torch.float64
        ).add_(1.0)
        inside = released.forward(some.reshape(released.in_shape)).reshape(-1) != 0
        rest = torch.rand(len(inside), generator=generator, dtype=torch.float64).add_(1.0)
        rest[inside] = 0.0
        outside = int((self._adjoint(rest.unsqueeze(0)) != 0).sum())
        return int(inside.sum()) + outside - numel(self.null.in_shape)


@dataclass(frozen=True)
class _Many(Projection):
    """A projection on more directions than are kept apart."""

    verdict: ChiSquare
    moved: Tensor

    @property
    def change(self) -> Tensor:
        """The expected change of every site's value, flat."""
        return self.moved

    def result(self, robust: ChiSquare | None, notes: list[str]) -> ScoreResult:
        """The verdict; standard errors are not computed."""
        return ScoreResult(
            **vars(self.verdict),
            expected_change=self.moved.reshape(self.shape),
            stderr=torch.full(self.shape, torch.nan, dtype=torch.float64),
            unidentified=self.lost,
            stationarity=self.stationarity,
            robust=None,
            notes=tuple(notes),
        )


def _columns(phi: LinearMap) -> Tensor:
    """The columns of a map with few of them, as rows."""
    k = numel(phi.in_shape)
    eye = torch.eye(k, dtype=torch.float64)
    if not k:
        return torch.zeros(0, numel(phi.out_shape), dtype=torch.float64)
    return torch.stack([phi.forward(e.reshape(phi.in_shape)).reshape(-1) for e in eye])
