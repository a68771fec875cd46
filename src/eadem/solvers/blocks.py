"""Residuals in blocks, as a function of the free values, with their Jacobian.

The values at the sites are W = φ(θ) (+ b); every block reads some of them. The derivative of
its residual is taken along the columns of φ that its sites have, J_θ = J_W φ without J_W:
forward (`torch.func.jvp`, batched by `vmap`: the calls of one product, whatever the number of
columns), or as the transpose of the transposed product, which is the same product and takes a
pass for each column, but of fewer calls and less memory. What torch can differentiate once only
in reverse goes forward. A block that brings a derivative of its own is asked for it instead,
once that has agreed with torch's.
Columns that one block reads are its own, those that several read are shared: this is the
arrow, found from the ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eadem.solvers._autograd import NO_RULE, slope
from eadem.solvers._reduce import pooled, stacked
from eadem.solvers.arrow import Arrow, Part, triangle
from eadem.solvers.losses import Loss
from eadem.solvers.solution import SolverError
from eadem.solvers.through import Through

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Batch", "Point", "Problem"]

#: Numbers of a Jacobian that are worked on at a time.
CHUNK = 2**19
#: Numbers of a Jacobian up to which the transpose of the transposed product is the faster,
SMALL = 2**21
#: unless there are more columns than this and at most so many numbers.
FEW, LIGHT = 16, 2**17


@dataclass(frozen=True, eq=False)
class Batch:
    """N blocks that are one function of their numbers.

    `sites` (N, k): where the values of each are in the flat vector of all sites.
    `function(values, *rows)` gives the weighted residual of one, of any shape, from its k
    values and its rows of `data`; torch.func differentiates it. `along(values, directions,
    *rows)`, where there is one, is its derivative along directions (t, k), (t, …), or
    NotImplemented.
    """

    names: tuple[str, ...]
    sites: Tensor
    function: Callable[..., Tensor]
    data: tuple[Tensor, ...] = ()
    along: Callable[..., Any] | None = None


@dataclass(frozen=True, eq=False)
class Point:
    """θ, the sites' values, the residuals of every piece (N, m), and what they come to.

    `cost` is what the fit lowers: χ², or the robust loss. `bad`: the block and the place of
    the first residual that is not finite.
    """

    theta: Tensor
    values: Tensor
    residuals: list[Tensor]
    cost: float
    bad: tuple[str, int] | None


@dataclass(eq=False)
class _Piece:
    """Blocks of one batch with equally many own and shared columns.

    `into`, `entry`: where in φ (N, k, l+s), flat, each entry of the plan's Jacobian belongs.
    """

    batch: Batch
    rows: Tensor
    at_own: Tensor
    at_shared: Tensor
    into: Tensor
    entry: Tensor
    batched: bool = True
    forward: bool = True
    transposed: bool = True
    verified: bool = False
    direct: bool = True

    @property
    def sites(self) -> Tensor:
        return self.batch.sites[self.rows]

    @property
    def data(self) -> tuple[Tensor, ...]:
        every = len(self.rows) == len(self.batch.names)
        return self.batch.data if every else tuple(d[self.rows] for d in self.batch.data)

    def name(self, i: int) -> str:
        return self.batch.names[int(self.rows[i])]

    def flat(self, values: Tensor, *data: Tensor) -> Tensor:
        """One block's residual, flat."""
        return self.batch.function(values, *data).reshape(-1)

    def map(self, one: Callable[..., Tensor], *given: Tensor, size: int) -> Tensor:
        """`one(given rows, data rows)` for every block; `size` numbers are made for each."""
        data = self.data
        if len(self.rows) > 1 and self.batched:
            chunk = max(1, CHUNK // max(1, size))
            small = None if chunk >= len(self.rows) else chunk
            try:
                found: Tensor = torch.func.vmap(one, chunk_size=small)(*given, *data)
                return found
            except NO_RULE:
                self.batched = False
        if len(self.rows) == 1:
            return one(*(g[0] for g in given), *(d[0] for d in data)).unsqueeze(0)
        each = range(len(self.rows))
        return torch.stack([one(*(g[i] for g in given), *(d[i] for d in data)) for i in each])

    def phi(self, values: Tensor) -> Tensor:
        """The plan's Jacobian at each block's sites, (N, k, l+s), from its entries."""
        n, k = len(self.rows), self.batch.sites.shape[1]
        t = self.at_own.shape[1] + self.at_shared.shape[1]
        flat = values.new_zeros(n * k * t)
        return flat.index_add_(0, self.into, values[self.entry]).reshape(n, k, t)


class Problem:
    """Blocks through a plan: residuals, cost and linearization at any θ.

    `start` (free,) decides nothing but shapes. `held`: free values that do not move.
    """

    def __init__(
        self,
        phi: Through,
        batches: Sequence[Batch],
        start: Tensor,
        *,
        loss: Loss | None = None,
        held: Tensor | None = None,
        group: ProcessGroup | None = None,
    ) -> None:
        self.phi, self.loss, self.group = phi, loss or Loss(), group
        self.pieces = _pieces(phi, batches, start, held)
        self.evaluations = 0
        self.can_curve = True
        with torch.no_grad():
            self.first = self.at(start)
        for piece, r in zip(self.pieces, self.first.residuals, strict=True):
            if r.dtype != torch.float64:
                raise SolverError(
                    f"the residual of {piece.name(0) or 'the model'} is {r.dtype}; least "
                    "squares works in float64: convert the model and its data with .double()"
                )
        sizes = [r.numel() for r in self.first.residuals]
        #: the number of residuals
        self.size = int(pooled(torch.tensor(float(sum(sizes)), dtype=torch.float64), group))

    def at(self, theta: Tensor) -> Point:
        """The residuals at θ."""
        self.evaluations += 1
        with torch.no_grad():
            values = self.phi.expand(theta)
            found = [
                p.map(p.flat, values[p.sites], size=p.batch.sites.shape[1]).detach()
                for p in self.pieces
            ]
            lost = [int((~torch.isfinite(r)).sum()) for r in found]
            total = sum(self.loss.cost(r) for r in found)
            here = torch.tensor([total, float(sum(lost))], dtype=torch.float64)
            cost, wrong = pooled(here, self.group).tolist()
        bad = None
        if wrong:
            bad = ("another process", 0)
            for p, r, n in zip(self.pieces, found, lost, strict=True):
                if n:
                    block, place = (~torch.isfinite(r)).nonzero()[0].tolist()
                    bad = (p.name(block), place)
                    break
        return Point(theta, values, found, cost, bad)

    def chi2(self, point: Point) -> float:
        """Σ r², whatever the loss."""
        total = sum(
            (r.square().sum() for r in point.residuals), torch.zeros((), dtype=torch.float64)
        )
        return float(pooled(total, self.group))

    def jacobians(self, point: Point) -> list[Tensor]:
        """J_θ of every piece, (N, m, l+s), unweighted."""
        entries = self.phi.entries(point.theta)[2]
        return [
            self._along(p, point.values[p.sites], p.phi(entries), r.shape[1])
            for p, r in zip(self.pieces, point.residuals, strict=True)
        ]

    def site_jacobians(self, point: Point) -> list[Tensor]:
        """J_W of every piece, (N, m, k)."""
        found = []
        for p, r in zip(self.pieces, point.residuals, strict=True):
            n, k = p.sites.shape
            eye = torch.eye(k, dtype=torch.float64).expand(n, k, k)
            found.append(self._along(p, point.values[p.sites], eye, r.shape[1]))
        return found

    def _along(self, p: _Piece, values: Tensor, phi: Tensor, m: int) -> Tensor:
        """The derivative of the residuals along the columns of φ (N, k, t): (N, m, t)."""
        t = phi.shape[2]
        if not t or not m:
            return values.new_zeros(len(values), m, t)
        if p.direct and p.batch.along is not None:
            own = _direct(p, values, phi, m)
            if own is not None:
                return own
            p.direct = False
        numbers = len(values) * m * t
        by_column = numbers <= SMALL and (t <= FEW or numbers > LIGHT)
        if p.transposed and t <= 4 * m and (by_column or not p.forward):
            try:
                found = _transposed(p, values, phi)
                p.verified = p.verified or _adjoint(p, values, phi, found)
                if p.verified:
                    return found
                p.transposed = False
            except NO_RULE:
                p.transposed = False
        if p.forward and t <= 4 * m:
            try:
                return p.map(_forward(p), values, phi, size=m * t).detach()
            except NO_RULE:
                p.forward = False
                if p.transposed:
                    return self._along(p, values, phi, m)
        jacobian: Any = torch.func.jacrev(p.flat)
        each = p.map(jacobian, values, size=m * phi.shape[1])
        return (each @ phi).detach()

    def linearize(self, point: Point) -> tuple[Arrow, list[Tensor]]:
        """The weighted least-squares problem at a point, and the unweighted Jacobians."""
        jacobians = self.jacobians(point)
        parts = []
        for p, jacobian, r in zip(self.pieces, jacobians, point.residuals, strict=True):
            row, right = jacobian, r
            if not self.loss.linear:
                weight, scaled = self.loss.weights(r)
                row, right = weight.unsqueeze(-1) * jacobian, scaled * r
            l = p.at_own.shape[1]
            parts.append(Part(p.at_own, p.at_shared, row[..., :l], row[..., l:], right))
        if self.group is None:
            return Arrow(parts, self.phi.free), jacobians
        return self._everyone(parts), jacobians

    def _everyone(self, parts: list[Part]) -> Arrow:
        """The problem of all processes: what travels are the triangles of [J r]."""
        n = self.phi.free
        rows = []
        for p in parts:
            joined = torch.cat([p.own, p.shared], -1)
            at = torch.cat([p.at_own, p.at_shared], 1)
            wide = joined.new_zeros(*joined.shape[:2], n + 1)
            wide.scatter_(2, at.unsqueeze(1).expand_as(joined), joined)
            wide[..., -1] = p.residual
            rows.append(wide.reshape(-1, n + 1))
        return Arrow.of_triangle(stacked(triangle(torch.cat(rows)), self.group))

    def curvature(self, point: Point, jacobians: list[Tensor], v: Tensor) -> Tensor | None:
        """Jᵀ·r″, (free,), with r″ the second derivative of r(θ + t·v) at t = 0; None where
        torch cannot differentiate twice, or a block brings its own first derivative alone.
        """
        if not self.can_curve or any(p.direct and p.batch.along for p in self.pieces):
            return None
        first, second = self.phi.curve(point.theta, v)
        total = torch.zeros(self.phi.free, dtype=torch.float64)
        try:
            for p, jacobian in zip(self.pieces, jacobians, strict=True):
                given = [x[p.sites] for x in (point.values, first, second)]
                m = jacobian.shape[1]
                if p.transposed and len(p.rows) * m <= SMALL:
                    bent = _transposed_second(p, *given)
                else:
                    size = m + p.batch.sites.shape[1]
                    bent = p.map(_second(p), *given, size=size).detach()
                each = (bent.unsqueeze(1) @ jacobian).squeeze(1)
                at = torch.cat([p.at_own, p.at_shared], 1)
                total.index_add_(0, at.reshape(-1), each.reshape(-1))
        except NO_RULE:
            self.can_curve = False
            return None
        return pooled(total, self.group)


def _direct(p: _Piece, values: Tensor, phi: Tensor, m: int) -> Tensor | None:
    """J_W φ by the blocks themselves; None where one declines.

    Raises SolverError where it is not what torch finds.
    """
    assert p.batch.along is not None
    each = []
    for i, one in enumerate(values):
        found = p.batch.along(one, phi[i].T.contiguous(), *(d[i] for d in p.data))
        if found is NotImplemented:
            return None
        t = phi.shape[2]
        if not isinstance(found, Tensor) or found.numel() != t * m or len(found) != t:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SolverError(
                f"residual_jvp() of {p.name(i) or 'the model'} gave {what}; for {t} directions "
                f"and {m} residuals it gives a tensor ({t}, …) of {t}·{m} numbers"
            )
        each.append(found.detach().reshape(t, m).T)
    every = torch.stack(each) if len(each) > 1 else each[0].unsqueeze(0)
    if not p.verified:
        p.verified = _adjoint(p, values, phi, every)
        if not p.verified and bool(torch.isfinite(every).all()):
            raise SolverError(
                f"residual_jvp() of {p.name(0) or 'the model'}, or of a block like it, is not "
                "the derivative that torch finds of residual(); mend or remove it"
            )
    return every


def _forward(p: _Piece) -> Callable[..., Tensor]:
    def block(values: Tensor, phi: Tensor, *data: Tensor) -> Tensor:
        def along(v: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(lambda w: p.flat(w, *data), (values,), (v,))[1]
            return found

        chunk = max(1, CHUNK // max(1, values.numel()))
        found: Tensor = torch.func.vmap(along, 1, 1, chunk_size=chunk)(phi)
        return found

    return block


def _transposed(p: _Piece, values: Tensor, phi: Tensor) -> Tensor:
    """J_W φ from g(u) = J_Wᵀu, which is linear in u: column c is d(φ_c·g)/du."""
    with torch.enable_grad():
        w = values.detach().clone().requires_grad_()
        r = p.map(p.flat, w, size=1)
        u = torch.zeros_like(r).requires_grad_()
        h = (slope(r, w, u, create=True).unsqueeze(1) @ phi).squeeze(1)
        columns = [slope(h[:, c].sum(), u, retain=True) for c in range(phi.shape[2])]
    return torch.stack(columns, -1).detach()


def _adjoint(p: _Piece, values: Tensor, phi: Tensor, found: Tensor) -> bool:
    """Whether uᵀJ is what reverse mode gives, for one u: a backward of a user's own that is
    `once_differentiable` has no part in `_transposed`, and nothing else would say so.
    """
    with torch.enable_grad():
        w = values.detach().clone().requires_grad_()
        r = p.map(p.flat, w, size=1)
        u = torch.arange(r.numel(), dtype=r.dtype).add_(1).cos_().reshape(r.shape)
        wanted = (slope((r * u).sum(), w).unsqueeze(1) @ phi).squeeze(1)
    off = ((u.unsqueeze(1) @ found).squeeze(1) - wanted).abs()
    size = (u.abs().unsqueeze(1) @ found.abs()).squeeze(1)
    return not bool((off > 1e-8 * torch.maximum(size, wanted.abs())).any())


def _transposed_second(p: _Piece, values: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """r″ along the curve with these derivatives, in the same way."""
    with torch.enable_grad():
        w = values.detach().clone().requires_grad_()
        r = p.map(p.flat, w, size=1)
        u = torch.zeros_like(r).requires_grad_()
        g = slope(r, w, u, create=True)
        along = (g * first).sum()
        if along.requires_grad:
            along = (slope(along, w, create=True) * first).sum()
        return slope(along + (g * second).sum(), u).detach()


def _second(p: _Piece) -> Callable[..., Tensor]:
    def block(values: Tensor, first: Tensor, second: Tensor, *data: Tensor) -> Tensor:
        def along(w: Tensor, v: Tensor) -> Tensor:
            found: Tensor = torch.func.jvp(lambda w: p.flat(w, *data), (w,), (v,))[1]
            return found

        bent: Tensor = torch.func.jvp(lambda w: along(w, first), (values,), (first,))[1]
        return bent + along(values, second)

    return block


def _pieces(
    phi: Through, batches: Sequence[Batch], start: Tensor, held: Tensor | None
) -> list[_Piece]:
    """The blocks of every batch, cut by how many own and shared columns they have."""
    rows, columns, _ = phi.entries(start)
    kept = np.ones(len(rows), dtype=bool) if held is None else ~held[columns].numpy()
    entry = np.flatnonzero(kept)
    row, column = rows.numpy()[entry], columns.numpy()[entry]
    order = np.argsort(row, kind="stable")
    row, column, entry = row[order], column[order], entry[order]
    first = np.searchsorted(row, np.arange(phi.sites))
    count = np.searchsorted(row, np.arange(phi.sites), side="right") - first
    touched = [_touched(b, first, count, column) for b in batches]
    readers = np.zeros(phi.free, dtype=np.int64)
    for _, _, pairs in touched:
        np.add.at(readers, pairs[:, 1], 1)
    shared = readers > 1
    found = []
    for batch, (block_site, which, pairs) in zip(batches, touched, strict=True):
        n, k = batch.sites.shape
        is_shared = shared[pairs[:, 1]]
        l = np.bincount(pairs[~is_shared, 0], minlength=n)
        s = np.bincount(pairs[is_shared, 0], minlength=n)
        kinds, kind = np.unique(np.stack([l, s], 1), axis=0, return_inverse=True)
        for i, (own, common) in enumerate(kinds.tolist()):
            members = np.flatnonzero(kind.reshape(-1) == i)
            mine = np.isin(pairs[:, 0], members)
            at_own = pairs[mine & ~is_shared, 1].reshape(len(members), own)
            at_shared = pairs[mine & is_shared, 1].reshape(len(members), common)
            place = np.full(n, -1)
            place[members] = np.arange(len(members))
            inside = place[block_site // k] >= 0 if k else np.zeros(0, dtype=bool)
            block = place[block_site[inside] // k]
            position = block_site[inside] % k
            at = np.concatenate([at_own, at_shared], 1)
            column_at = _find(at, block, column[which[inside]], phi.free)
            into = (block * k + position) * at.shape[1] + column_at
            found.append(
                _Piece(
                    batch,
                    torch.from_numpy(members),
                    torch.from_numpy(at_own),
                    torch.from_numpy(at_shared),
                    torch.from_numpy(into),
                    torch.from_numpy(entry[which[inside]]),
                )
            )
    return found


def _touched(batch: Batch, first: Any, count: Any, column: Any) -> tuple[Any, Any, Any]:
    """Of a batch: for each entry of φ that it reads, the block's site (block·k + position)
    and the entry; and the (block, column) pairs, each once, in order.
    """
    sites = batch.sites.reshape(-1).numpy()
    each = count[sites]
    block_site = np.repeat(np.arange(len(sites)), each)
    ahead = np.arange(len(block_site)) - np.repeat(np.cumsum(each) - each, each)
    which = np.repeat(first[sites], each) + ahead
    k = max(1, batch.sites.shape[1])
    pairs = np.stack([block_site // k, column[which]], 1)
    return block_site, which, np.unique(pairs, axis=0)


def _find(at: Any, block: Any, column: Any, free: int) -> Any:
    """Where each column is in its block's row of `at`."""
    key = (np.arange(len(at))[:, None] * free + at).reshape(-1)
    order = np.argsort(key, kind="stable")
    found = order[np.searchsorted(key[order], block * free + column)]
    return found % max(1, at.shape[1])
