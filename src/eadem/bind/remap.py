"""One site of a tie given another map, while the model's function and its optimizers go on.

What holds the shared values stays the parameter it is, under the name of the site that holds
them now, and an optimizer keeps its state for them; a remainder is a new parameter beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eadem._plan import (
    Declaration,
    Entry,
    Group,
    Plain,
    Site,
    canonical,
    first,
    plan_of,
    without_remainders,
)
from eadem.bind.attach import attach, values_of
from eadem.bind.carry import Change, carried, hand_over
from eadem.bind.declared import by_name, resolve_ties
from eadem.bind.fill import undone_on_error
from eadem.bind.group import BoundTie, TieGroup
from eadem.bind.names import Sites
from eadem.bind.split import refuse_split
from eadem.bind.ties import Tie
from eadem.errors import NoSuchSite, TieConflict, nearest
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.constant import on_cpu

__all__ = ["own_values", "remaining", "remap", "site_map"]


@dataclass(frozen=True)
class _Found:
    """One whole site of one tie."""

    sites: Sites
    name: str
    group: TieGroup
    tie: BoundTie
    entry: int


def _find(model: nn.Module, site: str) -> _Found:
    sites = Sites(model)
    (name, where), *more = sites.find(site)
    if more:
        raise NoSuchSite(f"{site!r} names {len(more) + 1} sites; name one")
    wanted = Site(name, canonical(where, sites.shape(name), site))
    for group in sites.groups:
        key = group.keys.get(sites[name])
        entries = [(t, i) for t in group.ties for i, e in enumerate(t.entries) if e.key == key]
        if key is None or not entries:
            continue
        if len(entries) > 1 or wanted.index is not None:
            raise TieConflict(
                f"{wanted} is in {len(entries)} ties, or only in parts; only a whole parameter "
                "that one tie has a say in may depart from it. Declare its ties as one, or "
                "untie it from the others first"
            )
        return _Found(sites, name, group, *entries[0])
    tied = [n for g in sites.groups for n in sites.named(g).values()]
    raise NoSuchSite(
        f"{site!r} is not tied, so there is nothing to depart from; tie it first with "
        f"eadem.tie (tied: {nearest(name, tied)})"
    )


def site_map(model: nn.Module, site: str) -> Map:
    """The map of a whole site in its one tie.

    Raises NoSuchSite where it is not tied, TieConflict where more than one tie has a say.

    >>> import eadem
    >>> model = nn.ModuleList([nn.Linear(2, 2) for _ in range(2)])
    >>> t = eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    >>> site_map(model, "1.weight")
    Transpose(dim0=-2, dim1=-1)
    """
    found = _find(model, site)
    return found.tie.entries[found.entry].map


def own_values(model: nn.Module, site: str) -> Tensor:
    """The values of the site's own remainder, in the remainder's shape, differentiable.

    Raises NoSuchSite where the site does not depart from a tie.
    """
    found = _find(model, site)
    key = found.group.keys[found.sites[found.name]]
    owner = found.group.resolved.owners.get(key)
    if owner is None or owner.own is None:
        raise NoSuchSite(f"{site!r} does not depart from its tie; see eadem.relax")
    p = found.group.places[key].parameter
    assert p is not None
    size = numel(owner.own.in_shape)
    return p.reshape(-1)[p.numel() - size :].reshape(owner.own.in_shape)


def _plain(group: Group) -> Plain:
    found = without_remainders(group.owners, group.expressions, group.names)
    return found or Plain(group.owners, group.expressions, {})


@on_cpu()
@torch.no_grad()
def remap(
    model: nn.Module,
    site: str,
    phi: Map,
    own: Tensor | None = None,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> Tie:
    """Give a tied site another map in its tie: other sites and shared values keep theirs.

    `own`: the free values of the site's remainder, where `phi` has one; by default those
    nearest to what the site holds. `optimizers` step what they stepped before, with their
    state; new parameters join the group of those that hold the shared values, and parameters
    that are no more leave it. Returns the tie.

    Raises NoSuchSite, TieConflict, and Unsupported where an optimizer's state cannot go on:
    the model and the optimizers are then as they were.
    """
    found = _find(model, site)
    sites, group = found.sites, found.group
    names = sites.named(group)
    everything: list[tuple[Declaration, BoundTie]] = []
    for t in group.ties:
        d, fresh = by_name(t, names), BoundTie([replace(e) for e in t.entries])
        if t is found.tie:
            entries = list(d.entries)
            entries[found.entry] = Entry(entries[found.entry].site, phi)
            d = Declaration(tuple(entries))
            fresh.entries[found.entry].map = phi
        everything.append((d, fresh))
    involved = list(names.values())
    refuse_split(((n, sites[n].parameter) for n in involved), "giving a site another map")
    shapes = {n: sites.shape(n) for n in involved}
    values = values_of(sites, involved)
    groups, thetas = resolve_ties(sites, everything, shapes, values, {}, {})
    (new,) = groups
    before = _renamed(group, names)
    change = _change(before, new, sites, thetas, shapes, found.name, own, bool(optimizers))
    states = [carried(o, change) for o in optimizers]
    with undone_on_error(model):
        attach(sites, [group], [new], change.thetas, {}, change.seats())
    for t, (_, fresh) in zip(group.ties, everything, strict=True):
        t.entries = fresh.entries
    new.ties = list(group.ties)
    after = dict(new.owner_parameters())
    for optimizer, state in zip(optimizers, states, strict=True):
        hand_over(optimizer, change, state, after)
    return Tie(model, found.tie)


def remaining(
    group: TieGroup,
    new: TieGroup,
    sites: Sites,
    thetas: dict[str, Tensor],
    shapes: Mapping[str, Shape],
) -> dict[str, Tensor]:
    """The free values of what is left of a group: those that it had, where remainders are in
    it, for sites that all depart do not say what they share. `thetas` otherwise.
    """
    if (
        without_remainders(new.resolved.owners, new.resolved.expressions, new.resolved.names)
        is None
    ):
        return thetas
    before = _renamed(group, sites.named(group))
    mine = {n: v for n, v in thetas.items() if n in new.resolved.names}
    change = _change(before, new, sites, mine, shapes, None, None, False)
    return {**thetas, **change.thetas}


def _renamed(group: TieGroup, names: Mapping[str, str]) -> Group:
    """What a group has resolved to, by today's names."""
    resolved = group.resolved
    return Group(
        tuple(names[n] for n in resolved.names),
        {names[n]: o for n, o in resolved.owners.items()},
        {names[n]: e.renamed(names) for n, e in resolved.expressions.items()},
    )


