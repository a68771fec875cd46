"""Declaring ties on a model: `tie`, `tie_modules`, `plan`, `untie`, `twin`."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from eadem._plan import (
    BoundMaps,
    Declaration,
    Entry,
    Group,
    Site,
    canonical,
    connected,
    first,
    mean,
    plan_of,
    residuals,
    resolve_group,
    same_map,
)
from eadem.bind.attach import attach, values_of
from eadem.bind.extend import extend
from eadem.bind.group import BoundEntry, BoundTie, TieGroup
from eadem.bind.names import Sites, is_pattern, match
from eadem.bind.written import agree
from eadem.errors import NoSuchSite, ShapeError, TieConflict, nearest
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.view import Same, ViewMap

__all__ = ["Start", "Tie", "declare", "plan", "tie", "tie_modules", "twin", "untie"]

Start = Literal["first", "mean", "strict", "init"] | Tensor
_STARTS = ("first", "mean", "strict", "init")


class Tie:
    """One declared tie on a model.

    `sites`: names, with an index where the site is a part; `maps`: one for each site;
    `residual`: by site, how far it was from what the tie can hold, when it was tied.
    """

    def __init__(self, model: nn.Module, bound: BoundTie) -> None:
        self._model, self._bound = model, bound

    def _found(self) -> tuple[Sites, TieGroup]:
        sites = Sites(self._model)
        for group in sites.groups:
            if any(t is self._bound for t in group.ties):
                return sites, group
        raise NoSuchSite("this tie is no longer on its model: it was untied")

    def _names(self, sites: Sites, group: TieGroup) -> list[str]:
        return [
            str(Site(sites.name(group.places[e.key]), e.index)) for e in self._bound.entries
        ]

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of the sites."""
        return tuple(self._names(*self._found()))

    @property
    def maps(self) -> tuple[Map, ...]:
        """The map of each site."""
        return tuple(e.map for e in self._bound.entries)

    @property
    def thetas(self) -> tuple[nn.Parameter, ...]:
        """The parameters that hold this tie's free values."""
        _, group = self._found()
        held = dict(group.owner_parameters())
        used: dict[str, None] = {}
        for e in self._bound.entries:
            expression = group.resolved.expressions.get(e.key)
            used.update(dict.fromkeys([e.key] if expression is None else expression.owners))
        return tuple(held[k] for k in held if k in used)

    @property
    def theta(self) -> nn.Parameter:
        """The parameter that holds the free values, when it is one. Raises ValueError."""
        found = self.thetas
        if len(found) != 1:
            raise ValueError(
                f"the free values of {self} are in {len(found)} parameters; use .thetas"
            )
        return found[0]

    @property
    def residual(self) -> dict[str, float]:
        """Largest distance of each site from the nearest values that the tie allows, as it
        was when the tie was declared (NaN for a model without values, on `meta`).
        """
        sites, group = self._found()
        given = [e.residual for e in self._bound.entries]
        return dict(zip(self._names(sites, group), given, strict=True))

    def value(self, site: str) -> Tensor:
        """The value at one of the sites, differentiable in the free values.

        Raises NoSuchSite for any other name.
        """
        sites, group = self._found()
        names = self._names(sites, group)
        (name, index), *_ = sites.find(site)
        if str(Site(name, canonical(index, sites.shape(name), site))) not in names:
            raise NoSuchSite(f"{site!r} is no site of {self!r}; {nearest(site, names)}")
        module, attr = sites[name]
        found: Tensor = getattr(module, attr)
        return found if index is None else found[index]  # type: ignore[index]

    def __repr__(self) -> str:
        try:
            names = self.sites
        except NoSuchSite:
            return "Tie(untied)"
        shown = [f"{n} = {m!r}(θ)" for n, m in zip(names[:4], self.maps, strict=False)]
        if len(names) > 4:
            shown.append(f"… {len(names)} sites")
        return f"Tie({', '.join(shown)})"


@dataclass(frozen=True, eq=False)
class _Wanted:
    """A declaration that waits to be resolved, with how to start it."""

    declaration: Declaration
    start: Start


class _Open(threading.local):
    """The `plan` that is open in this thread."""

    model: nn.Module | None = None
    wanted: list[_Wanted] | None = None
    bound: list[BoundTie] | None = None


_open = _Open()


