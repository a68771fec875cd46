"""A model's sites as the mosaic and the summary see them."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import nn

from eadem._plan import Plan
from eadem.bind import resolved, ties
from eadem.maps import LinearMap, Map
from eadem.maps.base import Composed, LinearComposed
from eadem.report.mosaic import Index, SiteView

__all__ = ["map_text", "map_texts", "site_views"]


def map_text(phi: Map) -> str:
    """A map as one would write it: defaults left out, equal sizes written once.

    >>> from eadem.maps import Toeplitz2d, Transpose
    >>> map_text(Toeplitz2d(28, 5, stride=2)), map_text(Transpose())
    ('Toeplitz2d(28, 5, stride=2)', 'Transpose()')
    """
    if isinstance(phi, (Composed, LinearComposed)):
        return f"{map_text(phi.outer)} @ {map_text(phi.inner)}"
    try:
        parameters = inspect.signature(type(phi)).parameters
        given = phi.arguments()
    except (TypeError, ValueError, AttributeError):
        return repr(phi)
    held = vars(phi)
    if any(name in held and held[name] is not value for name, value in given.items()):
        return repr(phi)  # what it records is not what one writes
    words = []
    for name, value in given.items():
        known = parameters.get(name)
        shown = _argument(value)
        if known is None or known.default is inspect.Parameter.empty:
            words.append(shown)
        elif shown != _argument(known.default):
            words.append(f"{name}={shown}")
    return f"{type(phi).__name__}({', '.join(words)})"


def _argument(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<{' × '.join(str(n) for n in value.shape) or 'scalar'}>"
    if isinstance(value, tuple) and len(set(value)) == 1:
        return repr(value[0])
    return repr(value)


def map_texts(model: nn.Module) -> dict[str, list[str]]:
    """The maps that the declarations give each site, by the name of the whole parameter."""
    labels: dict[str, list[str]] = {}
    for tie in ties(model):
        for site, phi in zip(tie.sites, tie.maps, strict=True):
            whole, bracket, index = site.partition("[")
            where = f" at [{index}" if bracket else ""
            labels.setdefault(whole, []).append(map_text(phi) + where)
    return labels


def site_views(model: nn.Module) -> list[SiteView]:
    """Every site of the model, tied or not, in its own order."""
    plan = resolved(model)
    groups = {name: i for i, group in enumerate(plan.groups) for name in group}
    labels = map_texts(model)
    starts, total = {}, 0
    for name, owner in plan.owners.items():
        starts[name] = total
        total += math.prod(owner.shape)
    return [_view(plan, name, starts, total, groups.get(name), labels) for name in plan.names]


def _view(
    plan: Plan,
    name: str,
    starts: dict[str, int],
    total: int,
    group: int | None,
    labels: dict[str, list[str]],
) -> SiteView:
    position = _positions(plan, name, starts)
    shape = tuple(plan.shapes[name])
    expression = plan.expressions.get(name)
    owners = (name,) if expression is None else expression.owners
    stored = sum(math.prod(plan.owners[o].shape) for o in owners)
    free = stored if position is None else len(set(position[position >= 0].tolist()))
    owner_shape: tuple[int, ...] = (total,)
    start = 0
    if len(owners) == 1:
        owner_shape, start = tuple(plan.owners[owners[0]].shape), starts[owners[0]]
    return SiteView(
        name,
        shape,
        position,
        group,
        " and ".join(dict.fromkeys(labels.get(name, ["Same()"]))),
        ", ".join(owners),
        owner_shape,
        start,
        free,
    )


def _positions(plan: Plan, name: str, starts: dict[str, int]) -> Index | None:
    """Which free value each coordinate uses (−1: none); None where they are mixed."""
    expression = plan.expressions.get(name)
    owners = (name,) if expression is None else expression.owners
    if any(plan.owners[o].source is not None for o in owners):
        return None
    ranges = [
        torch.arange(starts[o], starts[o] + math.prod(plan.owners[o].shape)) for o in owners
    ]
    values = torch.cat(ranges) if ranges else torch.zeros(1, dtype=torch.int64)
    if expression is None:
        return values.numpy()
    outer = expression.outer
    index = outer.index() if isinstance(outer, LinearMap) else None
    if index is None:
        return None
    at = index.position.cpu()
    return torch.where(at >= 0, values[at.clamp(min=0)], -1).numpy()
