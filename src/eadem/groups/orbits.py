"""Orbits of signed permutations: which entries an invariant tensor must have equal.

An entry and its negative are two nodes of a graph; a generator joins (i, ±) to (place[i],
±sign[i]). A connected component is an orbit, and one that holds an entry together with its
own negative is zero. Nothing is compared with a tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from eadem.groups.signed import Signed

__all__ = ["components"]

Places = NDArray[np.int64]
Labels = NDArray[np.int32]

#: Rounds of minimum and jump before what is left is contracted and solved as a graph.
ROUNDS = 12


def components(images: Sequence[Signed]) -> tuple[Places, NDArray[np.int8] | None, int]:
    """The orbits of signed permutations: each entry's orbit (−1: zero), its sign, the count.

    Orbits are numbered by their first entry, whose sign is +1; signs None are all ones.
    """
    size = len(images[0])
    moves = [
        (i.place, None if i.sign is None else (i.sign < 0).astype(np.int32)) for i in images
    ]
    label = np.arange(0, 2 * size, 2, dtype=np.int32)
    _spread(label, moves)
    zero = _contract(label, moves)
    entry = label >> 1
    first = entry == np.arange(size, dtype=np.int32)
    if zero is not None:
        first &= ~zero
    number = np.cumsum(first) - 1
    orbit = number[entry]
    if zero is not None:
        orbit[zero[entry]] = -1
    count = int(number[-1]) + 1 if size else 0
    if all(flips is None for _, flips in moves):
        return orbit, None, count
    return orbit, (1 - 2 * (label & 1)).astype(np.int8), count


def _spread(label: Labels, moves: Sequence[tuple[Places, Labels | None]]) -> None:
    """Let labels, 2·entry plus 1 for an entry's negative, sink to the least that is connected.

    In a round they go along the permutations and jump to their label's own label, which
    doubles their reach; the permutations are squared from one round to the next, so that a
    cycle of n entries is done in log₂ n. It ends when nothing changes, or after `ROUNDS`.
    """
    moved, before = np.empty_like(label), np.empty_like(label)
    squares = [(p.astype(np.int32), f) for p, f in moves]
    for _ in range(ROUNDS):
        np.copyto(before, label)
        for place, flips in squares:
            _follow(label, place, flips, moved)
            np.minimum(label, moved, out=label)
        np.right_shift(label, 1, out=moved)
        moved = label.take(moved, mode="clip")
        moved ^= label & 1
        np.minimum(label, moved, out=label)
        if np.array_equal(before, label):
            return
        for i, (place, flips) in enumerate(squares):
            again = None if flips is None else flips ^ flips.take(place, mode="clip")
            squares[i] = (place.take(place, mode="clip"), again)


def _follow(label: Labels, place: Places | Labels, flips: Labels | None, out: Labels) -> None:
    """The labels of where a permutation takes each entry, seen from there."""
    np.take(label, place, out=out, mode="clip")
    if flips is not None:
        out ^= flips


def _contract(
    label: Labels, moves: Sequence[tuple[Places, Labels | None]]
) -> NDArray[np.bool_] | None:
    """Solve what labels still differ as a graph over them, in place; which entries, as labels,
    are joined to their own negative (None: no entry is).
    """
    rows, columns = [], []
    moved = np.empty_like(label)
    for place, flips in moves:
        _follow(label, place, flips, moved)
        apart = moved != label
        rows.append(label[apart])
        columns.append(moved[apart])
    row, column = np.concatenate(rows), np.concatenate(columns)
    if not len(row):
        return None
    used = np.zeros(len(label), dtype=bool)
    used[row >> 1] = used[column >> 1] = True
    entries = np.flatnonzero(used).astype(np.int32)
    small = np.cumsum(used) - 1
    a, b = (2 * small[x >> 1] + (x & 1) for x in (row, column))
    nodes = 2 * len(entries)
    ends = np.concatenate([a, a ^ 1]), np.concatenate([b, b ^ 1])
    graph = coo_array((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(nodes, nodes))
    count, part = connected_components(graph, directed=False)
    node = np.arange(nodes, dtype=np.int32)
    least = np.full(count, nodes, dtype=np.int32)
    least[part[::-1]] = node[::-1]
    to = least[part]
    whole = 2 * entries[to >> 1] + (to & 1)  # the least label of every node
    at = used[label >> 1]
    label[at] = whole[2 * small[label[at] >> 1] + (label[at] & 1)]
    zero = np.zeros(len(label), dtype=bool)
    own = part[0::2] == part[1::2]
    zero[entries[own]] = True
    return zero if bool(own.any()) else None