def tie(
    model: nn.Module,
    *sites: str | Mapping[str, Map],
    to: str | None = None,
    via: Map | None = None,
    start: Start = "first",
) -> Tie:
    """Declare that sites of a model are the same free values θ, each through its map.

    Args:
        model: any module; it stays itself, and its parameters hold each free value once.
        sites: names, patterns (`*` within a dotted part, `**` across) and parts ("w[1]"); or
            one mapping from such names to the map of each.
        to: a site that is θ itself (`Same`), left out of the patterns' matches.
        via: the map of every site listed (`Same()` by default).
        start: where θ starts: "first" (each free value is what its own place held), "mean"
            (least squares over all sites), "strict" (the sites must agree), "init" (drawn at
            the fan-in of the layer that the map realises), or θ itself.

    Raises:
        NoSuchSite, ShapeError, TieConflict, Unsupported: the model is left as it was.

    >>> model = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 8))
    >>> from eadem.maps import Transpose
    >>> t = tie(model, "2.weight", to="0.weight", via=Transpose())
    >>> bool((model[2].weight == model[0].weight.t()).all())
    True
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight', '0.bias', '2.bias']
    """
    index = Sites(model)
    declaration = _declaration(index, sites, to, via)
    wanted = _Wanted(declaration, start)
    if _open.wanted is not None and _open.model is model:
        assert _open.bound is not None
        bound = BoundTie([])
        _open.wanted.append(wanted)
        _open.bound.append(bound)
        return Tie(model, bound)
    bound = BoundTie([])
    _declare(index, [wanted], [bound])
    return Tie(model, bound)


def tie_modules(
    model: nn.Module, *modules: str, to: str | None = None, start: Start = "first"
) -> list[Tie]:
    """Tie whole modules: one tie for each relative parameter name. Buffers stay apart.

    Raises NoSuchSite where a pattern matches no module or the modules' parameters differ in
    name, and what `tie` raises.

    >>> model = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    >>> len(tie_modules(model, "*"))
    2
    """
    index = Sites(model)
    names = [p for p in index.modules.values() if p]
    chosen: dict[str, None] = {}
    for m in modules:
        found = match(m, names) if is_pattern(m) else [n for n in names if n == m]
        if not found:
            raise NoSuchSite(f"no module matches {m!r}; {nearest(m, names)}")
        chosen.update(dict.fromkeys(n for n in found if n != to))
    if to is not None:
        if to not in names:
            raise NoSuchSite(f"no module is called {to!r}; {nearest(to, names)}")
        chosen[to] = None
    inside = {
        m: {n[len(m) + 1 :] for n in index.places if n.startswith(m + ".")} for m in chosen
    }
    everywhere = set().union(*inside.values())
    for m, own in inside.items():
        if own != everywhere:
            lacking = ", ".join(sorted(everywhere - own)[:4])
            raise NoSuchSite(
                f"the modules {', '.join(list(chosen)[:4])} do not hold the same parameters: "
                f"{m!r} lacks {lacking}"
            )
    order = [
        n[len(m) + 1 :] for m in list(chosen)[:1] for n in index.places if n.startswith(m + ".")
    ]
    ties = []
    with plan(model):
        for relative in order:
            ties.append(tie(model, *(f"{m}.{relative}" for m in chosen), start=start))
    return ties


@contextmanager
def plan(model: nn.Module) -> Iterator[None]:
    """Declare several ties and resolve them once, at the end. An error undoes all of them.

    >>> model = nn.ModuleList([nn.Linear(2, 2) for _ in range(3)])
    >>> with plan(model):
    ...     _ = tie(model, "0.weight", "1.weight")
    ...     _ = tie(model, "1.weight", "2.weight")
    >>> sum(p.numel() for p in model.parameters())
    10
    """
    if _open.wanted is not None and _open.model is model:
        yield
        return
    before = (_open.model, _open.wanted, _open.bound)
    _open.model, _open.wanted, _open.bound = model, [], []
    try:
        yield
        wanted, bound = _open.wanted, _open.bound
    finally:
        _open.model, _open.wanted, _open.bound = before
    if wanted:
        _declare(Sites(model), wanted, bound)


def declare(
    model: nn.Module, declarations: Sequence[Declaration], start: Start = "first"
) -> list[Tie]:
    """Add declarations by name, as `record` reads them, and resolve them together."""
    wanted = [_Wanted(d, start) for d in declarations]
    bound = [BoundTie([]) for _ in wanted]
    if wanted:
        _declare(Sites(model), wanted, bound)
    return [Tie(model, b) for b in bound]


