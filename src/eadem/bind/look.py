"""Looking at a tied model: its ties, its plan, its counts, and whether it still holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from eadem._plan import (
    Declaration,
    Expression,
    Owner,
    Plan,
    connected,
    make_plan,
    resolve_group,
    same_map,
)
from eadem.bind.access import base_class, computed
from eadem.bind.attach import values_of
from eadem.bind.constraints import constraint_rank
from eadem.bind.declared import alias_ties, by_name
from eadem.bind.group import LINKS, BoundTie, Place, TieGroup
from eadem.bind.names import Sites
from eadem.bind.split import full, is_split, put
from eadem.bind.ties import Tie
from eadem.errors import ShapeError, TieBroken, Unsupported
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.constant import on_cpu
from eadem.maps.index import Indexed, Reshape
from eadem.maps.remainder import Factors
from eadem.maps.view import ViewMap

__all__ = [
    "Counts",
    "check",
    "computed_sites",
    "counts",
    "declarations",
    "explain",
    "free_vector",
    "readers",
    "resolved",
    "set_free_vector",
    "ties",
    "whole_vector",
]


def ties(model: nn.Module) -> list[Tie]:
    """The ties declared on a model, and parts of it, in traversal order.

    Aliases that the model has by itself (`lm_head.weight is embed.weight`) are adopted as
    ties when the model is first tied, and listed from then on.
    """
    sites = Sites(model)
    found = []
    for group in sites.groups:
        for bound in group.ties:
            own = sites.named(group)
            names = [own[e.key] for e in bound.entries]
            found.append((min(sites.order[n] for n in names), Tie(model, bound)))
    return [t for _, t in sorted(found, key=lambda pair: pair[0])]


def declarations(model: nn.Module) -> tuple[Declaration, ...]:
    """Every tie by name, native aliases included, in an order that the declaring does not
    change: entries and declarations sorted by traversal order, each said once.
    """
    sites = Sites(model)
    found = [d for d, _ in _all(sites)]
    order = sites.order

    def entries(d: Declaration) -> Declaration:
        key = sorted(d.entries, key=lambda e: (order[e.site.name], str(e.site), repr(e.map)))
        return Declaration(tuple(key))

    ordered = [entries(d) for d in found]
    ordered.sort(key=lambda d: [(order[e.site.name], str(e.site), repr(e.map)) for e in d])
    return tuple(d for i, d in enumerate(ordered) if not i or not _equal(ordered[i - 1], d))


def _equal(a: Declaration, b: Declaration) -> bool:
    return len(a.entries) == len(b.entries) and all(
        x.site == y.site and same_map(x.map, y.map)
        for x, y in zip(a.entries, b.entries, strict=True)
    )


def _all(sites: Sites) -> list[tuple[Declaration, BoundTie]]:
    found = []
    for group in sites.groups:
        names = sites.named(group)
        found += [(by_name(t, names), t) for t in group.ties]
    return found + alias_ties(sites)


@on_cpu()
def resolved(model: nn.Module) -> Plan:
    """The whole model's plan: θ (every parameter, flat) → W (every site, flat).

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> resolved(model).in_shape, resolved(model).out_shape
    ((8,), (12,))
    """
    sites = Sites(model)
    shapes = {n: sites.shape(n) for n in sites.places}
    owners: dict[str, Owner] = {}
    expressions: dict[str, Expression] = {}
    groups = []
    for group in sites.groups:
        name = sites.named(group)
        groups.append(tuple(name.values()))
        owners.update({name[k]: o for k, o in group.resolved.owners.items()})
        for k, e in group.resolved.expressions.items():
            expressions[name[k]] = e.renamed(name)
    aliased = [d for d, _ in alias_ties(sites)]
    for members in connected(aliased):
        extra = resolve_group(shapes, members, sites.order)
        for o, owner in extra.owners.items():
            owners.setdefault(o, owner)
        for n, e in extra.expressions.items():
            expressions[n] = e
            owners.pop(n, None)
        groups.append(extra.names)
    tied = {n for g in groups for n in g}
    for n, shape in shapes.items():
        if n not in tied:
            owners[n] = Owner(shape, shape)
    ordered = {n: owners[n] for n in shapes if n in owners}
    groups.sort(key=lambda g: sites.order[g[0]])
    return make_plan(shapes, ordered, expressions, tuple(groups))


def computed_sites(model: nn.Module) -> set[str]:
    """The tied sites that are neither a parameter nor one with its axes permuted."""
    sites = Sites(model)
    found = set()
    for group in sites.groups:
        for key in group.resolved.expressions:
            module, attr = group.places[key]
            if computed(module.__dict__[LINKS][attr]):
                found.add(sites.name(group.places[key]))
    return found


@dataclass(eq=False)
class Reader:
    """Where a parameter is: `seats` hold it, `modules` use its value; `covered` where a seat's
    attribute shows another value than the parameter, computed from it.
    """

    parameter: nn.Parameter
    seats: list[Place] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)
    covered: bool = False


def readers(model: nn.Module) -> list[Reader]:
    """Where every parameter is held and used, for what must keep it with all of its uses."""
    sites = Sites(model)
    found: dict[nn.Parameter, Reader] = {}
    for place in sites.places.values():
        p = place.parameter
        if p is not None:
            reader = found.setdefault(p, Reader(p))
            reader.seats.append(place)
            reader.modules.append(place.module)
            reader.covered |= place.attr in place.module.__dict__.get(LINKS, ())
    for group in sites.groups:
        held = dict(group.owner_parameters())
        for key, e in group.resolved.expressions.items():
            for owner in e.owners:
                found[held[owner]].modules.append(group.places[key].module)
    return list(found.values())


def free_vector(model: nn.Module) -> Tensor:
    """All free values, flat, detached, in the order of `model.parameters()`."""
    parts = [full(p.detach()).reshape(-1) for p in model.parameters()]
    return torch.cat(parts) if parts else torch.zeros(0)


def whole_vector(model: nn.Module, plan: Plan) -> Tensor:
    """`free_vector`, of a model whose plan this is.

    Raises Unsupported for a part of a model that reads values which another part holds.
    """
    theta = free_vector(model)
    if theta.numel() != numel(plan.in_shape):
        held = {id(p) for p in model.parameters()}
        away = [n for n, p in Sites(model).places.items() if id(p.parameter) not in held]
        raise Unsupported(
            f"{type(model).__name__} is a part of a tied model: the values of "
            f"{', '.join(away[:4]) or 'its sites'} are held by another part; give the whole "
            "model, or eadem.twin of this part, which has values of its own"
        )
    return theta


@torch.no_grad()
def set_free_vector(model: nn.Module, theta: Tensor) -> None:
    """Write a flat vector of free values into the model's parameters."""
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    if tuple(theta.shape) != (size,):
        raise ShapeError(
            f"the model has {size} free values, flat; the vector given has shape "
            f"{tuple(theta.shape)}"
        )
    for p, piece in zip(
        parameters, torch.split(theta, [p.numel() for p in parameters]), strict=True
    ):
        put(p, piece.reshape(p.shape))


