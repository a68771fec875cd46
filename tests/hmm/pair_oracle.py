"""Oracles of the pair HMM that share no code with it: all alignments, and logarithms."""

from __future__ import annotations

import numpy as np

NONE = -np.inf


def moves(p):
    """Step (from, to) → probability, and the end's; p as `probabilities` gives it."""
    dx, dy = p["gap_open"]
    ex, ey = p["gap_extend"]
    (t,) = p["end"]
    return {
        ("M", "M"): 1 - dx - dy - t, ("M", "X"): dx, ("M", "Y"): dy,
        ("X", "X"): ex, ("X", "M"): 1 - ex - t,
        ("Y", "Y"): ey, ("Y", "M"): 1 - ey - t,
    }, t  # fmt: skip


def probabilities(model):
    names = ("match", "insert_x", "insert_y", "gap_open", "gap_extend", "end")
    return {n: getattr(model, n).detach().numpy() for n in names}


def paths(n, m):
    """All sequences of M, X, Y that use n letters of x and m of y."""
    if n == m == 0:
        yield ""
    if n and m:
        yield from ("M" + rest for rest in paths(n - 1, m - 1))
    if n:
        yield from ("X" + rest for rest in paths(n - 1, m))
    if m:
        yield from ("Y" + rest for rest in paths(n, m - 1))


def weight(p, x, y, path, counts=None):
    """The joint probability of x, y (integers) and a path."""
    step, end = moves(p)
    i = j = 0
    state, total = "M", end
    for s in path:
        if (state, s) not in step:
            return 0.0
        total *= step[state, s]
        if s == "M":
            total *= p["match"][x[i], y[j]]
        else:
            total *= p["insert_x"][x[i]] if s == "X" else p["insert_y"][y[j]]
        i, j, state = i + (s != "Y"), j + (s != "X"), s
    return total


def within(n, m, band, path):
    """Whether a path stays within |i·m − j·n| ≤ band·max(n, m)."""
    i = j = 0
    for s in path:
        i, j = i + (s != "Y"), j + (s != "X")
        if abs(i * m - j * n) > band * max(n, m):
            return False
    return True


def enumerated(p, x, y, band=None):
    """Likelihood, the best path and its weight, posterior of pairs, over all alignments."""
    n, m = len(x), len(y)
    total, best, posterior = 0.0, (0.0, ""), np.zeros((n, m))
    for path in paths(n, m):
        if band is not None and not within(n, m, band, path):
            continue
        w = weight(p, x, y, path)
        total += w
        best = max(best, (w, path))
        i = j = 0
        for s in path:
            if s == "M":
                posterior[i, j] += w
            i, j = i + (s != "Y"), j + (s != "X")
    return total, best, posterior / total if total else posterior


def in_logs(p, x, y):
    """The log-likelihood by the forward recursion in logarithms, cell by cell."""
    n, m = len(x), len(y)
    with np.errstate(divide="ignore"):
        step, end = moves(p)
        step = {k: np.log(v) for k, v in step.items()}
        match, ix, iy = (np.log(p[k]) for k in ("match", "insert_x", "insert_y"))
        f = {s: np.full((n + 1, m + 1), NONE) for s in "MXY"}
        f["M"][0, 0] = 0.0
        for i in range(n + 1):
            for j in range(m + 1):
                if i and j:
                    before = [f[s][i - 1, j - 1] + step[s, "M"] for s in "MXY"]
                    f["M"][i, j] = match[x[i - 1], y[j - 1]] + np.logaddexp.reduce(before)
                if i:
                    before = [f[s][i - 1, j] + step[s, "X"] for s in "MX"]
                    f["X"][i, j] = ix[x[i - 1]] + np.logaddexp.reduce(before)
                if j:
                    before = [f[s][i, j - 1] + step[s, "Y"] for s in "MY"]
                    f["Y"][i, j] = iy[y[j - 1]] + np.logaddexp.reduce(before)
        return np.log(end) + np.logaddexp.reduce([f[s][n, m] for s in "MXY"])
