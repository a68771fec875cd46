"""Free values from site values: from their own places, or by least squares; and residuals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eadem._plan.plan import Plain, Plan, make_plan, with_own, without_remainders
from eadem._plan.resolve import Group
from eadem.maps.algebra import stack
from eadem.maps.base import LinearMap, Map, Shape, numel

__all__ = ["Known", "first", "mean", "nearest_theta", "plan_of", "residuals"]


@dataclass(frozen=True)
class Known:
    """Free values by owner, and the owners that the given sites leave (partly) open."""

    thetas: dict[str, Tensor]
    missing: tuple[str, ...]


def plan_of(group: Group, shapes: Mapping[str, Shape]) -> Plan:
    """One group as a plan of its own."""
    local = {n: tuple(shapes[n]) for n in group.names}
    return make_plan(local, group.owners, group.expressions, (group.names,))


def first(
    group: Group, given: Mapping[str, Tensor], held: Mapping[str, Tensor] | None = None
) -> Known:
    """Each free value from the first place, in traversal order, that holds it in `given`.

    What `given` leaves open is taken from the free values `held`, and is zero without them.
    """
    plain = without_remainders(group.owners, group.expressions, group.names)
    if plain is not None:
        return _first_loose(plain, group, given, held)
    roots: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}  # which roots are still unknown, by owner
    for o, owner in group.owners.items():
        if o in given and o not in group.expressions:
            roots[o] = given[o].reshape(-1)
            continue
        left[o] = torch.ones(numel(owner.roots), dtype=torch.bool)
        if held is not None and o in held:
            roots[o] = owner.values(held[o]).reshape(-1)
    for name in group.names:
        if not left:
            break
        e = group.expressions.get(name)
        if e is None or name not in given or not any(o in left for o in e.owners):
            continue
        found, seen = _invert(e.outer, given[name])
        start = 0
        for o in e.owners:
            size = numel(group.owners[o].roots)
            if o in left:
                new = seen[start : start + size] & left[o]
                before = roots[o] if o in roots else found.new_zeros(size)
                chosen = found[start : start + size]
                roots[o] = torch.where(new.to(found.device), chosen, before.to(found))
                left[o] &= ~new
                if not bool(left[o].any()):
                    del left[o]
            start += size
    thetas = {}
    for o, values in roots.items():
        owner = group.owners[o]
        own = values.reshape(owner.roots)
        theta = own if owner.source is None else owner.source.lift(own)
        thetas[o] = theta.reshape(owner.shape)
    return Known(thetas, tuple(left))


def _first_loose(
    plain: Plain,
    group: Group,
    given: Mapping[str, Tensor],
    held: Mapping[str, Tensor] | None,
) -> Known:
    """The same where sites depart from their ties: what is shared comes from the sites that
    are held to it, and each remainder from what is then left. A site that departs says what
    is shared only where its own parameter holds it.
    """
    tight = Group(group.names, plain.owners, plain.expressions)
    kept = None if held is None else _shared(plain, held)
    strict = {n: v for n, v in given.items() if n not in plain.own}
    known = first(tight, strict, kept)
    if kept is None and known.missing:
        shapes = {n: tuple(v.shape) for n, v in given.items()}
        whole = make_plan(shapes, plain.owners, plain.expressions)
        if whole.says(strict):
            known = Known(whole.lift_group(group.names, strict), ())
        elif plain.hosts.issuperset(known.missing):
            known = first(tight, given)
    like = next(iter(given.values()))
    shared = {
        o: known.thetas[o] if o in known.thetas else like.new_zeros(owner.shape)
        for o, owner in plain.owners.items()
    }
    missing = set(known.missing)
    for name in plain.own:
        e = plain.expressions.get(name)
        if name not in given or not missing.isdisjoint((name,) if e is None else e.owners):
            missing.add(name)
    thetas = with_own(plain, shared, given)
    return Known(thetas, tuple(o for o in group.owners if o in missing))


def _shared(plain: Plain, held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What is shared of the free values that are held."""
    return {
        o: held[o].reshape(-1)[: numel(owner.shape)].reshape(owner.shape)
        for o, owner in plain.owners.items()
        if o in held
    }