@dataclass(frozen=True)
class Counts:
    """Numbers of a model. `free`: rank of the resolved plan, untied parameters included;
    `stored`: numbers kept in parameters; `expanded`: numbers at the sites.
    """

    free: int
    stored: int
    expanded: int


@on_cpu()
def counts(model: nn.Module) -> Counts:
    """How many values are free, stored and used. Equations that the sites keep by their
    meaning (rows of probabilities sum to one) are not free.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> counts(model)
    Counts(free=8, stored=8, expanded=12)
    """
    whole = resolved(model)
    if isinstance(whole, LinearMap):
        rank = whole.rank - constraint_rank(model, whole, whole)
    else:
        generator = torch.Generator().manual_seed(0)
        split = any(map(is_split, model.parameters()))
        theta = _generic(whole.in_shape) if split else free_vector(model)
        at = whole.linearize(whole.general(theta.to(torch.float64).cpu(), generator))
        rank = at.rank - constraint_rank(model, at, whole)
    return Counts(rank, numel(whole.in_shape), numel(whole.out_shape))


def _generic(shape: Shape) -> Tensor:
    """Some θ in general position, where a rank is asked for and no values are at hand."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def check(model: nn.Module) -> None:
    """Raise TieBroken, naming the tie, unless every tie of the model still holds.

    Checked are: every owner is there, with its shape; the owners of one tie agree in dtype,
    device and requires_grad; no derived site holds a parameter; every site can be read.
    """
    sites = Sites(model)
    for group in sites.groups:
        names = {k: sites.name(p) for k, p in group.places.items() if p.module in sites.modules}
        what = f"the tie of {', '.join(list(names.values())[:4])}"
        gone = [k for k in group.places if k not in names]
        if gone:
            raise TieBroken(f"{what}: the module of {gone[0]!r} is no longer in the model")
        held = dict(group.owner_parameters())
        for key, p in held.items():
            wanted = group.resolved.owners[key].shape
            if tuple(p.shape) != wanted:
                raise TieBroken(
                    f"{what}: {names[key]!r} has shape {tuple(p.shape)}, its free values have "
                    f"{wanted}"
                )
        for attribute in ("dtype", "device", "requires_grad"):
            if len({getattr(p, attribute) for p in held.values()}) > 1:
                raise TieBroken(f"{what}: its owners {list(held)} differ in {attribute}")
        for key in group.bound:
            module, attr = group.places[key]
            link = module.__dict__.get(LINKS, {}).get(attr)
            if link is None or base_class(module) is type(module):
                raise TieBroken(f"{what}: {names[key]!r} is no longer bound to it")
            if key not in held and module._parameters.get(attr) is not None:
                raise TieBroken(f"{what}: {names[key]!r} holds a parameter of its own")
            if any(map(is_split, held.values())):
                continue  # the owners have their shapes; not gathered for this
            if tuple(link.compute().shape) != group.shapes[key]:
                raise TieBroken(f"{what}: {names[key]!r} no longer has its shape")


def explain(model: nn.Module, site: str) -> str:
    """Where a site's value comes from, in words: the owner, the maps on the way, the ties
    that say so, and what was lately refused because of them.

    Raises NoSuchSite.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> print(explain(model, "1.weight"))
    1.weight (2, 2) = 0.weight
      θ: 0.weight (2, 2)
      declared: tie(0.weight = Same()(θ), 1.weight = Same()(θ))
    """
    sites = Sites(model)
    (name, _), *_more = sites.find(site)
    lines = []
    for group in sites.groups:
        names = sites.named(group)
        key = next((k for k, n in names.items() if n == name), None)
        if key is None:
            continue
        e = group.resolved.expressions.get(key)
        used = (key,) if e is None else e.owners
        lines.append(f"{name} {group.shapes[key]} = {_value(group, key, names)}")
        for o in used:
            owner = group.resolved.owners[o]
            maps = "" if owner.source is None else _through(owner.source)
            through = f" through {maps}" if maps else ""
            theta = group.places[o].parameter
            frozen = "" if theta is None or theta.requires_grad else ", frozen"
            lines.append(f"  θ: {names[o]} {owner.shape}{through}{frozen}")
        lines += _constants(e)
        for bound in group.ties:
            d = by_name(bound, names)
            if name in d.names:
                lines.append(f"  declared: {d}")
        lines += [f"  refused: {why}" for why in group.refusals]
        return "\n".join(lines)
    if name in sites.aliases:
        return f"{name} is the same parameter as {sites.aliases[name]} (the model's own alias)"
    return f"{name} {sites.shape(name)} is not tied: its parameter is its own"


def _through(phi: Map) -> str:
    """The maps between a stored θ and the values it stands for, outermost first."""
    if isinstance(phi, Indexed | Reshape):
        return ""
    inner = [v for v in phi.arguments().values() if isinstance(v, Map)]
    if not inner:
        parts = phi.arguments().get("parts", ())
        names = [_through(p) for p in parts] if parts else [type(phi).__name__]
    else:
        names = [_through(p) for p in inner]
    return " ∘ ".join(n for n in names if n)


def _constants(e: Expression | None) -> list[str]:
    """A line on the coordinates that the ties hold constant, where there are any."""
    if e is None or not isinstance(e.outer, LinearMap) or e.outer.view() is not None:
        return []
    index = e.outer.index()
    if index is None:
        return []
    held = index.position < 0
    zero = int((held & (index.shifts() == 0)).sum())
    other = int(held.sum()) - zero
    found = [f"{n} of its values {w}" for n, w in ((zero, "zero"), (other, "constant")) if n]
    return [f"  held by the ties: {', '.join(found)}"] if found else []


def _value(group: TieGroup, key: str, names: dict[str, str]) -> str:
    """A site's formula; of one that departs from its tie, what is shared and what is not."""
    e = group.resolved.expressions.get(key)
    owner = group.resolved.owners.get(key)
    if owner is None or owner.own is None:
        return _formula(e, [names[o] for o in ((key,) if e is None else e.owners)])
    base = None if e is None else e.base
    shared = [names[o] for o in ((key,) if base is None else base.owners)]
    first = shared[0] if base is None else _formula(base, shared)
    kind = "of low rank" if isinstance(owner.own, Factors) else "of any value"
    return f"{first} + a remainder {kind} in {names[key]}"


def _formula(e: Expression | None, owners: list[str]) -> str:
    if e is None:
        return "its own parameter, used elsewhere too"
    if not owners:
        return "a constant"
    if isinstance(e.outer, ViewMap):
        view = e.outer.view()
        text = owners[0]
        if view.perm != tuple(range(len(view.perm))):
            text += ".t()" if view.perm == (1, 0) else f".permute{view.perm}"
        if any(view.flips):
            text += f".flip({', '.join(str(i) for i, f in enumerate(view.flips) if f)})"
        if view.scale != 1.0:
            text = f"{view.scale:g}·{text}"
        return text if view.shift == 0.0 else f"{text} + {view.shift:g}"
    if isinstance(e.outer, LinearMap) and e.outer.index() is not None:
        return f"values picked from {', '.join(owners)}"
    return f"{type(e.outer).__name__} of {', '.join(owners)}"


def site_values(model: nn.Module) -> dict[str, Tensor]:
    """The value at every site, detached, by name in traversal order."""
    sites = Sites(model)
    return values_of(sites, sites.places)
