"""What each entry of a declaration asks of the resolution, and the maps bound for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eadem._plan.site import Declaration, Site
from eadem.errors import ShapeError
from eadem.maps.base import Composed, LinearMap, Map, Shape, numel
from eadem.maps.remainder import Loose
from eadem.maps.view import Same

#: Bound maps by the identity of the map and the shapes it was bound to.
BoundMaps = dict[tuple[int, Shape, Shape | None], Map]


@dataclass(frozen=True)
class Bound:
    """An entry with its map bound; `phi` leaves out a generator that all entries share."""

    site: Site
    shape: Shape
    phi: Map


@dataclass(frozen=True)
class BoundTie:
    """A declaration with bound maps, sorted by what each entry asks of the resolution."""

    declaration: Declaration
    theta: Shape
    index: tuple[Bound, ...]
    leaves: tuple[Bound, ...] = ()
    source: Map | None = None
    dense: tuple[Bound, ...] = ()


def classify(
    d: Declaration,
    shapes: Mapping[str, Shape],
    uses: Mapping[str, int],
    order: Mapping[str, Any],
    cache: BoundMaps | None,
) -> BoundTie:
    """Bind a declaration's maps to one shape of θ and sort its entries.

    A leaf is a whole site that no other entry mentions, in a tie whose θ other entries give:
    its value follows from them, and nothing follows from it.
    """
    parts = [e.site.shape(shapes[e.site.name]) for e in d.entries]
    theta, phis = bind_maps(d, parts, cache)
    bound = [Bound(e.site, s, p) for e, s, p in zip(d.entries, parts, phis, strict=True)]
    by_index = {id(p): indexed(p) for p in {id(p): p for p in phis}.values()}
    index = [b for b in bound if by_index[id(b.phi)]]
    whole = {id(p) for p in phis if isinstance(p, LinearMap) and p.view() is not None}
    views = [b for b in index if b.site.index is None and id(b.phi) in whole]
    if len(views) == len(bound):
        return BoundTie(d, theta, tuple(bound))
    start = min((order[b.site.name] for b in views), default=None)

    def leaf(b: Bound) -> bool:
        alone = b.site.index is None and uses[b.site.name] == 1
        if not by_index[id(b.phi)]:
            return alone
        after = start is not None and start < order[b.site.name]
        return alone and after and id(b.phi) not in whole

    leaves = [b for b in bound if leaf(b)]
    rest = [b for b in bound if not leaf(b)]
    if all(by_index[id(b.phi)] for b in rest) and (views or _covers(rest, numel(theta))):
        return BoundTie(d, theta, tuple(rest), leaves=tuple(leaves))
    if len(index) == len(bound):
        return BoundTie(d, theta, tuple(bound))
    shared = _shared_source(bound)
    if shared is not None:
        source, outer = shared
        if all(indexed(b.phi) for b in outer):
            return BoundTie(d, source.out_shape, tuple(outer), source=source)
    return BoundTie(d, theta, (), dense=tuple(bound))


def shared_map(phi: Map) -> Map:
    """What a map takes from the θ of its tie: all of it but for a remainder."""
    return phi.shared if isinstance(phi, Loose) else phi


def indexed(phi: Map) -> bool:
    """Whether a bound map is a view or given by coordinates."""
    return isinstance(phi, LinearMap) and (phi.view() is not None or phi.index() is not None)


def bind_maps(
    d: Declaration, parts: Sequence[Shape], cache: BoundMaps | None = None
) -> tuple[Shape, list[Map]]:
    """Every map bound, all to one shape of θ; of a map with a remainder, what is shared.

    Raises ShapeError naming two that differ.
    """
    cache = {} if cache is None else cache
    maps = [shared_map(e.map) for e in d.entries]

    def bind(phi: Map, shape: Shape, theta: Shape | None = None) -> Map:
        key = (id(phi), shape, theta)
        if key not in cache:
            cache[key] = phi.bind(shape, theta)
        return cache[key]

    phis = [bind(m, s) for m, s in zip(maps, parts, strict=True)]
    wanted = list(dict.fromkeys(p.in_shape for p in {id(p): p for p in phis}.values()))
    if len(wanted) == 1:
        return wanted[0], phis
    for theta in sorted(wanted, key=lambda s: (-numel(s), s)):
        try:
            return theta, [bind(m, s, theta) for m, s in zip(maps, parts, strict=True)]
        except ShapeError:
            continue
    a = next(i for i, p in enumerate(phis) if p.in_shape == wanted[0])
    b = next(i for i, p in enumerate(phis) if p.in_shape == wanted[1])
    raise ShapeError(
        f"no θ fits all sites of this tie: {d.entries[a]} (site shape {parts[a]}) wants θ of "
        f"shape {wanted[0]}, {d.entries[b]} (site shape {parts[b]}) wants {wanted[1]}; choose "
        "maps that join these shapes, such as Transpose() or Gather(index)"
    )


def _covers(index: Sequence[Bound], size: int) -> bool:
    """Whether these entries use every value of θ."""
    touched = torch.zeros(size, dtype=torch.float64)
    for b in index:
        assert isinstance(b.phi, LinearMap)
        diagonal = b.phi.gram_diagonal()
        assert diagonal is not None
        touched += diagonal
    return bool((touched > 0).all())


def _split(phi: Map) -> tuple[list[LinearMap], Map | None]:
    """A composition as its linear head, outermost first, and the rest from the first
    non-linear map inwards (None where all of it is linear).
    """
    if isinstance(phi, LinearMap):
        return [phi], None
    if isinstance(phi, Composed) and isinstance(phi.outer, LinearMap):
        head, rest = _split(phi.inner)
        return [phi.outer, *head], rest
    return [], phi


def _shared_source(bound: Sequence[Bound]) -> tuple[Map, list[Bound]] | None:
    """The non-linear map that all entries apply to θ first, and what each does after it."""
    source: Map | None = None
    outer: list[Bound] = []
    for b in bound:
        head, rest = _split(b.phi)
        if rest is None or (source is not None and not same_map(source, rest)):
            return None
        source = rest if source is None else source
        phi: Map = Same().bind(rest.out_shape)
        for linear in reversed(head):
            phi = (linear @ phi).bind(linear.out_shape)
        outer.append(Bound(b.site, b.shape, phi))
    return None if source is None else (source, outer)


def same_map(a: Map, b: Map) -> bool:
    """Whether two maps are of one kind with equal arguments (and shapes, where bound)."""
    if type(a) is not type(b) or a.bound != b.bound:
        return False
    if a.bound and (a.out_shape, a.in_shape) != (b.out_shape, b.in_shape):
        return False
    return _equal(a.arguments(), b.arguments())


def _equal(a: Any, b: Any) -> bool:
    """Whether two arguments of maps say the same."""
    if isinstance(a, Map):
        return isinstance(b, Map) and same_map(a, b)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, tuple):
        several = isinstance(b, tuple) and len(a) == len(b)
        return several and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(x, b[name]) for name, x in a.items())
    return a is b or bool(a == b)
