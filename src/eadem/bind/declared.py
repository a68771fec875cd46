"""Ties between their two forms: declarations by name, and groups bound to places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from eadem._plan import (
    BoundMaps,
    Declaration,
    Entry,
    Site,
    connected,
    nearest_theta,
    residuals,
    resolve_group,
    shared_map,
)
from eadem.bind.begin import Start, bound_maps, one_start, start_values
from eadem.bind.group import BoundEntry, BoundTie, TieGroup
from eadem.bind.names import Sites
from eadem.maps.base import Map, Shape
from eadem.maps.remainder import Loose
from eadem.maps.view import Same, ViewMap


def by_name(bound: BoundTie, names: Mapping[str, str]) -> Declaration:
    """A bound tie as a declaration, by the names that its places have today."""
    return Declaration(tuple(Entry(Site(names[e.key], e.index), e.map) for e in bound.entries))


def tied_again(
    declared: Sequence[tuple[Declaration, BoundTie]], wanted: Sequence[Declaration]
) -> list[tuple[Declaration, BoundTie]]:
    """Declared ties without the departures that new ones take back.

    A site that may depart from a tie, and is tied again to another site of it, is where both
    declarations hold: it departs no more. What is left of its tie is dropped where a new one
    says it all.
    """
    found = []
    for d, bound in declared:
        out = set()
        for i, e in enumerate(d.entries):
            others = {x.site.name for x in d.entries} - {e.site.name}
            if isinstance(e.map, Loose) and any(
                e.site in (x.site for x in w) and not others.isdisjoint(w.names) for w in wanted
            ):
                out.add(i)
        if not out:
            found.append((d, bound))
            continue
        stay = [i for i in range(len(d.entries)) if i not in out]
        alone = len(stay) == 1 and isinstance(shared_map(d.entries[stay[0]].map), ViewMap)
        entries = tuple(d.entries[i] for i in stay)
        same = {e.site for e in entries if type(e.map) is Same}
        said = len(same) == len(entries) and any(
            same <= {x.site for x in w if type(x.map) is Same} for w in wanted
        )
        if stay and not alone and not said:
            fresh = BoundTie([replace(bound.entries[i]) for i in stay])
            found.append((Declaration(entries), fresh))
    return found


def alias_ties(index: Sites) -> list[tuple[Declaration, BoundTie]]:
    """Parameters that the model holds in several places, as ties of their own."""
    by_first: dict[str, list[str]] = {}
    for alias, name in index.aliases.items():
        by_first.setdefault(name, [name]).append(alias)
    found = []
    for together in by_first.values():
        entries = tuple(Entry(Site(n), Same()) for n in together)
        found.append((Declaration(entries), BoundTie([])))
    return found


def note_residuals(
    everything: Sequence[tuple[Declaration, BoundTie]],
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    cache: BoundMaps,
) -> None:
    """Fill the entries of new ties, with how far each site is from the tie's range."""
    for declaration, bound in everything:
        if bound.entries:
            continue
        phis, parts = bound_maps(declaration, shapes, values, cache)
        with torch.no_grad():
            away = _residuals(declaration, phis, parts)
        bound.entries = [
            BoundEntry(e.site.name, e.site.index, e.map, r)
            for e, r in zip(declaration.entries, away, strict=True)
        ]


def _residuals(
    declaration: Declaration, phis: Sequence[Map], parts: Sequence[Tensor]
) -> list[float]:
    """How far each site is from what the tie can hold; one that may depart from it, from what
    it can hold beside the nearest values of the others (of all, if every one may depart).
    """
    loose = {i for i, e in enumerate(declaration) if isinstance(e.map, Loose)}
    if not loose or any(v.is_meta for v in parts):
        return residuals(phis, parts)
    held = [i for i in range(len(parts)) if i not in loose] or list(range(len(parts)))
    best = nearest_theta([phis[i] for i in held], [parts[i] for i in held])
    found = []
    for e, phi, value in zip(declaration, phis, parts, strict=True):
        away = value - phi.expand(best)
        if isinstance(e.map, Loose):
            rest = e.map.remainder(tuple(value.shape))
            away = away - rest.expand(rest.lift(away))
        found.append(float(away.abs().max()) if away.numel() else 0.0)
    return found


def no_residuals(everything: Sequence[tuple[Declaration, BoundTie]]) -> None:
    """Fill the entries of new ties whose values are yet to come, and will satisfy them."""
    for declaration, bound in everything:
        if not bound.entries:
            bound.entries = [
                BoundEntry(e.site.name, e.site.index, e.map) for e in declaration.entries
            ]


def resolve_ties(
    index: Sites,
    everything: Sequence[tuple[Declaration, BoundTie]],
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    starts: Mapping[int, Start],
    cache: BoundMaps,
) -> tuple[list[TieGroup], dict[str, Tensor]]:
    """Every connected group resolved, and the free values to start from."""
    order = {n: index.rank(n) for n in shapes}
    bounds = {id(d): b for d, b in everything}
    groups, thetas = [], {}
    for members in connected([d for d, _ in everything]):
        resolved = resolve_group(shapes, members, order, cache)
        given = {n: values[n] for n in resolved.names}
        start = one_start(
            [starts[id(bounds[id(d)])] for d in members if id(bounds[id(d)]) in starts]
        )
        thetas.update(start_values(index, resolved, shapes, given, start))
        for name, e in resolved.expressions.items():
            if not e.owners:
                thetas["\0like:" + name] = values[name].new_zeros(0)
        places = {n: index[n] for n in resolved.names}
        local = {n: tuple(shapes[n]) for n in resolved.names}
        ties = [bounds[id(d)] for d in members]
        groups.append(TieGroup(places, local, ties, resolved))
    for d, b in everything:  # only now: an error above leaves the ties as they were
        for entry, own in zip(d.entries, b.entries, strict=True):
            own.key = entry.site.name
    return groups, thetas
