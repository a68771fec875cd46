"""Resolving a plan: all declarations together, whatever their order.

Whole sites joined by views are classes, found by union–find over group elements. Only where
an index, a cycle or a second tie asks for it do classes dissolve into coordinates. Dense and
non-linear maps come last, on the free values that the rest has left (`generators`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eadem._plan.classes import Classes
from eadem._plan.classify import Bound, BoundMaps, BoundTie, classify
from eadem._plan.coordinates import Contradiction, Edges, Solved, solve
from eadem._plan.generators import Generator, Request, generate
from eadem._plan.plan import Expression, Owner, Plan, make_plan
from eadem._plan.remainders import remainders, tightened, with_remainders
from eadem._plan.site import Coordinates, Declaration
from eadem.errors import NoSuchSite, TieConflict, nearest
from eadem.maps.algebra import blocks
from eadem.maps.base import LinearMap, Map, Shape, numel
from eadem.maps.factored import parts_of
from eadem.maps.index import Index, Indexed, Reshape
from eadem.maps.view import Same, View, Viewed

__all__ = ["Group", "connected", "resolve", "resolve_group"]


@dataclass(frozen=True)
class Group:
    """What one connected set of declarations resolves to. Sites in traversal order."""

    names: tuple[str, ...]
    owners: dict[str, Owner]
    expressions: dict[str, Expression]


def resolve(shapes: Mapping[str, Shape], declarations: Sequence[Declaration]) -> Plan:
    """The plan of a model whose sites have `shapes` (in traversal order).

    Raises NoSuchSite, ShapeError, TieConflict (naming both paths) or TooLarge.

    >>> from eadem._plan import Entry, Site
    >>> from eadem.maps import Transpose
    >>> tie = Declaration((Entry(Site("enc"), Same()), Entry(Site("dec"), Transpose())))
    >>> plan = resolve({"enc": (2, 3), "dec": (3, 2), "bias": (3,)}, [tie])
    >>> plan.rank, plan.out_shape
    (9, (15,))
    """
    order = {n: i for i, n in enumerate(shapes)}
    owners: dict[str, Owner] = {}
    expressions: dict[str, Expression] = {}
    groups = []
    for members in connected(declarations):
        group = resolve_group(shapes, members, order)
        groups.append(group.names)
        owners.update(group.owners)
        expressions.update(group.expressions)
    tied = {n for g in groups for n in g}
    for name, shape in shapes.items():
        if name not in tied:
            owners[name] = Owner(shape, shape)
    ordered = {n: owners[n] for n in shapes if n in owners}
    groups.sort(key=lambda g: order[g[0]])
    return make_plan(dict(shapes), ordered, expressions, tuple(groups))


def connected(declarations: Sequence[Declaration]) -> list[list[Declaration]]:
    """The declarations, split into sets that share no parameter."""
    parent = list(range(len(declarations)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[str, int] = {}
    for i, d in enumerate(declarations):
        for name in d.names:
            parent[find(i)] = find(seen.setdefault(name, i))
    found: dict[int, list[Declaration]] = {}
    for i, d in enumerate(declarations):
        found.setdefault(find(i), []).append(d)
    return list(found.values())


def resolve_group(
    shapes: Mapping[str, Shape],
    declarations: Sequence[Declaration],
    order: Mapping[str, Any] | None = None,
    cache: BoundMaps | None = None,
) -> Group:
    """One connected set of declarations, resolved. `shapes` may hold other sites too.

    `cache` keeps bound maps, for a caller that binds the same ones itself.
    """
    loose = remainders(declarations)
    if loose:
        if order is None:
            order = {n: i for i, n in enumerate(shapes)}
        # sites that depart come last, so that the others hold what is shared
        late = {n: (n in loose, order[n]) for d in declarations for n in d.names if n in shapes}
        tight = [tightened(d) for d in declarations]
        group = resolve_group(shapes, tight, late, cache)
        names = tuple(sorted(group.names, key=order.__getitem__))
        return Group(names, *with_remainders(names, group, loose, shapes))
    involved = {n for d in declarations for n in d.names}
    for name in sorted(involved.difference(shapes)):
        raise NoSuchSite(f"no site {name!r} here; {nearest(name, shapes)}")
    if order is None:
        order = {n: i for i, n in enumerate(shapes)}
    ordered = tuple(sorted(involved, key=order.__getitem__))
    local = {n: tuple(shapes[n]) for n in ordered}
    uses: dict[str, int] = {}
    for d in declarations:
        for e in d.entries:
            uses[e.site.name] = uses.get(e.site.name, 0) + 1
    ties = [classify(d, local, uses, order, cache) for d in declarations]
    apart = _taken_apart(ties, uses, ordered)
    if apart is not None:
        return apart
    leaves = {b.site.name for t in ties for b in t.leaves}
    classes = Classes({n: s for n, s in local.items() if n not in leaves}, ties)
    work = _Coordinates(classes, ties)
    return work.group(ordered, local)


def _taken_apart(
    ties: Sequence[BoundTie], uses: Mapping[str, int], names: tuple[str, ...]
) -> Group | None:
    """One tie whose sites are the parts of a factored matrix, in no other tie: nothing is left
    to resolve, and no coordinates are kept, which would take more room than the values.
    """
    tie, source = ties[0], ties[0].source
    if len(ties) > 1 or source is None:
        return None
    whole = all(b.site.index is None and uses[b.site.name] == 1 for b in tie.index)
    if not whole or not parts_of(source, [b.phi for b in tie.index]):
        return None
    host, outers = names[0], {b.site.name: b.phi for b in tie.index}
    owner = Owner(source.in_shape, source.out_shape, source, False)
    return Group(
        names, {host: owner}, {name: Expression((host,), outers[name]) for name in names}
    )


def _identity(phi: Map) -> bool:
    view = phi.view() if isinstance(phi, LinearMap) else None
    return view is not None and view.is_identity


class _Coordinates:
    """The second stage: classes that need it, dissolved into coordinates."""

    def __init__(self, classes: Classes, ties: Sequence[BoundTie]) -> None:
        self.classes, self.ties = classes, ties
        self.dissolved = self._which()
        self.start: dict[str | int, int] = {}
        size = 0
        for n in sorted(self.dissolved, key=classes.rank.__getitem__):
            self.start[n] = size
            size += numel(classes.shapes[n])
        self.size = size
        self.edges: list[Edges] = []
        for root, view, tie in classes.cycles:
            self._cycle(root, view, tie)
        for i, t in enumerate(ties):
            for b in t.index:
                assert isinstance(b.phi, LinearMap)
                if b.site.index is not None or b.phi.view() is None:
                    self._entry(i, b)
        self.solved = self._solve()

    def _which(self) -> set[str | int]:
        """The roots of the classes that an index, a cycle or a generator touches."""
        found = {root for root, _, _ in self.classes.cycles}
        for i, t in enumerate(self.ties):
            if t.source is not None:
                found.add(self.classes.find(i)[0])
            for b in t.index:
                assert isinstance(b.phi, LinearMap)
                if b.site.index is not None or b.phi.view() is None:
                    found |= {self.classes.find(b.site.name)[0], self.classes.find(i)[0]}
            for b in t.dense:
                found.add(self.classes.find(b.site.name)[0])
        return found

    def where(self, node: str | int) -> tuple[Coordinates, float, float]:
        """A node's coordinates in the dissolved numbering, with scale and shift."""
        root, view = self.classes.find(node)
        size = numel(self.classes.shapes[root])
        at = np.arange(self.start[root], self.start[root] + size, dtype=np.int64)
        if view.reorders:
            shape = self.classes.shapes[root]
            at = view.reorder(torch.from_numpy(at).reshape(shape)).reshape(-1).numpy()
        return at, view.scale, view.shift

    def site(self, b: Bound) -> tuple[Coordinates, float, float]:
        """The same for a part of a site."""
        at, scale, shift = self.where(b.site.name)
        if b.site.index is not None:
            at = at[b.site.coordinates(self.classes.shapes[b.site.name])]
        return at, scale, shift

    def _cycle(self, root: str | int, view: View, tie: int) -> None:
        shape = self.classes.shapes[root]
        at = np.arange(numel(shape), dtype=np.int64) + self.start[root]
        moved = view.reorder(torch.from_numpy(at).reshape(shape)).reshape(-1).numpy()
        c = None if view.scale == 1.0 else np.full(len(at), view.scale)
        d = None if view.shift == 0.0 else np.full(len(at), view.shift)
        self.edges.append(Edges(at, moved, c, d, tie))

    def _entry(self, tie: int, b: Bound) -> None:
        """σ·R[at] + τ = c·(σ'·R[at'] + τ') + d, solved for R[at]."""
        assert isinstance(b.phi, LinearMap)
        index = b.phi.index()
        assert index is not None
        at, sigma, tau = self.site(b)
        theta, sigma_t, tau_t = self.where(tie)
        position = index.position.numpy()
        live = position >= 0
        everywhere = bool(live.all())
        if len(theta):
            v = theta[position if everywhere else np.maximum(position, 0)]
        else:
            v = np.zeros(len(position), dtype=np.int64)
        if not everywhere:
            v = np.where(live, v, -1)
        c = d = None
        if index.scale is not None or sigma_t != 1.0 or sigma != 1.0:
            c = index.scales().numpy() * (sigma_t / sigma)
        if index.shift is not None or tau != 0.0 or tau_t != 0.0:
            d = (index.scales().numpy() * tau_t + index.shifts().numpy() - tau) / sigma
        if not everywhere and c is None:
            d = np.zeros(len(v)) if d is None else d
        self.edges.append(Edges(at, v, c, d, tie))

    def _solve(self) -> Solved:
        if not self.edges:
            root = np.arange(self.size, dtype=np.int64)
            return Solved(root, None, None, np.zeros(self.size, dtype=bool))
        try:
            return solve(self.size, self.edges)
        except Contradiction as e:
            raise self._conflict(e) from None

    def _conflict(self, e: Contradiction) -> TieConflict:
        where = self._name(e.coordinate)
        closing = {t for tags in e.paths for t in tags}
        around = self._chain(closing)
        paths = []
        for tags in e.paths:
            steps = [str(self.ties[t].declaration) for t in dict.fromkeys(tags) or around]
            paths.append("  " + "; then ".join(steps or ["(the same tie)"]))
        return TieConflict(
            f"two ties contradict each other at {where}: {e.what}\none way:\n{paths[0]}\n"
            f"the other:\n{paths[1]}\nremove or change one of them"
        )

    def _chain(self, closing: set[int]) -> list[int]:
        """The other ties that join the sites of a tie that closes a cycle, the fewest."""
        if len(closing) != 1:
            return []
        names = self.ties[next(iter(closing))].declaration.names
        reached: dict[str, list[int]] = {names[0]: []}
        queue = [names[0]]
        for at in queue:
            if at in names[1:]:
                return reached[at]
            for i, t in enumerate(self.ties):
                if i in closing or at not in t.declaration.names:
                    continue
                for n in t.declaration.names:
                    if n not in reached:
                        reached[n] = [*reached[at], i]
                        queue.append(n)
        return []

    def _name(self, coordinate: int) -> str:
        for node, start in self.start.items():
            shape = self.classes.shapes[node]
            if start <= coordinate < start + numel(shape):
                at = np.unravel_index(coordinate - start, shape) if shape else ()
                named = [m for m in self.classes.members[node] if isinstance(m, str)]
                name = named[0] if named else f"θ of {self.ties[int(node)].declaration}"
                return f"{name}[{', '.join(str(int(i)) for i in at)}]" if at else name
        return "a constant"

    # what comes out

    def group(self, names: tuple[str, ...], shapes: Mapping[str, Shape]) -> Group:
        """Owners and expressions of every site."""
        owners: dict[str, Owner] = {}
        expressions: dict[str, Expression] = {}
        seen: dict[tuple[str, View], Expression] = {}
        for root, members in self.classes.members.items():
            if root in self.dissolved or not isinstance(root, str):
                continue
            owners[root] = Owner(shapes[root], shapes[root])
            for m in members:
                if isinstance(m, str) and m != root:
                    view = self.classes.find(m)[1]
                    if (root, view) not in seen:
                        viewed = Viewed(view).bind(shapes[m])
                        seen[root, view] = Expression((root,), viewed)
                    expressions[m] = seen[root, view]
        if self.dissolved:
            self._dissolved(shapes, owners, expressions)
        for i, t in enumerate(self.ties):
            if t.leaves:
                theta = self._theta(i)
                for b in t.leaves:
                    outer: Map = b.phi
                    if not _identity(theta.outer):
                        outer = (b.phi @ theta.outer).bind(b.shape)
                    expressions[b.site.name] = Expression(theta.owners, outer)
        ordered = {n: owners[n] for n in names if n in owners}
        return Group(names, ordered, expressions)

    def _theta(self, tie: int) -> Expression:
        """A tie's θ as an expression of owners."""
        root, view = self.classes.find(tie)
        if root in self.dissolved:
            at, scale, shift = self.where(tie)
            return self._gather(at, scale, shift, self.ties[tie].theta)
        assert isinstance(root, str)
        outer = Viewed(view).bind(self.ties[tie].theta)
        return Expression((root,), outer)

    def _dissolved(
        self,
        shapes: Mapping[str, Shape],
        owners: dict[str, Owner],
        expressions: dict[str, Expression],
    ) -> None:
        solved = self.solved
        real = sum(numel(self.classes.shapes[n]) for n in self.start if isinstance(n, str))
        roots = np.zeros(self.size, dtype=bool)
        roots[solved.root[:real][solved.root[:real] >= 0]] = True
        self._check_collapse(shapes)
        generators = self._generators(roots)
        for g in generators:
            roots[g.roots] = False
        place = np.full(self.size, -1, dtype=np.int64)
        self.owner_of = np.full(self.size, -1, dtype=np.int64)
        self.owner_names: list[str] = []
        self.owner_sizes: list[int] = []
        for node, start in self.start.items():
            if not isinstance(node, str):
                continue
            size = numel(shapes[node])
            mine = np.flatnonzero(roots[start : start + size]) + start
            hosted = [g for g in generators if start <= int(g.roots.min()) < start + size]
            if not len(mine) and not hosted:
                continue
            owners[node] = _owner(shapes[node], len(mine), hosted)
            if len(mine) == size:
                place[start : start + size] = np.arange(size)
            else:
                place[mine] = np.arange(len(mine))
            filled = len(mine)
            number = len(self.owner_names)
            self.owner_of[mine] = number
            for g in hosted:
                place[g.roots] = np.arange(filled, filled + len(g.roots))
                self.owner_of[g.roots] = number
                filled += len(g.roots)
            self.owner_names.append(node)
            self.owner_sizes.append(filled)
        self.place = place
        for node in self.start:
            for m in self.classes.members[node]:
                if not isinstance(m, str):
                    continue
                at, scale, shift = self.where(m)
                e = self._gather(at, scale, shift, shapes[m])
                trivial = e.owners == (m,) and owners[m].source is None and owners[m].whole
                if not trivial:
                    expressions[m] = e

    def _gather(self, at: Coordinates, scale: float, shift: float, shape: Shape) -> Expression:
        """Coordinates as an index map over the owners that they need."""
        s = self.solved
        root = s.root[at]
        live = root >= 0
        everywhere = bool(live.all())
        number = self.owner_of[root if everywhere else root[live]]
        used = np.unique(number) if len(self.owner_names) > 1 else np.unique(number[:1])
        base = np.zeros(len(self.owner_names) + 1, dtype=np.int64)
        total = 0
        for k in used.tolist():
            base[k] = total
            total += self.owner_sizes[k]
        if everywhere:
            position = self.place[root]
            if len(used) > 1:
                position = position + base[number]
        else:
            position = np.full(len(at), -1, dtype=np.int64)
            position[live] = self.place[root[live]] + base[number]
        a = None if s.scale is None else s.scale[at] * scale
        b = None if s.shift is None else s.shift[at] * scale + shift
        if a is None and scale != 1.0:
            a = np.full(len(at), scale)
        if b is None and shift != 0.0:
            b = np.full(len(at), shift)
        index = Index(
            torch.from_numpy(position),
            total,
            None if a is None else torch.from_numpy(a),
            None if b is None else torch.from_numpy(b),
        )
        names = tuple(self.owner_names[k] for k in used.tolist())
        return Expression(names, Indexed.of(index, shape))

    def _check_collapse(self, shapes: Mapping[str, Shape]) -> None:
        s = self.solved
        for node, start in self.start.items():
            stop = start + numel(self.classes.shapes[node])
            constant = s.root[start:stop] < 0
            if not isinstance(node, str) or not constant.any():
                continue
            if constant.all() and not s.fixed[start:stop].any():
                touching = [
                    str(t.declaration) for t in self.ties if node in t.declaration.names
                ]
                raise TieConflict(
                    f"together these ties leave {node} (shape {shapes[node]}) no value but a "
                    f"constant that nobody fixed:\n  " + "\n  ".join(touching) + "\nremove one "
                    "of them, or say so with Fixed(value)"
                )

    def _generators(self, roots: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[Generator]:
        s = self.solved
        scale = np.ones(self.size) if s.scale is None else s.scale
        shift = np.zeros(self.size) if s.shift is None else s.shift
        requests: list[Request] = []
        for i, t in enumerate(self.ties):
            if t.source is not None:
                at, sigma, tau = self.where(i)
                ones = np.ones(len(at))
                requests.append(
                    Request(t.declaration, (t.source,), at, ones * sigma, ones * tau)
                )
            elif t.dense:
                parts = [self.site(b) for b in t.dense]
                at = np.concatenate([p[0] for p in parts])
                sigma_ = np.concatenate([np.full(len(p[0]), p[1]) for p in parts])
                tau_ = np.concatenate([np.full(len(p[0]), p[2]) for p in parts])
                phis = tuple(b.phi for b in t.dense)
                requests.append(Request(t.declaration, phis, at, sigma_, tau_))
        return generate(requests, s.root, scale, shift, roots) if requests else []


def _owner(shape: Shape, plain: int, hosted: Sequence[Generator]) -> Owner:
    """The parameter of a site that holds `plain` free values and hosts some generators."""
    if not hosted:
        whole = plain == numel(shape)
        own = shape if whole else (plain,)
        return Owner(own, own, None, whole)
    roots = plain + sum(len(g.roots) for g in hosted)
    if len(hosted) == 1 and not plain:
        source = hosted[0].map
        theta = source.in_shape
        if theta == shape:  # so that a checkpoint's θ and its site are told apart by shape
            theta = (1, *shape)
            source = (source @ Reshape(theta)).bind(source.out_shape)
        return Owner(theta, (roots,), source, False)
    parts: list[Map] = [Same().bind((plain,))] if plain else []
    parts += [g.map for g in hosted]
    source = blocks(parts)
    if source.in_shape == shape:
        theta = (1, *shape)
        source = (source @ Reshape(theta)).bind(source.out_shape)
    return Owner(source.in_shape, (roots,), source, False)
