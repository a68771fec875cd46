"""Levenberg–Marquardt steps on blocks through a plan.

The damping is scaled by the largest column norms lately seen (Moré, 1978) and moved by the gain
ratio (Nielsen, 1999). A step may be bent along the geodesic of the model's graph,
δ = v + ½a with (JᵀJ + λD²)a = −Jᵀr″(v) (Transtrum & Sethna, arXiv:1201.5885), and is refused
where the bend exceeds the step, which keeps a fit out of regions where parameters run away.
Bounds are kept by projection: a free value at a bound that the gradient pushes outwards is
held for the step. Where large residuals curve, Gauss–Newton steps end up a constant share too
short or too long; near the end, where one did not come out as foretold, what the last few have
left of each other says where they lead (Anderson, J. ACM 12, 547, 1965), and the better of
both points is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eadem.solvers.arrow import Arrow, Factor
from eadem.solvers.blocks import Point, Problem
from eadem.solvers.solution import SolverError

__all__ = ["Found", "Settings", "Step", "minimise"]

#: Damping, in units of the column norms, at which a step is as good as the Gauss–Newton one.
FAINT = 1e-10
#: What an iteration leaves of the column norms before it; MINPACK's 1 never forgets the norms
#: that a parameter had on its way through an exponential, and creeps from then on.
FADE = 0.5
#: A lowering of the cost below this share of it is lost in float64.
LOST = 4e-16
#: Offset below which a step that came out as foretold is followed by one without a bend, and
#: what the damping then shrinks by.
NEAR, EASE = 0.2, 1e-2
#: Offset below which a fit that χ² cannot lead further is finished by its gradient.
FINE = 1e-2
#: Largest bend of a step in units of its length.
BEND = 0.75
#: A gain this near 1 is as foretold; and how many steps are looked back on where it is not.
FORETOLD, BACK = 0.1, 5


@dataclass(frozen=True)
class Step:
    """What one iteration came to. `offset` is the share of the residual's length that the
    tangent space still holds; `length` that of the step in units of the scaled free values.
    """

    iteration: int
    cost: float
    offset: float
    damping: float
    length: float
    evaluations: int

    def __str__(self) -> str:
        return (
            f"{self.iteration:>4}  {self.cost:.9g}  offset {self.offset:.1e}  "
            f"damping {self.damping:.0e}  step {self.length:.1e}"
        )


@dataclass(frozen=True)
class Settings:
    """`tolerance`: converged when the residual's part in the tangent space is below this share
    of its length (Bates & Watts, Technometrics 23, 1981). `lower`, `upper` (free,): bounds.

    Raises SolverError for a negative tolerance or number of iterations.
    """

    tolerance: float = 1e-8
    max_iterations: int = 1000
    damping: float = 1e-3
    accelerate: bool = True
    lower: Tensor | None = None
    upper: Tensor | None = None
    progress: Callable[[Step], None] | None = None

    def __post_init__(self) -> None:
        for name in ("tolerance", "max_iterations"):
            if not getattr(self, name) >= 0:
                raise SolverError(f"{name}={getattr(self, name)!r}; it is 0 or more")


@dataclass(frozen=True, eq=False)
class Found:
    """Where it ended: the best point seen and the linearization there.

    `held`: the free values that bounds hold. `kind`: "converged", "stalled", "not finite" or
    "unfinished"; `message` says it in words.
    """

    point: Point
    arrow: Arrow
    jacobians: list[Tensor]
    held: Tensor
    kind: str
    message: str
    history: tuple[float, ...]


@dataclass
class _State:
    """What moves along with the iterations."""

    point: Point
    damping: float
    scale: Tensor
    growth: float = 2.0
    gain: float = 0.0
    near: bool = False
    #: the last points near the end, and the Gauss–Newton step at each
    trail: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    history: list[float] = field(default_factory=list)


def minimise(problem: Problem, settings: Settings) -> Found:
    """The least cost from `problem.first`, which must be finite."""
    start = problem.first
    scale = torch.zeros(problem.phi.free, dtype=torch.float64)
    state = _State(start, settings.damping, scale, history=[start.cost])
    offset, length, left = float("nan"), 0.0, 0.0
    arrow, jacobians = problem.linearize(start)
    held = torch.zeros_like(scale, dtype=torch.bool)
    kind, message = "unfinished", f"stopped after {settings.max_iterations} iterations"
    for iteration in range(settings.max_iterations):
        if not bool(torch.isfinite(arrow.gradient).all()):
            kind, message = "not finite", _jacobian_of(problem, jacobians)
            break
        norms = arrow.norms
        state.scale = torch.maximum(FADE * state.scale, norms)
        held = _held(state.point.theta, arrow.gradient, settings)
        unit = torch.where(state.scale > 0, state.scale, 1.0)
        faint = arrow.factor(FAINT * torch.where(norms > 0, norms, unit), held)
        left = faint.decrease
        offset = (left / state.point.cost) ** 0.5 if state.point.cost > 0 else 0.0
        if settings.progress is not None:
            settings.progress(
                Step(
                    iteration,
                    state.point.cost,
                    offset,
                    state.damping,
                    length,
                    problem.evaluations,
                )
            )
        state.near = offset < NEAR
        known = state.trail[-BACK:] if state.near and not bool(held.any()) else []
        state.trail = [*known, (state.point.theta, faint.step)]
        if offset <= settings.tolerance:
            kind, message = "converged", "the residual is orthogonal to the tangent space"
            break
        trial, why = _advance(problem, settings, state, arrow, jacobians, unit, held)
        if trial is None:
            kind, message = _stopped(why, left, state.point.cost)
            break
        length = float((unit * (trial.theta - state.point.theta)).norm())
        state.point = trial
        state.history.append(trial.cost)
        arrow, jacobians = problem.linearize(trial)
    if settings.tolerance < offset < FINE and kind in ("converged", "stalled"):
        at = _At(state.point, arrow, jacobians, faint.step, left)
        at = _polished(problem, settings, at)
        state.point, arrow, jacobians = at.point, at.arrow, at.jacobians
    return Found(state.point, arrow, jacobians, held, kind, message, tuple(state.history))


def _held(theta: Tensor, gradient: Tensor, settings: Settings) -> Tensor:
    """The free values at a bound that the gradient pushes outwards."""
    held = torch.zeros_like(theta, dtype=torch.bool)
    if settings.lower is not None:
        held |= (theta <= settings.lower) & (gradient > 0)
    if settings.upper is not None:
        held |= (theta >= settings.upper) & (gradient < 0)
    return held


def _advance(
    problem: Problem,
    settings: Settings,
    state: _State,
    arrow: Arrow,
    jacobians: list[Tensor],
    unit: Tensor,
    held: Tensor,
) -> tuple[Point | None, str]:
    """The next point, of lower cost; or None and why there is none."""
    theta, cost = state.point.theta, state.point.cost
    why = ""
    gradient = arrow.gradient
    while True:
        factor = arrow.factor(state.damping**0.5 * unit, held)
        v = factor.step
        straight = state.near and abs(state.gain - 1) < FORETOLD
        bend = None
        if settings.accelerate and not straight:
            bend = _bend(problem, state.point, jacobians, factor, v, held)
        refused = bend is not None and float((unit * bend).norm()) > BEND * float(
            (unit * v).norm()
        )
        step = v if bend is None or refused else v + bend
        trial_theta = _inside(theta + step, settings)
        moved = trial_theta - theta
        if not bool(moved.any()):
            return None, why or "still"
        promised = factor.decrease + state.damping * float((unit * v).square().sum())
        if bool((trial_theta != theta + step).any()):
            promised = -2 * float(gradient @ moved) - arrow.along(moved)
            refused |= promised <= 0  # the part that is left leads upwards: shorter
        if not refused:
            trial = problem.at(trial_theta)
            gain = (cost - trial.cost) / max(promised, 1e-300)
            if trial.bad is None and trial.cost < cost:
                shrink = max(1 / 3, 1 - (2 * min(gain, 1.0) - 1) ** 3)
                if state.near and abs(gain - 1) < FORETOLD:
                    shrink = EASE
                elif len(state.trail) > 1:
                    trial = _looking_back(problem, settings, state.trail, arrow, trial)
                state.damping = max(state.damping * shrink, 1e-20)
                state.growth, state.gain = 2.0, gain
                return trial, ""
            if trial.bad is not None:
                block, place = trial.bad
                why = f"{block or 'the model'}, residual {place}"
            elif promised <= LOST * cost:
                return None, "rounding"
        if state.damping > 1e40:
            return None, why or "still"
        state.damping, state.growth = state.damping * state.growth, state.growth * 2.0


def _looking_back(
    problem: Problem,
    settings: Settings,
    trail: list[tuple[Tensor, Tensor]],
    arrow: Arrow,
    trial: Point,
) -> Point:
    """`trial`, or the point of lower cost where the steps of the trail would come to nothing,
    were they a linear function of the point.
    """
    theta, step = trail[-1]
    moved = torch.stack([theta - at for at, _ in trail[:-1]], 1)
    changed = torch.stack([step - other for _, other in trail[:-1]], 1)
    images = torch.stack([arrow.image(each) for each in changed.T], 1)
    right = arrow.image(step).unsqueeze(1)
    share = torch.linalg.lstsq(images, right, driver="gelsd").solution.squeeze(1)
    led = problem.at(_inside(theta + step - (moved + changed) @ share, settings))
    return led if led.bad is None and led.cost < trial.cost else trial


@dataclass(frozen=True, eq=False)
class _At:
    """A point, its linearization, the Gauss–Newton step and what that would take off."""

    point: Point
    arrow: Arrow
    jacobians: list[Tensor]
    step: Tensor
    left: float


def _polished(problem: Problem, settings: Settings, at: _At) -> _At:
    """Where χ² cannot tell points apart, its gradient still can: Gauss–Newton steps for as
    long as each leaves less than a tenth of what was left, and χ² the same but for what a
    residual that moves by the length of `left` may do to it.
    """
    for _ in range(5):
        trial = problem.at(_inside(at.point.theta + at.step, settings))
        cost = at.point.cost
        noise = 1e-12 * cost + 2 * (cost * at.left) ** 0.5
        if trial.bad is not None or trial.cost > cost + noise:
            break
        arrow, jacobians = problem.linearize(trial)
        held = _held(trial.theta, arrow.gradient, settings)
        norms = arrow.norms
        faint = arrow.factor(FAINT * torch.where(norms > 0, norms, 1.0), held)
        if not faint.decrease < 0.1 * at.left:
            break
        at = _At(trial, arrow, jacobians, faint.step, faint.decrease)
    return at


def _bend(
    problem: Problem,
    point: Point,
    jacobians: list[Tensor],
    factor: Factor,
    v: Tensor,
    held: Tensor,
) -> Tensor | None:
    """½a, the second-order part of a step; None where it is not known."""
    if not problem.loss.linear:
        return None
    pulled = problem.curvature(point, jacobians, v)
    if pulled is None or not bool(torch.isfinite(pulled).all()):
        return None
    return -0.5 * factor.solve(torch.where(held, 0.0, pulled))


def _inside(theta: Tensor, settings: Settings) -> Tensor:
    if settings.lower is not None:
        theta = torch.maximum(theta, settings.lower)
    if settings.upper is not None:
        theta = torch.minimum(theta, settings.upper)
    return theta


def _stopped(why: str, left: float, cost: float) -> tuple[str, str]:
    if why == "rounding" or left <= 1e-12 * cost:
        return "converged", "no step lowers χ² further in float64"
    if why in ("", "still"):
        return "stalled", (
            "stalled: no step lowers χ², though its gradient is not zero; χ² is the rounding "
            "noise of the residual, or the residual is not smooth here, or its derivative is "
            "not that of its value"
        )
    return "not finite", f"the residual is not finite wherever the next step leads: {why}"


def _jacobian_of(problem: Problem, jacobians: list[Tensor]) -> str:
    for p, jacobian in zip(problem.pieces, jacobians, strict=True):
        bad = ~torch.isfinite(jacobian).all(-1)
        if bool(bad.any()):
            block, place = bad.nonzero()[0].tolist()
            whose = p.name(block) or "the model"
            return f"the derivative of residual {place} of {whose} is not finite"
    return "the derivative of the residual is not finite"
