"""Groups and ranks under one count of free parameters, by the loss that each rank takes off.

Every group that may share a basis has a curve, its loss by rank. For a price λ of one
parameter each group takes its cheapest rank, and the layers are cut into groups by dynamic
programming; λ is found by bisection, and what is left of the budget goes to the ranks that
gain most for each parameter.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from eadem._share.factors import errors, spectrum
from eadem._share.families import Matrix
from eadem._share.plans import Entry, Plan
from eadem._share.statistics import Moments
from eadem.errors import OutOfRange

__all__ = ["Candidate", "Candidates", "candidates", "count", "estimated", "planned", "uniform"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Candidate:
    """Matrices that may share a basis, with the loss at each rank from 0 to the full one."""

    group: tuple[Matrix, ...]
    loss: Floats

    @property
    def free(self) -> int:
        """Rows of all coefficients."""
        return sum(m.shape[1] if m.narrow else m.shape[0] for m in self.group)

    @property
    def side(self) -> int:
        """Length of a basis vector."""
        return self.group[0].shape[0] if self.group[0].narrow else self.group[0].shape[1]

    @property
    def costs(self) -> Floats:
        """Free parameters at each rank: r·(free + side − r)."""
        r = np.arange(len(self.loss), dtype=np.float64)
        return r * (self.free + self.side - r)

    def entry(self, rank: int) -> Entry | None:
        """The plan's entry; None at the full rank, where nothing changes."""
        if rank >= len(self.loss) - 1:
            return None
        return Entry("factored", tuple(m.site for m in self.group), rank)


@dataclass(frozen=True)
class Candidates:
    """By bundle (the matrices that read or write one thing, in every layer): by run of layers
    (first, length), the ways to cut that run's matrices into groups.
    """

    bundles: tuple[tuple[int, dict[tuple[int, int], list[list[Candidate]]]], ...]


def _curve(
    model: nn.Module, moments: Moments, group: Sequence[Matrix], metric: str
) -> Candidate:
    free = sum(m.shape[1] if m.narrow else m.shape[0] for m in group)
    gains = spectrum(model, moments, group, metric)
    # what a rank of all uses of a shared layer gains is counted once for each use already
    return Candidate(tuple(group), errors(gains, min(free, len(gains))).numpy())


def candidates(
    model: nn.Module,
    moments: Moments,
    found: Sequence[Matrix],
    *,
    reach: int = 2,
    bundled: bool = True,
    metric: str = "loss",
    said: Callable[[int, int], None] | None = None,
) -> Candidates:
    """Every group that is looked at: matrices alone, those of a layer that read one input
    (`bundled`), and those of one kind in up to `reach` neighbouring layers.
    """
    sets: dict[tuple[str, str], dict[int, list[Matrix]]] = {}
    for m in found:
        sets.setdefault((m.stack, m.reads), {}).setdefault(m.layer, []).append(m)
    total = sum(len(by) for by in sets.values())
    done, bundles = 0, []
    for by in sets.values():
        layers = sorted(by)
        ways: dict[tuple[int, int], list[list[Candidate]]] = {}
        for at, layer in enumerate(layers):
            mine = by[layer]
            ways[at, 1] = [[_curve(model, moments, [m], metric) for m in mine]]
            if bundled and len(mine) > 1 and not any(m.narrow for m in mine):
                ways[at, 1].append([_curve(model, moments, mine, metric)])
            for length in range(2, reach + 1):
                run = [by[x] for x in layers[at : at + length]]
                if len(run) < length or {len(r) for r in run} != {len(mine)}:
                    continue
                columns = [list(c) for c in zip(*run, strict=True)]
                if any(len({m.shape for m in c}) > 1 for c in columns):
                    continue
                ways[at, length] = [[_curve(model, moments, c, metric) for c in columns]]
            done += 1
            if said is not None:
                said(done, total)
        bundles.append((len(layers), ways))
    return Candidates(tuple(bundles))


def _best(c: Candidate, price: float) -> tuple[float, int]:
    """The least of loss + price·cost, and the rank where it is."""
    total = c.loss + price * c.costs
    rank = int(total[1:].argmin()) + 1
    return float(total[rank]), rank


