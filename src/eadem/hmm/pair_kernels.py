"""Recursions of the pair HMM over two sequences, compiled by numba, in float64.

States M (a pair of letters), X (a letter of x alone), Y (a letter of y alone); `move` holds
(M→M, M→X, M→Y, X→X, X→M, Y→Y, Y→M, end). Begin moves as M does, X and Y do not follow each
other, and every state ends with the same probability.

Everything is in odds: emissions are divided by those of the insert states, so X and Y emit 1
and M emits match/(insert_x·insert_y), the odds. A row of the tables (a letter of x) is kept
near `TOP` by the sum of the row before, which costs no pass of its own. X and Y are never below
a floor, so that no number and no product is denormal (those cost many times others); a total
that comes near it is found again in logarithms.

Row i has the columns low[i] ≤ j ≤ high[i], which do not fall: whole tables and bands are the
same code. Column j is at place j + 1 of a row, so that the places beside a band exist and hold
zero, and a row's loops run on a view from place low[i], where the band is 1 … width: numba
turns a loop into vector instructions where its index starts from a constant. The odds are
`table[a, j + 1]` for letter a of x and the jth letter of y, j = 1 … m, and zero elsewhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = ["expected_accuracy", "forward", "forward_backward", "viterbi"]

#: What rows of the forward tables add up to, about, and a row that is near overflow.
TOP, HUGE = 1e120, 1e280
#: Floor of forward values in a pass of its own, and the least total that has all its digits.
FLOOR_ALONE, LOST_ALONE = 1e-290, 1e-200
#: The same where they are multiplied by backward values, and the floor of those, which at the
#: most probable places are about one.
FLOOR, LOST, BACK_FLOOR = 1e-120, 1e-90, 1e-150

# Neither "nnan" nor "ninf": a total that is not a number must be seen.
_fast: Any = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "nsz", "arcp", "contract"},
)
# Values may be −∞; differences of them do not occur.
_ordered: Any = njit(
    cache=True, nogil=True, error_model="numpy", fastmath={"nnan", "nsz", "contract"}
)


@_fast
def _down(p, m0, x0, y0, m1, x1, mm, xm, ym, mx, xx, floor, width):  # type: ignore[no-untyped-def]
    """M and X of a row from the row before; their sum."""
    s = 0.0
    c = mm * m0[0] + xm * x0[0] + ym * y0[0]
    for k in range(1, width + 1):
        m, x = m0[k], x0[k]
        v = p[k] * c
        c = mm * m + xm * x + ym * y0[k]
        w = mx * m + xx * x + floor
        m1[k] = v
        x1[k] = w
        s += v + w
    return s


@_fast
def _along(m, y, my, yy, floor, width):  # type: ignore[no-untyped-def]
    """Y of a row, y[k] = my·m[k − 1] + yy·y[k − 1], four at a time."""
    y2 = yy * yy
    y3 = y2 * yy
    y4 = y2 * y2
    y[0] = 0.0
    y[1] = 0.0
    c = 0.0
    for q in range((width - 1) // 4):
        k = 4 * q + 2
        a = my * m[k - 1] + floor
        b = my * m[k] + floor + yy * a
        d = my * m[k + 1] + floor + yy * b
        e = my * m[k + 2] + floor + yy * d
        y[k] = a + yy * c
        y[k + 1] = b + y2 * c
        y[k + 2] = d + y3 * c
        c = e + y4 * c
        y[k + 3] = c
    for k in range(2 + (width - 1) // 4 * 4, width + 1):
        c = my * m[k - 1] + floor + yy * c
        y[k] = c


@_fast
def _next(p, f0, f1, move, r, floor, width, upto):  # type: ignore[no-untyped-def]
    """A row `f1` (3, places) of M, X, Y from the row before; the sum of M and X.

    Places beside the band, up to `upto`, are set to zero: the next row reads them.
    """
    mm, mx, my, xx, xm, yy, ym, _ = move
    fx = floor if mx > 0 else 0.0
    fy = floor if my > 0 else 0.0
    m1, x1, y1 = f1[0], f1[1], f1[2]
    m1[0] = 0.0
    x1[0] = 0.0
    s = _down(p, f0[0], f0[1], f0[2], m1, x1, mm * r, xm * r, ym * r, mx * r, xx * r, fx, width)
    _along(m1, y1, my, yy, fy, width)
    for k in range(width + 1, upto + 1):
        m1[k] = 0.0
        x1[k] = 0.0
        y1[k] = 0.0
    return s


@_fast
def _begin(f, move, floor, width):  # type: ignore[no-untyped-def]
    """Row 0, in places that hold zero."""
    f[0, 1] = TOP
    _along(f[0], f[2], move[2], move[5], floor if move[2] > 0 else 0.0, width)


@_fast
def forward(x, table, move, low, high):  # type: ignore[no-untyped-def]
    """The log odds of both sequences; NaN where digits were lost."""
    n, places = x.shape[0], table.shape[1]
    m = places - 3
    f0, f1 = np.zeros((3, places)), np.zeros((3, places))
    _begin(f0, move, FLOOR_ALONE, high[0] + 1)
    s, total = TOP, 0.0
    for i in range(1, n + 1):
        r = TOP / s
        total -= np.log(r)
        lo = low[i]
        width = high[i] - lo + 1
        p = table[x[i - 1], lo:]
        s = _next(p, f0[:, lo:], f1[:, lo:], move, r, FLOOR_ALONE, width, width + 1)
        if not (s > 0 and s < HUGE):
            return np.nan
        f0, f1 = f1, f0
    last = f0[0, m + 1] + f0[1, m + 1] + f0[2, m + 1]
    if not last > LOST_ALONE:
        return np.nan
    return total + np.log(move[7]) + np.log(last / TOP)


@_fast
def _ahead(p, bm, w, r, width):  # type: ignore[no-untyped-def]
    """What a match out of each column leads to: odds·B_M of the next row, one column on."""
    for k in range(1, width + 1):
        w[k] = p[k + 1] * bm[k + 1] * r


@_fast
def _reversed(w, y, ym, yy, t, width):  # type: ignore[no-untyped-def]
    """B_Y of a row, y[k] = ym·w[k] + yy·y[k + 1], with t more at its right end."""
    y2 = yy * yy
    y3 = y2 * yy
    y4 = y2 * y2
    y[width + 1] = 0.0
    c = ym * w[width] + t + BACK_FLOOR
    y[width] = c
    whole = (width - 1) // 4
    for q in range(whole):
        k = width - 1 - 4 * q
        a = ym * w[k] + BACK_FLOOR
        b = ym * w[k - 1] + BACK_FLOOR + yy * a
        d = ym * w[k - 2] + BACK_FLOOR + yy * b
        e = ym * w[k - 3] + BACK_FLOOR + yy * d
        y[k] = a + yy * c
        y[k - 1] = b + y2 * c
        y[k - 2] = d + y3 * c
        c = e + y4 * c
        y[k - 3] = c
    for k in range(width - 1 - 4 * whole, 0, -1):
        c = ym * w[k] + BACK_FLOOR + yy * c
        y[k] = c


@_fast
def _left(fm, fx, fy, w, bx):  # type: ignore[no-untyped-def]
    """Σ of forward and backward values over the moves out of a row to the next."""
    a, b, c, d, e = 0.0, 0.0, 0.0, 0.0, 0.0
    for k in range(w.shape[0]):
        m, x, ahead, down = fm[k], fx[k], w[k], bx[k]
        a += m * ahead
        b += m * down
        c += x * down
        d += x * ahead
        e += fy[k] * ahead
    return a, b, c, d, e


@_fast
def _inserted(fm, fy, by, found, my, yy, width):  # type: ignore[no-untyped-def]
    """Σ over the moves along a row, which are added to `found` at the letter of y."""
    a, b = 0.0, 0.0
    for k in range(1, width):
        right = by[k + 1]
        u, v = my * fm[k] * right, yy * fy[k] * right
        found[k + 1] += u + v
        a += u
        b += v
    return a, b


@_fast
def _back(w, bm, bx, by, mm, mx, my, xm, xx, t, width):  # type: ignore[no-untyped-def]
    """B_M and B_X of a row, in the place of the next row's."""
    for k in range(1, width + 1):
        ahead, down = w[k], bx[k]
        bm[k] = mm * ahead + mx * down + my * by[k + 1]
        bx[k] = xm * ahead + xx * down + BACK_FLOOR
    bm[width] += t
    bx[width] += t
    bm[width + 1] = 0.0


