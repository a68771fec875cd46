"""Taking ties off again: `untie` and `twin`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from eadem._plan import (
    Declaration,
    Entry,
    Site,
    canonical,
    shared_map,
)
from eadem.bind.attach import attach, values_of
from eadem.bind.declared import alias_ties, by_name, resolve_ties
from eadem.bind.group import BoundEntry, BoundTie
from eadem.bind.names import Sites
from eadem.bind.remap import remaining
from eadem.bind.split import refuse_split
from eadem.errors import NoSuchSite, nearest
from eadem.maps.constant import on_cpu
from eadem.maps.view import ViewMap


@on_cpu()
@torch.inference_mode(False)
def untie(model: nn.Module, *sites: str) -> nn.Module:
    """Take sites out of their ties (all ties without names). Values stay; parameters become
    independent. Returns the model.

    Raises NoSuchSite for a site that is not tied.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> sum(p.numel() for p in untie(model).parameters())
    12
    """
    index = Sites(model)
    out: set[Site] = set()
    for text in sites:
        for name, where in index.find(text):
            out.add(Site(name, canonical(where, index.shape(name), text)))
    everything: list[tuple[Declaration, BoundTie]] = []
    touched = []
    for group in index.groups:
        own = index.named(group)
        if not out or any(s.name in own.values() for s in out):
            touched.append(group)
            everything += [(by_name(t, own), t) for t in group.ties]
    adopted = [
        a for a in alias_ties(index) if not out or any(s.name in a[0].names for s in out)
    ]
    found = {n for d, _ in [*everything, *adopted] for n in d.names}
    for s in out:
        if s.name not in found:
            raise NoSuchSite(f"{s} is not tied; {nearest(s.name, found)}")
    index.bindable(found)
    refuse_split(((n, index[n].parameter) for n in found), "untying")
    values = values_of(index, found)
    kept: list[tuple[Declaration, BoundTie]] = []
    matched: set[Site] = set()
    for d, b in [*everything, *adopted]:
        left = [_matching(out, e.site) for e in d.entries]
        matched.update(*left)
        stay = [i for i, by in enumerate(left) if out and not by]
        entries = tuple(d.entries[i] for i in stay)
        if not entries or (len(entries) == 1 < len(d.entries) and _plain(entries[0])):
            continue
        before = b.entries or [BoundEntry(str(e.site), e.site.index, e.map) for e in d.entries]
        fresh = BoundTie([replace(before[i]) for i in stay])
        kept.append((Declaration(entries), fresh))
    for s in sorted(out - matched, key=str):
        raise NoSuchSite(
            f"{s} is not a site of any tie; {nearest(str(s), _listed(everything, adopted))}"
        )
    shapes = {n: index.shape(n) for n in found}
    groups, thetas = resolve_ties(index, kept, shapes, values, {}, {})
    for new in groups:
        for group in touched:
            if new.resolved.names and set(new.resolved.names) <= {*index.named(group).values()}:
                thetas = remaining(group, new, index, thetas, shapes)
    still = {n for g in groups for n in g.places}
    with torch.no_grad():
        for name in index.aliases.values():
            if name in found and name not in still:
                values[name] = values[name].clone()
    _detach_aliases(index, [n for n in found if n in index.aliases])
    attach(index, touched, groups, thetas, {n: v for n, v in values.items() if n not in still})
    return model


def _matching(out: set[Site], site: Site) -> set[Site]:
    """Which of the sites to untie mean this one: itself, or the whole that it is a part of."""
    return {s for s in out if s == site or (s.index is None and s.name == site.name)}


def _listed(*declared: Sequence[tuple[Declaration, BoundTie]]) -> list[str]:
    return [str(e.site) for several in declared for d, _ in several for e in d.entries]


def _plain(entry: Entry) -> bool:
    """Whether a map, alone in its tie, leaves its site free."""
    return isinstance(shared_map(entry.map), ViewMap)


@torch.no_grad()
def _detach_aliases(index: Sites, names: Sequence[str]) -> None:
    """Give every alias among `names` a parameter of its own, with the same value."""
    for name in names:
        module, attr = index.places[name]
        p = module._parameters[attr]
        assert p is not None
        module._parameters[attr] = nn.Parameter(p.detach().clone(), p.requires_grad)


@torch.inference_mode(False)
def twin(model: nn.Module) -> Any:
    """A deep copy with no ties and the same function.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> sum(p.numel() for p in twin(model).parameters())
    12
    """
    refuse_split(model.named_parameters(), "an untied copy")
    return untie(copy.deepcopy(model))
