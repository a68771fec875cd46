"""Many pairs of sequences under one pair HMM: tables and bands, threads, exact fallback."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from eadem.hmm import pair_kernels as kernels
from eadem.hmm import pair_logs as logs

__all__ = ["Limits", "Model", "Pairs", "best_path", "expected", "likelihoods", "one_posterior"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Odds above this are left to the recursions in logarithms.
STEEP = 1e50
#: Places of the names in `Model.move`.
MOVES = ("M→M", "M→X", "M→Y", "X→X", "X→M", "Y→Y", "Y→M", "end")


@dataclass(frozen=True)
class Model:
    """The probabilities of a pair HMM by code: match (K, K), insert_x (K,), insert_y (K,) and
    `move` (8,), in the order of `MOVES`.
    """

    match: Floats
    insert_x: Floats
    insert_y: Floats
    move: Floats

    @staticmethod
    def of(flat: Floats, codes: int) -> Model:
        """From one vector, in the order of the fields."""
        a = codes * codes
        return Model(
            flat[:a].reshape(codes, codes),
            flat[a : a + codes],
            flat[a + codes : a + 2 * codes],
            flat[a + 2 * codes :],
        )

    def odds(self) -> Floats | None:
        """match/(insert_x·insert_y), or None where the scaled recursions cannot take it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Floats = self.match / np.outer(self.insert_x, self.insert_y)
        return found if bool((found < STEEP).all()) else None

    def logs(self) -> Model:
        """The logarithms."""
        with np.errstate(divide="ignore"):
            parts = (self.match, self.insert_x, self.insert_y, self.move)
            return Model(*(np.log(p) for p in parts))


