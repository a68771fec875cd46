"""Nonlinear least squares through a plan, for a residual that is one function of the sites.

The model is a residual as a function of the values at the sites. Its Jacobian is taken forward
along the columns of the plan linearized at the current θ: J_θ = J_W φ. A tie is nowhere else
in the method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import Map, numel
from eadem.solvers._reduce import agreed, pooled
from eadem.solvers.blocks import Batch, Problem
from eadem.solvers.levenberg import Settings, minimise
from eadem.solvers.solution import Solution, SolverError
from eadem.solvers.through import through

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["least_squares"]


def least_squares(
    plan: Map,
    residual: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 1000,
    group: ProcessGroup | None = None,
) -> Solution:
    """The θ of least χ² = ‖residual(plan.expand(θ))‖², from the start `theta`.

    `residual` takes the sites' values (`plan.out_shape`) to weighted residuals
    (observed − model)/σ of any shape; it is differentiated by torch.func, so it must be made
    of torch operations. `theta` has `plan.in_shape`. Steps are those of `levenberg`. Converged
    when the part of the residual that lies in the tangent space is below `tolerance` of its
    length, or when neither θ nor χ² can still move in float64.

    With `group`, the data are spread over its processes: each calls `least_squares` with the
    same plan and start, and the `residual` of its own data; all get one solution. What travels
    are the triangular factors of [J_θ r], whose squares are the normal equations.

    The solution's `objective` is χ²; its `gradient` −J_Wᵀr and `information` J_WᵀJ_W are those
    of the log-likelihood −χ²/2 at the sites. `eadem.least_squares` fits a model, with standard
    errors and tests.

    Raises SolverError where the residual is not finite at the start.

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

    def flat(values: Tensor) -> Tensor:
        return residual(values.reshape(plan.out_shape))

    sites = torch.arange(numel(plan.out_shape)).unsqueeze(0)
    batch = Batch(("",), sites, flat)
    problem = Problem(through(plan), [batch], theta.reshape(-1), group=group)
    if problem.first.bad is not None:
        raise SolverError(
            f"the residual is not finite at place {problem.first.bad[1]} for these values of "
            f"the sites: {problem.first.values.tolist()[:8]}; start elsewhere or bound the "
            "parameters"
        )
    found = minimise(problem, Settings(tolerance, max_iterations))
    point = found.point
    jacobian = problem.site_jacobians(point)[0][0]
    return Solution(
        theta=point.theta.reshape(plan.in_shape),
        values=point.values,
        objective=point.cost,
        history=found.history,
        converged=found.kind == "converged",
        message=found.message,
        gradient=-pooled(jacobian.T @ point.residuals[0][0], group),
        information=pooled(jacobian.T @ jacobian, group),
    )
