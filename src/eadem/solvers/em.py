"""Expectation–maximisation for probabilities under a plan.

The E-step gives expected counts c at the sites. The M-step maximises Σ c·log p over the
probabilities p = φθ + b that the plan allows: ties and rows summing to one are one affine
set, so there is one M-step whatever is tied. The objective is concave; its gradient is
φᵀ(c/p), the pooled site gradients, and its Hessian −φᵀ diag(c/p²) φ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eadem.errors import ShapeError
from eadem.maps.base import LinearMap
from eadem.solvers._reduce import agreed, pooled
from eadem.solvers.solution import Solution, SolverError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["em", "m_step"]

#: Counts below this share of their mean are raised to it, so that p stays positive.
COUNT_FLOOR = 1e-12


def em(
    plan: LinearMap,
    e_step: Callable[[Tensor], tuple[float, Tensor]],
    theta: Tensor,
    *,
    tolerance: float = 1e-12,
    max_iterations: int = 1000,
    group: ProcessGroup | None = None,
) -> Solution:
    """The θ of greatest likelihood by EM (Baum et al. 1970; Dempster, Laird & Rubin 1977).

    `e_step` takes the sites' probabilities (`plan.out_shape`) to the log-likelihood and the
    expected counts (same shape). Converged when an iteration gains less than `tolerance`
    times the log-likelihood. The solution's `objective` is the log-likelihood, which never
    falls; its `gradient` at the sites is c/p (Fisher's identity).

    With `group`, the data are spread over its processes: each calls `em` with the same plan
    and start, and an `e_step` of its own data; all get one solution. Counts travel pooled.

    Raises SolverError if the log-likelihood falls, which says that the counts are not those
    of the log-likelihood, if the start is not positive, and if processes start differently.

    >>> from eadem.maps.simplex import SumToOne
    >>> coin = SumToOne().bind((2,))
    >>> counts = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> step = lambda p: (float((counts * p.log()).sum()), counts)
    >>> em(coin, step, torch.zeros(1, dtype=torch.float64)).values
    tensor([0.7500, 0.2500], dtype=torch.float64)
    """
    theta = theta.detach().to(torch.float64)
    agreed(theta, group)
    rows = _Rows.of(plan)
    start = plan.expand(theta)
    _check_start(start.reshape(-1), rows.held(start.reshape(-1)))
    local = e_step(start)
    likelihood, counts = _pooled(plan, rows, local, group)
    history = [likelihood]
    converged, message = False, f"stopped after {max_iterations} iterations"
    for _ in range(max_iterations):
        proposal = _maximise(plan, rows, counts, theta)
        proposed = e_step(plan.expand(proposal))
        reached, new_counts = _pooled(plan, rows, proposed, group)
        slack = 1e-12 * max(1.0, abs(likelihood))
        if reached < likelihood - slack:
            raise SolverError(
                f"the log-likelihood fell from {likelihood!r} to {reached!r} in an EM step; "
                "e_step must return the expected counts of the log-likelihood that it returns"
            )
        if reached <= likelihood:
            converged, message = True, "no step raises the log-likelihood in float64"
            break
        gain = reached - likelihood
        theta, likelihood, counts, local = proposal, reached, new_counts, proposed
        history.append(likelihood)
        if gain <= tolerance * max(1.0, abs(likelihood)):
            converged, message = True, f"the last step gained {gain:.1e}"
            break
    p = plan.expand(theta).reshape(-1)
    flat = pooled(local[1], group).reshape(-1)
    return Solution(
        theta=theta,
        values=p,
        objective=likelihood,
        history=tuple(history),
        converged=converged,
        message=message,
        gradient=torch.where(flat > 0, flat / p, 0.0),
    )


def m_step(plan: LinearMap, counts: Tensor, theta: Tensor) -> Tensor:
    """The θ of greatest Σ c·log p over p = plan.expand(θ) > 0, from a positive start `theta`.

    `counts` ≥ 0 of `plan.out_shape`. Damped Newton steps through φ, so each raises the
    objective. A count of zero gives a p of about `COUNT_FLOOR`, not exactly zero. A site that
    the plan holds at zero must have no counts. Raises SolverError where the start is not
    positive or such a site has counts, ShapeError where shapes disagree.

    >>> from eadem.maps.simplex import SumToOne
    >>> die = SumToOne().bind((3,))
    >>> c = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    >>> die.expand(m_step(die, c, torch.zeros(2, dtype=torch.float64))) * 8
    tensor([1.0000, 2.0000, 5.0000], dtype=torch.float64)
    """
    rows = _Rows.of(plan)
    _, found = _pooled(plan, rows, (0.0, counts), None)
    return _maximise(plan, rows, found, theta.detach().to(torch.float64))


@dataclass(frozen=True)
class _Rows:
    """The distinct rows of [φ | b]: sites of one row are one probability, whatever θ is, so
    their counts are one count.
    """

    matrix: Tensor  # (rows, free)
    first: Tensor  # (rows,): the first site of each
    row: Tensor  # (sites,): the row of each site

    @staticmethod
    def of(plan: LinearMap) -> _Rows:
        matrix = plan.dense()
        shift = matrix.new_zeros(len(matrix)) if plan.offset is None else plan.offset
        joined = torch.cat([matrix, shift.reshape(-1, 1).to(matrix)], 1)
        _, row = torch.unique(joined, dim=0, return_inverse=True)
        n = row.numel()
        at = torch.full((int(row.max()) + 1 if n else 0,), n)
        at = at.scatter_reduce(0, row, torch.arange(n), "amin")
        first, order = at.sort()
        return _Rows(matrix[first], first, order.argsort()[row])

    def pool(self, values: Tensor) -> Tensor:
        """The sum of the sites' values in each row: (sites,) → (rows,)."""
        return values.new_zeros(self.first.numel()).index_add(0, self.row, values)

    def held(self, p: Tensor) -> Tensor:
        """Which sites the plan holds at zero."""
        return ((p[self.first] == 0) & (self.matrix == 0).all(dim=1))[self.row]


def _pooled(
    plan: LinearMap, rows: _Rows, local: tuple[float, Tensor], group: ProcessGroup | None
) -> tuple[float, Tensor]:
    """The log-likelihood and each row's counts, of all processes' data."""
    likelihood, counts = local
    if tuple(counts.shape) != plan.out_shape:
        raise ShapeError(
            f"the plan has sites of shape {plan.out_shape}; got counts of {tuple(counts.shape)}"
        )
    c = counts.detach().to(torch.float64).reshape(-1)
    wrong = float((~(c >= 0) | torch.isinf(c)).sum())
    found = pooled(torch.cat([c.new_tensor([likelihood, wrong]), rows.pool(c)]), group)
    if float(found[1]):
        raise SolverError("counts must be finite and not negative")
    return float(found[0]), found[2:]


@dataclass(frozen=True)
class _Objective:
    """Σ c·log p over the coordinates that are not held at zero."""

    counts: Tensor
    live: Tensor

    def __call__(self, p: Tensor) -> float:
        return float((self.counts * p[self.live].log()).sum())


def _maximise(plan: LinearMap, rows: _Rows, counts: Tensor, theta: Tensor) -> Tensor:
    """The θ of greatest Σ c·log p; `counts` (rows,)."""
    if tuple(theta.shape) != plan.in_shape:
        raise ShapeError(
            f"the plan takes {plan.in_shape} free values to {plan.out_shape} sites; got θ of "
            f"{tuple(theta.shape)}"
        )
    p = plan.expand(theta).reshape(-1)
    held = rows.held(p)
    _check_start(p, held)
    held, p = held[rows.first], p[rows.first]
    _check_counts(counts, held, rows.first)
    live = ~held
    phi, c = rows.matrix[live], counts[live]
    objective = _Objective(c, live)
    floor = COUNT_FLOOR * float(c.mean()) if c.numel() else 0.0
    lifted = torch.where(c > floor, c, floor)
    barrier = _Objective(lifted, live)
    flat, started, total = theta.reshape(-1), objective(p), float(lifted.sum())
    for _ in range(100):
        # Newton's step is the least squares solution of diag(√c/p) φ δ = √c, whose
        # condition number is the square root of the Hessian's.
        weighted = (lifted.sqrt() / p[live]).unsqueeze(1) * phi
        step = _least_squares(weighted, lifted.sqrt())
        change = phi @ step / p[live]
        decrement = float((weighted @ step).square().sum())
        done = decrement <= 1e-15 * total  # count-weighted square of the relative change
        if not change.numel() or float(change.abs().max()) < 0.1:
            # The Hessian is constant within 25 %, so a full step gains and, where little is
            # left, leaves the square of the error.
            flat = flat + step
            p = plan.expand(flat.reshape(theta.shape)).reshape(-1)[rows.first]
        elif not done:
            found = _search(plan, rows, barrier, flat.reshape(theta.shape), p, step, change)
            if found is None:
                break
            flat, p = found
        if done:
            break
    return flat.reshape(theta.shape) if objective(p) >= started else theta


def _search(
    plan: LinearMap,
    rows: _Rows,
    objective: _Objective,
    theta: Tensor,
    p: Tensor,
    step: Tensor,
    change: Tensor,
) -> tuple[Tensor, Tensor] | None:
    """A positive point along `step` with a greater objective: flat θ and p; None if none."""
    value, worst = objective(p), float(change.min())
    length = 1.0 if worst > -0.99 else -0.99 / worst
    while length > 1e-12:
        trial = theta + length * step.reshape(theta.shape)
        trial_p = plan.expand(trial).reshape(-1)[rows.first]
        if bool((trial_p[objective.live] > 0).all()) and objective(trial_p) > value:
            return trial.reshape(-1), trial_p
        length *= 0.5
    return None


def _least_squares(matrix: Tensor, target: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.lstsq(matrix, target.unsqueeze(1), driver="gelsd").solution
    return solved.squeeze(1)


def _check_start(p: Tensor, held: Tensor) -> None:
    bad = (~(p > 0) & ~held).nonzero().reshape(-1)
    if bad.numel():
        raise SolverError(
            f"the start has p = {float(p[bad[0]])!r} at coordinate {int(bad[0])} "
            f"({bad.numel()} in all are not positive); start from positive probabilities, or "
            "hold the coordinate at zero in the plan"
        )


def _check_counts(c: Tensor, held: Tensor, site: Tensor) -> None:
    lost = (held & (c > 0)).nonzero().reshape(-1)
    if lost.numel():
        raise SolverError(
            f"coordinate {int(site[lost[0]])} is held at zero by the plan but has "
            f"{float(c[lost[0]])!r} counts: the data contradict the plan"
        )
