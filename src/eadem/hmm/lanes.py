"""Several sequences abreast, one in each lane of a vector: recursions for few states.

What is done to one sequence is done to all in one instruction, without sums across a vector.
The instructions are written out here, for numba to compile, with the loops over states undone:
a compiler left to itself keeps no state in registers. `WIDTH` lanes of float64 fill one
AVX-512 register, two of AVX2's, four of NEON's.

α is scaled in every frame by the power of two that brings its sum into [1, 2): that rounds
nothing, the logarithm of all scales is a sum of integers, and no division waits in the loop. β
carries the same scales, and begins at one over the last sum of α, so αβ are posteriors in every
frame. Otherwise as in `kernels`, whose words these are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from eadem.hmm.kernels import COLLAPSED, FLUSHED, _fast

__all__ = ["WIDTH", "abreast"]

#: Sequences at a time.
WIDTH = 8

_cg: Any = cgutils
_intrinsic: Any = intrinsic
_REAL, _INT = ir.DoubleType(), ir.IntType(64)
_LANES, _BITS = ir.VectorType(_REAL, WIDTH), ir.VectorType(_INT, WIDTH)


class _Writer:
    """Instructions on vectors, at the place where `builder` writes."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.builder = builder
        self.data = [
            context.make_array(kind)(context, builder, value).data
            if isinstance(kind, types.Array)
            else value
            for kind, value in zip(signature.args, args, strict=True)
        ]

    def place(self, data: Any, at: Any, kind: Any) -> Any:
        """A pointer to values of a kind, `at` elements into an array."""
        at = ir.Constant(_INT, at) if isinstance(at, int) else at
        return self.builder.bitcast(self.builder.gep(data, [at]), kind.as_pointer())

    def load(self, data: Any, at: Any, kind: Any = _LANES) -> Any:
        return self.builder.load(self.place(data, at, kind), align=8)

    def store(self, value: Any, data: Any, at: Any) -> None:
        self.builder.store(value, self.place(data, at, value.type), align=8)

    def times(self, number: Any, by: int) -> Any:
        return self.builder.mul(number, ir.Constant(_INT, by))

    def plus(self, number: Any, by: Any) -> Any:
        by = ir.Constant(_INT, by) if isinstance(by, int) else by
        return self.builder.add(number, by)

    def spread(self, number: Any) -> Any:
        """A number in all lanes."""
        first = self.builder.insert_element(
            ir.Constant(_LANES, ir.Undefined), number, ir.Constant(ir.IntType(32), 0)
        )
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH)
        return self.builder.shuffle_vector(first, first, everywhere)

    def all(self, number: float) -> Any:
        return ir.Constant(_LANES, [number] * WIDTH)

    def fused(self, a: Any, b: Any, c: Any) -> Any:
        """a·b + c."""
        kind = ir.FunctionType(_LANES, [_LANES] * 3)
        name = f"llvm.fmuladd.v{WIDTH}f64"
        function = _cg.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [a, b, c])

    def dot(self, a: list[Any], b: list[Any]) -> Any:
        """Σ a·b, in two chains, since each waits for its own."""
        sums: list[Any] = []
        for i, (p, q) in enumerate(zip(a, b, strict=True)):
            if i < 2:
                sums.append(self.builder.fmul(p, q))
            else:
                sums[i % 2] = self.fused(p, q, sums[i % 2])
        return self.total(sums)

    def total(self, values: list[Any]) -> Any:
        while len(values) > 1:
            pairs = [
                self.builder.fadd(a, b) for a, b in zip(values[::2], values[1::2], strict=False)
            ]
            values = pairs + values[2 * len(pairs) :]
        return values[0]

    def above(self, value: Any, limit: Any, kept: Any) -> Any:
        """What is kept where a value is above a limit, elsewhere zero."""
        there = self.builder.fcmp_ordered(">", value, limit)
        return self.builder.select(there, kept, self.all(0.0))

    def power(self, value: Any) -> Any:
        """The power of two that brings positive values into [1, 2)."""
        bits = self.builder.bitcast(value, _BITS)
        exponent = self.builder.and_(bits, ir.Constant(_BITS, [0x7FF << 52] * WIDTH))
        most = ir.Constant(_BITS, [0x7FE << 52] * WIDTH)
        return self.builder.bitcast(self.builder.sub(most, exponent), _LANES)

    def lane(self, values: list[Any], l: int) -> Any:
        """One lane of several vectors, as a vector."""
        found = ir.Constant(ir.VectorType(_REAL, len(values)), ir.Undefined)
        for j, value in enumerate(values):
            one = self.builder.extract_element(value, ir.Constant(ir.IntType(32), l))
            found = self.builder.insert_element(found, one, ir.Constant(ir.IntType(32), j))
        return found

    def lanes(self, rows: list[Any], size: int) -> list[Any]:
        """Vectors of one entry of every row."""
        found = []
        for j in range(size):
            value = ir.Constant(_LANES, ir.Undefined)
            for l, row in enumerate(rows):
                one = self.builder.extract_element(row, ir.Constant(ir.IntType(32), j))
                value = self.builder.insert_element(value, one, ir.Constant(ir.IntType(32), l))
            found.append(value)
        return found


