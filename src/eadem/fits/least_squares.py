"""`eadem.least_squares`: the values of least χ² of a tied model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from eadem.bind import set_free_vector
from eadem.errors import ShapeError
from eadem.fits._setup import Bounds, Setup, limits, setup
from eadem.fits.fit import Fit
from eadem.solvers.levenberg import Found, Settings, Step, minimise
from eadem.solvers.losses import Loss
from eadem.solvers.solution import SolverError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["least_squares"]


def least_squares(
    model: nn.Module,
    *,
    bounds: Bounds | None = None,
    loss: str = "linear",
    loss_scale: float = 1.0,
    absolute_sigma: bool = False,
    starts: int | Sequence[Tensor] = 0,
    spread: float = 1.0,
    seed: int = 0,
    tolerance: float = 1e-8,
    max_iterations: int = 1000,
    accelerate: bool = True,
    progress: bool | Callable[[Step], None] = False,
    group: ProcessGroup | None = None,
) -> Fit:
    """Fit a model's free values to its residuals, and leave it at the best ones.

    Args:
        model: an `eadem.Joint` of blocks, or one module, whose `residual()` gives
            (observed − model)/σ in torch operations; float64; tied as any model. Parameters
            that do not require a gradient stay as they are.
        bounds: (low, high) by site name or pattern, None for no bound on a side. A fit may end
            at such a bound; `eadem.Positive` and `eadem.Bounded` instead keep inside of theirs.
        loss: "linear" (least squares), "huber", "soft_l1", "cauchy" or "arctan".
        loss_scale: the weighted residual beyond which an observation counts as an outlier.
        absolute_sigma: whether the weights are 1/σ of known errors. If not (as in NIST's
            problems, `scipy.optimize.curve_fit` and most refinement programs), standard errors
            are multiplied by √(χ²/dof).
        starts: how many further starts to draw, or the starts themselves, as free vectors.
            They are drawn uniformly where both bounds are finite, otherwise normally about the
            present value.
        spread: the standard deviation of a normal start, in units of max(1, |value|).
        seed: of the starts that are drawn.
        tolerance: converged when the part of the residual in the tangent space is below this
            share of its length (Bates & Watts, Technometrics 23, 1981).
        max_iterations: the steps after which a fit is left as it is.
        accelerate: whether steps follow the geodesic to second order (Transtrum & Sethna,
            arXiv:1201.5885).
        progress: True prints a line per iteration; a function is given each `Step`.
        group: a torch.distributed process group over which the data are shared out. Every
            process has the same model, tied alike and with the same start, and each block
            holds its share of the data. What travels is the triangle of [J r], of the size of
            the free values squared; all processes take the same steps and find the same fit.
            Least squares only, no robust loss.

    The Jacobian is J_W φ with J_W by torch and φ the ties' own; blocks that differ in their
    numbers alone are evaluated together, and what blocks have to themselves is eliminated
    block by block, so that the time of an iteration grows linearly with their number.

    A fit that does not converge has `converged` False, says why in `message`, and keeps the
    best values that it saw. Raises SolverError where the residual is not finite at the start
    (naming block and place), Unsupported for a model that is not float64, NotABlock for one
    without `residual()`.

    >>> class Decay(nn.Module):
    ...     def __init__(self, x, y):
    ...         super().__init__()
    ...         self.x, self.y = x, y
    ...         self.height = nn.Parameter(torch.tensor(1.0).double())
    ...         self.rate = nn.Parameter(torch.tensor(0.5).double())
    ...     def residual(self):
    ...         return (self.y - self.height * torch.exp(-self.rate * self.x)) / 0.01
    >>> import eadem
    >>> x = torch.linspace(0, 3, 30).double()
    >>> noise = 0.01 * torch.sin(40 * x)
    >>> joint = eadem.Joint({
    ...     "a": Decay(x, 3 * torch.exp(-0.7 * x) + noise),
    ...     "b": Decay(x, 5 * torch.exp(-0.7 * x) - noise),
    ... })
    >>> _ = eadem.tie(joint, "*.rate")
    >>> fit = least_squares(joint)
    >>> fit.converged, fit.dof, round(float(fit.values["b.rate"]), 3)
    (True, 57, 0.7)
    """
    if group is not None and loss != "linear":
        raise SolverError(f"loss={loss!r} is fitted by one process; with group= it is 'linear'")
    made = setup(model, Loss(loss, loss_scale), group)
    settings = Settings(
        tolerance=tolerance,
        max_iterations=max_iterations,
        accelerate=accelerate,
        progress=print if progress is True else (progress or None),
    )
    if bounds:
        lower, upper = limits(made, bounds)
        settings = replace(settings, lower=lower, upper=upper)
        inside = made.theta.clamp(lower, upper)
        made = _moved(made, torch.where(made.frozen, made.theta, inside))
    found = minimise(made.problem, settings)
    tried = [(found.point.cost, found.kind)]
    for theta in _starts(made, settings, starts, spread, seed):
        other = _from(made, theta, settings)
        if other is None:
            tried.append((float("nan"), "not finite"))
            continue
        tried.append((other.point.cost, other.kind))
        found = _better(found, other)
    set_free_vector(model, found.point.theta)
    return Fit.of(made, found, settings, absolute_sigma, tuple(tried))


def _moved(made: Setup, theta: Tensor) -> Setup:
    """The same with another start."""
    if not bool((theta != made.theta).any()):
        return made
    made.problem.first = made.problem.at(theta)
    if made.problem.first.bad is not None:
        block, place = made.problem.first.bad
        raise SolverError(
            f"the residual of {block or 'the model'} is not finite at place {place} once "
            "the values are moved inside the bounds; start inside of them"
        )
    return replace(made, theta=theta)


def _starts(
    made: Setup, settings: Settings, starts: int | Sequence[Tensor], spread: float, seed: int
) -> list[Tensor]:
    n = made.theta.numel()
    if isinstance(starts, int) and starts < 0:
        raise SolverError(f"starts={starts}; draw none (0) or more, or give free vectors")
    if not isinstance(starts, int):
        for theta in starts:
            if tuple(theta.shape) != (n,):
                raise ShapeError(
                    f"a start has shape {tuple(theta.shape)}; the model has {n} free values, "
                    "in the order of eadem.bind.free_vector"
                )
        return [theta.detach().to(torch.float64) for theta in starts]
    generator = torch.Generator().manual_seed(seed)
    none = torch.full_like(made.theta, torch.inf)
    low = -none if settings.lower is None else settings.lower
    high = none if settings.upper is None else settings.upper
    boxed = torch.isfinite(low) & torch.isfinite(high)
    found = []
    for _ in range(starts):
        normal = torch.randn(n, dtype=torch.float64, generator=generator)
        uniform = torch.rand(n, dtype=torch.float64, generator=generator)
        about = made.theta + spread * made.theta.abs().clamp(min=1.0) * normal
        inside = low.nan_to_num(0, 0, 0) + uniform * (high - low).nan_to_num(0, 0, 0)
        drawn = torch.where(boxed, inside, about.clamp(low, high))
        found.append(torch.where(made.frozen, made.theta, drawn))
    return found


def _from(made: Setup, theta: Tensor, settings: Settings) -> Found | None:
    """The fit from another start; None where the residual is not finite there."""
    problem, first = made.problem, made.problem.first
    try:
        problem.first = problem.at(theta)
        return minimise(problem, settings) if problem.first.bad is None else None
    finally:
        problem.first = first


def _better(a: Found, b: Found) -> Found:
    """The one of lower cost, or of equal costs the one that converged."""
    if abs(a.point.cost - b.point.cost) <= 1e-9 * max(a.point.cost, b.point.cost):
        return b if b.kind == "converged" != a.kind else a
    return a if a.point.cost < b.point.cost else b
