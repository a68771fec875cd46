"""The resolved plan: every parameter of a model as one map from its free values.

Owners hold free values; roots are the values those stand for (the same numbers, unless a
dense or non-linear map lies between); every site is an index-and-scale (or axis) view of
roots. The plan is a map itself, from the flat free vector to the flat vector of all sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from eadem.errors import ShapeError, TooLarge
from eadem.maps.algebra import blocks, offsets, stack
from eadem.maps.base import DENSE_LIMIT, RANK_RTOL, LinearMap, Map, Shape, numel
from eadem.maps.index import Indexed
from eadem.maps.view import Same

__all__ = [
    "Expression",
    "LinearPlan",
    "Owner",
    "Plain",
    "Plan",
    "make_plan",
    "with_own",
    "without_remainders",
]


@dataclass(frozen=True, eq=False)
class Owner:
    """A parameter that holds free values.

    `shape` is the parameter's; `source` takes it to root values (None: they are the same
    numbers), of which there are `roots`. `whole`: the roots are all values of the site of
    the same name, in its own shape. `own`: the map from the last of its values to the
    remainder of a site that departs from its tie; `base`: what the parameter would be without
    it (None: none); `joint`: it holds both.
    """

    shape: Shape
    roots: Shape
    source: Map | None = None
    whole: bool = True
    own: Map | None = None
    base: Owner | None = None
    joint: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Owner:
        return self

    def values(self, theta: Tensor) -> Tensor:
        """The root values, from the parameter's."""
        return theta if self.source is None else self.source.expand(theta)


@dataclass(frozen=True, eq=False)
class Expression:
    """One site's value: `outer` applied to the roots of `owners`.

    With one owner `outer` takes its roots in their shape; with several, all of them flat,
    one after the other; with none, an empty vector (the site is constant). `base`: in a group
    where sites depart from their ties, what the site would be without any remainder; a site
    without `base` there would be stored.
    """

    owners: tuple[str, ...]
    outer: Map
    base: Expression | None = None

    def renamed(self, names: Mapping[str, str]) -> Expression:
        """The same, of owners by other names."""
        base = None if self.base is None else self.base.renamed(names)
        return Expression(tuple(names[o] for o in self.owners), self.outer, base)

    def __deepcopy__(self, memo: dict[int, Any]) -> Expression:
        return self


def _flat(parts: Iterable[Tensor], like: Tensor | None = None) -> Tensor:
    flat = [p.reshape(-1) for p in parts]
    if not flat:
        return torch.zeros(0) if like is None else like.new_zeros(0)
    return flat[0] if len(flat) == 1 else torch.cat(flat)


