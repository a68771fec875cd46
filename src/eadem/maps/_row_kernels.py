"""Rows through the factors of a matrix, compiled by numba, in float32.

The factors are read where they lie, once, from addresses: a call with arrays costs more than a
small product. So all that is known about them is in a table of integers, by its own address:
r, k, n; address, order and step of C; the same of T; addresses of places. Loops count in
unsigned integers, since for a signed index numba asks in every step whether it is negative, and
then nothing is done several numbers at a time.

Where torch has several threads the columns of a product, or the rows of a pick, are divided
among them, by a table of `pool.py`: where to find what begins something in all threads, what
says a thread's number, and how many there are, and what waits for all; how many to begin; and
`WORKERS`, which each thread runs. What these are given is a table too: x, y, bias, the table of
the factors, two vectors of room, and the addresses of the number, the count and the waiting.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

__all__ = [
    "IDLE",
    "WORKERS",
    "gathered",
    "onward",
    "picked",
    "scattered",
    "whole",
]

#: Whether numba was told to compile nothing.
IDLE = bool(getattr(numba.config, "DISABLE_JIT", 0))
_intrinsic: Any = intrinsic
_carray: Any = numba.carray  # type: ignore[attr-defined]
_to: Any = types.CPointer
_U: Any = np.uint64
_F: Any = np.float32
# neither "nnan" nor "ninf": what is not a number must be seen
_FAST: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "nsz", "contract"},
}
_within: Any = njit(**{**_FAST, "cache": False})
_compiled: Any = njit("void(uint64, uint64, uint64, uint64)", **_FAST)
_forked: Any = njit("void(uint64, uint64, uint64, uint64, uint64)", **_FAST)
_worker: Any = cfunc("void(uint64)", **{k: v for k, v in _FAST.items() if k != "nogil"})


def _pointer(kind: Any) -> Any:
    """Compiled: an address as a pointer to numbers of a kind."""

    def made(typing: Any, address: Any) -> Any:
        def written(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return _to(kind)(types.uint64), written

    return _intrinsic(made)


_floats, _places = _pointer(types.float32), _pointer(types.uint64)
_addresses = _pointer(types.uint64)


def _called(result: Any, arguments: tuple[Any, ...], count: int) -> Any:
    """Compiled: a call of the function at the first of `count` addresses."""

    def typed(given: tuple[Any, ...]) -> Any:
        def written(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(result, arguments)
            function = builder.inttoptr(args[0], kind.as_pointer())
            passed = [
                builder.inttoptr(a, t) if isinstance(t, ir.PointerType) else builder.trunc(a, t)
                for a, t in zip(args[1:], arguments, strict=True)
            ]
            found = builder.call(function, passed)
            if isinstance(result, ir.VoidType):
                return context.get_dummy_value()
            return builder.zext(found, ir.IntType(64))

        nothing = isinstance(result, ir.VoidType)
        return (types.none if nothing else types.uint64)(*given), written

    if count == 1:
        return _intrinsic(lambda typing, a: typed((types.uint64,)))
    return _intrinsic(lambda typing, a, b, c, d, e: typed((types.uint64,) * 5))


_I32, _ANY = ir.IntType(32), ir.IntType(8).as_pointer()
_ask = _called(_I32, (), 1)
_wait = _called(ir.VoidType(), (), 1)
_fork = _called(ir.VoidType(), (_ANY, _ANY, _I32, _I32), 5)


@_within
def _by_rows(x, m, step, rows, columns, y):  # type: ignore[no-untyped-def]
    """y += x·M, the rows of M `step` apart: eight of them in each pass over y."""
    i = _U(0)
    while i + _U(8) <= rows:
        x0, x1, x2, x3 = x[i], x[i + _U(1)], x[i + _U(2)], x[i + _U(3)]
        x4, x5, x6, x7 = x[i + _U(4)], x[i + _U(5)], x[i + _U(6)], x[i + _U(7)]
        a = i * step
        b, c, d = a + step, a + _U(2) * step, a + _U(3) * step
        e, f, g, h = a + _U(4) * step, b + _U(4) * step, c + _U(4) * step, d + _U(4) * step
        for j in range(columns):
            y[j] += (
                (x0 * m[a + j] + x1 * m[b + j])
                + (x2 * m[c + j] + x3 * m[d + j])
                + ((x4 * m[e + j] + x5 * m[f + j]) + (x6 * m[g + j] + x7 * m[h + j]))
            )
        i += _U(8)
    while i < rows:
        x0, a = x[i], i * step
        for j in range(columns):
            y[j] += x0 * m[a + j]
        i += _U(1)


@_within
def _by_columns(x, m, step, rows, columns, y):  # type: ignore[no-untyped-def]
    """y += x·M, the columns of M `step` apart: four of them in each pass over x."""
    j = _U(0)
    while j + _U(4) <= columns:
        a = j * step
        b, c, d = a + step, a + _U(2) * step, a + _U(3) * step
        s0, s1, s2, s3 = _F(0), _F(0), _F(0), _F(0)
        for i in range(rows):
            v = x[i]
            s0 += v * m[a + i]
            s1 += v * m[b + i]
            s2 += v * m[c + i]
            s3 += v * m[d + i]
        y[j] += s0
        y[j + _U(1)] += s1
        y[j + _U(2)] += s2
        y[j + _U(3)] += s3
        j += _U(4)
    while j < columns:
        a, s0 = j * step, _F(0)
        for i in range(rows):
            s0 += x[i] * m[a + i]
        y[j] += s0
        j += _U(1)


@_within
def _add(x, operand, rows, columns, y):  # type: ignore[no-untyped-def]
    """y += x·M, M by its address, whether it lies row after row, and the step."""
    m = _carray(_floats(operand[0]), (rows * columns,))
    if operand[1]:
        _by_rows(x, m, operand[2], rows, columns, y)
    else:
        _by_columns(x, m, operand[2], rows, columns, y)


@_within
def _begin(y, bias, count):  # type: ignore[no-untyped-def]
    """y = bias, or zeros."""
    if bias:
        b = _carray(_floats(bias), (count,))
        for j in range(count):
            y[j] = b[j]
    else:
        for j in range(count):
            y[j] = _F(0)


@_within
def _part(count, i, of):  # type: ignore[no-untyped-def]
    """Where part i of so many numbers begins, at a multiple of 8."""
    return min((count * i // of + _U(7)) // _U(8) * _U(8), count) if i < of else count


@_within
def _add_part(x, operand, rows, begin, end, y):  # type: ignore[no-untyped-def]
    """y += x·M, of these columns of M; y has no others."""
    each = _U(1) if operand[1] else operand[2]
    at = operand[0] + _U(4) * begin * each
    count = end - begin
    size = rows * operand[2] if operand[1] else count * operand[2]
    m = _carray(_floats(at), (size,))
    if operand[1]:
        _by_rows(x, m, operand[2], rows, count, y)
    else:
        _by_columns(x, m, operand[2], rows, count, y)


@_within
def _half(x, given, inner):  # type: ignore[no-untyped-def]
    """inner = x[at] + x[rest]·T."""
    r, k = given[0], given[1]
    others = np.empty(k, np.float32)
    _split(x, given, inner, others)
    _add(others, given[6:9], k, r, inner)


@_within
def _split(x, given, inner, others):  # type: ignore[no-untyped-def]
    """inner = x[at] and others = x[rest]."""
    r, k = given[0], given[1]
    whole = _carray(_floats(x), (r + k,))
    at, rest = _carray(_places(given[9]), (r,)), _carray(_places(given[10]), (k,))
    for i in range(r):
        inner[i] = whole[at[i]]
    for i in range(k):
        others[i] = whole[rest[i]]


@_compiled
def picked(x, y, bias, given):  # type: ignore[no-untyped-def]
    """y (r) = x[at] + x[rest]·T, T (k, r)."""
    table = _carray(_addresses(given), (11,))
    _half(x, table, _carray(_floats(y), (table[0],)))


@_compiled
def onward(x, y, bias, given):  # type: ignore[no-untyped-def]
    """y (n) = x·C + bias, C (r, n)."""
    table = _carray(_addresses(given), (11,))
    r, n = table[0], table[2]
    found = _carray(_floats(y), (n,))
    _begin(found, bias, n)
    _add(_carray(_floats(x), (r,)), table[3:6], r, n, found)


@_within
def _add_rows(x, operand, begin, end, columns, y):  # type: ignore[no-untyped-def]
    """y += x·M, of these rows of M; x has no others."""
    each = operand[2] if operand[1] else _U(1)
    m = operand[0] + _U(4) * begin * each
    if operand[1]:
        whole = _carray(_floats(m), ((end - begin) * operand[2],))
        _by_rows(x, whole, operand[2], end - begin, columns, y)
    else:
        whole = _carray(_floats(m), (columns * operand[2],))
        _by_columns(x, whole, operand[2], end - begin, columns, y)


@_worker
def _whole_part(call):  # type: ignore[no-untyped-def]
    """One thread's part of `whole`: of the rows of T, and then of those of C, which lie one
    after another. Each adds up in room of its own; `inner` and y are the sums of that.
    """
    table = _carray(_addresses(call), (9,))
    given = _carray(_addresses(table[3]), (11,))
    i, of = _ask(table[6]), _ask(table[7])
    r, k, n = given[0], given[1], given[2]
    x = _carray(_floats(table[0]), (r + k,))
    at, rest = _carray(_places(given[9]), (r,)), _carray(_places(given[10]), (k,))
    a, b = _part(k, i, of), _part(k, i + _U(1), of)
    parts = _carray(_floats(table[4]), (of * r,))
    mine = parts[i * r : (i + _U(1)) * r]
    for j in range(r):
        mine[j] = _F(0)
    room = _carray(_floats(table[5] + _U(4) * i * (n + r + k)), (n + r + k,))
    found, some = room[:n], room[n:]
    for j in range(b - a):
        some[j] = x[rest[a + j]]
    _add_rows(some, given[6:9], a, b, r, mine)
    _wait(table[8])
    a, b = _part(r, i, of), _part(r, i + _U(1), of)
    for j in range(b - a):
        total = x[at[a + j]]
        for t in range(of):
            total += parts[t * r + a + j]
        some[j] = total
    for j in range(n):
        found[j] = _F(0)
    _add_rows(some, given[3:6], a, b, n, found)


@_worker
def _scattered_part(call):  # type: ignore[no-untyped-def]
    """One thread's part of `scattered`: of the columns of C, and then of those of T."""
    table = _carray(_addresses(call), (9,))
    given = _carray(_addresses(table[3]), (10,))
    i, of = _ask(table[6]), _ask(table[7])
    r, k, n = given[0], given[1], given[2]
    a, b = _part(r, i, of), _part(r, i + _U(1), of)
    if a < b:
        half = _carray(_floats(table[4] + _U(4) * a), (b - a,))
        _add_part(_carray(_floats(table[0]), (n,)), given[3:6], n, a, b, half)
    _wait(table[8])
    a, b = _part(k, i, of), _part(k, i + _U(1), of)
    if a < b:
        rest = _carray(_floats(table[5] + _U(4) * a), (b - a,))
        _add_part(_carray(_floats(table[4]), (r,)), given[6:9], r, a, b, rest)


