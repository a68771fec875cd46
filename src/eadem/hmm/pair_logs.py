"""The pair HMM's recursions in logarithms: slow, and exact where scaled numbers lose digits.

They take the emissions as they are, so an insert state may refuse a letter. The arguments are
those of `pair_kernels`, whose tables of odds become `table[a, j + 1]` = log match.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["forward", "forward_backward"]

_exact: Any = njit(cache=True, nogil=True, error_model="numpy")


@_exact
def _sum(a, b, c):  # type: ignore[no-untyped-def]
    """log(eᵃ + eᵇ + eᶜ)."""
    top = max(a, b, c)
    if top == -np.inf:
        return top
    return top + np.log(np.exp(a - top) + np.exp(b - top) + np.exp(c - top))


@_exact
def _tables(x, table, lx, ly, move, low, high, found):  # type: ignore[no-untyped-def]
    """The forward tables (rows, 3, places), row i from low[i] at place 1; the total."""
    n, m = x.shape[0], ly.shape[0]
    mm, mx, my, xx, xm, yy, ym, end = move
    found[:] = -np.inf
    found[0, 0, 1] = 0.0
    for i in range(n + 1):
        here = found[i]
        for j in range(low[i], high[i] + 1):
            k = j - low[i] + 1
            if i > 0:
                before, q = found[i - 1], j - low[i - 1] + 1
                if j > 0:
                    p = table[x[i - 1], j + 1]
                    here[0, k] = p + _sum(
                        mm + before[0, q - 1], xm + before[1, q - 1], ym + before[2, q - 1]
                    )
                here[1, k] = lx[i - 1] + _sum(mx + before[0, q], xx + before[1, q], -np.inf)
            if k > 1:
                here[2, k] = ly[j - 1] + _sum(my + here[0, k - 1], yy + here[2, k - 1], -np.inf)
    k = m - low[n] + 1
    return end + _sum(found[n, 0, k], found[n, 1, k], found[n, 2, k])


@_exact
def forward(x, table, lx, ly, move, low, high, room):  # type: ignore[no-untyped-def]
    """The log-likelihood; `room` (n + 1, 3, places)."""
    return _tables(x, table, lx, ly, move, low, high, room)


@_exact
def forward_backward(  # type: ignore[no-untyped-def]
    x, y, table, lx, ly, move, low, high, room,
    counts, emitted, from_x, from_y, posterior, start,
):  # fmt: skip
    """The log-likelihood, and what `pair_kernels.forward_backward` gives."""
    n, m = x.shape[0], y.shape[0]
    mm, mx, my, xx, xm, yy, ym, end = move
    total = _tables(x, table, lx, ly, move, low, high, room)
    from_x[:] = 0.0
    from_y[:] = 0.0
    if total == -np.inf:
        return total
    for state in range(3):
        counts[7 + state] += np.exp(room[n, state, m - low[n] + 1] + end - total)
    after = np.full((3, m + 3), -np.inf)
    here = np.full((3, m + 3), -np.inf)
    for i in range(n, -1, -1):
        here[:] = -np.inf
        for j in range(high[i], low[i] - 1, -1):
            k = j - low[i] + 1
            f = room[i]
            t = end if i == n and j == m else -np.inf
            ahead, down, right = -np.inf, -np.inf, -np.inf
            if i < n:
                if j < m:
                    ahead = table[x[i], j + 2] + after[0, j + 1]
                down = lx[i] + after[1, j]
            if j < m:
                right = ly[j] + here[2, j + 1]
            here[0, j] = _sum(mm + ahead, _sum(mx + down, my + right, -np.inf), t)
            here[1, j] = _sum(xm + ahead, xx + down, t)
            here[2, j] = _sum(ym + ahead, yy + right, t)
            opened_x = np.exp(f[0, k] + mx + down - total)
            opened_y = np.exp(f[0, k] + my + right - total)
            more_x = np.exp(f[1, k] + xx + down - total)
            more_y = np.exp(f[2, k] + yy + right - total)
            counts[0] += np.exp(f[0, k] + mm + ahead - total)
            counts[1] += opened_x
            counts[2] += opened_y
            counts[3] += more_x
            counts[4] += np.exp(f[1, k] + xm + ahead - total)
            counts[5] += more_y
            counts[6] += np.exp(f[2, k] + ym + ahead - total)
            if i < n:
                from_x[i] += opened_x + more_x
            if j < m:
                from_y[j] += opened_y + more_y
            if i > 0 and j > 0:
                pair = np.exp(f[0, k] + here[0, j] - total)
                emitted[x[i - 1], y[j - 1]] += pair
                if posterior.shape[0] > 0:
                    posterior[start[i] + k - 1] = pair
        after, here = here, after
    return total
