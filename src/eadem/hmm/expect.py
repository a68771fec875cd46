"""The E-step over many sequences: which recursion runs for which of them, on which thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eadem.hmm import halves, kernels, lanes, levels

__all__ = ["Expected", "Frames", "decode", "expect", "log_likelihood"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Up to this many states, the recursion is compiled for the number of states.
COMPILED_IN = 8
#: From this many states, several sequences in step are faster than one after the other.
IN_STEP = 12
#: Sequences in step.
WIDTH = 8
#: Frames whose densities are computed at once.
BLOCK = 2**12
#: Frames of one sequence from which two threads take it from both ends.
LONG = 2**12
#: Numbers of α that one thread keeps: 16 MB.
KEPT = 2**21


@dataclass(frozen=True)
class Frames:
    """Emission densities of the frames of several sequences.

    Frame t has density exp(shift[x[t]])·table[x[t]] in the K states; sequence i is
    x[bounds[i]:bounds[i + 1]]. `shared`: frames share rows; else frame t has row t, which an
    E-step overwrites by its posterior. `logs(rows)` gives the exact log densities of rows.
    """

    x: Ints
    bounds: Ints
    table: Floats
    shift: Floats
    shared: bool
    logs: Callable[[Any], Floats]

    @staticmethod
    def lazily(
        logs: Callable[[Any], Floats], rows: int, bounds: Ints, x: Ints | None = None
    ) -> Frames:
        """From a function that gives the log densities of some rows: symbols' rows, that `x`
        picks, or every frame's.
        """
        K = logs(slice(0, min(1, rows))).shape[1]
        table, shift = np.empty((rows, K)), np.empty(rows)
        threads = torch.get_num_threads() if rows > 4 * BLOCK else 1

        def run(starts: Sequence[int]) -> None:
            for low in starts:
                at = slice(low, min(low + BLOCK, rows))
                found = np.ascontiguousarray(logs(at))
                kernels.shifted(found, shift[at])
                with np.errstate(under="ignore"):  # far from every state: zero
                    np.exp(found, out=table[at])

        starts = list(range(0, rows, BLOCK))
        _at_once([partial(run, starts[k::threads]) for k in range(threads)])
        row = np.arange(rows) if x is None else x
        return Frames(row, bounds, table, shift, x is not None, logs)

    def alone(self) -> Frames:
        """The same with a row for each frame, for their posteriors."""
        if not self.shared:
            return self
        picked = self.x

        def logs(rows: Any) -> Floats:
            return self.logs(picked[rows])

        return replace(
            self,
            x=np.arange(len(picked)),
            table=self.table[picked],
            shift=self.shift[picked],
            shared=False,
            logs=logs,
        )

    @property
    def lengths(self) -> Ints:
        """The number of frames of each sequence."""
        return np.diff(self.bounds)

    def shifts(self) -> Floats:
        """Σ shift of each sequence."""
        found: Floats = np.add.reduceat(self.shift[self.x], self.bounds[:-1])
        return found


@dataclass(frozen=True)
class Expected:
    """Expected counts: of first states (K,), transitions (K, K), and posteriors summed by row
    of the table (rows, K); `log_likelihood` (sequences,). With `each`, the first two have a
    leading axis of sequences.
    """

    log_likelihood: Floats
    start: Floats
    trans: Floats
    stat: Floats


def _dims(states: int) -> tuple[int, ...]:
    return (0,) * states if states <= COMPILED_IN else ()


def _shares(lengths: Ints, threads: int) -> list[Ints]:
    """Sequences by thread, about as many frames each, longest first."""
    order = np.argsort(-lengths, kind="stable")
    threads = max(1, min(threads, len(lengths)))
    if threads == 1:
        return [order]
    load = np.zeros(threads)
    shares: list[list[int]] = [[] for _ in range(threads)]
    for i in order:
        k = int(load.argmin())
        shares[k].append(int(i))
        load[k] += lengths[i]
    return [np.array(s) for s in shares]


def _at_once(work: Sequence[Callable[[], None]]) -> None:
    """Run all, the first on this thread."""
    errors: list[BaseException] = []

    def guarded(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException as error:
            errors.append(error)

    others = [threading.Thread(target=guarded, args=(w,)) for w in work[1:]]
    for t in others:
        t.start()
    guarded(work[0])
    for t in others:
        t.join()
    if errors:
        raise errors[0]


def _scaled(frames: Frames, start: Floats, move: Floats, threads: int) -> Floats:
    """Log-likelihoods less the shifts, by scaled numbers; NaN where these lose something."""
    x, bounds, dims = frames.x, frames.bounds, _dims(len(start))
    found = np.empty(len(bounds) - 1)

    def run(which: Ints) -> None:
        kernels.forward(x, bounds, which, frames.table, start, move, dims, found)
        if rounded is not None:
            levels.watch(x, bounds, which, *rounded, dims, found)

    rounded = None if _mixes(start, move) else _rounded_up(frames, start, move)
    _at_once([partial(run, s) for s in _shares(frames.lengths, threads)])
    return found


def _mixes(start: Floats, move: Floats) -> bool:
    """Whether every move is possible: then a state cannot fall so far behind the others that
    it matters when it comes back.
    """
    return bool((move > levels.MOVE).all() and (start > levels.MOVE).all())


def _rounded_up(frames: Frames, start: Floats, move: Floats) -> tuple[Floats, Floats, Floats]:
    """The table, `start` and `move` that `levels.watch` takes."""
    least = levels.MOVE
    begin = np.where((start > 0) & (start < least), least, start)
    go = np.where((move > 0) & (move < least), least, move)
    table = frames.table
    rows = np.flatnonzero((table < levels.LEAST).any(axis=1))
    if len(rows):
        some = np.isfinite(frames.logs(rows)) & (table[rows] < levels.LEAST)
        if some.any():
            table = table.copy()
            table[rows] = np.where(some, levels.LEAST, table[rows])
    return table, begin, go


def _leveled(
    frames: Frames, which: Ints, start: Floats, move: Floats, into: Any, threads: int
) -> Floats:
    """The log-likelihoods less the shifts of sequences in numbers of any size; each one's
    counts go to `into(i, begun, moved, posterior)`.
    """
    K = len(start)
    with np.errstate(divide="ignore"):
        given = [*levels.split(np.log(start)), *levels.split(np.log(move))]
    found = np.empty(len(which))

    def run(places: Ints) -> None:
        for k in places:
            rows = frames.x[frames.bounds[which[k]] : frames.bounds[which[k] + 1]]
            logs = frames.logs(rows) - frames.shift[rows][:, None]
            begun, moved, posterior = np.zeros(K), np.zeros((K, K)), np.zeros(logs.shape)
            found[k] = levels.recursion(*levels.split(logs), *given, begun, moved, posterior)
            into(which[k], begun, moved, posterior)

    if len(which):
        _at_once([partial(run, s) for s in _shares(frames.lengths[which], threads)])
    return found


def expect(
    frames: Frames,
    start: Floats,
    move: Floats,
    *,
    threads: int | None = None,
    each: bool = False,
    chunk: int | None = None,
) -> Expected:
    """The E-step: log-likelihoods and expected counts (Baum et al. 1970).

    `start` (K,), `move` (K, K) rows summing to one. `each` keeps the counts of first states,
    transitions and, of shared tables, emissions apart for every sequence. Where `frames` are
    not shared, their table becomes the posteriors. A sequence of likelihood zero counts
    nothing.
    """
    K, n = len(start), len(frames.bounds) - 1
    lengths = frames.lengths
    found = np.empty(n)
    chunk = max(64, KEPT // K) if chunk is None else chunk
    threads = torch.get_num_threads() if threads is None else threads
    if _mixes(start, move):
        easy = np.arange(n)
    else:
        found = _scaled(frames, start, move, threads)
        easy = np.flatnonzero(~np.isnan(found))
    parts = n if each else 1
    stat_of = frames.shared and each
    firsts, moves = np.zeros((parts, K)), np.zeros((parts, K, K))
    stats = np.zeros((parts, *frames.table.shape)) if stat_of else None
    pooled: list[Floats] = []
    work = []
    lock = threading.Lock()

    def run(which: Ints) -> None:
        if each:
            for i in which:
                stat = frames.table if stats is None else stats[i]
                _recursion(
                    frames,
                    which=np.array([i]),
                    start=start,
                    move=move,
                    chunk=chunk,
                    into=(firsts[i], moves[i], stat),
                    found=found,
                )
            return
        begun, moved = np.zeros(K), np.zeros((K, K))
        stat = np.zeros_like(frames.table) if frames.shared else frames.table
        if threads > 1 and len(easy) == 1 and LONG <= lengths[easy[0]] <= 4 * KEPT // K:
            i = easy[0]
            found[i] = _from_both_ends(frames, i, start, move, (begun, moved, stat))
        else:
            _recursion(
                frames,
                which=which,
                start=start,
                move=move,
                chunk=chunk,
                into=(begun, moved, stat),
                found=found,
            )
        with lock:
            firsts[0] += begun
            moves[0] += moved
            if frames.shared:
                pooled.append(stat)

    if len(easy):
        for share in _shares(lengths[easy], threads):
            work.append(lambda share=share: run(easy[share]))
        _at_once(work)
    moves *= move

    def exact(i: int, begun: Floats, moved: Floats, posterior: Floats) -> None:
        rows = frames.x[frames.bounds[i] : frames.bounds[i + 1]]
        with lock:
            firsts[i if each else 0] += begun
            moves[i if each else 0] += moved
            if not frames.shared:
                frames.table[rows] = posterior
                return
            if stats is None and not pooled:
                pooled.append(np.zeros_like(frames.table))
            np.add.at(pooled[0] if stats is None else stats[i], rows, posterior)

    hard = np.flatnonzero(np.isnan(found))
    found[hard] = _leveled(frames, hard, start, move, exact, threads)
    found += frames.shifts()
    if stats is not None:
        total: Floats = stats
    elif frames.shared:
        total = np.sum(pooled, axis=0) if pooled else np.zeros_like(frames.table)
    else:
        total = frames.table
    if each:
        return Expected(found, firsts, moves, total)
    return Expected(found, firsts[0], moves[0], total)


def _from_both_ends(
    frames: Frames, i: int, start: Floats, move: Floats, into: tuple[Floats, Floats, Floats]
) -> float:
    """One sequence's log-likelihood less its shifts, and counts, on two threads; NaN, with
    nothing counted, where the scaled recursion cannot.
    """
    K, dims, own = len(start), _dims(len(start)), not frames.shared
    x = frames.x[frames.bounds[i] : frames.bounds[i + 1]]
    m = len(x) // 2
    head, tail, table = x[:m], x[m:], frames.table
    alpha, scale = np.zeros((m + 1, K)), np.empty(m)
    later, beta = np.empty((len(tail), K)), np.empty(K)
    begun, moved = np.zeros(K), np.zeros((2, K, K))
    stats = [table, table] if own else [np.zeros_like(table), np.zeros_like(table)]
    piece = max(1, kernels.PRODUCT // (K * K))
    found = np.zeros(4)

    def outward() -> None:
        found[0] = halves.outward(head, table, start, move, dims, alpha, scale)

    def tails() -> None:
        found[1] = halves.tails(tail, table, move, dims, later, beta)

    def onward() -> None:
        before = alpha[m].copy()
        found[2] = halves.onward(
            tail, table, move, dims, piece, before, later, moved[0], stats[0], own
        )

    def homeward() -> None:
        found[3] = halves.homeward(
            head, table, move, dims, piece, alpha, scale, beta, begun, moved[1], stats[1], own
        )

    _at_once([outward, tails])
    if not np.isnan(found).any():
        _at_once([onward, homeward])
    if np.isnan(found).any():
        return float("nan")
    into[0][:] += begun
    into[1][:] += moved.sum(0)
    if not own:
        into[2][:] += stats[0] + stats[1]
    return float(found[0] + found[2])


def _recursion(
    frames: Frames,
    *,
    which: Ints,
    start: Floats,
    move: Floats,
    chunk: int,
    into: tuple[Floats, Floats, Floats],
    found: Floats,
) -> None:
    """The recursion that is fastest for these sequences."""
    K = len(start)
    begun, moved, stat = into
    own = not frames.shared
    lengths = frames.lengths[which]
    if K >= IN_STEP and len(which) >= 3:
        short = lengths * (WIDTH * K) <= KEPT
        together = which[short]
        if len(together) >= 3:
            kernels.lockstep(
                frames.x,
                frames.bounds,
                together,
                WIDTH,
                frames.table,
                start,
                move,
                begun,
                moved,
                stat,
                own,
                found,
            )
            which = which[~short]
    elif K <= COMPILED_IN and len(which) >= 3:
        short = lengths * (lanes.WIDTH * K) <= KEPT
        together = which[short]
        if len(together) >= 3:
            lanes.abreast(
                frames.x,
                frames.bounds,
                together,
                frames.table,
                start,
                move,
                _dims(K),
                begun,
                moved,
                stat,
                own,
                found,
            )
            which = which[~short]
    if len(which):
        kernels.scaled(
            frames.x,
            frames.bounds,
            which,
            frames.table,
            start,
            move,
            _dims(K),
            chunk,
            begun,
            moved,
            stat,
            own,
            found,
        )


def log_likelihood(
    frames: Frames, start: Floats, move: Floats, *, threads: int | None = None
) -> Floats:
    """The log-likelihood of each sequence, (sequences,)."""
    threads = torch.get_num_threads() if threads is None else threads
    found = _scaled(frames, start, move, threads)
    hard = np.flatnonzero(np.isnan(found))
    found[hard] = _leveled(frames, hard, start, move, lambda *_: None, threads)
    return found + frames.shifts()


def decode(
    frames: Frames, start: Floats, move: Floats, *, threads: int | None = None
) -> tuple[Floats, Ints]:
    """The most likely states of every sequence: their log-probability, and the states."""
    states = np.empty(len(frames.x), dtype=np.int64)
    found = np.empty(len(frames.bounds) - 1)
    threads = torch.get_num_threads() if threads is None else threads
    with np.errstate(divide="ignore"):
        begin, go = np.log(start), np.log(move)
    table = np.ascontiguousarray(frames.logs(slice(None)))

    def run(which: Ints) -> None:
        kernels.viterbi(frames.x, frames.bounds, which, table, begin, go, states, found)

    _at_once([partial(run, s) for s in _shares(frames.lengths, threads)])
    return found, states
