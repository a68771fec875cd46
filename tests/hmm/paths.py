"""Oracles: hidden Markov models summed path by path, and in logarithms."""

from __future__ import annotations

import itertools

import numpy as np
from scipy.special import logsumexp


def by_paths(start, move, emitted):
    """Likelihood, expected first states, transitions, posteriors and the best path, of one
    sequence with densities `emitted` (T, K).
    """
    T, K = emitted.shape
    first, moved, posterior = np.zeros(K), np.zeros((K, K)), np.zeros((T, K))
    total, best = 0.0, (-1.0, None)
    for path in itertools.product(range(K), repeat=T):
        weight = start[path[0]] * emitted[0, path[0]]
        for t in range(1, T):
            weight *= move[path[t - 1], path[t]] * emitted[t, path[t]]
        total += weight
        if weight > best[0]:
            best = (weight, path)
        first[path[0]] += weight
        for t in range(T):
            posterior[t, path[t]] += weight
            if t:
                moved[path[t - 1], path[t]] += weight
    return total, first / total, moved / total, posterior / total, best


def log_likelihood(start, move, logs):
    """Of one sequence with log densities `logs` (T, K), entirely in logarithms."""
    with np.errstate(divide="ignore"):
        alpha, move = np.log(start) + logs[0], np.log(move)
    for row in logs[1:]:
        alpha = logsumexp(alpha[:, None] + move, axis=0) + row
    return float(logsumexp(alpha))


def random_model(rng, states, symbols):
    """startprob, transmat, emissionprob."""
    return (
        rng.dirichlet(np.ones(states)),
        rng.dirichlet(np.ones(states), states),
        rng.dirichlet(np.ones(symbols), states),
    )
