"""Union–find over coordinates: which single values are one free value, up to scale and shift.

Edges say W[u] = c·W[v] + d. A component hangs on its pivot, its smallest coordinate; every
member is W = A·pivot + B. Cycles are checked, and may force the component to a constant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components

from eadem._plan.site import Coordinates

__all__ = ["Contradiction", "Edges", "Solved", "solve"]

Floats = NDArray[np.float64]
#: Relative tolerance at which two values forced on one coordinate count as equal.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class Edges:
    """W[u] = c·W[v] + d, for arrays of equal length; v = −1: the constant d.

    `c` and `d` None are ones and zeros. `tag` numbers the declaration.
    """

    u: Coordinates
    v: Coordinates
    c: Floats | None
    d: Floats | None
    tag: int


@dataclass(frozen=True)
class Solved:
    """W[i] = scale[i]·W[root[i]] + shift[i]; root −1 is a constant. None: ones, zeros.

    `fixed[i]`: the constant comes from a declared one, not from a cycle.
    """

    root: Coordinates
    scale: Floats | None
    shift: Floats | None
    fixed: NDArray[np.bool_]


class Contradiction(Exception):
    """Two paths force different values; the tags of the declarations along each."""

    def __init__(self, coordinate: int, paths: tuple[list[int], list[int]], what: str) -> None:
        super().__init__(what)
        self.coordinate, self.paths, self.what = coordinate, paths, what


def solve(size: int, edges: list[Edges]) -> Solved:
    """Every coordinate of 0 … size−1 in terms of its component's smallest one.

    Raises Contradiction where no values satisfy all edges.
    """
    star = _star(size, edges)
    return _general(size, edges) if star is None else star


def _star(size: int, edges: list[Edges]) -> Solved | None:
    """The common case without overlap: every u once, no v among them. None if it is not so."""
    total = sum(len(e.u) for e in edges)
    bound = np.zeros(size, dtype=bool)
    for e in edges:
        bound[e.u] = True
    if int(bound.sum()) < total:
        return None
    live = [e.v if bool((e.v >= 0).all()) else e.v[e.v >= 0] for e in edges]
    if any(bool(bound[v].any()) for v in live):
        return None
    plain = all(e.c is None and e.d is None for e in edges)
    root = np.arange(size, dtype=np.int64)
    scale = shift = None
    if not plain:
        scale, shift = np.ones(size), np.zeros(size)
    fixed = np.zeros(size, dtype=bool)
    for e in edges:
        root[e.u] = e.v
        if scale is not None and shift is not None:
            scale[e.u] = 1.0 if e.c is None else e.c
            shift[e.u] = 0.0 if e.d is None else e.d
    for e, v in zip(edges, live, strict=True):
        if len(v) < len(e.v):
            fixed[e.u[e.v < 0]] = True
    if all(bool((e.v < e.u).all()) for e in edges):
        return Solved(root, scale, shift, fixed)
    # a hub that comes after some of its spokes hands its place to the first of them
    first = np.arange(size, dtype=np.int64)
    for e in edges:
        ascending = np.argsort(e.u, kind="stable")[::-1]
        u, v = e.u[ascending], e.v[ascending]
        u, v = u[v >= 0], v[v >= 0]
        best = np.full(size, size, dtype=np.int64)
        best[v] = u
        np.minimum(first, best, out=first)
    live_all = root >= 0
    hub = root.copy()
    root[live_all] = first[hub[live_all]]
    if scale is not None and shift is not None:
        # hub = (pivot − shift_p)/scale_p, where the pivot p is a spoke or the hub itself
        p, h = root[live_all], hub[live_all]
        own = p == h
        sp = np.where(own, 1.0, scale[p])
        dp = np.where(own, 0.0, shift[p])
        a = scale[live_all] / sp
        shift[live_all] -= a * dp
        scale[live_all] = a
        scale[root < 0] = 0.0
    return Solved(root, scale, shift, fixed)


def _general(size: int, edges: list[Edges]) -> Solved:
    u = np.concatenate([e.u for e in edges])
    v = np.concatenate([e.v for e in edges])
    c = np.concatenate([np.ones(len(e.u)) if e.c is None else e.c for e in edges])
    d = np.concatenate([np.zeros(len(e.u)) if e.d is None else e.d for e in edges])
    tag = np.concatenate([np.full(len(e.u), e.tag) for e in edges])
    live = (v >= 0) & (c != 0)
    gu, gv, gc, gd, gt = u[live], v[live], c[live], d[live], tag[live]
    count, label = connected_components(
        coo_matrix((np.ones(len(gu)), (gu, gv)), (size, size)), False
    )
    pivot = np.full(count, size, dtype=np.int64)
    pivot[label[::-1]] = np.arange(size - 1, -1, -1)
    a, b, parent, via = _tree(size, gu, gv, gc, gd, pivot)

    def climb(node: int) -> list[int]:
        """The declarations on the way from a coordinate to its pivot."""
        tags: list[int] = []
        while via[node] >= 0 and len(tags) < 16:
            tags.append(int(gt[via[node]]))
            node = int(parent[node])
        return tags

    value = np.full(count, np.nan)  # the constant a component is forced to
    fixed = np.zeros(count, dtype=bool)
    slope = a[gu] - gc * a[gv]
    rest = gc * b[gv] + gd - b[gu]
    weight = np.maximum(np.abs(a[gu]), np.abs(gc * a[gv]))
    flat = np.abs(slope) <= TOLERANCE * weight
    size_of = np.maximum(np.maximum(np.abs(gd), np.abs(b[gu])), np.abs(gc * b[gv]))
    wrong = flat & (np.abs(rest) > TOLERANCE * np.maximum(size_of, 1e-300))
    if wrong.any():
        i = int(np.argmax(wrong))
        raise Contradiction(
            int(gu[i]),
            (climb(int(gu[i])) + climb(int(gv[i])), [int(gt[i])]),
            f"they differ by {abs(float(rest[i])):.6g} for every value",
        )
    forced = [
        (label[gu[~flat]], rest[~flat] / slope[~flat], gu[~flat], gt[~flat], False),
        (label[u[~live]], (d[~live] - b[u[~live]]) / a[u[~live]], u[~live], tag[~live], True),
    ]
    first: dict[int, tuple[int, int]] = {}
    for components, values, where, tags, declared in forced:
        for component, x, at, t in zip(
            components.tolist(), values.tolist(), where.tolist(), tags.tolist(), strict=True
        ):
            seen = value[component]
            if np.isnan(seen):
                value[component], first[component] = x, (at, t)
            elif abs(seen - x) > TOLERANCE * max(abs(seen), abs(x), 1.0):
                at0, t0 = first[component]
                raise Contradiction(
                    at,
                    ([*climb(at0), t0], [*climb(at), t]),
                    f"one forces {a[at] * seen + b[at]:.6g}, the other {a[at] * x + b[at]:.6g}",
                )
            fixed[component] |= declared
    constant = ~np.isnan(value[label])
    shift = b + np.where(constant, a * np.where(constant, value[label], 0.0), 0.0)
    scale = np.where(constant, 0.0, a)
    root = np.where(constant, -1, pivot[label])
    return Solved(root, scale, shift, fixed[label])


def _tree(
    size: int, u: Coordinates, v: Coordinates, c: Floats, d: Floats, pivot: Coordinates
) -> tuple[Floats, Floats, Coordinates, Coordinates]:
    """A and B along a tree from every pivot; each node's parent and the edge to it."""
    a, b = np.ones(size), np.zeros(size)
    rows = np.concatenate([u, np.full(len(pivot), size)])
    columns = np.concatenate([v, pivot])
    graph = coo_matrix((np.ones(len(rows)), (rows, columns)), (size + 1, size + 1)).tocsr()
    order, parent = breadth_first_order(graph, size, directed=False)
    key = np.concatenate([u, v]) * size + np.concatenate([v, u])
    factor = np.concatenate([c, 1 / c])
    addend = np.concatenate([d, -d / c])
    edge = np.concatenate([np.arange(len(u))] * 2)
    by = np.argsort(key, kind="stable")
    key, factor, addend, edge = key[by], factor[by], addend[by], edge[by]
    children = order[1:].astype(np.int64)
    parents = parent[children].astype(np.int64)
    depth = np.full(size + 1, -1, dtype=np.int64)
    depth[size] = 0
    via = np.full(size, -1, dtype=np.int64)
    start = 0
    while start < len(children):  # one level of the tree at a time
        level = depth[parents[start]] + 1
        stop = start + 1
        step = 1024
        while stop < len(children):
            block = depth[parents[stop : stop + step]]
            same = block == level - 1
            if same.all() and len(block):
                stop += len(block)
                continue
            stop += int(np.argmin(same))
            break
        child, up = children[start:stop], parents[start:stop]
        depth[child] = level
        child, up = child[up < size], up[up < size]
        at = np.searchsorted(key, child * size + up)
        a[child] = factor[at] * a[up]
        b[child] = factor[at] * b[up] + addend[at]
        via[child] = edge[at]
        start = stop
    return a, b, parent.astype(np.int64), via