def _rows(w: _Writer, x: Any, low: Any, t: Any, K: int) -> list[Any]:
    """Where the rows of a frame of all lanes begin in their table."""
    starts = [w.load(low, l, _INT) for l in range(WIDTH)]
    return [w.times(w.load(x, w.plus(s, t), _INT), K) for s in starts]


@_intrinsic
def _onward(typing, dims, x, low, first, last, table, move, limit, alpha, scale):  # type: ignore[no-untyped-def]
    """α and scales of the frames first … last − 1, from α of the frame before.

    `low` (WIDTH,) is where sequences begin in `x`; alpha (frames, K, WIDTH); `limit` (WIDTH,)
    is what a sum of α must be above for its lane to go on.
    """
    K = len(dims)
    signature = types.void(dims, x, low, first, last, table, move, limit, alpha, scale)

    def write(context, builder, sig, args):  # type: ignore[no-untyped-def]
        w = _Writer(context, builder, sig, args)
        _, x, low, first, last, table, move, limit, alpha, scale = w.data
        kind = ir.VectorType(_REAL, K)
        moves = [[w.spread(w.load(move, i * K + j, _REAL)) for j in range(K)] for i in range(K)]
        held = [_cg.alloca_once(builder, _LANES) for _ in range(K)]
        size, width = ir.Constant(_INT, K * WIDTH), ir.Constant(_INT, WIDTH)
        before = builder.mul(builder.sub(first, ir.Constant(_INT, 1)), size)
        for i in range(K):
            builder.store(w.load(alpha, w.plus(before, i * WIDTH)), held[i])
        least = w.load(limit, 0)
        with _cg.for_range_slice(builder, first, last, ir.Constant(_INT, 1)) as (t, _):
            rows = [w.load(table, r, kind) for r in _rows(w, x, low, t, K)]
            emitted = w.lanes(rows, K)
            a = [builder.load(h) for h in held]
            u = [
                builder.fmul(w.dot(a, [moves[i][j] for i in range(K)]), emitted[j])
                for j in range(K)
            ]
            z = w.total(u)
            r = w.above(z, least, w.power(z))
            w.store(r, scale, builder.mul(t, width))
            at = builder.mul(t, size)
            for j in range(K):
                new = builder.fmul(u[j], r)
                new = w.above(new, w.all(FLUSHED), new)
                builder.store(new, held[j])
                w.store(new, alpha, w.plus(at, j * WIDTH))
        return context.get_dummy_value()

    return signature, write


@_intrinsic
def _homeward(  # type: ignore[no-untyped-def]
    typing, dims, x, low, first, last, table, move, alpha, scale, beta, moved, stat, replace
):
    """β before the frames last − 1 … first, from β after them in `beta` (K, WIDTH).

    Adds to `moved` (K, K, WIDTH) and to `stat`, or puts posteriors there. Lanes are written
    last to first, for those that have ended stand where the first is.
    """
    K = len(dims)
    signature = types.void(
        dims, x, low, first, last, table, move, alpha, scale, beta, moved, stat, replace
    )

    def write(context, builder, sig, args):  # type: ignore[no-untyped-def]
        w = _Writer(context, builder, sig, args)
        _, x, low, first, last, table, move, alpha, scale, beta, moved, stat, replace = w.data
        kind = ir.VectorType(_REAL, K)
        moves = [[w.spread(w.load(move, i * K + j, _REAL)) for j in range(K)] for i in range(K)]
        held = [_cg.alloca_once(builder, _LANES) for _ in range(K)]
        sums = [_cg.alloca_once(builder, _LANES) for _ in range(K * K)]
        for i in range(K):
            builder.store(w.load(beta, i * WIDTH), held[i])
        for i in range(K * K):
            builder.store(w.load(moved, i * WIDTH), sums[i])
        size, one = ir.Constant(_INT, K * WIDTH), ir.Constant(_INT, 1)
        begin, end = builder.sub(last, one), builder.sub(first, one)
        with _cg.for_range_slice(builder, begin, end, ir.Constant(_INT, -1), inc=False) as (
            t,
            _,
        ):
            rows = _rows(w, x, low, t, K)
            emitted = w.lanes([w.load(table, r, kind) for r in rows], K)
            at = builder.mul(t, size)
            before = builder.sub(at, size)
            b = [builder.load(h) for h in held]
            r = w.load(scale, builder.mul(t, ir.Constant(_INT, WIDTH)))
            posterior = [
                builder.fmul(w.load(alpha, w.plus(at, j * WIDTH)), b[j]) for j in range(K)
            ]
            v = [builder.fmul(builder.fmul(b[j], r), emitted[j]) for j in range(K)]
            v = [w.above(c, w.all(FLUSHED), c) for c in v]
            for i in range(K):
                builder.store(w.dot(v, moves[i]), held[i])
                a = w.load(alpha, w.plus(before, i * WIDTH))
                for j in range(K):
                    s = sums[i * K + j]
                    builder.store(w.fused(a, v[j], builder.load(s)), s)
            for l in reversed(range(WIDTH)):
                found = w.lane(posterior, l)
                with builder.if_else(replace) as (own, shared):
                    with own:
                        w.store(found, stat, rows[l])
                    with shared:
                        old = w.load(stat, rows[l], kind)
                        w.store(builder.fadd(old, found), stat, rows[l])
        for i in range(K):
            w.store(builder.load(held[i]), beta, i * WIDTH)
        for i in range(K * K):
            w.store(builder.load(sums[i]), moved, i * WIDTH)
        return context.get_dummy_value()

    return signature, write