@_fast
def _paired(found, fm, bm):  # type: ignore[no-untyped-def]
    """Add the posterior of M to what its letter of x has seen."""
    for k in range(fm.shape[0]):
        found[k] += fm[k] * bm[k]


@_fast
def _posterior(found, fm, bm, scale):  # type: ignore[no-untyped-def]
    for k in range(fm.shape[0]):
        found[k] = fm[k] * bm[k] * scale


@_fast
def forward_backward(  # type: ignore[no-untyped-def]
    x, y, table, move, low, high, kept, block, scale,
    counts, emitted, from_x, from_y, posterior, start,
):  # fmt: skip
    """The log odds of both sequences and all expected counts; NaN where digits were lost.

    Added to: `counts` (10,) of the moves (M→M, M→X, M→Y, X→X, X→M, Y→Y, Y→M, and the end
    after M, X, Y); `emitted` (letters of x, letters of y) by M. Written: `from_x` (n,) and
    `from_y` (m,), the posterior that a letter stands in an insertion; `posterior` (where it
    is not empty) of M, row i from start[i] at column low[i].

    The forward rows are found again in blocks from the first row of each: `kept`
    (blocks, 3, places), `block` (rows of a block, 3, places) and `scale` (n + 1,) are room to
    work in, √n rows each, which stay in cache.
    """
    n, places = x.shape[0], table.shape[1]
    m, size = places - 3, block.shape[0]
    mm, mx, my, xx, xm, yy, ym, end = move
    f0, f1 = np.zeros((3, places)), np.zeros((3, places))
    _begin(f0, move, FLOOR, high[0] + 1)
    s, total = TOP, 0.0
    for i in range(n + 1):
        if i > 0:
            r = TOP / s
            scale[i] = r
            total -= np.log(r)
            lo, upto = low[i], high[min(i + 1, n)] + 2 - low[i]
            p, width = table[x[i - 1], lo:], high[i] - lo + 1
            s = _next(p, f0[:, lo:], f1[:, lo:], move, r, FLOOR, width, upto)
            if not (s > 0 and s < HUGE):
                return np.nan
            f0, f1 = f1, f0
        if i % size == 0:
            width = high[min(i + 1, n)] + 3 - low[i]
            kept[i // size, :, :width] = f0[:, low[i] : low[i] + width]
    last = f0[0, m + 1] + f0[1, m + 1] + f0[2, m + 1]
    if not last > LOST:
        return np.nan
    total += np.log(end) + np.log(last / TOP)
    rows = np.zeros((5, places))
    bm, bx, by, w, ins = rows[0], rows[1], rows[2], rows[3], rows[4]
    by_letter = np.zeros((table.shape[0], places))
    each = np.zeros(10)
    for state in range(3):
        each[7 + state] = f0[state, m + 1] * (TOP / last)
    for part in range(n // size, -1, -1):
        top = part * size
        bottom, shift = min(top + size - 1, n), low[top]
        block[0] = kept[part]
        for i in range(top + 1, bottom + 1):
            lo = low[i]
            width, upto = high[i] - lo + 1, high[min(i + 1, n)] + 2 - lo
            f0, f1 = block[i - top - 1, :, lo - shift :], block[i - top, :, lo - shift :]
            _next(table[x[i - 1], lo:], f0, f1, move, scale[i], FLOOR, width, upto)
        for i in range(bottom, top - 1, -1):
            lo = low[i]
            width = high[i] - lo + 1
            stop = lo + width + 1
            vm, vx, vy, vw = bm[lo:], bx[lo:], by[lo:], w[lo:]
            r, t = 0.0, TOP / last
            if i < n:
                r, t = scale[i + 1], 0.0
                _ahead(table[x[i], lo:], vm, vw, r, width)
            _reversed(vw, vy, ym, yy, t, width)
            f = block[i - top, :, lo - shift :]
            fm, fx, fy = f[0], f[1], f[2]
            inner = slice(lo + 1, stop)
            a, b, c, d, e = _left(fm[1:], fx[1:], fy[1:], w[inner], bx[inner])
            g, h = _inserted(fm, fy, vy, ins[lo:], my, yy, width)
            each[0] += mm * a
            each[1] += mx * r * b
            each[2] += g
            each[3] += xx * r * c
            each[4] += xm * d
            each[5] += h
            each[6] += ym * e
            _back(vw, vm, vx, vy, mm, mx * r, my, xm, xx * r, t, width)
            if i < n:
                from_x[i] = r * (mx * b + xx * c) / TOP
            if i > 0:
                found = fm[1 : width + 1]
                _paired(by_letter[x[i - 1], lo + 1 :], found, bm[lo + 1 :])
                if posterior.shape[0] > 0:
                    _posterior(posterior[start[i] :], found, bm[lo + 1 :], 1.0 / TOP)
    if not abs(bm[1] - 1.0) < 1e-8:
        return np.nan
    for k in range(10):
        counts[k] += each[k] / TOP
    for a in range(table.shape[0]):
        for j in range(m):
            emitted[a, y[j]] += by_letter[a, j + 2] / TOP
    for j in range(m):
        from_y[j] = ins[j + 2] / TOP
    return total


@_ordered
def _best_down(p, m0, x0, y0, m1, x1, back, mm, xm, ym, mx, xx, width):  # type: ignore[no-untyped-def]
    """M and X of a row of the best path, and where each came from, bits 0 to 2 of `back`."""
    a, b, c = mm + m0[0], xm + x0[0], ym + y0[0]
    for k in range(1, width + 1):
        m, x = m0[k], x0[k]
        origin = np.uint8(2) if c > b else np.uint8(1)
        b = b if b > c else c
        origin = origin if b > a else np.uint8(0)
        m1[k] = p[k] + (a if a > b else b)
        u, v = mx + m, xx + x
        x1[k] = v if v > u else u
        back[k] = origin | (np.uint8(4) if v > u else np.uint8(0))
        a, b, c = mm + m, xm + x, ym + y0[k]


@_ordered
def _best_along(m, y, back, my, yy, width):  # type: ignore[no-untyped-def]
    """Y of a row of the best path, four at a time, and whether extended, bit 3 of `back`."""
    y2, y3, y4 = 2 * yy, 3 * yy, 4 * yy
    y[0] = -np.inf
    y[1] = -np.inf
    c = -np.inf
    for q in range((width - 1) // 4):
        k = 4 * q + 2
        a, b, d, e = my + m[k - 1], my + m[k], my + m[k + 1], my + m[k + 2]
        v = yy + a
        b2 = b if b > v else v
        v = yy + b2
        d2 = d if d > v else v
        v = yy + d2
        e2 = e if e > v else v
        v = yy + c
        back[k] |= np.uint8(8) if v > a else np.uint8(0)
        u = a if a > v else v
        y[k] = u
        back[k + 1] |= np.uint8(8) if yy + u > b else np.uint8(0)
        v = y2 + c
        u = b2 if b2 > v else v
        y[k + 1] = u
        back[k + 2] |= np.uint8(8) if yy + u > d else np.uint8(0)
        v = y3 + c
        u = d2 if d2 > v else v
        y[k + 2] = u
        back[k + 3] |= np.uint8(8) if yy + u > e else np.uint8(0)
        v = y4 + c
        c = e2 if e2 > v else v
        y[k + 3] = c
    for k in range(2 + (width - 1) // 4 * 4, width + 1):
        u, v = my + m[k - 1], yy + c
        back[k] |= np.uint8(8) if v > u else np.uint8(0)
        c = u if u > v else v
        y[k] = c


@_ordered
def viterbi(x, table, move, low, high, start, back, path):  # type: ignore[no-untyped-def]
    """The best path into the end of `path` (n + m,), 0 for M, 1 for X, 2 for Y; its length.

    `table` and `move` are logarithms, the table −∞ where there are no letters. A draw goes to
    M, then to X. Zero where no path has a positive probability. `back` holds a byte for each
    place of the table, row i from start[i] at the place before low[i].
    """
    n, places = x.shape[0], table.shape[1]
    m = places - 3
    f0, f1 = np.full((3, places), -np.inf), np.full((3, places), -np.inf)
    mm, mx, my, xx, xm, yy, ym, _ = move
    f0[0, 1] = 0.0
    b = back[start[0] :]
    b[: high[0] + 2] = 0
    _best_along(f0[0], f0[2], b, my, yy, high[0] + 1)
    for i in range(1, n + 1):
        lo = low[i]
        width = high[i] - lo + 1
        b = back[start[i] :]
        g0, g1 = f0[:, lo:], f1[:, lo:]
        g1[0, 0] = -np.inf
        g1[1, 0] = -np.inf
        p = table[x[i - 1], lo:]
        _best_down(p, g0[0], g0[1], g0[2], g1[0], g1[1], b, mm, xm, ym, mx, xx, width)
        _best_along(g1[0], g1[2], b, my, yy, width)
        f0, f1 = f1, f0
    u, v, w = f0[0, m + 1], f0[1, m + 1], f0[2, m + 1]
    if max(u, v, w) == -np.inf:
        return 0
    state = 0 if u >= max(v, w) else (1 if v >= w else 2)
    i, j, k = n, m, n + m
    while i > 0 or j > 0:
        k -= 1
        path[k] = state
        found = back[start[i] + j + 1 - low[i]]
        if state == 0:
            state = found & 3
            i -= 1
            j -= 1
        elif state == 1:
            state = 1 if found & 4 else 0
            i -= 1
        else:
            state = 2 if found & 8 else 0
            j -= 1
    return n + m - k


@_ordered
def expected_accuracy(posterior, start, low, high, m, back, path):  # type: ignore[no-untyped-def]
    """The path of greatest Σ posterior over its pairs, into the end of `path`; its length.

    Durbin et al. (1998), section 4.4. `posterior` has row i from start[i] at column low[i],
    and so has `back`. A draw goes to M, then to X.
    """
    n = low.shape[0] - 1
    d0, d1 = np.full(m + 2, -np.inf), np.full(m + 2, -np.inf)
    d0[: high[0] + 2] = 0.0
    d0[high[0] + 2 :] = -np.inf
    d0[0] = -np.inf
    back[start[0] : start[0] + high[0] + 1] = 2
    for i in range(1, n + 1):
        lo = low[i]
        d1[lo] = -np.inf
        for j in range(lo, high[i] + 1):
            at = start[i] + j - lo
            a = d0[j] + posterior[at] if j > 0 else -np.inf
            b, c = d0[j + 1], d1[j]
            best, k = (a, np.uint8(0)) if a >= b else (b, np.uint8(1))
            if c > best:
                best, k = c, np.uint8(2)
            d1[j + 1] = best
            back[at] = k
        d0, d1 = d1, d0
    i, j, k = n, m, n + m
    while i > 0 or j > 0:
        k -= 1
        state = back[start[i] + j - low[i]]
        path[k] = state
        if state != 2:
            i -= 1
        if state != 1:
            j -= 1
    return n + m - k
