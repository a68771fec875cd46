"""A plan as a few arrays, for what reads all of its sites many times.

Most coordinates of most plans are W = a·f(c·θ + e) + b with one free value θ and f the
identity or an elementwise map. All of these, of thousands of sites, are one gather; the sites
that are not of that form (dense maps, functions of several values) are computed one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eadem._plan.plan import Owner, Plan
from eadem.errors import Unsupported
from eadem.maps.algebra import _Over, _Side
from eadem.maps.base import Composed, LinearMap, Map, numel
from eadem.maps.constant import outside
from eadem.maps.index import Index

__all__ = ["PlanArrays"]


@dataclass(frozen=True, eq=False)
class _Form:
    """Values a·f(c·θ[at] + e) + b: `kind` numbers f in `maps`, −1 is the identity; at −1 is
    the constant b.
    """

    at: Tensor
    c: Tensor
    e: Tensor
    kind: Tensor
    a: Tensor
    b: Tensor

    @staticmethod
    def cat(forms: list[_Form]) -> _Form:
        """One after the other."""
        if not forms:
            return _identity(0)
        if len(forms) == 1:
            return forms[0]
        each = zip(*(vars(f).values() for f in forms), strict=True)
        return _Form(*(torch.cat(list(parts)) for parts in each))

    def picked(self, index: Index) -> _Form:
        """The values that an index map makes of these."""
        live = index.position >= 0
        where = index.position.clamp(min=0)
        if not len(self.at):
            where = where[:0]
            empty = _identity(len(live))
            return replace(empty, at=torch.full_like(empty.at, -1), b=index.shifts())
        got = _Form(*(v[where] for v in vars(self).values()))
        scale = index.scales()
        return replace(
            got,
            at=torch.where(live, got.at, -1),
            a=got.a * scale,
            b=torch.where(live, got.b * scale, 0.0) + index.shifts(),
        )

    def moved(self, start: int) -> _Form:
        """The same of θ that begins at `start`."""
        return replace(self, at=torch.where(self.at >= 0, self.at + start, -1))


def _identity(n: int) -> _Form:
    one, zero = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    return _Form(torch.arange(n), one, zero, torch.full((n,), -1), one, zero)


@dataclass(frozen=True, eq=False)
class _Special:
    """A site that is not of that form: its rows, the free values it depends on, its value."""

    rows: Tensor
    at: Tensor
    owners: tuple[Owner, ...]
    outer: Map | None

    def value(self, theta: Tensor) -> Tensor:
        """The site's values, flat, from its own free values, flat."""
        sizes = [numel(o.shape) for o in self.owners]
        pieces = zip(self.owners, torch.split(theta, sizes), strict=True)
        roots = torch.cat([o.values(t.reshape(o.shape)).reshape(-1) for o, t in pieces])
        if self.outer is None:
            return roots
        return self.outer.expand(roots.reshape(self.outer.in_shape)).reshape(-1)

    @property
    def linear(self) -> bool:
        """Whether its Jacobian is constant."""
        maps = [self.outer, *(o.source for o in self.owners)]
        return all(m is None or isinstance(m, LinearMap) for m in maps)


