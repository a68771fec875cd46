"""Recursions of a hidden Markov model, compiled by numba, in float64.

A frame's emission densities are a row of `table` (rows, K), each divided by its largest; frame
t uses row `x[t]`, so symbols share rows and nothing of (frames, K) is built for them. α is
scaled to sum to one in every frame, whose sum is z (Rabiner 1989, section V.A); β carries the
same scale. With v_t = b_t β_t / z_t, the expected transitions are A ∘ Σ α_{t−1} v_tᵀ: one
matrix product for many frames. Values below `FLUSHED` are set to zero, since denormal numbers
cost many times others.

Arrays are indexed element by element: a view of a row costs numba more than a row of four.

`dims` is a tuple of K entries or an empty one: numba compiles a tuple's length in, and short
loops of known length run several times faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

__all__ = [
    "COLLAPSED",
    "FLUSHED",
    "forward",
    "lockstep",
    "scaled",
    "shifted",
    "viterbi",
]

#: What is smaller is zero.
FLUSHED = 1e-250
#: Multiplications of one matrix product. BLAS takes threads of its own for larger ones, under
#: one lock, so that two threads of ours would wait for each other.
PRODUCT = 2**18
#: A frame whose z is smaller is left to `levels`.
COLLAPSED = 1e-140

# Neither "nnan" nor "ninf": a z that is not a number must be seen.
_fast: Any = njit(
    cache=True,
    nogil=True,
    error_model="numpy",
    fastmath={"reassoc", "nsz", "arcp", "contract"},
)
_exact: Any = njit(cache=True, nogil=True, error_model="numpy")


@_fast
def _alphas(x, table, start, move, dims, first, alpha, scale):  # type: ignore[no-untyped-def]
    """α of some frames, into alpha[1:]; alpha[0] is that of the frame before, where there is
    one. Returns Σ log z, NaN where a z collapses.
    """
    K = len(dims) if len(dims) > 0 else start.shape[0]
    u = np.empty(K)
    total, product = 0.0, 1.0
    for t in range(x.shape[0]):
        row = x[t]
        if first and t == 0:
            for j in range(K):
                u[j] = start[j]
        else:
            c = alpha[t, 0]
            for j in range(K):
                u[j] = c * move[0, j]
            for i in range(1, K):
                c = alpha[t, i]
                for j in range(K):
                    u[j] += c * move[i, j]
        z = 0.0
        for j in range(K):
            c = u[j] * table[row, j]
            u[j] = c
            z += c
        if not z > COLLAPSED:
            return np.nan
        r = 1.0 / z
        scale[t] = r
        product *= z
        if product < 1e-150:
            total += np.log(product)
            product = 1.0
        for j in range(K):
            w = u[j] * r
            alpha[t + 1, j] = w if w > FLUSHED else 0.0
    return total + np.log(product)


@_fast
def _betas(x, table, move_t, dims, first, alpha, scale, beta, v, begun, stat, replace):  # type: ignore[no-untyped-def]
    """v of the frames whose α are in alpha[1:], and β before them, from β after them in
    `beta`; posteriors are added to `stat`, or put there.
    """
    K = len(dims) if len(dims) > 0 else beta.shape[0]
    for t in range(x.shape[0] - 1, -1, -1):
        row = x[t]
        r = scale[t]
        if first and t == 0:
            for j in range(K):
                begun[j] += alpha[t + 1, j] * beta[j]
        for j in range(K):
            found = table[row, j] * beta[j] * r
            v[t, j] = found if found > FLUSHED else 0.0
        if replace:
            for j in range(K):
                stat[row, j] = alpha[t + 1, j] * beta[j]
        else:
            for j in range(K):
                stat[row, j] += alpha[t + 1, j] * beta[j]
        if not (first and t == 0):
            c = v[t, 0]
            for i in range(K):
                beta[i] = c * move_t[0, i]
            for j in range(1, K):
                c = v[t, j]
                for i in range(K):
                    beta[i] += c * move_t[j, i]


@_fast
def scaled(  # type: ignore[no-untyped-def]
    x, bounds, which, table, start, move, dims, chunk, begun, moved, stat, replace, found
):
    """Log-likelihoods and expected counts of the sequences `which`, one after the other.

    Sequence i is x[bounds[i]:bounds[i + 1]]. α is kept for `chunk` frames; of a longer
    sequence it is computed again, from the last of every chunk. `begun` (K,) gets the first
    states, `moved` (K, K) the transitions before they are multiplied by `move`, `stat` as
    `table` the posteriors; `found` the log-likelihoods less the tables' shifts, or NaN with
    nothing counted.
    """
    K = start.shape[0]
    longest, most = 0, 0
    for i in which:
        n = bounds[i + 1] - bounds[i]
        longest = max(longest, min(n, chunk))
        most = max(most, (n + chunk - 1) // chunk)
    move_t = np.ascontiguousarray(move.T)
    alpha = np.zeros((longest + 1, K))
    v = np.empty((longest, K))
    scale = np.empty(longest)
    marks = np.empty((most, K))
    beta = np.empty(K)
    for i in which:
        low, high = bounds[i], bounds[i + 1]
        pieces = (high - low + chunk - 1) // chunk
        total = 0.0
        for p in range(pieces):
            s, e = low + p * chunk, min(low + (p + 1) * chunk, high)
            if p > 0:
                alpha[0] = marks[p - 1]
            total += _alphas(x[s:e], table, start, move, dims, p == 0, alpha, scale)
            marks[p] = alpha[e - s]
        found[i] = total
        if np.isnan(total):
            continue
        beta[:] = 1.0
        for p in range(pieces - 1, -1, -1):
            s, e = low + p * chunk, min(low + (p + 1) * chunk, high)
            if p < pieces - 1:
                if p > 0:
                    alpha[0] = marks[p - 1]
                _alphas(x[s:e], table, start, move, dims, p == 0, alpha, scale)
            _betas(
                x[s:e], table, move_t, dims, p == 0, alpha, scale, beta, v, begun, stat, replace
            )
            piece = max(1, PRODUCT // (K * K))
            for a in range(1 if p == 0 else 0, e - s, piece):
                b = min(a + piece, e - s)
                moved += np.dot(alpha[a:b].T, v[a:b])


@_fast
def forward(x, bounds, which, table, start, move, dims, found):  # type: ignore[no-untyped-def]
    """Log-likelihoods alone, as `scaled` gives them."""
    chunk = 256
    alpha = np.zeros((chunk + 1, start.shape[0]))
    scale = np.empty(chunk)
    for i in which:
        low, high = bounds[i], bounds[i + 1]
        total = 0.0
        for s in range(low, high, chunk):
            e = min(s + chunk, high)
            total += _alphas(x[s:e], table, start, move, dims, s == low, alpha, scale)
            alpha[0] = alpha[e - s]
        found[i] = total


@_fast
def lockstep(  # type: ignore[no-untyped-def]
    x, bounds, which, width, table, start, move, begun, moved, stat, replace, found
):
    """The same as `scaled`, `width` sequences at a time: a matrix product for each frame.

    `which` must be sorted by length, longest first, so that those that still run are the
    first rows of every frame.
    """
    K = start.shape[0]
    move_t = np.ascontiguousarray(move.T)
    T = bounds[which[0] + 1] - bounds[which[0]]
    piece = max(1, PRODUCT // (K * K * width))  # frames of v that are kept
    alphas, vs = np.empty(T * width * K), np.empty(piece * width * K)
    scale = np.empty((T, width))
    u, beta = np.empty((width, K)), np.empty((width, K))
    product = np.empty(width)
    for lead in range(0, which.shape[0], width):
        S = min(width, which.shape[0] - lead)
        ids = which[lead : lead + S]
        T = bounds[ids[0] + 1] - bounds[ids[0]]
        alpha = alphas[: T * S * K].reshape((T, S, K))
        v = vs[: piece * S * K].reshape((piece, S, K))
        for s in range(S):
            found[ids[s]] = 0.0
            product[s] = 1.0
        live = S
        for t in range(T):
            while live > 0 and bounds[ids[live - 1]] + t >= bounds[ids[live - 1] + 1]:
                live -= 1
            if t > 0:
                np.dot(alpha[t - 1, :live], move, u[:live])
            for s in range(live):
                row = x[bounds[ids[s]] + t]
                if t == 0:
                    for j in range(K):
                        u[s, j] = start[j]
                z = 0.0
                for j in range(K):
                    c = u[s, j] * table[row, j]
                    u[s, j] = c
                    z += c
                if z > COLLAPSED:
                    r = 1.0 / z
                    product[s] *= z
                    if product[s] < 1e-150:
                        found[ids[s]] += np.log(product[s])
                        product[s] = 1.0
                else:
                    r = 0.0
                    found[ids[s]] = np.nan
                scale[t, s] = r
                for j in range(K):
                    c = u[s, j] * r
                    alpha[t, s, j] = c if c > FLUSHED else 0.0
            alpha[t, live:] = 0.0
        for s in range(S):
            found[ids[s]] += np.log(product[s])
            beta[s] = 1.0
        live = 0
        for t in range(T - 1, -1, -1):
            while live < S and bounds[ids[live]] + t < bounds[ids[live] + 1]:
                live += 1
            at = (t + piece - 1) % piece
            for s in range(live):
                row = x[bounds[ids[s]] + t]
                r = scale[t, s]
                for j in range(K):
                    c = table[row, j] * beta[s, j] * r
                    v[at, s, j] = c if c > FLUSHED else 0.0
                if replace:
                    for j in range(K):
                        stat[row, j] = alpha[t, s, j] * beta[s, j]
                else:
                    for j in range(K):
                        stat[row, j] += alpha[t, s, j] * beta[s, j]
                if t == 0:
                    for j in range(K):
                        begun[j] += alpha[t, s, j] * beta[s, j]
            v[at, live:] = 0.0
            if t > 0:
                np.dot(v[at, :live], move_t, beta[:live])
                if at == 0:
                    n = min(piece, T - t)
                    earlier = alpha[t - 1 : t - 1 + n].reshape((n * S, K))
                    moved += np.dot(earlier.T, v[:n].reshape((n * S, K)))


@_exact
def shifted(table, shift):  # type: ignore[no-untyped-def]
    """Take each row's largest off it, and keep it in `shift`; a row of −∞ stays."""
    for t in range(table.shape[0]):
        top = table[t, 0]
        for j in range(1, table.shape[1]):
            top = max(top, table[t, j])
        if not np.isfinite(top):
            top = 0.0
        shift[t] = top
        for j in range(table.shape[1]):
            table[t, j] -= top