def _invert(outer: Map, value: Tensor) -> tuple[Tensor, Tensor]:
    """Flat roots from a site, each from the first coordinate that uses it, and which are."""
    index = None
    if isinstance(outer, LinearMap) and outer.view() is None:
        index = outer.index()
    if index is None:
        lifted = outer.lift(value).reshape(-1)
        return lifted, torch.ones(lifted.numel(), dtype=torch.bool)
    live = (index.position >= 0).nonzero().reshape(-1).flip(0)
    at = index.position[live]
    place = torch.full((index.size,), -1, dtype=torch.int64)
    # the later of two writes to one place wins: in descending order, the first coordinate
    place.numpy()[at.numpy()] = live.numpy()
    seen = place >= 0
    picked = value.reshape(-1).index_select(0, place.clamp(min=0).to(value.device))
    where = place.clamp(min=0)
    if index.shift is not None:
        picked = picked - index.shift[where].to(picked)
    if index.scale is not None:
        picked = picked / index.scales()[where].to(picked).masked_fill(
            ~seen.to(picked.device), 1
        )
    return picked, seen


def mean(
    group: Group, shapes: Mapping[str, Shape], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Free values by least squares over the given sites, in float64 or complex128."""
    exact = {
        n: v.to(torch.complex128 if v.is_complex() else torch.float64) for n, v in given.items()
    }
    return plan_of(group, shapes).lift_group(group.names, exact)


def residuals(phis: Sequence[Map], values: Sequence[Tensor]) -> list[float]:
    """For each site, the largest distance from where the best common θ would put it."""
    if len(values) == 0 or any(v.is_meta for v in values):
        return [float("nan")] * len(values)
    best = nearest_theta(phis, values)
    expanded: dict[int, Tensor] = {}
    found = []
    for phi, value in zip(phis, values, strict=True):
        if id(phi) not in expanded:
            expanded[id(phi)] = phi.expand(best)
        away = expanded[id(phi)] - value
        found.append(away.abs().max() if away.numel() else away.sum())
    return [float(x) for x in found]


def nearest_theta(phis: Sequence[Map], values: Sequence[Tensor]) -> Tensor:
    """The θ whose values at several sites are nearest to those given."""
    distinct = {id(p): p for p in phis}
    diagonals = {
        k: p.gram_diagonal() if isinstance(p, LinearMap) else None for k, p in distinct.items()
    }
    theta = phis[0].in_shape
    if any(d is None for d in diagonals.values()):
        flat = torch.cat([v.reshape(-1) for v in values])
        whole = phis[0] if len(phis) == 1 else stack(phis)
        return whole.lift(flat.reshape(whole.out_shape)).reshape(theta)
    pulled = torch.zeros(theta, dtype=values[0].dtype, device=values[0].device)
    weight = torch.zeros(1, dtype=torch.float64)
    by_map: dict[int, list[Tensor]] = {}
    for value, phi in zip(values, phis, strict=True):
        by_map.setdefault(id(phi), []).append(value)
    for key, phi in distinct.items():
        mine = by_map[key]
        total = mine[0] if len(mine) == 1 else mine[0].clone()
        for more in mine[1:]:
            total += more
        diagonal = diagonals[key]
        assert isinstance(phi, LinearMap)
        assert diagonal is not None
        offset = phi.offset
        pulled += phi.adjoint(total if offset is None else total - len(mine) * offset.to(total))
        one = diagonal.numel() > 0 and diagonal.stride() == (0,)  # the same for every value
        weight = weight + len(mine) * (diagonal[:1] if one else diagonal)
    if weight.numel() == 1 and float(weight) > 0:
        return pulled / float(weight)
    per = weight.expand(numel(theta)).reshape(theta).to(pulled.device)
    return torch.where(per > 0, pulled / per.clamp(min=1e-30).to(pulled.dtype), 0.0)