class PlanArrays:
    """The plan's `expand` and its Jacobian as entries, at θ (free,) of float64.

    >>> from eadem._plan import Declaration, Entry, Site, resolve
    >>> from eadem.maps import Affine, Positive, Same
    >>> entries = Entry(Site("a"), Same()), Entry(Site("b"), Affine(2.0, 1.0))
    >>> tie = Declaration(entries)
    >>> alone = Declaration((Entry(Site("c"), Positive()),))
    >>> arrays = PlanArrays(resolve({"a": (1,), "b": (1,), "c": (1,)}, [tie, alone]))
    >>> theta = torch.tensor([3.0, 0.0], dtype=torch.float64)
    >>> arrays.expand(theta)
    tensor([3.0000, 7.0000, 0.6931], dtype=torch.float64)
    >>> rows, columns, values = arrays.entries(theta)
    >>> rows.tolist(), columns.tolist(), values.tolist()
    ([0, 1, 2], [0, 0, 1], [1.0, 2.0, 0.5])
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.free, self.sites = numel(plan.in_shape), numel(plan.out_shape)
        self._maps: list[Map] = []
        self._special: list[_Special] = []
        self._jacobians: dict[int, Tensor] = {}
        with outside():
            self._form = self._sites_form()
            self._of_kind = [
                (self._form.kind == k).nonzero().reshape(-1) for k in range(len(self._maps))
            ]
            special = [s.rows for s in self._special]
            self._rows_special = torch.cat(special) if special else None

    def _sites_form(self) -> _Form:
        """Every site's form, one after the other; sites that are stored as they are only need
        to know where.
        """
        plan, forms = self.plan, self._owners()
        whole = {k: v.numpy().copy() for k, v in vars(_identity(self.sites)).items()}
        known: dict[tuple[tuple[str, ...], int], _Form] = {}
        for name, rows in plan.slices.items():
            e = plan.expressions.get(name)
            if e is None and plan.owners[name].source is None:
                start = plan._theta_slices[name].start
                whole["at"][rows] = np.arange(start, start + rows.stop - rows.start)
                continue
            key = ((name,), 0) if e is None else (e.owners, id(e.outer))
            form = known.get(key)
            if form is None:
                form = self._site(name, forms)
                if e is not None and bool((form.at >= 0).any()):
                    known[key] = form
            for k, v in vars(form).items():
                whole[k][rows] = v.numpy()
        return _Form(**{k: torch.from_numpy(v) for k, v in whole.items()})

    def _owners(self) -> dict[str, _Form | None]:
        """The roots of every owner in that form, None where they are not."""
        start = 0
        found: dict[str, _Form | None] = {}
        needed = {o for e in self.plan.expressions.values() for o in e.owners}
        for name, owner in self.plan.owners.items():
            if owner.source is None and name not in needed:
                start += numel(owner.shape)
                continue
            own = _identity(numel(owner.shape))
            form = own if owner.source is None else self._through(owner.source, own)
            found[name] = None if form is None else form.moved(start)
            start += numel(owner.shape)
        return found

    def _through(self, phi: Map, given: _Form) -> _Form | None:
        """What a bound map makes of values in that form."""
        if isinstance(phi, LinearMap):
            index = phi.index()
            return None if index is None else given.picked(index)
        if phi.elementwise:
            if bool((given.kind >= 0).any()) or bool((given.at < 0).any()):
                return None
            one = torch.ones_like(given.a)
            kind = torch.full_like(given.kind, self._kind(phi))
            return _Form(given.at, given.a * given.c, given.b + given.a * given.e, kind, one,
                         torch.zeros_like(one))  # fmt: skip
        if isinstance(phi, Composed):
            inner = self._through(phi.inner, given)
            return None if inner is None else self._through(phi.outer, inner)
        if isinstance(phi, _Over):
            parts = [self._through(p, given) for p in phi.parts]
        elif isinstance(phi, _Side):
            sizes = [numel(p.in_shape) for p in phi.parts]
            each = zip(*(torch.split(v, sizes) for v in vars(given).values()), strict=True)
            pairs = zip(phi.parts, each, strict=True)
            parts = [self._through(p, _Form(*own)) for p, own in pairs]
        else:
            return None
        known = [p for p in parts if p is not None]
        return _Form.cat(known) if len(known) == len(parts) else None

    def _kind(self, phi: Map) -> int:
        """The number of an elementwise map; equal ones have one number."""
        for i, known in enumerate(self._maps):
            if type(known) is type(phi) and _plain(known) == _plain(phi) is not None:
                return i
        self._maps.append(phi)
        return len(self._maps) - 1

    def _site(self, name: str, forms: dict[str, _Form | None]) -> _Form:
        plan = self.plan
        e = plan.expressions.get(name)
        used = (name,) if e is None else e.owners
        given = [f for o in used if (f := forms[o]) is not None]
        found: _Form | None = None
        if len(given) == len(used):
            found = _Form.cat(given)
            if e is not None:
                found = self._through(e.outer, found)
        if found is not None:
            return found
        rows = torch.arange(plan.slices[name].start, plan.slices[name].stop)
        owners = tuple(plan.owners[o] for o in used)
        slices = [plan._theta_slices[o] for o in used]
        at = torch.cat([torch.arange(s.start, s.stop) for s in slices])
        self._special.append(_Special(rows, at, owners, None if e is None else e.outer))
        empty = _identity(len(rows))
        return replace(empty, at=torch.full_like(empty.at, -1))

    def affine(self, at: Tensor, what: str) -> tuple[Tensor, Tensor, Tensor]:
        """The sites' coordinates `at` as slope·θ[position] + level: position, slope, level.

        Raises Unsupported, about `what`, where one of them is not of that form.
        """
        form = self._form
        plain = (form.at[at] >= 0) & (form.kind[at] < 0)
        if not bool(plain.all()):
            raise Unsupported(
                f"{what!r} has values that are not one free value, scaled and shifted: they "
                "are constant, or come through a non-linear or dense map; state it of the "
                "parameter that holds the free values (eadem.explain names it)"
            )
        slope = form.a[at] * form.c[at]
        return form.at[at], slope, form.a[at] * form.e[at] + form.b[at]

    def expand(self, theta: Tensor) -> Tensor:
        """Every site's value, flat; differentiable by torch."""
        form = self._form
        padded = torch.cat([theta, theta.new_zeros(1)])  # position −1 reads a zero
        inner = form.c * padded[form.at] + form.e
        for phi, where in zip(self._maps, self._of_kind, strict=True):
            inner = inner.index_copy(0, where, _scalar(phi, inner[where]))
        values = torch.where(form.at >= 0, form.a * inner, 0.0) + form.b
        if self._rows_special is not None:
            parts = [s.value(theta[s.at]) for s in self._special]
            values = values.index_copy(0, self._rows_special, torch.cat(parts))
        return values

    def entries(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The Jacobian at θ: rows, columns and values of what may be other than zero."""
        form = self._form
        slope = form.a * form.c * self._slopes(theta)[0]
        live = (form.at >= 0).nonzero().reshape(-1)
        rows, columns, values = [live], [form.at[live]], [slope[live]]
        for row, at, matrix in self._dense(theta):
            rows.append(row.repeat_interleave(len(at)))
            columns.append(at.repeat(len(row)))
            values.append(matrix.reshape(-1))
        return torch.cat(rows), torch.cat(columns), torch.cat(values)

    def curve(self, theta: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The first and second derivative of the sites' values along θ + t·v, at t = 0."""
        form = self._form
        one, two = self._slopes(theta)
        moved = form.c * torch.cat([v, v.new_zeros(1)])[form.at]
        first, second = form.a * one * moved, form.a * two * moved.square()
        for s in self._special:
            at, along = theta[s.at], v[s.at]

            def slope(t: Tensor, s: _Special = s, along: Tensor = along) -> Tensor:
                found: Tensor = torch.func.jvp(s.value, (t,), (along,))[1]
                return found

            derivatives: Any = torch.func.jvp(slope, (at,), (along,))
            first[s.rows], second[s.rows] = (d.detach() for d in derivatives)
        return first, second

    def _slopes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """f′ and f″ at every coordinate: one and zero for the identity."""
        form = self._form
        one, two = torch.ones_like(form.a), torch.zeros_like(form.a)
        for phi, where in zip(self._maps, self._of_kind, strict=True):
            with torch.enable_grad():
                at = form.c[where] * theta[form.at[where]].detach() + form.e[where]
                at.requires_grad_()
                value = _scalar(phi, at).sum()
                slope = torch.autograd.grad(value, at, create_graph=True)[0]
                if slope.requires_grad:
                    two[where] = torch.autograd.grad(slope.sum(), at)[0]
            one[where] = slope.detach()
        return one, two

    def _dense(self, theta: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for i, s in enumerate(self._special):
            matrix = self._jacobians.get(i)
            if matrix is None:
                differentiate: Any = torch.func.jacfwd
                matrix = differentiate(s.value)(theta[s.at]).detach()
                assert matrix is not None
                if s.linear:
                    self._jacobians[i] = matrix
            yield s.rows, s.at, matrix


def _scalar(phi: Map, values: Tensor) -> Tensor:
    """An elementwise map on flat values of any number."""
    return phi.bind(values.shape).expand(values)


def _plain(phi: Map) -> dict[str, Any] | None:
    """The arguments of a map where they compare as plain values do."""
    found = phi.arguments()
    return found if all(isinstance(v, int | float | str) for v in found.values()) else None
