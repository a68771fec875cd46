"""Sites that depart from their ties: W = S + R, with R of the site's own free values.

The group is resolved as if no site departed; then every such site is given the parameter that
holds its remainder. Where another site holds θ, that is all the parameter has, in the
remainder's shape; where this one does (no site is held to the tie), θ comes first, and all of
it lies in one dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from eadem._plan.plan import Expression, Owner
from eadem._plan.site import Declaration, Entry
from eadem.errors import TieConflict
from eadem.maps.algebra import added, blocks
from eadem.maps.base import Composed, LinearComposed, Map, Shape, numel
from eadem.maps.index import Index, Indexed
from eadem.maps.remainder import Loose
from eadem.maps.view import Same

__all__ = ["remainders", "tightened", "with_remainders"]


class _Resolved(Protocol):
    @property
    def owners(self) -> dict[str, Owner]: ...
    @property
    def expressions(self) -> dict[str, Expression]: ...


def remainders(declarations: Sequence[Declaration]) -> dict[str, Loose]:
    """The sites that depart, with the maps that say so. Raises TieConflict where one is part
    of a parameter, or has another say in it.
    """
    found = {e.site.name: e.map for d in declarations for e in d if isinstance(e.map, Loose)}
    for d in declarations:
        for e in d:
            if e.site.name in found:
                _alone(d, e, declarations)
            elif _inside(e.map):
                raise TieConflict(
                    f"{d} has a remainder inside of another map; put the other map inside of "
                    "it, as LowRank(1) @ Scale(2)"
                )
    return found


def _inside(phi: Map) -> bool:
    if not isinstance(phi, Composed | LinearComposed):
        return isinstance(phi, Loose)
    return _inside(phi.inner) or _inside(phi.outer)


def _alone(d: Declaration, e: Entry, declarations: Sequence[Declaration]) -> None:
    if e.site.index is not None:
        raise TieConflict(
            f"{e.site} is part of a parameter, and only a whole one may depart from its tie; "
            "untie the part, or tie the whole parameter"
        )
    others = [x for x in declarations for y in x if y is not e and y.site.name == e.site.name]
    if others:
        raise TieConflict(
            f"{e.site} departs from {d}, and another tie has a say in it too: {others[0]}. "
            "Declare both as one tie, or untie the site from one of them first"
        )


def tightened(d: Declaration) -> Declaration:
    """The declaration without remainders."""
    return Declaration(
        tuple(Entry(e.site, e.map.shared if isinstance(e.map, Loose) else e.map) for e in d)
    )


def with_remainders(
    names: Sequence[str],
    tight: _Resolved,
    loose: Mapping[str, Loose],
    shapes: Mapping[str, Shape],
) -> tuple[dict[str, Owner], dict[str, Expression]]:
    """The owners and expressions of a group resolved without remainders, with them."""
    owners, expressions = dict(tight.owners), dict(tight.expressions)
    hosts = {n: owners[n] for n in loose if n in owners}
    for name, phi in loose.items():
        own = phi.remainder(shapes[name])
        owners[name] = _owner(hosts.get(name), own)
    for name in names:
        before = tight.expressions.get(name)
        plain = before or Expression((name,), Same().bind(shapes[name]))
        touched = [o for o in plain.owners if o in hosts]
        own_too = name in loose
        if not touched and not own_too:
            if before is not None:
                expressions[name] = replace(before, base=before)
            continue
        if not touched:  # the owners of what is shared, then the site's own
            rest = Same().bind(shapes[name])
            outer = added((plain.outer, rest))
            expressions[name] = Expression((*plain.owners, name), outer, before)
            continue
        if own_too and touched == [name] == [*plain.owners][-1:]:
            # its parameter stands last, what is shared in it before what is its own
            outer = added((plain.outer, Same().bind(shapes[name])))
            expressions[name] = Expression(plain.owners, outer, before)
            continue
        used = plain.owners if not own_too or name in plain.owners else (*plain.owners, name)
        expressions[name] = Expression(
            used, _picked(name, plain, used, owners, hosts, own_too, shapes[name]), before
        )
    ordered = {n: owners[n] for n in names if n in owners}
    return ordered, expressions


def _owner(host: Owner | None, own: Map) -> Owner:
    if host is None:
        return Owner(own.in_shape, own.out_shape, own, False, own, None)
    first: Map = Same().bind(host.roots) if host.source is None else host.source
    source = blocks([first, own])
    return Owner(source.in_shape, source.out_shape, source, False, own, host, True)


def _picked(
    name: str,
    plain: Expression,
    used: Sequence[str],
    owners: Mapping[str, Owner],
    hosts: Mapping[str, Owner],
    departs: bool,
    shape: Shape,
) -> Map:
    """A site's value from owners of which some hold more than what is shared."""
    starts, total = {}, 0
    for o in used:
        starts[o] = total
        total += numel(owners[o].roots)
    size = {o: numel((hosts[o] if o in hosts else owners[o]).roots) for o in plain.owners}
    position = [torch.arange(starts[o], starts[o] + size[o]) for o in plain.owners]
    pick = Indexed(torch.cat(position), (total,)).bind(plain.outer.in_shape)
    shared = (plain.outer @ pick).bind(shape)
    if not departs:
        return shared
    at = starts[name] + size.get(name, 0)
    own = Indexed.of(Index(torch.arange(at, at + numel(shape)), total), shape)
    both = added((shared, own))
    twice = Indexed(torch.arange(total).repeat(2), (total,)).bind((2 * total,))
    return (both @ twice).bind(shape)
