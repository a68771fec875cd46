"""Nonlinear least squares through a plan: Gauss–Newton with Levenberg's damping.

The model is a residual as a function of the values at the sites. Its Jacobian there, J_W, is
taken by automatic differentiation and pulled back to the free values by the plan linearized
at the current θ: J_θ = J_W φ. A tie is nowhere else in the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import Map, numel
from eadem.solvers._reduce import agreed, pooled, stacked
from eadem.solvers.solution import Solution, SolverError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["least_squares"]


def least_squares(
    plan: Map,
    residual: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    tolerance: float = 1e-10,
    max_iterations: int = 200,
    group: ProcessGroup | None = None,
) -> Solution:
    """The θ of least χ² = ‖residual(plan.expand(θ))‖², from the start `theta`.

    `residual` takes the sites' values (`plan.out_shape`) to weighted residuals
    (observed − model)/σ of any shape; it is differentiated by torch.func, so it must be made
    of torch operations. `theta` has `plan.in_shape`. Steps are Marquardt's: the damping is
    scaled by the largest column norms seen (Moré 1978) and moved by the gain ratio (Nielsen
    1999). Converged when the residual is orthogonal to every column of J_θ within `tolerance`
    (the largest cosine), or when neither θ nor χ² can still move in float64.

    With `group`, the data are spread over its processes: each calls `least_squares` with the
    same plan and start, and the `residual` of its own data; all get one solution. What travels
    are the triangular factors of [J_θ r], whose squares are the normal equations.

    The solution's `objective` is χ²; its `gradient` −J_Wᵀr and `information` J_WᵀJ_W are those
    of the log-likelihood −χ²/2 at the sites.

    >>> from eadem.maps import Same
    >>> x = torch.linspace(0, 1, 5, dtype=torch.float64)
    >>> y = torch.exp(-2.0 * x)
    >>> start = torch.zeros(1, dtype=torch.float64)
    >>> fit = least_squares(Same().bind((1,)), lambda w: y - torch.exp(-w * x), start)
    >>> round(float(fit.theta), 6), fit.converged
    (2.0, True)
    """
    theta = theta.detach().to(torch.float64)
    if tuple(theta.shape) != plan.in_shape:
        raise ShapeError(
            f"the plan's free values have shape {plan.in_shape}, but the start has "
            f"{tuple(theta.shape)}; start from plan.lift(values)"
        )
    agreed(theta, group)
    problem = _Problem(plan, residual, group)
    chi2, own, jacobian_w = problem.at(theta)
    history, damping, growth = [chi2], 1e-3, 2.0
    scale = torch.zeros(numel(plan.in_shape), dtype=torch.float64)
    converged, message = False, f"stopped after {max_iterations} iterations"
    for _ in range(max_iterations):
        jacobian, r = problem.pull(jacobian_w, own, theta)
        norms = jacobian.norm(dim=0)
        scale = torch.maximum(scale, norms)
        gradient = jacobian.T @ r
        cosine = (gradient / (norms * r.norm()).clamp(min=1e-300)).abs()
        if chi2 == 0.0 or not cosine.numel() or float(cosine.max()) <= tolerance:
            converged, message = True, "the residual is orthogonal to the tangent space"
            break
        moved = False
        while not moved:
            step = _step(jacobian, r, damping**0.5 * scale)
            trial = theta + step.reshape(theta.shape)
            if bool((trial == theta).all()):
                break
            trial_chi2 = problem.chi2(problem.residual(trial))
            predicted = float((jacobian @ step) @ (jacobian @ step)) + 2.0 * damping * float(
                (scale * step) @ (scale * step)
            )
            gain = (chi2 - trial_chi2) / max(predicted, 1e-300)
            if trial_chi2 < chi2:
                moved = True
                damping = max(damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-15)
                growth = 2.0
            else:
                if predicted <= 4e-16 * chi2 or damping > 1e30:
                    break
                damping, growth = damping * growth, growth * 2.0
        if not moved:
            converged, message = True, "no step lowers χ² further in float64"
            break
        theta = trial
        chi2, own, jacobian_w = problem.at(theta)
        history.append(chi2)
    return Solution(
        theta=theta,
        values=plan.expand(theta).reshape(-1),
        objective=chi2,
        history=tuple(history),
        converged=converged,
        message=message,
        gradient=-pooled(jacobian_w.T @ own, group),
        information=pooled(jacobian_w.T @ jacobian_w, group),
    )


class _Problem:
    """The residual at θ, and its Jacobian at the sites."""

    def __init__(
        self, plan: Map, residual: Callable[[Tensor], Tensor], group: ProcessGroup | None
    ) -> None:
        self.plan, self.function, self.group = plan, residual, group

    def _flat(self, values: Tensor) -> Tensor:
        return self.function(values.reshape(self.plan.out_shape)).reshape(-1)

    def residual(self, theta: Tensor) -> Tensor:
        with torch.no_grad():
            return self._flat(self.plan.expand(theta))

    def chi2(self, r: Tensor) -> float:
        """‖r‖² over the data of all processes."""
        return float(pooled(r @ r, self.group))

    def at(self, theta: Tensor) -> tuple[float, Tensor, Tensor]:
        """χ², and of the data here the residual (m,) and J_W (m, sites)."""
        values = self.plan.expand(theta).reshape(-1).detach()
        r = self.residual(theta)
        wrong = (~torch.isfinite(r)).sum()
        chi2, lost = pooled(torch.stack([r @ r, wrong.to(r)]), self.group).tolist()
        if lost:
            raise SolverError(
                "the residual is not finite at these values of the sites: "
                f"{values.tolist()[:8]}; start elsewhere or bound the parameters"
            )
        columns_first = values.numel() <= r.numel()
        differentiate: Any = torch.func.jacfwd if columns_first else torch.func.jacrev
        jacobian: Tensor = differentiate(self._flat)(values)
        return chi2, r, jacobian.detach()

    def pull(self, jacobian_w: Tensor, r: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """J_θ = J_W φ (m, free) and r (m,); of all processes, their triangular factors."""
        jacobian = jacobian_w @ self.plan.linearize(theta).dense()
        if self.group is None:
            return jacobian, r
        joined = torch.cat([jacobian, r.unsqueeze(1)], 1)
        rows = torch.zeros(2 * [joined.shape[1]], dtype=torch.float64)
        upper = torch.linalg.qr(joined, mode="r").R
        rows[: upper.shape[0]] = upper
        everyone = stacked(rows, self.group)
        return everyone[:, :-1], everyone[:, -1]


def _step(jacobian: Tensor, r: Tensor, damping: Tensor) -> Tensor:
    """The δ of least ‖J δ + r‖² + ‖damping·δ‖², by QR of the two stacked."""
    damping = torch.where(damping > 0, damping, 1.0)
    stacked = torch.cat([jacobian, torch.diag(damping)])
    target = torch.cat([-r, torch.zeros_like(damping)])
    q, upper = torch.linalg.qr(stacked)
    solved: Tensor = torch.linalg.solve_triangular(
        upper, (q.T @ target).unsqueeze(1), upper=True
    ).squeeze(1)
    return solved
