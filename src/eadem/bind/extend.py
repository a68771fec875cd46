"""One more site on a group of whole-site views, without resolving the group again.

Models are often tied in a loop, one call a layer. Where a call only hangs new whole sites on
a group that views hold together, and none of them comes before the group's owner, nothing
that is already tied can change.
"""

from __future__ import annotations

from bisect import bisect

from eadem._plan import Declaration, Expression, Group, bind_maps, residuals
from eadem.bind.access import class_with
from eadem.bind.attach import add_site, shrink_scope, values_of
from eadem.bind.group import BoundEntry, BoundTie, Link, TieGroup
from eadem.bind.names import Sites
from eadem.maps.base import LinearMap
from eadem.maps.view import View, Viewed

__all__ = ["extend"]


def extend(index: Sites, group: TieGroup, declaration: Declaration, bound: BoundTie) -> bool:
    """Hang a declaration's new sites on `group`; False where that would not be enough.

    Raises what `tie` raises, before anything is changed.
    """
    if not index.simple or not group.views:
        return False
    entries = declaration.entries
    keys = group.keys
    inside = [e for e in entries if index[e.site.name] in keys]
    fresh = [e for e in entries if index[e.site.name] not in keys]
    names = [e.site.name for e in fresh]
    if (
        len(inside) != 1
        or len(set(names)) < len(names)
        or any(n in group.places for n in names)
    ):
        return False
    if any(e.site.index is not None for e in entries):
        return False
    key = keys[index[inside[0].site.name]]
    e = group.resolved.expressions.get(key)
    owner = key if e is None else e.owners[0]
    if index.place(owner) != group.places[owner]:
        return False
    if any(index.rank(n) < index.rank(owner) for n in names):
        return False
    index.supported([owner, *names])
    _, phis = bind_maps(declaration, [index.shape(x.site.name) for x in entries])
    views = [p.view() if isinstance(p, LinearMap) else None for p in phis]
    if any(v is None for v in views):
        return False
    known = {x.site.name: v for x, v in zip(entries, views, strict=True) if v is not None}
    values = values_of(index, known)
    away = residuals(phis, [values[x.site.name] for x in entries])
    there = View.identity(len(group.shapes[owner])) if e is None else _view(e)
    theta = known[inside[0].site.name].inverse().after(there)
    links = {}
    for name in names:
        outer = Viewed(known[name].after(theta)).bind(index.shape(name))
        source = (*group.places[owner], group.resolved.owners[owner])
        links[name] = Link(group, name, Expression((owner,), outer), [source], outer.out_shape)
    # whatever cannot be given a class says so here, while nothing has changed
    kinds = [class_with(*index[name], link) for name, link in links.items()]
    for name, link in links.items():
        at = bisect(group.resolved.names, index.rank(name), key=lambda k: index.rank(k))
        held = group.resolved.names
        group.places[name], group.shapes[name] = index[name], link.shape
        keys[index[name]] = name
        group.resolved.expressions[name] = link.expression
        resolved = group.resolved
        group.resolved = Group(
            (*held[:at], name, *held[at:]), resolved.owners, resolved.expressions
        )
        add_site(link)
    bound.entries = [
        BoundEntry(group.keys[index[x.site.name]], None, x.map, r)
        for x, r in zip(entries, away, strict=True)
    ]
    del kinds  # held, until each module is of its class
    group.ties.append(bound)
    shrink_scope(index, group, names)
    index.keep([], [])
    return True


def _view(e: Expression) -> View:
    assert isinstance(e.outer, Viewed)
    return e.outer.view()