@_within
def _gather(x, y, begin, end, given):  # type: ignore[no-untyped-def]
    """Rows of `gathered`; where there is one list of places, the other is none of it."""
    table = _carray(_addresses(given), (4,))
    first, second = table[0], table[1]
    n = first + second
    one, other = _carray(_places(table[2]), (first,)), _carray(_places(table[3]), (second,))
    for i in range(begin, end):
        row = _carray(_floats(x + _U(4) * i * n), (n,))
        found = _carray(_floats(y + _U(4) * i * n), (n,))
        for j in range(first):
            found[j] = row[one[j]]
        for j in range(second):
            found[first + j] = row[other[j]]


@_worker
def _gathered_part(call):  # type: ignore[no-untyped-def]
    """One thread's rows of `gathered`."""
    table = _carray(_addresses(call), (9,))
    i, of, rows = _ask(table[6]), _ask(table[7]), table[2]
    _gather(table[0], table[1], rows * i // of, rows * (i + _U(1)) // of, table[3])


#: What each thread does in `whole`, in `scattered` and in `gathered`.
WORKERS = tuple(w.address for w in (_whole_part, _scattered_part, _gathered_part))


@_within
def _divided(which, x, y, third, given, inner, others, pool):  # type: ignore[no-untyped-def]
    """What each of torch's threads does of one of `WORKERS`, in all of them."""
    known = _carray(_addresses(pool), (8,))
    call = np.empty(9, np.uint64)
    call[0], call[1], call[2], call[3] = x, y, third, given
    call[4], call[5] = _U(inner.ctypes.data), _U(others.ctypes.data)
    call[6], call[7], call[8] = known[1], known[2], known[3]
    _fork(known[0], known[5 + which], _U(call.ctypes.data), known[4], _U(0))


@_forked
def whole(x, y, bias, given, pool):  # type: ignore[no-untyped-def]
    """y (n) = (x[at] + x[rest]·T)·C + bias; in the threads of `pool`, or in this one."""
    table = _carray(_addresses(given), (11,))
    r, k, n = table[0], table[1], table[2]
    found = _carray(_floats(y), (n,))
    _begin(found, bias, n)
    if pool:
        of, size = _carray(_addresses(pool), (8,))[4], n + r + k
        parts, room = np.empty(of * r, np.float32), np.empty(of * size, np.float32)
        _divided(0, x, y, bias, given, parts, room, pool)
        for t in range(of):
            for j in range(n):
                found[j] += room[t * size + j]
        return
    inner, others = np.empty(r, np.float32), np.empty(k, np.float32)
    _split(x, table, inner, others)
    _add(others, table[6:9], k, r, inner)
    _add(inner, table[3:6], r, n, found)


@_forked
def scattered(x, y, bias, given, pool):  # type: ignore[no-untyped-def]
    """y (r + k) = (x·C, x·C·T)[back] + bias, C (n, r), T (r, k); as `whole` in threads."""
    table = _carray(_addresses(given), (10,))
    r, k, n = table[0], table[1], table[2]
    both = np.zeros(r + k, np.float32)
    inner, others = both[:r], both[r:]
    if pool:
        _divided(1, x, y, bias, given, inner, others, pool)
    else:
        _add(_carray(_floats(x), (n,)), table[3:6], n, r, inner)
        _add(inner, table[6:9], r, k, others)
    places = _carray(_places(table[9]), (r + k,))
    found = _carray(_floats(y), (r + k,))
    _begin(found, bias, r + k)
    for i in range(r + k):
        found[i] += both[places[i]]


@_forked
def gathered(x, y, rows, given, pool):  # type: ignore[no-untyped-def]
    """Y (rows, n) = X[:, one, other] for two lists of places that are a permutation of n.

    `given`: how many are in each list, and where they are.
    """
    if pool:
        none = np.empty(1, np.float32)
        _divided(2, x, y, rows, given, none, none, pool)
    else:
        _gather(x, y, _U(0), rows, given)
