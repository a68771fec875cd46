"""Declaring ties on a model: `tie`, `tie_modules`, `plan`, `untie`, `twin`."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from eadem._plan import (
    BoundMaps,
    Declaration,
    Entry,
    Site,
    canonical,
    same_map,
)
from eadem.bind.attach import attach, values_of
from eadem.bind.begin import STARTS, Start, place_theta
from eadem.bind.declared import (
    alias_ties,
    by_name,
    no_residuals,
    note_residuals,
    resolve_ties,
    tied_again,
)
from eadem.bind.extend import extend
from eadem.bind.group import BoundTie, TieGroup
from eadem.bind.names import Sites, is_pattern, match
from eadem.errors import NoSuchSite, OutOfRange, TieConflict, Unsupported, nearest
from eadem.maps.base import Map
from eadem.maps.constant import on_cpu
from eadem.maps.view import Same

__all__ = ["Start", "Tie", "declare", "plan", "tie", "tie_modules"]


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
        """The parameter of the free values. Raises OutOfRange where there are several."""
        found = self.thetas
        if len(found) != 1:
            raise OutOfRange(
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


@on_cpu()
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
            raise Unsupported("tie() takes either a map for each site or via=, not both")
        for text, phi in pairs:
            if not isinstance(phi, Map):
                raise Unsupported(
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


@on_cpu()
def _declare(index: Sites, wanted: Sequence[_Wanted], bound: Sequence[BoundTie]) -> None:
    """Resolve new declarations together with the ties they touch, then bind them."""
    for w in wanted:
        if not isinstance(w.start, Tensor) and w.start not in (*STARTS, "empty"):
            raise OutOfRange(f"start={w.start!r} is not known; use one of {STARTS} or a tensor")
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
        declared += [(by_name(t, own), t) for t in group.ties]
    declared = tied_again(declared, [w.declaration for w in wanted])
    aliases = alias_ties(index)
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
    if any(w.start == "empty" for w in wanted):
        no_residuals(everything)
    note_residuals(everything, shapes, values, cache)
    held = dict(values)
    for w in wanted:
        if isinstance(w.start, Tensor):
            place_theta(w.declaration, w.start, shapes, held, cache)
    starts = {id(b): w.start for w, b in zip(wanted, bound, strict=True)}
    groups, thetas = resolve_ties(index, everything, shapes, held, starts, cache)
    attach(index, touched, groups, thetas, {})


def _touched(index: Sites, names: Mapping[str, None]) -> list[TieGroup]:
    """The groups that hold any of these sites."""
    wanted = {index[n] for n in names}
    return [g for g in index.groups if not wanted.isdisjoint(g.keys)]