def _change(
    before: Group,
    new: TieGroup,
    sites: Sites,
    thetas: dict[str, Tensor],
    shapes: Mapping[str, Shape],
    site: str | None,
    own: Tensor | None,
    stepped: bool,
) -> Change:
    """What becomes of the parameters of a group, and the values that they start from."""
    held = {n: sites[n].parameter for n in before.owners}
    parameters = {n: p for n, p in held.items() if p is not None}
    a, b = _plain(before), _plain(new.resolved)
    route = _route(before, a, new.resolved, b, shapes)
    still = route.to is not None and torch.equal(route.to, torch.arange(len(route.to)))
    change = Change(parameters, a, b, route, {}, still or stepped)
    change.thetas.update(thetas)  # and what a constant site is like
    shared = _moved(before, new.resolved, change, shapes)
    for name, theta in thetas.items():
        if name not in new.resolved.owners:
            continue
        rest = theta.reshape(-1)[change.shared(b, name) :]
        if name == site and own is not None:
            rest = own.reshape(-1).to(theta)
        elif name != site and name in a.own:
            rest = change.part(parameters[name], name, a)[1]
        first_part = shared[name].to(theta) if name in shared else theta.reshape(-1)[:0]
        change.thetas[name] = torch.cat([first_part.reshape(-1), rest])
    return change


def _moved(
    before: Group, after: Group, change: Change, shapes: Mapping[str, Shape]
) -> dict[str, Tensor]:
    """What is shared, by its owners after a change: the values it had before."""
    a, b = change.before, change.after
    had = {n: change.part(change.parameters[n], n, a)[0] for n in a.owners}
    if not had:
        return {}
    flat = torch.cat(list(had.values()))
    to = change.route.to
    if to is not None:
        sizes = [numel(o.shape) for o in b.owners.values()]
        return dict(zip(b.owners, flat[to.to(flat.device)].split(sizes), strict=True))
    old = plan_of(Group(before.names, a.owners, a.expressions), shapes)
    given = old.split(old.expand(flat))
    return first(Group(after.names, b.owners, b.expressions), given).thetas


@dataclass(frozen=True)
class Route:
    """Where each shared free value goes: `to[i]` is the old place of the new i-th one, both
    flat, owner after owner. `same`: each is where it was; None: they are not the same values.
    """

    to: Tensor | None
    same: bool


def _route(
    before: Group, a: Plain, after: Group, b: Plain, shapes: Mapping[str, Shape]
) -> Route:
    sizes = [{n: o.shape for n, o in x.owners.items()} for x in (a, b)]
    count = sum(numel(s) for s in sizes[0].values())
    old = plan_of(Group(before.names, a.owners, a.expressions), shapes)
    if not isinstance(old, LinearMap):
        kept = sizes[0] == sizes[1]
        return Route(torch.arange(count) if kept else None, kept)
    number = torch.arange(1, count + 1, dtype=torch.float64)
    given = old.split(old.expand(number))
    found = first(Group(after.names, b.owners, b.expressions), given).thetas
    moved = torch.cat([found[n].reshape(-1) for n in b.owners]) if b.owners else number
    if moved.numel() != count:
        return Route(None, False)
    close = moved.round()
    if float((moved - close).abs().max() if count else 0) > 1e-6:
        return Route(None, False)
    to = close.to(torch.int64) - 1
    if not torch.equal(to.sort().values, torch.arange(count)):
        return Route(None, False)
    same = sizes[0] == sizes[1] and torch.equal(to, torch.arange(count))
    return Route(to, same)