@dataclass(frozen=True, eq=False)
class Plan(Map):
    """All parameters of a model from its free values: θ (stored,) → W (expanded,).

    `shapes`: every site's shape by name, in traversal order. `owners`: what is stored, by
    name, in the same order. `expressions`: the sites that are not simply stored.
    `groups`: names of the sites that one connected set of declarations joins.
    """

    shapes: dict[str, Shape]
    owners: dict[str, Owner]
    expressions: dict[str, Expression]
    groups: tuple[tuple[str, ...], ...] = ()

    def infer(self, out_shape: Shape) -> Shape:
        """All stored values, flat."""
        expanded = sum(numel(s) for s in self.shapes.values())
        if numel(out_shape) != expanded:
            raise ShapeError(f"this plan has {expanded} values at its sites, not {out_shape}")
        return (sum(numel(o.shape) for o in self.owners.values()),)

    @property
    def names(self) -> tuple[str, ...]:
        """The sites, in traversal order."""
        return tuple(self.shapes)

    @cached_property
    def _theta_slices(self) -> dict[str, slice]:
        return _slices({n: o.shape for n, o in self.owners.items()})

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each site lies in the flat vector of all sites."""
        return _slices(self.shapes)

    def split(self, values: Tensor) -> dict[str, Tensor]:
        """The flat vector of all sites, by name and in shape."""
        return {n: values[s].reshape(self.shapes[n]) for n, s in self.slices.items()}

    def cat(self, values: Mapping[str, Tensor]) -> Tensor:
        """The flat vector of all sites from tensors by name."""
        return _flat([values[n] for n in self.shapes])

    def split_theta(self, theta: Tensor) -> dict[str, Tensor]:
        """The flat free vector, by owner and in shape."""
        return {
            n: theta[s].reshape(self.owners[n].shape) for n, s in self._theta_slices.items()
        }

    def _sites(self, theta: Tensor, linear: bool) -> Tensor:
        thetas = self.split_theta(theta)
        roots: dict[str, Tensor] = {}
        for name, owner in self.owners.items():
            value, source = thetas[name], owner.source
            if source is not None:
                if linear and isinstance(source, LinearMap):
                    value = source.forward(value)
                else:
                    value = source.expand(value)
            roots[name] = value
        parts = []
        for name in self.shapes:
            e = self.expressions.get(name)
            if e is None:
                parts.append(roots[name])
                continue
            given = _flat([roots[o] for o in e.owners], theta).reshape(e.outer.in_shape)
            if linear and isinstance(e.outer, LinearMap):
                parts.append(e.outer.forward(given))
            else:
                parts.append(e.outer.expand(given))
        return _flat(parts, theta)

    def expand(self, theta: Tensor) -> Tensor:
        """Every site's value, flat, in traversal order."""
        return self._sites(theta, linear=False)

    def linearize(self, theta: Tensor) -> LinearMap:
        """The plan's Jacobian at θ, as a plan."""
        thetas = self.split_theta(theta)
        owners, roots = {}, {}
        for name, owner in self.owners.items():
            roots[name] = owner.values(thetas[name])
            source = None if owner.source is None else owner.source.linearize(thetas[name])
            joint = owner.joint
            owners[name] = Owner(owner.shape, owner.roots, source, owner.whole, joint=joint)
        expressions = {}
        for name, e in self.expressions.items():
            given = _flat([roots[o] for o in e.owners], theta).reshape(e.outer.in_shape)
            expressions[name] = Expression(e.owners, e.outer.linearize(given))
        plan = make_plan(self.shapes, owners, expressions, self.groups)
        assert isinstance(plan, LinearMap)
        return plan

    def general(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """Every owner's general point."""
        parts = [
            t if (source := self.owners[n].source) is None else source.general(t, generator)
            for n, t in self.split_theta(theta).items()
        ]
        return _flat(parts, theta)

    def lift(self, values: Tensor) -> Tensor:
        """The free vector whose sites are nearest to `values`, connected group by group."""
        given = self.split(values)
        found: dict[str, Tensor] = {}
        grouped = {n for g in self.groups for n in g}
        for name, owner in self.owners.items():
            if name not in grouped:
                found[name] = given[name].reshape(owner.shape)
        for group in self.groups:
            found.update(self.lift_group(group, given))
        return _flat([found[n] for n in self.owners], values)

    def part(self, group: Iterable[str]) -> Plan:
        """The plan of one connected group of sites alone."""
        within = set(group)
        shapes = {n: s for n, s in self.shapes.items() if n in within}
        owners = {n: o for n, o in self.owners.items() if n in within}
        expressions = {n: e for n, e in self.expressions.items() if n in within}
        return make_plan(shapes, owners, expressions, (tuple(shapes),))

    def lift_group(
        self, group: Iterable[str], given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """θ by owner for one group, from those of its sites that `given` holds."""
        plain = without_remainders(self.owners, self.expressions, group)
        if plain is not None:
            return self._lift_loose(plain, group, given)
        present = [n for n in group if n in given]
        owners = [n for n in self.owners if n in set(group)]
        if not owners:
            return {}
        sizes = [numel(self.owners[o].roots) for o in owners]
        starts = dict(zip(owners, offsets(sizes), strict=True))
        total = sum(sizes)
        lifted = None
        if len(owners) == 1 and len(present) < 2 and present == owners:
            name = present[0]
            if name not in self.expressions:
                lifted = given[name].reshape(-1)
        if lifted is None:
            whole = stack([self._over(n, starts, total) for n in present])
            target = _flat([given[n] for n in present])
            sources = [self.owners[o].source for o in owners]
            if any(sources) and all(isinstance(s, LinearMap | None) for s in sources):
                theta = (whole @ self._sources(owners)).bind(whole.out_shape).lift(target)
                stored = [numel(self.owners[o].shape) for o in owners]
                pieces = torch.split(theta, stored)
                return {
                    o: t.reshape(self.owners[o].shape)
                    for o, t in zip(owners, pieces, strict=True)
                }
            lifted = whole.lift(target)
        found = {}
        for o, piece in zip(owners, torch.split(lifted, sizes), strict=True):
            owner = self.owners[o]
            roots = piece.reshape(owner.roots)
            theta = roots if owner.source is None else owner.source.lift(roots)
            found[o] = theta.reshape(owner.shape)
        return found

    def _sources(self, owners: Iterable[str]) -> Map:
        """The map from the free values of some owners to their roots, flat."""
        inner: list[Map] = []
        for o in owners:
            source = self.owners[o].source
            inner.append(Same().bind(self.owners[o].shape) if source is None else source)
        return blocks(inner)

    def says(self, names: Iterable[str]) -> bool:
        """Whether the values at these sites determine every free value; False where that is
        not known (non-linear maps, and linear ones too large for a rank).
        """
        names = list(names)
        if all(n in names and n not in self.expressions for n in self.owners):
            return True  # each is stored as it is
        sizes = [numel(o.roots) for o in self.owners.values()]
        starts = dict(zip(self.owners, offsets(sizes), strict=True))
        parts = [self._over(n, starts, sum(sizes)) for n in names]
        if not parts or not self.owners:
            return not self.owners
        whole = stack(parts) @ self._sources(self.owners)
        phi = whole.bind((sum(numel(p.out_shape) for p in parts),))
        if not isinstance(phi, LinearMap):
            return False
        try:
            return phi.rank == numel(phi.in_shape)
        except TooLarge:
            return False

    def _lift_loose(
        self, plain: Plain, group: Iterable[str], given: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """θ from the sites that are held to it, where these say all of it, else from all; then
        what every remainder has to make up for.
        """
        names = [n for n in self.shapes if n in set(group)]
        shapes = {n: self.shapes[n] for n in names}
        tight = make_plan(shapes, plain.owners, plain.expressions, (tuple(names),))
        held = {n: given[n] for n in names if n in given and n not in plain.own}
        thetas = tight.lift_group(names, held if tight.says(held) else given)
        return with_own(plain, thetas, given)

    def _over(self, name: str, starts: dict[str, int], total: int) -> Map:
        """The map from all roots of a group, flat, to one site."""
        e = self.expressions.get(name)
        used = (name,) if e is None else e.owners
        if used == tuple(starts):  # all roots in order: nothing to pick
            return Same().bind(self.shapes[name]) if e is None else e.outer
        ranges = [
            torch.arange(starts[o], starts[o] + numel(self.owners[o].roots)) for o in used
        ]
        position = torch.cat(ranges) if ranges else torch.zeros(0, dtype=torch.int64)
        shape = self.shapes[name] if e is None else e.outer.in_shape
        picked = Indexed(position, (total,)).bind(shape)
        return picked if e is None else (e.outer @ picked).bind(self.shapes[name])


@dataclass(frozen=True, eq=False)
class LinearPlan(Plan, LinearMap):
    """A plan in which every site is an affine function of the free values."""

    def forward(self, theta: Tensor) -> Tensor:
        """The linear part: every site's value without constants, flat."""
        return self._sites(theta, linear=True)

    def expand(self, theta: Tensor) -> Tensor:
        """Every site's value, flat."""
        return Plan.expand(self, theta)

    def linearize(self, theta: Tensor) -> LinearMap:
        """The plan itself."""
        return self

    @property
    def offset(self) -> Tensor | None:
        """The sites' constants, flat, or None where all are zero."""
        found: Tensor = self.expand(torch.zeros(self.in_shape, dtype=torch.float64))
        return found if bool(found.any()) else None

    def adjoint(self, grad: Tensor) -> Tensor:
        """φᵀ·grad: what each free value receives from all of its sites."""
        given = self.split(grad)
        roots: dict[str, Tensor] = {}

        def add(owner: str, value: Tensor) -> None:
            roots[owner] = roots[owner] + value if owner in roots else value

        for name in self.shapes:
            e = self.expressions.get(name)
            if e is None:
                add(name, given[name].reshape(-1))
                continue
            outer = _linear(e.outer)
            pulled = outer.adjoint(given[name]).reshape(-1)
            sizes = [numel(self.owners[o].roots) for o in e.owners]
            for o, piece in zip(e.owners, torch.split(pulled, sizes), strict=True):
                add(o, piece)
        parts = []
        for name, owner in self.owners.items():
            value = roots[name].reshape(owner.roots)
            if owner.source is not None:
                value = _linear(owner.source).adjoint(value)
            parts.append(value)
        return _flat(parts, grad)

    def lift(self, values: Tensor) -> Tensor:
        """The least-squares free vector, connected group by group."""
        return Plan.lift(self, values)

    @property
    def rank(self) -> int:
        """The number of independent free values.

        Sites determine their roots, so this is the rank of what lies between θ and roots;
        but where all sites of a tie depart from it, what is shared and what is their own
        overlap, and it is that of the whole. Raises TooLarge for such a tie of many values.
        """
        total = 0
        counted: set[str] = set()
        for group in self.groups:
            if any(n in self.owners and self.owners[n].joint for n in group):
                counted.update(group)
                total += self._dense_rank(group)
        return total + sum(
            numel(o.shape) if o.source is None else _linear(o.source).rank
            for n, o in self.owners.items()
            if n not in counted
        )

    def _dense_rank(self, group: tuple[str, ...]) -> int:
        part = self.part(group)
        sizes = numel(part.in_shape), numel(part.out_shape)
        if sizes[0] * sizes[1] > DENSE_LIMIT**2:
            raise TooLarge(
                f"every site of the tie of {', '.join(group[:4])} departs from it, so its free "
                f"values ({sizes[0]} stored) are counted by the rank of a matrix of {sizes[1]} "
                f"rows; Eadem builds at most {DENSE_LIMIT}² entries. Hold one site to the tie"
            )
        return int(torch.linalg.matrix_rank(_linear(part).dense(), rtol=RANK_RTOL))

    def gram_diagonal(self) -> Tensor | None:
        """How often each free value is used (scale squared), where no dense map is involved."""
        if any(o.source is not None for o in self.owners.values()):
            return None
        total = {
            n: torch.full(
                (numel(o.roots),), float(n not in self.expressions), dtype=torch.float64
            )
            for n, o in self.owners.items()
        }
        for e in self.expressions.values():
            diagonal = _linear(e.outer).gram_diagonal()
            if diagonal is None:
                return None
            sizes = [numel(self.owners[o].roots) for o in e.owners]
            for o, piece in zip(e.owners, torch.split(diagonal, sizes), strict=True):
                total[o] += piece
        return _flat(total.values(), torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Plain:
    """A group of which some sites depart from their ties, without the remainders; `own` has
    the map of each remainder, by site, `hosts` the sites whose parameter holds θ too.
    """

    owners: dict[str, Owner]
    expressions: dict[str, Expression]
    own: dict[str, Map]

    @property
    def hosts(self) -> set[str]:
        """The sites whose parameter holds free values of the tie before the remainder's."""
        return self.own.keys() & self.owners.keys()


def without_remainders(
    owners: Mapping[str, Owner], expressions: Mapping[str, Expression], names: Iterable[str]
) -> Plain | None:
    """The group of sites `names` as it were without remainders; None where it has none."""
    within = set(names)
    own = {n: o.own for n, o in owners.items() if n in within and o.own is not None}
    if not own:
        return None
    kept: dict[str, Owner] = {}
    for n, o in owners.items():
        base = o if o.own is None else o.base
        if n in within and base is not None:
            kept[n] = base
    found = {n: e.base for n, e in expressions.items() if n in within and e.base is not None}
    return Plain(kept, found, own)


def with_own(
    plain: Plain, thetas: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The free values by owner, remainders included: what is shared is given by `thetas`, and
    a site that is not `given` does not depart from it.
    """
    roots = {n: o.values(thetas[n]) for n, o in plain.owners.items()}
    found = {n: t for n, t in thetas.items() if n not in plain.own}
    for name, own in plain.own.items():
        e = plain.expressions.get(name)
        if e is None:
            shared = roots[name].reshape(own.out_shape)
        else:
            pieces = [roots[o] for o in e.owners]
            shared = e.outer.expand(_flat(pieces).reshape(e.outer.in_shape))
        rest = given[name] - shared if name in given else torch.zeros_like(shared)
        theta = own.lift(rest)
        if name in plain.hosts:
            theta = torch.cat([thetas[name].reshape(-1), theta.reshape(-1)])
        found[name] = theta
    return found


def _linear(phi: Any) -> LinearMap:
    assert isinstance(phi, LinearMap)
    return phi


def _slices(shapes: Mapping[str, Shape]) -> dict[str, slice]:
    sizes = [numel(s) for s in shapes.values()]
    starts = offsets(sizes)
    return {n: slice(a, a + k) for n, a, k in zip(shapes, starts, sizes, strict=True)}


def make_plan(
    shapes: dict[str, Shape],
    owners: dict[str, Owner],
    expressions: dict[str, Expression],
    groups: tuple[tuple[str, ...], ...] = (),
) -> Plan:
    """A bound plan, linear where every part of it is."""
    parts: list[Map | None] = [o.source for o in owners.values()]
    parts += [e.outer for e in expressions.values()]
    linear = all(p is None or isinstance(p, LinearMap) for p in parts)
    kind = LinearPlan if linear else Plan
    plan = kind(shapes, owners, expressions, groups)
    return plan.bind((sum(numel(s) for s in shapes.values()),))