@dataclass(frozen=True)
class Limits:
    """The columns of each row that a band leaves, both (n + 1,)."""

    low: Ints
    high: Ints

    @staticmethod
    def of(n: int, m: int, band: int | None) -> Limits:
        """Places with |i·m − j·n| ≤ band·max(n, m): as far from the line from corner to corner
        in letters of the longer sequence; the same if the sequences are swapped.
        """
        if band is None or not n or not m:
            return Limits(np.zeros(n + 1, np.int64), np.full(n + 1, m, np.int64))
        i, far = np.arange(n + 1, dtype=np.int64), band * max(n, m)
        low = -((far - i * m) // n)
        high = (i * m + far) // n
        return Limits(np.maximum(low, 0), np.minimum(high, m))

    @property
    def width(self) -> Ints:
        """How many columns each row has."""
        return self.high - self.low + 1

    def starts(self, extra: int = 0) -> Ints:
        """Where rows begin, one after the other, with `extra` places each; and the end."""
        return np.concatenate([[0], np.cumsum(self.width + extra)]).astype(np.int64)

    def places(self, rows: int = 1) -> int:
        """The places that `rows` successive rows need, with one beside each end."""
        top = np.arange(0, len(self.low), rows)
        reach = np.minimum(top + rows, len(self.low) - 1)
        return int((self.high[reach] - self.low[top]).max()) + 3


@dataclass(frozen=True)
class Pairs:
    """Sequences in pairs, as numbers of codes; `band` as in Limits."""

    x: tuple[Ints, ...]
    y: tuple[Ints, ...]
    band: int | None = None

    def __len__(self) -> int:
        return len(self.x)

    def cells(self) -> list[int]:
        """How much work each pair is."""
        found = []
        for x, y in zip(self.x, self.y, strict=True):
            width = len(y) + 1 if self.band is None else min(len(y) + 1, 2 * self.band + 1)
            found.append((len(x) + 1) * width)
        return found


@dataclass
class _Room:
    """Arrays that one thread uses again and again."""

    held: dict[str, Floats] = field(default_factory=dict)

    def take(self, name: str, *shape: int) -> Floats:
        """An array of this shape, of any content."""
        size = math.prod(shape)
        if name not in self.held or self.held[name].size < size:
            self.held[name] = np.empty(size)
        return self.held[name][:size].reshape(shape)


def _spread(work: Callable[[int, _Room], None], cells: Sequence[int], threads: int) -> None:
    """`work(i, room)` for every pair, on `threads` threads with about as many cells each."""
    order = sorted(range(len(cells)), key=lambda i: -cells[i])
    shares: list[list[int]] = [[] for _ in range(max(1, min(threads, len(cells))))]
    loads = [0] * len(shares)
    for i in order:
        least = loads.index(min(loads))
        shares[least].append(i)
        loads[least] += cells[i]
    errors: list[BaseException] = []

    def run(share: list[int]) -> None:
        room = _Room()
        try:
            for i in share:
                work(i, room)
        except BaseException as error:  # handed to the caller's thread
            errors.append(error)

    others = [threading.Thread(target=run, args=(share,)) for share in shares[1:]]
    for thread in others:
        thread.start()
    run(shares[0])
    for thread in others:
        thread.join()
    if errors:
        raise errors[0]


def _table(by_code: Floats, y: Ints, empty: float) -> Floats:
    """Emissions of M with each letter of y, (codes, m + 3); see `pair_kernels`."""
    found = np.full((len(by_code), len(y) + 3), empty)
    found[:, 2 : len(y) + 2] = by_code[:, y]
    return found


def _move(model: Model) -> Any:
    return tuple(model.move.tolist())


def likelihoods(model: Model, pairs: Pairs, threads: int = 1) -> Floats:
    """The log-likelihood of each pair; −∞ where it is impossible."""
    odds, ln = model.odds(), model.logs()
    found = np.empty(len(pairs))

    def one(i: int, room: _Room) -> None:
        x, y = pairs.x[i], pairs.y[i]
        limits = Limits.of(len(x), len(y), pairs.band)
        value = np.nan
        if odds is not None:
            table = _table(odds, y, 0.0)
            value = kernels.forward(x, table, _move(model), limits.low, limits.high)
            value += ln.insert_x[x].sum() + ln.insert_y[y].sum()
        if np.isnan(value):
            table = _table(ln.match, y, -np.inf)
            space = room.take("logs", len(x) + 1, 3, limits.places())
            lx, ly = ln.insert_x[x], ln.insert_y[y]
            value = logs.forward(x, table, lx, ly, _move(ln), limits.low, limits.high, space)
        found[i] = value

    _spread(one, pairs.cells(), threads)
    return found


@dataclass
class _Counts:
    """Expected counts of one or several pairs, by code."""

    moves: Floats
    emitted: Floats
    insert_x: Floats
    insert_y: Floats

    @staticmethod
    def none(codes: int) -> _Counts:
        return _Counts(np.zeros(10), np.zeros((codes, codes)), np.zeros(codes), np.zeros(codes))

    def flat(self) -> Floats:
        """In the order of Model's fields, the three ends as one."""
        moves = np.append(self.moves[:7], self.moves[7:].sum())
        return np.concatenate([self.emitted.ravel(), self.insert_x, self.insert_y, moves])


_NOTHING: Floats = np.empty(0)


def _accumulate(
    model: Model,
    ln: Model,
    odds: Floats | None,
    x: Ints,
    y: Ints,
    limits: Limits,
    room: _Room,
    counts: _Counts,
    posterior: Floats = _NOTHING,
) -> tuple[float, Floats, Floats]:
    """Add one pair's expected counts; its log-likelihood and posteriors of insertions."""
    n, m = len(x), len(y)
    from_x, from_y = np.zeros(n), np.zeros(m)
    start = limits.starts() if posterior.size else limits.low
    value = np.nan
    if odds is not None:
        size = max(8, int(np.sqrt(n + 1)) + 1)
        places = limits.places(size)
        value = kernels.forward_backward(
            x,
            y,
            _table(odds, y, 0.0),
            _move(model),
            limits.low,
            limits.high,
            room.take("kept", n // size + 1, 3, places),
            room.take("block", size, 3, places),
            room.take("scale", n + 1),
            counts.moves,
            counts.emitted,
            from_x,
            from_y,
            posterior,
            start,
        )
        value += ln.insert_x[x].sum() + ln.insert_y[y].sum()
    if np.isnan(value):
        value = logs.forward_backward(
            x,
            y,
            _table(ln.match, y, -np.inf),
            ln.insert_x[x],
            ln.insert_y[y],
            _move(ln),
            limits.low,
            limits.high,
            room.take("logs", n + 1, 3, limits.places()),
            counts.moves,
            counts.emitted,
            from_x,
            from_y,
            posterior,
            start,
        )
    codes = len(model.insert_x)
    counts.insert_x += np.bincount(x, from_x, codes)
    counts.insert_y += np.bincount(y, from_y, codes)
    return float(value), from_x, from_y


def expected(
    model: Model, pairs: Pairs, threads: int = 1, each: bool = False
) -> tuple[Floats, Floats]:
    """The log-likelihood of each pair, and the expected counts in the order of Model's fields:
    of all pairs, (values,), or of each, (pairs, values).
    """
    odds, ln, codes = model.odds(), model.logs(), len(model.insert_x)
    values = np.empty(len(pairs))
    rows: dict[int, Floats] = {}
    totals: dict[int, _Counts] = {}

    def one(i: int, room: _Room) -> None:
        x, y = pairs.x[i], pairs.y[i]
        limits = Limits.of(len(x), len(y), pairs.band)
        counts = (
            _Counts.none(codes) if each else totals.setdefault(id(room), _Counts.none(codes))
        )
        kept.append(room)
        values[i] = _accumulate(model, ln, odds, x, y, limits, room, counts)[0]
        if each:
            rows[i] = counts.flat()

    kept: list[_Room] = []  # so that an id stays one room's
    _spread(one, pairs.cells(), threads)
    size = codes * codes + 2 * codes + len(MOVES)
    if each:
        return values, np.stack([rows[i] for i in range(len(pairs))]) if rows else np.zeros(
            (0, size)
        )
    return values, np.sum([c.flat() for c in totals.values()], axis=0) + np.zeros(size)


def one_posterior(
    model: Model, x: Ints, y: Ints, band: int | None
) -> tuple[float, Floats, Floats, Floats, Limits]:
    """Log-likelihood, posteriors of insertions in x and y, and of M, flat, row after row."""
    limits = Limits.of(len(x), len(y), band)
    found = np.zeros(int(limits.starts()[-1]))
    counts = _Counts.none(len(model.insert_x))
    value, from_x, from_y = _accumulate(
        model, model.logs(), model.odds(), x, y, limits, _Room(), counts, found
    )
    return value, from_x, from_y, found, limits


def best_path(model: Model, x: Ints, y: Ints, band: int | None) -> tuple[Ints, float]:
    """The most probable path, 0 for M, 1 for X, 2 for Y, and its log-probability (−∞ for none).

    Viterbi's recursion runs on log odds; where an insert state refuses a letter, on odds as if
    it hardly emitted it. The log-probability is that of the path itself.
    """
    ln = model.logs()
    lx, ly = np.maximum(ln.insert_x, -1e4), np.maximum(ln.insert_y, -1e4)
    limits = Limits.of(len(x), len(y), band)
    start = limits.starts(2)
    path = np.empty(len(x) + len(y), np.int8)
    back = np.empty(int(start[-1]), np.uint8)
    table = _table(ln.match - lx[:, None] - ly, y, -np.inf)
    length = kernels.viterbi(x, table, _move(ln), limits.low, limits.high, start, back, path)
    found = path[len(path) - length :].astype(np.int64)
    if length == 0 and len(path):
        return found, -np.inf
    return found, path_probability(ln, x, y, found)


#: Place in Model.move of each step from state to state; X and Y do not follow each other.
_STEP = np.array([[0, 1, 2], [4, 3, -1], [6, -1, 5]])


def path_probability(ln: Model, x: Ints, y: Ints, path: Ints) -> float:
    """The log-probability of both sequences along a path, from the logarithms `ln`."""
    i, j = np.cumsum(path != 2) - 1, np.cumsum(path != 1) - 1
    total = float(ln.move[7])
    total += float(ln.match[x[i[path == 0]], y[j[path == 0]]].sum())
    total += float(ln.insert_x[x[i[path == 1]]].sum())
    total += float(ln.insert_y[y[j[path == 2]]].sum())
    steps = _STEP[np.concatenate([[0], path[:-1]]), path]
    if (steps < 0).any():
        return -np.inf
    return total + float(ln.move[steps].sum())


def accurate_path(posterior: Floats, limits: Limits, m: int) -> Ints:
    """The path of greatest expected accuracy, from the posterior of M, flat."""
    path = np.empty(len(limits.low) - 1 + m, np.int8)
    back = np.empty(len(posterior), np.uint8)
    length = kernels.expected_accuracy(
        posterior, limits.starts(), limits.low, limits.high, m, back, path
    )
    return path[len(path) - length :].astype(np.int64)
