"""The M-step, by algebra over the resolved plan.

Sites are W = φθ + b, φ sparse. Probabilities maximise Σ c·log p with every row summing to one.
Where each entry is one free value, or fixed, and all rows that share values share all of them
alike (single rows, whole rows tied, equal entries in a row), θ_g = m·C_g/(n_g·C): pooled
counts, divided by how often the value stands in the row. Anything else (entries tied across
rows that differ elsewhere, scaled or affine entries) is a small concave problem, for which
`eadem.solvers.em.m_step` has Newton's method.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from scipy.optimize import linprog
from scipy.sparse.csgraph import connected_components

from eadem._plan import Plan, PlanArrays
from eadem.errors import TieConflict, Unsupported
from eadem.maps.base import LinearMap, numel
from eadem.maps.dense import Dense
from eadem.solvers.em import m_step

__all__ = ["Affine", "Simplex", "ascend"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Singular values below this share of the largest are zero.
RTOL = 1e-10


@dataclass(frozen=True)
class Affine:
    """W = φθ + shift at all sites of a model: φ (sites, free) sparse.

    `where` has each site's place among the flat sites, `shapes` its shape.
    """

    phi: Any
    shift: Floats
    where: dict[str, slice]
    shapes: dict[str, tuple[int, ...]]

    @staticmethod
    def of(plan: Plan) -> Affine:
        """From a resolved plan. Raises Unsupported for one with non-linear maps."""
        if not isinstance(plan, LinearMap):
            raise Unsupported(
                "the M-step is algebra over linear and affine ties, and this model's ties have "
                'non-linear maps; fit it with method="gradient"'
            )
        free = torch.zeros(plan.in_shape, dtype=torch.float64)
        rows, columns, values = (v.numpy() for v in PlanArrays(plan).entries(free))
        size = (numel(plan.out_shape), numel(plan.in_shape))
        phi = sp.csr_matrix((values, (rows, columns)), shape=size)
        phi.eliminate_zeros()
        return Affine(phi, plan.expand(free).numpy(), dict(plan.slices), dict(plan.shapes))

    def joined(self, sites: Mapping[str, Sequence[str]]) -> Affine:
        """Several sites as one of another name, after each other along their first axis; flat
        where they differ in the others.
        """
        parts, where, shapes, low = [], {}, {}, 0
        for name, members in sites.items():
            own = [np.arange(self.where[m].start, self.where[m].stop) for m in members]
            given = [self.shapes[m] for m in members]
            parts += own
            size = sum(map(len, own))
            where[name], low = slice(low, low + size), low + size
            alike = len({shape[1:] for shape in given}) == 1
            first = sum(shape[0] for shape in given)
            shapes[name] = (first, *given[0][1:]) if alike else (size,)
        order = np.concatenate(parts)
        return Affine(self.phi[order], self.shift[order], where, shapes)

    def alike(self) -> Ints:
        """Equal numbers for sites that show one value, whatever θ is: one row of [φ | b]."""
        phi = self.phi.sorted_indices()
        kinds: dict[tuple[bytes, bytes, float], int] = {}
        found = np.empty(phi.shape[0], dtype=np.int64)
        for i, (low, high) in enumerate(zip(phi.indptr[:-1], phi.indptr[1:], strict=True)):
            row = phi.indices[low:high].tobytes(), phi.data[low:high].tobytes()
            found[i] = kinds.setdefault((*row, float(self.shift[i])), len(kinds))
        return found

    def expand(self, theta: Floats) -> Floats:
        """All sites, flat."""
        found: Floats = self.phi @ theta + self.shift
        return found

    def split(self, values: Floats) -> dict[str, Floats]:
        """The sites by name."""
        return {n: values[s].reshape(self.shapes[n]) for n, s in self.where.items()}

    def columns(self, *names: str) -> Ints:
        """The free values that these sites use."""
        rows = [self.phi[self.where[n]] for n in names]
        found: Ints = np.unique(np.concatenate([r.indices for r in rows])).astype(np.int64)
        return found

    def single(self, name: str) -> bool:
        """Whether each entry of a site is at most one free value, scaled, without a shift."""
        part = self.phi[self.where[name]]
        entries = np.diff(part.indptr)
        shift = self.shift[self.where[name]]
        return bool((entries <= 1).all() and (shift[entries > 0] == 0).all())


@dataclass(frozen=True)
class _Closed:
    """Free values with a closed form."""

    theta: Ints  # (g,): which free values
    site: Ints  # (k,): the coordinates that show them
    group: Ints  # (k,): the free value of each, among `theta`
    part: Ints  # (g,): the component of each
    weight: Floats  # (g,): mass of the component / times that the value stands in a row
    parts: int


@dataclass(frozen=True)
class _General:
    """A component without: p = φθ + shift at `site`, with rows·p = 1."""

    theta: Ints
    site: Ints
    phi: Floats
    shift: Floats
    rows: Floats


class Simplex:
    """The M-step of all probabilities of a model, made ready for many steps.

    `rows` are the coordinates of each distribution; `fixed` free values that are not to move,
    which keep their values in `theta`.
    """

    def __init__(
        self, affine: Affine, rows: list[Ints], theta: Floats, fixed: npt.NDArray[np.bool_]
    ) -> None:
        self.affine, n = affine, affine.phi.shape[0]
        self.rows = rows
        row = np.full(n, -1)
        for r, at in enumerate(rows):
            row[at] = r
        site = np.flatnonzero(row >= 0)
        phi = affine.phi[site].tocsc()
        held = np.flatnonzero(fixed)
        shift = affine.shift[site] + phi[:, held] @ theta[held]
        moving = np.flatnonzero((np.diff(phi.indptr) > 0) & ~fixed)
        phi = phi[:, moving].tocsr()
        totals = sp.csr_matrix(
            (np.ones(len(site)), (row[site], np.arange(len(site)))),
            shape=(len(rows), len(site)),
        )
        used = (totals @ abs(phi)).tocsr()
        graph = sp.bmat([[None, used], [used.T, None]], format="csr")
        label = _components(graph)
        part = label[len(rows) :]  # of each free value
        entries = np.diff(phi.indptr)
        plain = (entries == 0) | ((entries == 1) & (shift == 0))
        plain[entries == 1] &= phi.data[phi.indptr[:-1][entries == 1]] == 1
        count = (totals @ phi).tocsc()
        mass = 1.0 - totals @ np.where(entries == 0, shift, 0.0)
        simple = self._alike(count, part, mass, label[: len(rows)])
        bad = label[row[site[~plain]]] if (~plain).any() else np.zeros(0, int)
        simple[np.isin(part, bad)] = False
        self.closed = self._closed(moving, site, phi, part, simple, count, mass)
        self.general = [
            self._component(moving, site, phi, shift, totals, np.flatnonzero(part == c))
            for c in np.unique(part[~simple])
        ]
        self._bases: dict[tuple[int, bytes], Floats] = {}

    @staticmethod
    def _alike(count: Any, part: Ints, mass: Floats, row_part: Ints) -> npt.NDArray[np.bool_]:
        """Free values whose component has the same values in all of its rows."""
        rows_of = np.bincount(row_part, minlength=int(row_part.max(initial=0)) + 1)
        start, stop = count.indptr[:-1], count.indptr[1:]
        few = (stop - start) < rows_of[part]
        top = np.maximum.reduceat(count.data, start) if len(part) else np.zeros(0)
        low = np.minimum.reduceat(count.data, start) if len(part) else np.zeros(0)
        wrong = few | (top != low)
        spread = np.zeros(len(rows_of))
        high = np.full(len(rows_of), -np.inf)
        np.maximum.at(high, row_part, mass)
        np.maximum.at(spread, row_part, high[row_part] - mass)
        bad = np.zeros(len(rows_of), dtype=bool)
        bad[part[wrong]] = True
        bad |= spread > 1e-12
        found: npt.NDArray[np.bool_] = ~bad[part]
        return found

    def _closed(
        self,
        moving: Ints,
        site: Ints,
        phi: Any,
        part: Ints,
        simple: npt.NDArray[np.bool_],
        count: Any,
        mass: Floats,
    ) -> _Closed:
        chosen = np.flatnonzero(simple)
        place = np.full(len(moving), -1)
        place[chosen] = np.arange(len(chosen))
        entries = np.flatnonzero(np.diff(phi.indptr) == 1)
        group = place[phi.indices[phi.indptr[:-1][entries]]]
        entries, group = entries[group >= 0], group[group >= 0]
        _, own = np.unique(part[chosen], return_inverse=True)
        first = count.indptr[:-1][chosen]
        weight = mass[count.indices[first]] / count.data[first]
        parts = int(own.max(initial=-1)) + 1
        return _Closed(moving[chosen], site[entries], group, own, weight, parts)

    @staticmethod
    def _component(
        moving: Ints, site: Ints, phi: Any, shift: Floats, totals: Any, columns: Ints
    ) -> _General:
        some = phi[:, columns]
        rows = np.flatnonzero(totals @ np.diff(some.indptr))
        at = np.flatnonzero(np.asarray(totals[rows].sum(0)).ravel())
        return _General(
            moving[columns],
            site[at],
            some[at].toarray(),
            shift[at],
            totals[rows][:, at].toarray(),
        )

    def maximise(self, counts: Floats, theta: Floats) -> Floats:
        """θ of greatest Σ c·log p, from θ; `counts` ≥ 0 of all sites, flat.

        A value without counts anywhere in its rows stays; zeros stay in general components.
        """
        found = theta.copy()
        c = self.closed
        pooled = np.bincount(c.group, counts[c.site], minlength=len(c.theta))
        total = np.bincount(c.part, pooled, minlength=c.parts)[c.part]
        seen = total > 0
        share = np.divide(pooled, total, out=np.zeros(len(pooled)), where=seen)
        found[c.theta] = np.where(seen, c.weight * share, theta[c.theta])
        for i, g in enumerate(self.general):
            if counts[g.site].any():
                found[g.theta] = self._newton(i, g, counts[g.site], found[g.theta])
        return found

    def _newton(self, i: int, g: _General, counts: Floats, theta: Floats) -> Floats:
        p = g.phi @ theta + g.shift
        p = np.where(np.abs(p) < 1e-300, 0.0, p)
        zero = p == 0
        key = (i, zero.tobytes())
        basis = self._bases.get(key)
        if basis is None:
            basis = _null(np.vstack([g.rows @ g.phi, g.phi[zero]]))
            self._bases[key] = basis
        if not basis.shape[1]:
            return theta
        moves = g.phi @ basis
        moves[zero] = 0.0
        phi = Dense(torch.from_numpy(moves), torch.from_numpy(p)).bind((len(p),))
        start = torch.zeros(basis.shape[1], dtype=torch.float64)
        given = torch.from_numpy(np.where(zero, 0.0, counts))
        found: Floats = theta + basis @ m_step(phi, given, start).numpy()
        return found

    def feasible(self, wanted: Floats, theta: Floats) -> Floats:
        """θ whose rows sum to one, near probabilities `wanted` of all sites: the maximum of
        Σ wanted·log p. Raises TieConflict where the ties leave none.
        """
        start = theta.copy()
        for g in self.general:
            p = g.phi @ start[g.theta] + g.shift
            if (p > 0).all() and np.abs(g.rows @ p - 1).max(initial=0) < 1e-13:
                continue
            start[g.theta] = _interior(g)
        found = self.maximise(np.maximum(wanted, 0.0), start)
        # Rows that sum to one already stay as they are, to the last bit.
        return np.where(np.abs(found - theta) < 1e-15, theta, found)


def _components(graph: Any) -> Ints:
    _, label = connected_components(graph, directed=False)
    return label.astype(np.int64)


def _null(matrix: Floats) -> Floats:
    """An orthonormal basis of the vectors that `matrix` takes to zero, as columns."""
    if not matrix.shape[0]:
        return np.eye(matrix.shape[1])
    _, sizes, right = np.linalg.svd(matrix, full_matrices=True)
    rank = int((sizes > RTOL * sizes.max(initial=0)).sum())
    found: Floats = np.ascontiguousarray(right[rank:].T)
    return found


def _interior(g: _General) -> Floats:
    """θ whose smallest probability is as large as possible (a linear programme)."""
    n, live = g.phi.shape[1], np.abs(g.phi).sum(1) > 0
    cost = np.r_[np.zeros(n), -1.0]
    below = np.hstack([-g.phi[live], np.ones((int(live.sum()), 1))])
    equal = np.hstack([g.rows @ g.phi, np.zeros((len(g.rows), 1))])
    solved = linprog(
        cost,
        A_ub=below,
        b_ub=g.shift[live],
        A_eq=equal,
        b_eq=1.0 - g.rows @ g.shift,
        bounds=[(None, None)] * n + [(None, 1.0)],
    )
    if solved.x is None or solved.x[-1] <= 1e-9:
        raise TieConflict(
            "the ties leave no positive probabilities: rows must sum to one, and some entry "
            "would have to be zero or negative; untie it, or hold it with Fixed(0.0)"
        )
    found: Floats = solved.x[:-1]
    # The programme is exact to its tolerance only: the nearest θ with exact sums.
    rows = g.rows @ g.phi
    off = 1.0 - g.rows @ (g.phi @ found + g.shift)
    corrected: Floats = found + np.linalg.lstsq(rows, off, rcond=RTOL)[0]
    return corrected


def ascend(
    affine: Affine,
    names: tuple[str, ...],
    theta: Floats,
    moving: Ints,
    function: Callable[[Mapping[str, Floats]], tuple[float, Floats, Any]],
    equations: Any = None,
    steps: int = 20,
) -> Floats:
    """θ with a greater function of the sites `names`, by scoring steps that each gain.

    `function(values)` gives its value (−inf where it is not defined), its gradient at these
    sites, flat, and a matrix that curves like its negative Hessian (sparse). `equations` (m,
    sites) stay as they are. Used where the M-step has no closed form: a generalised EM step
    (Dempster, Laird & Rubin 1977, section 3).
    """
    at = np.concatenate([np.arange(s.start, s.stop) for s in (affine.where[n] for n in names)])
    phi = affine.phi[at][:, moving]
    if equations is not None:
        phi = sp.csr_matrix(phi @ _null((equations[:, at] @ phi).toarray()))
        basis = _null((equations[:, at] @ affine.phi[at][:, moving]).toarray())
    else:
        basis = None
    theta = theta.copy()
    value, gradient, curve = function(affine.split(affine.expand(theta)))
    for _ in range(steps):
        pulled = phi.T @ gradient
        inner = (phi.T @ curve @ phi).toarray()
        move = np.linalg.lstsq(inner, pulled, rcond=RTOL)[0]
        gain = float(pulled @ move)
        if not gain > 1e-14 * max(1.0, abs(value)):
            break
        step = move if basis is None else basis @ move
        length, found = 1.0, None
        while length > 1e-10:
            trial = theta.copy()
            trial[moving] += length * step
            new = function(affine.split(affine.expand(trial)))
            if new[0] > value:
                found = trial
                break
            length *= 0.5
        if found is None:
            break
        theta, (value, gradient, curve) = found, new
    return theta
