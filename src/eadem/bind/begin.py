"""Where free values start: at their own places, by least squares, drawn, or as given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from eadem._plan import (
    BoundMaps,
    Declaration,
    Group,
    bind_maps,
    first,
    mean,
    plan_of,
)
from eadem.bind.names import Sites
from eadem.bind.written import agree
from eadem.errors import ShapeError, TieConflict
from eadem.maps.base import LinearMap, Map, Shape, numel

#: "empty" is for who fills the free values in at once, as `load` does: nothing is computed
#: from what the sites held.
Start = Literal["first", "mean", "strict", "init", "empty"] | Tensor
STARTS = ("first", "mean", "strict", "init")


def bound_maps(
    declaration: Declaration,
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    cache: BoundMaps,
) -> tuple[list[Map], list[Tensor]]:
    """Each entry's map, bound to one θ, and the value of its part of a site."""
    parts = []
    for e in declaration.entries:
        value = values[e.site.name]
        if e.site.index is not None:
            at = torch.from_numpy(e.site.coordinates(shapes[e.site.name])).to(value.device)
            value = value.reshape(-1)[at].reshape(e.site.shape(shapes[e.site.name]))
        parts.append(value)
    _, phis = bind_maps(declaration, [tuple(p.shape) for p in parts], cache)
    return phis, parts


def place_theta(
    declaration: Declaration,
    theta: Tensor,
    shapes: Mapping[str, Shape],
    held: dict[str, Tensor],
    cache: BoundMaps,
) -> None:
    """Put the values that θ gives at a tie's sites into `held`."""
    phis, _ = bound_maps(declaration, shapes, held, cache)
    for e, phi in zip(declaration.entries, phis, strict=True):
        if tuple(theta.shape) != phi.in_shape:
            raise ShapeError(
                f"start has shape {tuple(theta.shape)}; this tie's θ has shape {phi.in_shape}"
            )
        like = held[e.site.name]
        value = phi.expand(theta.detach().to(like))
        if e.site.index is None:
            held[e.site.name] = value.contiguous()
        else:
            at = torch.from_numpy(e.site.coordinates(shapes[e.site.name])).to(like.device)
            flat = like.reshape(-1).clone()
            flat[at] = value.reshape(-1)
            held[e.site.name] = flat.reshape(like.shape)


def one_start(given: Sequence[Start]) -> str:
    """How one group starts: as its new ties say, which must agree. θ itself is in place."""
    said = dict.fromkeys(s for s in given if isinstance(s, str))
    if len(said) > 1:
        raise TieConflict(
            f"ties that share sites start in different ways ({', '.join(said)}); choose one"
        )
    return next(iter(said), "first")


@torch.no_grad()
def start_values(
    index: Sites,
    group: Group,
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    start: str,
) -> dict[str, Tensor]:
    """The free values, by owner, that a resolved group starts from."""
    like = next(iter(values.values()))
    if like.is_meta:
        return {o: like.new_empty(w.shape) for o, w in group.owners.items()}
    if start == "empty":
        return {
            o: values[o] if w.whole and w.source is None else like.new_empty(w.shape)
            for o, w in group.owners.items()
        }
    if start == "mean":
        return {o: t.to(like) for o, t in mean(group, shapes, values).items()}
    if start == "init":
        return _drawn(index, group, shapes, values)
    found = first(group, values)
    if start == "strict":
        plan = plan_of(group, shapes)
        flat = [found.thetas[o].reshape(-1) for o in plan.owners]
        joined = torch.cat(flat) if flat else like.new_zeros(0)
        for name, value in plan.split(plan.expand(joined)).items():
            ok, away = agree(values[name], value)
            if not ok:
                raise TieConflict(
                    f"start='strict': the sites do not agree; {name!r} is {away:.6g} from what "
                    "the tie gives it. Use start='mean' for the nearest values that satisfy it"
                )
    return found.thetas


def _drawn(
    index: Sites, group: Group, shapes: Mapping[str, Shape], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Uniform on ±1/√fan-in, torch's own rule, with the fan-in that the map leaves.

    The fan-in of a weight (out, in, …) is the mean number of values in a row that are not
    held constant. A bias takes that of the weight beside it. A module whose weight is laid out
    in another way says its own, as an integer `fan_in`.
    """
    drawn = {}
    for name, value in values.items():
        bound = 1 / math.sqrt(max(1.0, _fan_in(index, group, name, shapes[name])))
        drawn[name] = torch.empty_like(value).uniform_(-bound, bound)
    return first(group, drawn).thetas


def _fan_in(index: Sites, group: Group, name: str, shape: Shape) -> float:
    place = index.place(name)
    own = None if place is None else getattr(place.module, "fan_in", None)
    own = own if isinstance(own, int) and own > 0 else None
    if own and place is not None and place.attr != "weight":
        return own
    if len(shape) >= 2:
        e = group.expressions.get(name)
        outer = None if e is None else e.outer
        found = None
        if isinstance(outer, LinearMap) and outer.view() is None:
            found = outer.index()
        live = numel(shape) if found is None else int((found.position >= 0).sum())
        return live / (numel(shape) / own if own else shape[0])
    module = index[name].module
    beside = next((n for n, p in index.places.items() if p == (module, "weight")), None)
    if beside is None or len(index.shape(beside)) < 2:
        return 1.0
    for other in index.groups:
        for key, place in other.places.items():
            if place == (module, "weight"):
                return _fan_in(index, other.resolved, key, other.shapes[key])
    if beside in group.names:
        return _fan_in(index, group, beside, index.shape(beside))
    beside_shape = index.shape(beside)
    return numel(beside_shape) / beside_shape[0]
