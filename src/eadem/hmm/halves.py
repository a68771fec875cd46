"""One long sequence from both ends at once, on two threads.

α runs through the first half while β runs through the second; where they meet each goes on
through the other's half and finds the posteriors there. Every thread sees each frame once, so
the whole takes the time of one recursion. As in `kernels`, α is scaled to sum one in a frame;
of the second half w_t = b_t β_t is kept, also scaled to sum one. With u = Aᵀα_{t−1}, the
expected transitions are α_{t−1} (w_t/q)ᵀ, where q = Σ u w, and the posterior is u w/q.
"""

from __future__ import annotations

import numpy as np

from eadem.hmm.kernels import COLLAPSED, FLUSHED, _alphas, _betas, _fast

__all__ = ["homeward", "onward", "outward", "tails"]


@_fast
def outward(x, table, start, move, dims, alpha, scale):  # type: ignore[no-untyped-def]
    """α of the first half, into alpha[1:], and the scales; Σ log z, NaN where one collapses."""
    return _alphas(x, table, start, move, dims, True, alpha, scale)


@_fast
def tails(x, table, move, dims, later, beta):  # type: ignore[no-untyped-def]
    """w of the second half into `later`, β before it into `beta`; 0, or NaN."""
    K = len(dims) if len(dims) > 0 else beta.shape[0]
    move_t = np.ascontiguousarray(move.T)
    for j in range(K):
        beta[j] = 1.0
    for t in range(x.shape[0] - 1, -1, -1):
        row = x[t]
        z = 0.0
        for j in range(K):
            c = table[row, j] * beta[j]
            later[t, j] = c
            z += c
        if not z > COLLAPSED:
            return np.nan
        r = 1.0 / z
        for j in range(K):
            c = later[t, j] * r
            later[t, j] = c if c > FLUSHED else 0.0
        c = later[t, 0]
        for i in range(K):
            beta[i] = c * move_t[0, i]
        for j in range(1, K):
            c = later[t, j]
            for i in range(K):
                beta[i] += c * move_t[j, i]
    return 0.0


@_fast
def onward(x, table, move, dims, piece, before, later, moved, stat, replace):  # type: ignore[no-untyped-def]
    """The second half from the α `before` it: counts and posteriors as in `kernels.scaled`.

    Returns Σ log z, NaN where a frame collapses.
    """
    K = len(dims) if len(dims) > 0 else before.shape[0]
    alpha, v, u = np.empty((piece, K)), np.empty((piece, K)), np.empty(K)
    total, product = 0.0, 1.0
    for s in range(0, x.shape[0], piece):
        n = min(piece, x.shape[0] - s)
        for k in range(n):
            row = x[s + k]
            c = before[0]
            for j in range(K):
                u[j] = c * move[0, j]
            for i in range(1, K):
                c = before[i]
                for j in range(K):
                    u[j] += c * move[i, j]
            z, q = 0.0, 0.0
            for j in range(K):
                alpha[k, j] = before[j]
                c = u[j] * table[row, j]
                before[j] = c
                z += c
                q += u[j] * later[s + k, j]
            if not (z > COLLAPSED and q > COLLAPSED):
                return np.nan
            product *= z
            if product < 1e-150:
                total += np.log(product)
                product = 1.0
            r, share = 1.0 / z, 1.0 / q
            for j in range(K):
                c = before[j] * r
                before[j] = c if c > FLUSHED else 0.0
                c = later[s + k, j] * share
                v[k, j] = c
                if replace:
                    stat[row, j] = u[j] * c
                else:
                    stat[row, j] += u[j] * c
        moved += np.dot(alpha[:n].T, v[:n])
    return total + np.log(product)


@_fast
def homeward(x, table, move, dims, piece, alpha, scale, beta, begun, moved, stat, replace):  # type: ignore[no-untyped-def]
    """The first half from the β after it, given its α and scales."""
    K = beta.shape[0]
    move_t = np.ascontiguousarray(move.T)
    v = np.empty((piece, K))
    m = x.shape[0]
    q = 0.0
    for j in range(K):
        q += alpha[m, j] * beta[j]
    if not q > COLLAPSED:
        return np.nan
    for j in range(K):
        beta[j] /= q
    for k in range((m - 1) // piece, -1, -1):
        s, e = k * piece, min((k + 1) * piece, m)
        own = alpha[s : e + 1]
        _betas(
            x[s:e], table, move_t, dims, s == 0, own, scale[s:e], beta, v, begun, stat, replace
        )
        after = 1 if s == 0 else 0
        if e - s > after:
            moved += np.dot(own[after : e - s].T, v[after : e - s])
    return 0.0