@_fast
def abreast(  # type: ignore[no-untyped-def]
    x, bounds, which, table, start, move, dims, begun, moved, stat, replace, found
):
    """The same as `kernels.scaled`, `WIDTH` sequences at a time. `which` longest first."""
    K = len(dims)
    longest = bounds[which[0] + 1] - bounds[which[0]]
    alpha, scale = np.empty((longest, K, WIDTH)), np.empty((longest, WIDTH))
    bits = scale.view(np.int64)
    beta, sums = np.empty((K, WIDTH)), np.zeros((K, K, WIDTH))
    low, length = np.empty(WIDTH, np.int64), np.empty(WIDTH, np.int64)
    limit, exponent = np.empty(WIDTH), np.empty(WIDTH, np.int64)
    for lead in range(0, which.shape[0], WIDTH):
        S = min(WIDTH, which.shape[0] - lead)
        for l in range(WIDTH):
            i = which[lead + l] if l < S else which[lead]
            low[l] = bounds[i]
            length[l] = bounds[i + 1] - bounds[i] if l < S else 0
            limit[l] = COLLAPSED if l < S else np.inf
            exponent[l] = 0
            for j in range(K):
                alpha[0, j, l] = start[j] * table[x[low[l]], j]
        # The first frame, for it has none before.
        for l in range(WIDTH):
            z = 0.0
            for j in range(K):
                z += alpha[0, j, l]
            r = 1.0
            if not z > limit[l]:
                r = 0.0
            scale[0, l] = r
            for j in range(K):
                alpha[0, j, l] = alpha[0, j, l] if r > 0.0 and alpha[0, j, l] > FLUSHED else 0.0
        live, at = S, 1
        while at < length[0]:
            while length[live - 1] <= at:
                live -= 1
                limit[live] = np.inf
                low[live] = low[0]
            end = length[live - 1]
            _onward(dims, x, low, at, end, table, move, limit, alpha, scale)
            at = end
        for t in range(length[0]):
            for l in range(WIDTH):
                exponent[l] += bits[t, l] >> 52
        live, at = 0, length[0]
        for l in range(WIDTH):
            low[l] = low[0]
            for j in range(K):
                beta[j, l] = 0.0
        while at > 1:
            while live < S and length[live] >= at:
                i = which[lead + live]
                low[live] = bounds[i]
                z = 0.0
                for j in range(K):
                    z += alpha[at - 1, j, live]
                for j in range(K):
                    beta[j, live] = 1.0 / z if z > 0.0 else 0.0
                found[i] = np.log(z) if z > 0.0 else np.nan
                live += 1
            begin = length[live] if live < S else 1
            begin = max(begin, 1)
            _homeward(
                dims, x, low, begin, at, table, move, alpha, scale, beta, sums, stat, replace
            )
            at = begin
        while live < S:
            i = which[lead + live]
            low[live] = bounds[i]
            z = 0.0
            for j in range(K):
                z += alpha[0, j, live]
            for j in range(K):
                beta[j, live] = 1.0 / z if z > 0.0 else 0.0
            found[i] = np.log(z) if z > 0.0 else np.nan
            live += 1
        for l in range(S):
            row = x[low[l]]
            found[which[lead + l]] += (1023 * length[l] - exponent[l]) * np.log(2.0)
            for j in range(K):
                c = alpha[0, j, l] * beta[j, l]
                begun[j] += c
                if replace:
                    stat[row, j] = c
                else:
                    stat[row, j] += c
    for i in range(K):
        for j in range(K):
            moved[i, j] += sums[i, j].sum()
