"""One row through the factors of a matrix, compiled by numba, in float32.

The factors are read where they lie, once, from addresses: a call with arrays costs more than a
small product. So all that is known about them is in a table of integers, by its own address:
r, k, n; address, order and step of C; the same of T; addresses of places. Loops count in
unsigned integers, since for a signed index numba asks in every step whether it is negative, and
then nothing is done several numbers at a time.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["IDLE", "onward", "picked", "scattered", "whole"]

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


def _pointer(kind: Any) -> Any:
    """Compiled: an address as a pointer to numbers of a kind."""

    def made(typing: Any, address: Any) -> Any:
        def written(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return _to(kind)(types.uint64), written

    return _intrinsic(made)


_floats, _places = _pointer(types.float32), _pointer(types.int64)
_addresses = _pointer(types.uint64)


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
def _half(x, given, inner):  # type: ignore[no-untyped-def]
    """inner = x[at] + x[rest]·T."""
    r, k = given[0], given[1]
    whole = _carray(_floats(x), (r + k,))
    at, rest = _carray(_places(given[9]), (r,)), _carray(_places(given[10]), (k,))
    others = np.empty(k, np.float32)
    for i in range(r):
        inner[i] = whole[at[i]]
    for i in range(k):
        others[i] = whole[rest[i]]
    _add(others, given[6:9], k, r, inner)


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


@_compiled
def whole(x, y, bias, given):  # type: ignore[no-untyped-def]
    """y (n) = (x[at] + x[rest]·T)·C + bias."""
    table = _carray(_addresses(given), (11,))
    r, n = table[0], table[2]
    inner = np.empty(r, np.float32)
    _half(x, table, inner)
    found = _carray(_floats(y), (n,))
    _begin(found, bias, n)
    _add(inner, table[3:6], r, n, found)


@_compiled
def scattered(x, y, bias, given):  # type: ignore[no-untyped-def]
    """y (r + k) = (x·C, x·C·T)[back] + bias, C (n, r), T (r, k)."""
    table = _carray(_addresses(given), (10,))
    r, k, n = table[0], table[1], table[2]
    both = np.zeros(r + k, np.float32)
    inner = both[:r]
    _add(_carray(_floats(x), (n,)), table[3:6], n, r, inner)
    _add(inner, table[6:9], r, k, both[r:])
    places = _carray(_places(table[9]), (r + k,))
    found = _carray(_floats(y), (r + k,))
    _begin(found, bias, r + k)
    for i in range(r + k):
        found[i] += both[places[i]]
