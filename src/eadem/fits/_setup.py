"""A model's residuals as a problem for the solver."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from eadem._plan import Plan, PlanArrays
from eadem.bind import alike, resolved, site_coordinates, trainable, whole_vector
from eadem.errors import TieConflict, Unsupported
from eadem.joint import Joint, NotABlock, has_slope, residual_of, slope_or_value
from eadem.maps.base import numel
from eadem.solvers._reduce import agreed, pooled
from eadem.solvers.blocks import Batch, Problem
from eadem.solvers.losses import Loss
from eadem.solvers.solution import SolverError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Bounds", "Setup", "free_names", "limits", "setup"]

#: Blocks of a batch whose own residual is compared with that of the batch.
CHECKED = 16
#: (low, high) by site name or pattern; None is no bound on that side.
Bounds = Mapping[str, tuple[float | None, float | None]]


@dataclass(frozen=True, eq=False)
class Setup:
    """A model made ready: its plan, as arrays too, and the problem at its present values.

    `frozen` (free,): the free values that do not require a gradient.
    """

    model: nn.Module
    plan: Plan
    arrays: PlanArrays
    problem: Problem
    theta: Tensor
    frozen: Tensor


def setup(model: nn.Module, loss: Loss, group: ProcessGroup | None = None) -> Setup:
    """Raises NotABlock, Unsupported (not float64) and SolverError (not finite at the start, or
    processes that do not start alike).
    """
    parts = _parts(model)
    for name, p in model.named_parameters():
        if p.dtype != torch.float64:
            raise Unsupported(
                f"{name!r} is {str(p.dtype).removeprefix('torch.')}; least squares works in "
                "float64, so that standard errors mean something: call model.double(), and "
                "give the data as float64 too"
            )
        if p.device.type != "cpu":
            raise Unsupported(f"{name!r} is on {p.device}; fit on the CPU: model.cpu()")
    plan = resolved(model)
    theta = whole_vector(model, plan)
    if not theta.numel():
        raise SolverError("the model has no free value to fit")
    frozen = ~trainable(model)
    if bool(frozen.all()):
        raise SolverError("every parameter of the model is frozen; set requires_grad on some")
    agreed(theta, group)
    arrays = PlanArrays(plan)
    batches = _batches(model, plan, parts)
    problem = Problem(arrays, batches, theta, loss=loss, held=frozen, group=group)
    if not problem.size:
        raise SolverError(f"{type(model).__name__} has no residual; give it data to fit")
    wrong = _differing(problem, parts)
    if _anywhere(wrong, group):
        batches = _batches(model, plan, parts, wrong)
        problem = Problem(arrays, batches, theta, loss=loss, held=frozen, group=group)
        still = _differing(problem, parts)
        if _anywhere(still, group):
            where = (still[0] or "the model") if still else "a block of another process"
            raise SolverError(
                f"residual() of {where} gives other values when it is "
                "called again on other copies of the same values; it must depend on the "
                "block's parameters and data alone (dropout and the like off: model.eval())"
            )
    if problem.first.bad is not None:
        block, place = problem.first.bad
        raise SolverError(
            f"the residual of {block or type(model).__name__!r} is not finite at place {place} "
            "for the values that the model has now; start elsewhere, or keep the parameters "
            "where it is defined with eadem.Positive, eadem.Bounded or bounds="
        )
    return Setup(model, plan, arrays, problem, theta, frozen)


def _anywhere(wrong: list[str], group: ProcessGroup | None) -> bool:
    """Whether any process found something wrong: they must go on together."""
    return bool(pooled(torch.tensor(float(len(wrong))), group))


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    if isinstance(model, Joint):
        return model.blocks
    if not callable(getattr(model, "residual", None)):
        raise NotABlock(
            f"{type(model).__name__} has no residual(); give least_squares an eadem.Joint of "
            "blocks, or one module whose residual() returns (observed − model)/σ"
        )
    return {"": model}


def _batches(
    model: nn.Module, plan: Plan, parts: dict[str, nn.Module], alone: list[str] | None = None
) -> list[Batch]:
    apart = alone or []
    together = {n: m for n, m in parts.items() if n not in apart}
    found = alike(model, together, plan.slices, slope_or_value)
    for name in apart:
        found += alike(model, {name: parts[name]}, plan.slices, slope_or_value)
    return [
        Batch(
            a.names,
            a.sites,
            a.function,
            a.data,
            a.along if has_slope(parts[a.names[0]]) else None,
        )
        for a in found
    ]


def _differing(problem: Problem, parts: dict[str, nn.Module]) -> list[str]:
    """The blocks whose own residual() is not what the problem has for them, of each batch up
    to CHECKED.
    """
    wrong = []
    with torch.no_grad():
        for piece, every in zip(problem.pieces, problem.first.residuals, strict=True):
            step = -(-len(every) // CHECKED)
            for i in range(0, len(every), step):
                mine, name = every[i], piece.name(i)
                own = residual_of(parts[name]).reshape(-1)
                same = own.shape == mine.shape and torch.allclose(
                    own.to(mine), mine, rtol=1e-9, atol=1e-9, equal_nan=True
                )
                if not same:
                    wrong.append(name)
    return wrong


def free_names(plan: Plan) -> tuple[str, ...]:
    """A name for every free value: the parameter that holds it, with its place in that."""
    found: list[str] = []
    for name, owner in plan.owners.items():
        size = numel(owner.shape)
        if size == 1:
            found.append(name)
            continue
        for i in range(size):
            at = torch.unravel_index(torch.tensor(i), owner.shape)
            found.append(f"{name}[{', '.join(str(int(j)) for j in at)}]")
    return tuple(found)


def _pair(text: str, pair: Any) -> tuple[float | None, float | None]:
    """(low, high) of one entry of `bounds`."""
    try:
        low, high = (None if x is None else float(x) for x in pair)
    except (TypeError, ValueError):
        low = high = math.nan
    if any(x is not None and math.isnan(x) for x in (low, high)):
        raise SolverError(
            f"bounds[{text!r}] is {pair!r}; give (low, high), with None for no bound on a side"
        )
    return low, high


def limits(made: Setup, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """The bounds of sites as bounds of the free values.

    Raises NoSuchSite, SolverError for what is no pair of numbers, Unsupported where a site's
    values are not each one free value (scaled, shifted or through an elementwise map),
    TieConflict where bounds exclude each other.
    """
    lower = torch.full_like(made.theta, -torch.inf)
    upper = torch.full_like(made.theta, torch.inf)
    for text, pair in bounds.items():
        low, high = _pair(text, pair)
        at = site_coordinates(made.model, text)
        position, slope, level = made.arrays.affine(at, text)
        for limit, is_low in ((low, True), (high, False)):
            if limit is None:
                continue
            value = (limit - level) / slope
            for k, v, up in zip(position.tolist(), value.tolist(), slope.tolist(), strict=True):
                if is_low == (up > 0):
                    lower[k] = max(float(lower[k]), v)
                else:
                    upper[k] = min(float(upper[k]), v)
    wrong = (lower > upper).nonzero().reshape(-1)
    if wrong.numel():
        name = free_names(made.plan)[int(wrong[0])]
        raise TieConflict(f"the bounds leave no value for {name!r}")
    return lower, upper
