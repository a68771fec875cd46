"""Whole sites joined by views: union–find over the group that views form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eadem._plan.classify import BoundTie
from eadem.maps.base import LinearMap, Shape
from eadem.maps.view import View


class Classes:
    """Union–find of whole sites (and each tie's θ) with the view that takes root to member.

    Nodes are site names in traversal order, then one θ per tie, named by its number.
    """

    def __init__(self, shapes: Mapping[str, Shape], ties: Sequence[BoundTie]) -> None:
        self.shapes: dict[str | int, Shape] = {}
        self.shapes.update(shapes.items())
        self.shapes.update((i, t.theta) for i, t in enumerate(ties))
        self.rank = {n: i for i, n in enumerate(self.shapes)}
        self.parent: dict[str | int, str | int] = {n: n for n in self.shapes}
        # member = element(parent); identity where absent
        self.element: dict[str | int, View] = {}
        #: views that a root must be fixed under: (root, view, tie)
        self.cycles: list[tuple[str | int, View, int]] = []
        views: dict[int, View | None] = {}
        for i, t in enumerate(ties):
            for b in t.index:
                if id(b.phi) not in views:
                    assert isinstance(b.phi, LinearMap)
                    views[id(b.phi)] = b.phi.view()
                view = views[id(b.phi)] if b.site.index is None else None
                if view is not None:
                    self._union(b.site.name, i, view, i)
        self.cycles = [self._at_root(*cycle) for cycle in self.cycles]
        self.members: dict[str | int, list[str | int]] = {}
        for n in self.shapes:
            self.members.setdefault(self.find(n)[0], []).append(n)

    def find(self, node: str | int) -> tuple[str | int, View]:
        """The root of a node's class and the view from root to node."""
        path = []
        start = node
        while self.parent[node] != node:
            path.append(node)
            node = self.parent[node]
        if len(path) == 1:
            return node, self.element[start]
        view = View.identity(len(self.shapes[node]))
        for n in reversed(path):
            view = self.element[n].after(view) if not view.is_identity else self.element[n]
            self.parent[n], self.element[n] = node, view
        return node, view

    def _union(self, a: str | int, b: str | int, view: View, tie: int) -> None:
        """Member a is `view` of member b."""
        ra, va = self.find(a)
        rb, vb = self.find(b)
        through = view if vb.is_identity else view.after(vb)  # a = through(rb)
        link = through if va.is_identity else va.inverse().after(through)  # ra = link(rb)
        if ra == rb:
            if not link.is_identity:
                self.cycles.append((ra, link, tie))
        elif self.rank[ra] < self.rank[rb]:
            self.parent[rb], self.element[rb] = ra, link if link.is_identity else link.inverse()
        else:
            self.parent[ra], self.element[ra] = rb, link

    def _at_root(self, node: str | int, link: View, tie: int) -> tuple[str | int, View, int]:
        """A cycle found at `node`, told of the root that its class ended up with."""
        root, view = self.find(node)
        return root, view.inverse().after(link).after(view), tie
