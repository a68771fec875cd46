"""A state far behind the others may come back: what it had is kept, however little."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp

from eadem.hmm import CategoricalHMM, GaussianHMM, expect, levels


def reference(logs, start, move):
    """Log-likelihood and expected counts in logarithms (Rabiner 1989)."""
    T, K = logs.shape
    with np.errstate(divide="ignore"):
        ls, lm = np.log(start), np.log(move)
    alpha, beta = np.zeros((T, K)), np.zeros((T, K))
    alpha[0] = ls + logs[0]
    for t in range(1, T):
        alpha[t] = logsumexp(alpha[t - 1][:, None] + lm, axis=0) + logs[t]
    for t in range(T - 2, -1, -1):
        beta[t] = logsumexp(lm + logs[t + 1] + beta[t + 1], axis=1)
    total = logsumexp(alpha[-1])
    posterior = np.exp(alpha + beta - total)
    ahead = logs[1:] + beta[1:]
    moved = np.exp(alpha[:-1, :, None] + lm + ahead[:, None, :] - total).sum(0)
    return total, posterior, moved


def frames(logs, lengths):
    return expect.Frames.lazily(lambda rows: logs[rows].copy(), len(logs), np.r_[0, lengths])


def moves(kind, K, rng):
    if kind == "apart":
        return np.eye(K)
    if kind == "left to right":
        move = np.triu(np.tril(rng.random((K, K)), 1))
    elif kind == "blocks":
        move = np.kron(np.eye(2), rng.random((K // 2, K // 2)))
    elif kind == "tiny":
        move = rng.random((K, K))
        move[rng.random((K, K)) < 0.5] = 1e-290
        np.fill_diagonal(move, 1.0)
    else:
        move = rng.random((K, K)) * (rng.random((K, K)) < 0.5) + np.eye(K) * 0.2
    return move / move.sum(1, keepdims=True)


@pytest.mark.parametrize("K", [2, 4, 12])
@pytest.mark.parametrize("kind", ["apart", "left to right", "blocks", "tiny", "some"])
@pytest.mark.parametrize("spread", [1.0, 30.0, 400.0])
def test_counts_equal_those_in_logarithms(K, kind, spread):
    rng = np.random.default_rng(K)
    move = moves(kind, K, rng)
    start = rng.random(K) * (rng.random(K) < 0.6) + np.eye(K)[0] * 0.1
    start /= start.sum()
    # Runs in which one state after another is favoured, so that those far behind come back.
    logs = -spread * rng.random((150, K)) * (np.arange(150)[:, None] // 25 % K != np.arange(K))
    logs += 50.0 * rng.normal(size=(150, 1))
    lengths = np.array([70, 150])
    each = [reference(logs[a:b], start, move) for a, b in zip([0, 70], lengths, strict=True)]
    found = expect.expect(frames(logs, lengths), start, move)
    whole = np.array([r[0] for r in each])
    np.testing.assert_allclose(found.log_likelihood, whole, rtol=1e-11)
    np.testing.assert_allclose(found.stat, np.concatenate([r[1] for r in each]), atol=1e-9)
    np.testing.assert_allclose(found.trans, sum(r[2] for r in each), atol=1e-8)
    np.testing.assert_allclose(found.start, sum(r[1][0] for r in each), atol=1e-9)
    alone = expect.log_likelihood(frames(logs, lengths), start, move)
    np.testing.assert_allclose(alone, whole, rtol=1e-11)


def test_a_path_that_begins_badly_and_ends_badly_is_found():
    """Forwards it is lost at once, backwards as well: neither pass may be trusted alone."""
    symbols = np.repeat([0, 1, 0], [400, 1200, 400])[:, None]
    hmm = CategoricalHMM(2, n_features=2, init_params="")
    hmm.startprob_, hmm.transmat_ = [0.5, 0.5], np.eye(2)
    hmm.emissionprob_ = [[10 / 11, 1 / 11], [1 / 11, 10 / 11]]
    right = np.log(0.5) + 1200 * np.log(10 / 11) + 800 * np.log(1 / 11)
    assert hmm.score(symbols) == pytest.approx(right, rel=1e-12)
    total, posterior = hmm.score_samples(symbols)
    assert total == pytest.approx(right, rel=1e-12)
    np.testing.assert_allclose(posterior, [[0.0, 1.0]] * len(symbols), atol=1e-12)


def test_states_that_are_never_reached_do_not_disturb():
    """β of a state without a way into it grows without bound; its counts are zero."""
    hmm = GaussianHMM(2, n_features=1, covariance_type="diag", init_params="")
    hmm.startprob_, hmm.transmat_ = [1.0, 0.0], np.eye(2)
    hmm.means_, hmm.covars_ = [[0.0], [9.0]], [[1.0], [1.0]]
    X = np.full((300, 1), 9.0)
    total, posterior = hmm.score_samples(X)
    assert total == pytest.approx(300 * (-40.5 - 0.5 * np.log(2 * np.pi)), rel=1e-12)
    np.testing.assert_array_equal(posterior, [[1.0, 0.0]] * 300)


def test_what_is_lost_for_good_is_left_to_the_fast_recursion():
    """Where states mix nothing is lost, and what falls behind for good does not matter."""
    rng = np.random.default_rng(0)
    move = np.array([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.5, 0.0, 0.5]])
    logs, third = -3.0 * rng.random((2000, 3)), np.full(3, 1 / 3)
    drift, length = logs - [1.0, 0.0, 0.0], np.array([2000])
    for table, way in ((logs, move), (drift, np.eye(3))):
        assert not np.isnan(expect._scaled(frames(table, length), third, way, 1)).any()
    drift[1000:] -= [-2.0, 0.0, 0.0]
    assert np.isnan(expect._scaled(frames(drift, length), third, np.eye(3), 1)).all()


def test_numbers_of_any_size_are_what_their_logarithms_say():
    logs = np.array([0.0, -1.0, -177.4, -177.5, -1e5, -np.inf])
    value, level = levels.split(logs)
    assert value[-1] == 0
    assert (value[:-1] > 2.0**-257).all()
    assert (value <= 1).all()
    back = np.log(value[:-1]) - 256 * np.log(2.0) * level[:-1]
    np.testing.assert_allclose(back, logs[:-1], rtol=1e-14)