def _declaration(
    index: Sites, sites: Sequence[str | Mapping[str, Map]], to: str | None, via: Map | None
) -> Declaration:
    chosen: dict[Site, Map] = {}
    source: Site | None = None
    if to is not None:
        (name, where), *more = index.find(to)
        if more:
            raise NoSuchSite(f"to={to!r} names {len(more) + 1} sites; it must name one")
        source = Site(name, canonical(where, index.shape(name), to))
    if not sites:
        raise NoSuchSite("tie() needs at least one site: tie(model, 'a.weight', 'b.weight')")
    for given in sites:
        pairs = given.items() if isinstance(given, Mapping) else [(given, via or Same())]
        if isinstance(given, Mapping) and via is not None:
            raise TypeError("tie() takes either a map for each site or via=, not both")
        for text, phi in pairs:
            if not isinstance(phi, Map):
                raise TypeError(
                    f"{text!r} needs a map such as Same() or Transpose(), not {phi!r}"
                )
            for name, where in index.find(text):
                site = Site(name, canonical(where, index.shape(name), text))
                if site == source:
                    continue
                if site in chosen and not same_map(chosen[site], phi):
                    raise TieConflict(
                        f"{site} is listed twice in one tie, with {chosen[site]!r} and "
                        f"{phi!r}; declare two ties to intersect them"
                    )
                chosen[site] = phi
    entries = [Entry(s, m) for s, m in chosen.items()]
    if source is not None:
        if not entries:
            raise NoSuchSite(f"nothing is left to tie to {to!r}: the sites name only it")
        entries.append(Entry(source, Same()))
    return Declaration(tuple(entries))


def _declare(index: Sites, wanted: Sequence[_Wanted], bound: Sequence[BoundTie]) -> None:
    """Resolve new declarations together with the ties they touch, then bind them."""
    for w in wanted:
        if not isinstance(w.start, Tensor) and w.start not in _STARTS:
            raise ValueError(
                f"start={w.start!r} is not known; use one of {_STARTS} or a tensor"
            )
    names = dict.fromkeys(n for w in wanted for n in w.declaration.names)
    for name in names:
        if index.place(name) is None:
            index.find(name)
    touched = _touched(index, names)
    alone = len(wanted) == 1 and len(touched) == 1 and isinstance(wanted[0].start, str)
    if (
        alone
        and wanted[0].start == "first"
        and extend(index, touched[0], wanted[0].declaration, bound[0])
    ):
        return
    declared = []
    for group in touched:
        own = index.named(group)
        declared += [(_by_name(t, own), t) for t in group.ties]
    aliases = _aliases(index)
    everything = [
        *declared,
        *aliases,
        *((w.declaration, b) for w, b in zip(wanted, bound, strict=True)),
    ]
    involved = dict.fromkeys(n for d, _ in everything for n in d.names)
    index.supported(involved)
    shapes = {n: index.shape(n) for n in involved}
    values = values_of(index, involved)
    cache: BoundMaps = {}
    _note_residuals(everything, shapes, values, cache)
    held = dict(values)
    for w in wanted:
        if isinstance(w.start, Tensor):
            _place(w.declaration, w.start, shapes, held, cache)
    starts = {id(b): w.start for w, b in zip(wanted, bound, strict=True)}
    groups, thetas = _resolve(index, everything, shapes, held, starts, cache)
    attach(index, touched, groups, thetas, {})


def _touched(index: Sites, names: Mapping[str, None]) -> list[TieGroup]:
    """The groups that hold any of these sites."""
    wanted = {index[n] for n in names}
    return [g for g in index.groups if not wanted.isdisjoint(g.keys)]


def _by_name(bound: BoundTie, names: Mapping[str, str]) -> Declaration:
    return Declaration(tuple(Entry(Site(names[e.key], e.index), e.map) for e in bound.entries))


def _aliases(index: Sites) -> list[tuple[Declaration, BoundTie]]:
    """Parameters that the model holds in several places, as ties of their own."""
    by_first: dict[str, list[str]] = {}
    for alias, name in index.aliases.items():
        by_first.setdefault(name, [name]).append(alias)
    found = []
    for together in by_first.values():
        entries = tuple(Entry(Site(n), Same()) for n in together)
        found.append((Declaration(entries), BoundTie([])))
    return found


