"""The recursions for one sequence in numbers of any size, where scaled ones would be lost.

Where some moves are impossible, a state that falls far behind the others can come back: what
it had must be kept, however little it is. A number is m·2^(−256·l), m in (2^−256, 1] or zero,
so that a product of three never underflows; of a sum, the terms whose level is three or more
above the least make no difference. Nothing here takes a logarithm or an exponential of a
pair of states, as a recursion in logarithms does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eadem.hmm.kernels import COLLAPSED, _exact, _fast

__all__ = ["LEAST", "MOVE", "leveled", "recursion", "split", "watch"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: What is smaller, and not zero, is rounded up to see whether it matters.
LEAST = 1e-250
#: Moves that are smaller are rounded up for that, so that their products are not zero.
MOVE = 1e-50
#: How far β of a state that was not reached may grow.
GROWN = 1e-150
#: Of a log-likelihood, what may be lost, and what rounding makes of it.
LACKING, ROUNDING = 1e-10, 1e-14
_STEP = 256.0
_DOWN, _UP = 2.0**-256, 2.0**256
#: 2^(−256·d) for d = −3 … 3.
_POWERS = np.array([2.0 ** (-256 * d) for d in range(-3, 4)])


def split(logs: Floats) -> tuple[Floats, Ints]:
    """Logarithms not above zero as m and l."""
    bits = logs / np.log(2.0)
    finite = np.isfinite(bits)
    level = np.where(finite, np.floor(-np.where(finite, bits, 0.0) / _STEP), 0.0)
    value = np.where(finite, np.exp2(np.where(finite, bits, 0.0) + _STEP * level), 0.0)
    return value, level.astype(np.int64)


@_fast
def watch(x, bounds, which, table, start, move, dims, found):  # type: ignore[no-untyped-def]
    """Put NaN in `found` where the scaled recursion's log-likelihood there lacks something.

    The same recursion rounds up here: what is small and not zero becomes `LEAST`, so that
    the result is no less than the truth, of which the other is no more. `table` and `move`
    have no numbers between zero and what they are when rounded up. A sequence is marked too
    where β of states that are not reached may overflow.
    """
    K = len(dims) if len(dims) > 0 else start.shape[0]
    u, alpha = np.empty(K), np.empty(K)
    for i in which:
        grown, total, product = 1.0, 0.0, 1.0
        for t in range(bounds[i], bounds[i + 1]):
            row = x[t]
            if t == bounds[i]:
                for j in range(K):
                    u[j] = start[j]
            else:
                c = alpha[0]
                for j in range(K):
                    u[j] = c * move[0, j]
                for k in range(1, K):
                    c = alpha[k]
                    for j in range(K):
                        u[j] += c * move[k, j]
            z, away = 0.0, False
            for j in range(K):
                c = table[row, j]
                some = (u[j] > 0.0) & (c > 0.0)
                away |= u[j] == 0.0
                alpha[j] = LEAST if some else 0.0
                u[j] *= c
                z += u[j]
            grown = grown * z if away else 1.0
            product *= z
            if not (z > COLLAPSED and grown > GROWN):
                found[i] = np.nan
                break
            if product < 1e-150:
                total += np.log(product)
                product = 1.0
            r = 1.0 / z
            for j in range(K):
                w = u[j] * r
                alpha[j] = w if w > alpha[j] else alpha[j]
        total += np.log(product)
        if not total - found[i] < LACKING + ROUNDING * abs(total):
            found[i] = np.nan


@_exact
def leveled(value, level):  # type: ignore[no-untyped-def]
    """The same number with m in (2^−256, 1]."""
    if value > 0.0:
        while value <= _DOWN:
            value *= _UP
            level += 1
        while value > 1.0:
            value *= _DOWN
            level -= 1
    return value, level


@_exact
def _sum(values, levels, n):  # type: ignore[no-untyped-def]
    """Σ of the first n numbers, as a number."""
    least = 0
    some = False
    for k in range(n):
        if values[k] > 0.0 and (not some or levels[k] < least):
            least, some = levels[k], True
    if not some:
        return 0.0, 0
    total = 0.0
    for k in range(n):
        d = levels[k] - least
        if d < 3 and values[k] > 0.0:
            total += values[k] * _POWERS[d + 3]
    return leveled(total, least)


@_exact
def recursion(b, b_level, start, start_level, move, move_level, begun, moved, posterior):  # type: ignore[no-untyped-def]
    """The log-likelihood and expected counts of a sequence whose densities are `b` (frames, K);
    every argument with its levels. Where it is −∞ nothing is counted.
    """
    T, K = b.shape
    alpha, level = np.zeros((T, K)), np.zeros((T, K), np.int64)
    terms, at = np.empty(K), np.empty(K, np.int64)
    flat = np.zeros(T, np.bool_)
    plain = True
    for i in range(K):
        for j in range(K):
            plain &= move_level[i, j] == 0
    total = 0.0
    for t in range(T):
        for j in range(K):
            if t == 0:
                m, n = start[j], start_level[j]
            elif plain and flat[t - 1]:
                m, n = 0.0, 0
                for i in range(K):
                    m += alpha[t - 1, i] * move[i, j]
                m, n = leveled(m, n)
            else:
                for i in range(K):
                    terms[i] = alpha[t - 1, i] * move[i, j]
                    at[i] = level[t - 1, i] + move_level[i, j]
                m, n = _sum(terms, at, K)
            alpha[t, j], level[t, j] = leveled(m * b[t, j], n + b_level[t, j])
        z, least = _sum(alpha[t], level[t], K)
        if not z > 0.0:
            return -np.inf
        total += np.log(z) - np.log(2.0) * _STEP * least
        flat[t] = True
        for j in range(K):
            alpha[t, j], level[t, j] = leveled(alpha[t, j] / z, level[t, j] - least)
            flat[t] &= level[t, j] == 0 or alpha[t, j] == 0.0
    beta, beta_level = np.ones(K), np.zeros(K, np.int64)
    w, w_level = np.empty(K), np.empty(K, np.int64)
    for t in range(T - 1, -1, -1):
        for j in range(K):
            d = level[t, j] + beta_level[j]
            found = 0.0
            if -4 < d < 4:
                found = alpha[t, j] * beta[j] * _POWERS[d + 3]
            posterior[t, j] = found
        if t == 0:
            for j in range(K):
                begun[j] += posterior[0, j]
            break
        even = plain
        for j in range(K):
            w[j], w_level[j] = leveled(b[t, j] * beta[j], b_level[t, j] + beta_level[j])
            even &= w_level[j] == 0 or w[j] == 0.0
        for i in range(K):
            if even:
                m, n = 0.0, 0
                for j in range(K):
                    m += move[i, j] * w[j]
                beta[i], beta_level[i] = leveled(m, n)
            else:
                for j in range(K):
                    terms[j] = move[i, j] * w[j]
                    at[j] = move_level[i, j] + w_level[j]
                beta[i], beta_level[i] = _sum(terms, at, K)
        for i in range(K):
            terms[i] = alpha[t - 1, i] * beta[i]
            at[i] = level[t - 1, i] + beta_level[i]
        norm, least = _sum(terms, at, K)
        for i in range(K):
            if alpha[t - 1, i] > 0.0:
                share = alpha[t - 1, i] / norm
                for j in range(K):
                    d = level[t - 1, i] + move_level[i, j] + w_level[j] - least
                    if -4 < d < 4:
                        moved[i, j] += share * move[i, j] * w[j] * _POWERS[d + 3]
            beta[i], beta_level[i] = leveled(beta[i] / norm, beta_level[i] - least)
    return total
