"""A model's sites as the mosaic and the summary see them."""

from __future__ import annotations

import bisect
import math

import numpy as np
from torch import nn

from eadem.bind import resolved, ties
from eadem.report.mosaic import SiteView

__all__ = ["site_views"]


def site_views(model: nn.Module) -> list[SiteView]:
    """Every site of the model, tied or not, in its own order."""
    plan, found = resolved(model), ties(model)
    number: dict[str, int] = {}
    labels: dict[str, list[str]] = {}
    for i, tie in enumerate(found):
        for site, phi in zip(tie.sites, tie.maps, strict=True):
            whole = str(site).partition("[")[0]
            number.setdefault(whole, i)
            labels.setdefault(whole, []).append(repr(phi))
    owners = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    starts = [0]
    for _, shape in owners:
        starts.append(starts[-1] + math.prod(shape))
    index = plan.index()
    views, at = [], 0
    for name in plan.names:
        shape = tuple(plan.shapes[name])
        size = math.prod(shape)
        position = None
        if index is not None:
            position = index.position[at : at + size].numpy().astype(np.int64)
        at += size
        tie_number = number.get(name)
        views.append(_view(name, shape, position, tie_number, labels, owners, starts))
    return views


def _view(
    name: str,
    shape: tuple[int, ...],
    position: np.ndarray[tuple[int], np.dtype[np.int64]] | None,
    tie: int | None,
    labels: dict[str, list[str]],
    owners: list[tuple[str, tuple[int, ...]]],
    starts: list[int],
) -> SiteView:
    phi = " and ".join(dict.fromkeys(labels.get(name, ["Same()"])))
    used = np.empty(0, np.int64) if position is None else np.unique(position[position >= 0])
    if not used.size:
        return SiteView(name, shape, position, tie, phi)
    first = bisect.bisect_right(starts, int(used[0])) - 1
    last = bisect.bisect_right(starts, int(used[-1])) - 1
    if first != last:  # values from several owners: numbered over all free values
        owner = ", ".join(o for o, _ in owners[first : last + 1])
        return SiteView(name, shape, position, tie, phi, owner, (starts[-1],), 0, used.size)
    owner, owner_shape = owners[first]
    return SiteView(
        name, shape, position, tie, phi, owner, owner_shape, starts[first], used.size
    )