def _note_residuals(
    everything: Sequence[tuple[Declaration, BoundTie]],
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    cache: BoundMaps,
) -> None:
    """Fill the entries of new ties, with how far each site is from the tie's range."""
    for declaration, bound in everything:
        if bound.entries:
            continue
        phis, parts = _bound_maps(declaration, shapes, values, cache)
        with torch.no_grad():
            away = residuals(phis, parts)
        bound.entries = [
            BoundEntry(e.site.name, e.site.index, e.map, r)
            for e, r in zip(declaration.entries, away, strict=True)
        ]


def _bound_maps(
    declaration: Declaration,
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    cache: BoundMaps,
) -> tuple[list[Map], list[Tensor]]:
    from eadem._plan.resolve import bind_maps

    parts = []
    for e in declaration.entries:
        value = values[e.site.name]
        if e.site.index is not None:
            at = torch.from_numpy(e.site.coordinates(shapes[e.site.name])).to(value.device)
            value = value.reshape(-1)[at].reshape(e.site.shape(shapes[e.site.name]))
        parts.append(value)
    _, phis = bind_maps(declaration, [tuple(p.shape) for p in parts], cache)
    return phis, parts


def _place(
    declaration: Declaration,
    theta: Tensor,
    shapes: Mapping[str, Shape],
    held: dict[str, Tensor],
    cache: BoundMaps,
) -> None:
    """Put the values that θ gives at a tie's sites into `held`."""
    phis, _ = _bound_maps(declaration, shapes, held, cache)
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


def _resolve(
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
        start = _one_start(
            [starts[id(bounds[id(d)])] for d in members if id(bounds[id(d)]) in starts]
        )
        thetas.update(_start(index, resolved, shapes, given, start))
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


def _one_start(given: Sequence[Start]) -> str:
    """How one group starts: as its new ties say, which must agree. θ itself is in place."""
    said = dict.fromkeys(s for s in given if isinstance(s, str))
    if len(said) > 1:
        raise TieConflict(
            f"ties that share sites start in different ways ({', '.join(said)}); choose one"
        )
    return next(iter(said), "first")


@torch.no_grad()
def _start(
    index: Sites,
    group: Group,
    shapes: Mapping[str, Shape],
    values: Mapping[str, Tensor],
    start: str,
) -> dict[str, Tensor]:
    like = next(iter(values.values()))
    if like.is_meta:
        return {o: like.new_empty(w.shape) for o, w in group.owners.items()}
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
    held constant. A bias takes that of the weight beside it.
    """
    drawn = {}
    for name, value in values.items():
        bound = 1 / math.sqrt(max(1.0, _fan_in(index, group, name, shapes[name])))
        drawn[name] = torch.empty_like(value).uniform_(-bound, bound)
    return first(group, drawn).thetas


def _fan_in(index: Sites, group: Group, name: str, shape: Shape) -> float:
    if len(shape) >= 2:
        e = group.expressions.get(name)
        outer = None if e is None else e.outer
        found = None
        if isinstance(outer, LinearMap) and outer.view() is None:
            found = outer.index()
        live = numel(shape) if found is None else int((found.position >= 0).sum())
        return live / shape[0]
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


def untie(model: nn.Module, *sites: str) -> nn.Module:
    """Take sites out of their ties (all ties without names). Values stay; parameters become
    independent. Returns the model.

    Raises NoSuchSite for a site that is not tied.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> _ = tie(model, "*.weight")
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
            everything += [(_by_name(t, own), t) for t in group.ties]
    adopted = [a for a in _aliases(index) if not out or any(s.name in a[0].names for s in out)]
    found = {n for d, _ in [*everything, *adopted] for n in d.names}
    for s in out:
        if s.name not in found:
            raise NoSuchSite(f"{s} is not tied; {nearest(s.name, found)}")
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
    groups, thetas = _resolve(index, kept, shapes, values, {}, {})
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
    return isinstance(entry.map, ViewMap)


@torch.no_grad()
def _detach_aliases(index: Sites, names: Sequence[str]) -> None:
    """Give every alias among `names` a parameter of its own, with the same value."""
    for name in names:
        module, attr = index.places[name]
        p = module._parameters[attr]
        assert p is not None
        module._parameters[attr] = nn.Parameter(p.detach().clone(), p.requires_grad)


def twin(model: nn.Module) -> Any:
    """A deep copy with no ties and the same function.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> _ = tie(model, "*.weight")
    >>> sum(p.numel() for p in twin(model).parameters())
    12
    """
    return untie(copy.deepcopy(model))