@_exact
def viterbi(x, bounds, which, table, start, move, states, found):  # type: ignore[no-untyped-def]
    """The most likely states (Viterbi 1967): `table`, `start`, `move` are logarithms.

    `states` (frames,) gets them, `found` the log-probability of each sequence with them.
    """
    K = start.shape[0]
    longest = 0
    for i in which:
        longest = max(longest, bounds[i + 1] - bounds[i])
    back = np.empty((longest, K), np.int16)
    best, u = np.empty(K), np.empty(K)
    for i in which:
        low, T = bounds[i], bounds[i + 1] - bounds[i]
        row = x[low]
        for j in range(K):
            best[j] = start[j] + table[row, j]
        for t in range(1, T):
            row = x[low + t]
            for j in range(K):
                u[j] = best[0] + move[0, j]
                back[t, j] = 0
            for k in range(1, K):
                c = best[k]
                for j in range(K):
                    w = c + move[k, j]
                    better = w > u[j]
                    u[j] = w if better else u[j]
                    back[t, j] = k if better else back[t, j]
            for j in range(K):
                best[j] = u[j] + table[row, j]
        at = 0
        for j in range(1, K):
            if best[j] > best[at]:
                at = j
        found[i] = best[at]
        for t in range(T - 1, -1, -1):
            states[low + t] = at
            if t > 0:
                at = back[t, at]
