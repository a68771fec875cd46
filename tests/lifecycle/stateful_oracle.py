"""What a tied model holds, by dense matrices: numpy alone, nothing of Eadem's.

A tie says that for some θ every one of its sites is A θ + b. Eliminating θ leaves linear
equations between the values of all sites. Solved with the earliest values free, they give
W = R f + c, where f are the free values in the order of the sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
#: One site of a tie: its name, the part of it (an index expression for numpy), and what it
#: is made of θ, a function of an array.
Use = tuple[str, Any, Callable[[Array], Array]]


@dataclass(frozen=True)
class Rule:
    """A tie: the shape of its θ, and its uses."""

    theta: tuple[int, ...]
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Dense:
    """W = R f + c; `free`: the coordinates of W that are f."""

    shapes: Mapping[str, tuple[int, ...]]
    r: Array
    c: Array
    free: NDArray[np.int64]

    def split(self, w: Array) -> dict[str, Array]:
        """Flat values by site."""
        found, at = {}, 0
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            found[name] = w[at : at + size].reshape(shape)
            at += size
        return found

    def flat(self, values: Mapping[str, Array]) -> Array:
        """The values of all sites in one vector."""
        return np.concatenate([np.asarray(values[n], float).reshape(-1) for n in self.shapes])

    def expand(self, f: Array) -> dict[str, Array]:
        """What the sites hold for free values f."""
        return self.split(self.r @ f + self.c)

    def owned(self) -> dict[str, int]:
        """How many of the free values lie in each site."""
        at, found = 0, {}
        for name, shape in self.shapes.items():
            size = math.prod(shape)
            found[name] = int(((self.free >= at) & (self.free < at + size)).sum())
            at += size
        return found

    @property
    def collapsed(self) -> list[str]:
        """Sites whose every value is a constant."""
        moves = self.split(np.abs(self.r).sum(1))
        return [n for n, m in moves.items() if m.size and not m.any()]


def solve(shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule]) -> Dense | None:
    """The dense form of some ties; None where no values satisfy them all."""
    total = sum(math.prod(s) for s in shapes.values())
    places = np.arange(total)
    at, grids = 0, {}
    for name, shape in shapes.items():
        grids[name] = places[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    rows, right = [np.zeros((0, total))], [np.zeros(0)]
    for rule in rules:
        size = math.prod(rule.theta)
        a, b, pick = [], [], []
        for name, part, make in rule.uses:
            zero = make(np.zeros(rule.theta)).reshape(-1)
            units = [make(u.reshape(rule.theta)).reshape(-1) - zero for u in np.eye(size)]
            a.append(np.stack(units, 1))
            b.append(zero)
            pick.append(np.asarray(grids[name][part]).reshape(-1))
        matrix, shift, where = np.concatenate(a), np.concatenate(b), np.concatenate(pick)
        u, s, _ = np.linalg.svd(matrix)
        off = u[:, int((s > 1e-9).sum()) :].T  # what range(A) does not reach
        row = np.zeros((len(off), total))
        np.add.at(row, (slice(None), where), off)
        rows.append(row)
        right.append(off @ shift)
    return _reduced(dict(shapes), np.concatenate(rows), np.concatenate(right))


def _reduced(shapes: dict[str, tuple[int, ...]], rows: Array, right: Array) -> Dense | None:
    """Gauss–Jordan from the last column to the first, so that late values depend on early."""
    m = np.concatenate([rows, right[:, None]], 1)
    total, done, dependent = rows.shape[1], 0, {}
    for column in range(total - 1, -1, -1):
        if done == len(m):
            break
        best = done + int(np.abs(m[done:, column]).argmax())
        if abs(m[best, column]) < 1e-9:
            continue
        m[[done, best]] = m[[best, done]]
        m[done] /= m[done, column]
        for other in range(len(m)):
            if other != done:
                m[other] -= m[other, column] * m[done]
        dependent[column] = done
        done += 1
    if np.abs(m[done:, total]).max(initial=0.0) > 1e-7:
        return None
    free = np.array([i for i in range(total) if i not in dependent], dtype=np.int64)
    r, c = np.zeros((total, len(free))), np.zeros(total)
    r[free, np.arange(len(free))] = 1.0
    for column, row in dependent.items():
        r[column] = -m[row, free]
        c[column] = m[row, total]
    return Dense(shapes, np.round(r, 12), c, free)