def _chosen(found: Candidates, price: float) -> list[tuple[Candidate, int]]:
    """The groups and ranks of least loss + price·cost."""
    chosen: list[tuple[Candidate, int]] = []
    for layers, ways in found.bundles:
        best: list[tuple[float, int, list[tuple[Candidate, int]]]] = [(0.0, 0, [])]
        for end in range(1, layers + 1):
            options = []
            for (at, length), cuts in ways.items():
                if at + length != end:
                    continue
                for cut in cuts:
                    ranks = [_best(c, price) for c in cut]
                    total = best[at][0] + sum(value for value, _ in ranks)
                    groups = [(c, r) for c, (_, r) in zip(cut, ranks, strict=True)]
                    options.append((total, at, groups))
            best.append(min(options, key=lambda o: o[0]))
        at = layers
        while at:
            _, before, groups = best[at]
            chosen += groups
            at = before
    return chosen


def count(chosen: Sequence[tuple[Candidate, int]]) -> int:
    """Free parameters of groups at ranks."""
    return int(sum(c.costs[r] for c, r in chosen))


def planned(
    found: Candidates, keep: float, *, metric: str = "loss", name: str = "shared"
) -> Plan:
    """The plan that keeps at most `keep` of the matrices' parameters.

    Raises OutOfRange where even rank one of everything is more, with what can be reached.
    """
    chosen = _allocated(found, keep)
    entries = [e for c, r in chosen if (e := c.entry(r)) is not None]
    return Plan(tuple(entries), keep, metric, name)


def estimated(found: Candidates, keeps: Sequence[float]) -> list[tuple[float, float]]:
    """What the best plan costs of the loss, to second order, by the share of the parameters
    that it keeps; shares that cannot be reached are left out.
    """
    curve = []
    for keep in keeps:
        try:
            chosen = _allocated(found, keep)
        except OutOfRange:
            continue
        curve.append((keep, float(sum(c.loss[r] for c, r in chosen))))
    return curve


def _allocated(found: Candidates, keep: float) -> list[tuple[Candidate, int]]:
    """Groups and ranks that keep at most `keep` of the parameters."""
    full = sum(
        c.costs[-1]
        for layers, ways in found.bundles
        for at in range(layers)
        for c in ways[at, 1][0]
    )
    budget = keep * full
    low, high = 0.0, 1e-12
    least = count(_chosen(found, 1e300))
    if least > budget:
        raise OutOfRange(
            f"keep={keep:g} leaves {int(budget)} of {int(full)} parameters, and these ties "
            f"need {least} at least ({least / full:.3%}); keep more"
        )
    if keep >= 1:
        alone = [c for n, ways in found.bundles for at in range(n) for c in ways[at, 1][0]]
        return [(c, len(c.loss) - 1) for c in alone]
    while count(_chosen(found, high)) > budget and high < 1e300:
        low, high = high, high * 8
    for _ in range(60):
        middle = (low + high) / 2
        if count(_chosen(found, middle)) > budget:
            low = middle
        else:
            high = middle
    return _filled(_chosen(found, high), budget)


def _filled(
    chosen: Sequence[tuple[Candidate, int]], budget: float
) -> list[tuple[Candidate, int]]:
    """Ranks raised one by one, the most loss for a parameter first, while the budget lasts."""
    ranks = [r for _, r in chosen]
    left = budget - count(chosen)
    heap: list[tuple[float, int]] = []

    def offer(i: int) -> None:
        c, r = chosen[i][0], ranks[i]
        if r + 1 < len(c.loss):
            cost = float(c.costs[r + 1] - c.costs[r])
            if 0 < cost <= left:
                heapq.heappush(heap, (-float(c.loss[r] - c.loss[r + 1]) / cost, i))

    for i in range(len(ranks)):
        offer(i)
    while heap:
        _, i = heapq.heappop(heap)
        c = chosen[i][0]
        cost = float(c.costs[ranks[i] + 1] - c.costs[ranks[i]])
        if cost <= left:
            left -= cost
            ranks[i] += 1
            offer(i)
    return [(c, r) for (c, _), r in zip(chosen, ranks, strict=True)]


def uniform(
    found: Sequence[Matrix], keep: float, *, redundant: bool, metric: str = "inputs"
) -> Plan:
    """Every matrix by itself, all at one share of their parameters: the whitened truncated
    SVD. `redundant`: counted as two full factors, r·(rows + columns), as it is published.
    """
    entries = []
    for m in found:
        rows, columns = m.shape
        if redundant:
            rank = int(keep * rows * columns / (rows + columns))
        else:
            r = np.arange(1, min(rows, columns) + 1)
            rank = int((r * (rows + columns - r) <= keep * rows * columns).sum())
        rank = max(rank, 1)
        if rank < min(rows, columns):
            entries.append(Entry("factored", (m.site,), rank))
    name = "per-layer SVD" if redundant else "per-layer SVD, compact"
    return Plan(tuple(entries), keep, metric, name)
