"""The compiled recursions against sums over all paths and against logarithms."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from paths import by_paths, log_likelihood, random_model

from eadem.hmm import CategoricalHMM, GaussianHMM
from eadem.hmm import expect as e_step
from eadem.hmm.expect import Frames, decode, expect

LENGTHS = [5, 1, 3, 4, 2, 5]


def frames_of(log_table, lengths, x=None):
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    return Frames.lazily(lambda rows: log_table[rows].copy(), len(log_table), bounds, x)


def drawn(rng, states, symbols=3):
    p, A, B = random_model(rng, states, symbols)
    x = rng.integers(0, symbols, sum(LENGTHS))
    return p, A, B, x


@pytest.mark.parametrize("states", [1, 2, 3, 9, 13])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("threads", [1, 3])
def test_expected_counts_are_those_of_all_paths(states, shared, threads):
    rng = np.random.default_rng(states)
    p, A, B, x = drawn(rng, states)
    lengths = LENGTHS if states < 9 else [2, 1, 2, 3, 2, 1]
    x = x[: sum(lengths)]
    table = np.log(B.T) if shared else np.log(B.T)[x]
    found = expect(frames_of(table, lengths, x if shared else None), p, A, threads=threads)
    start, trans, stat = np.zeros(states), np.zeros((states, states)), np.zeros_like(B.T)
    at, rows = 0, []
    for i, n in enumerate(lengths):
        seen = x[at : at + n]
        total, first, moved, posterior, _ = by_paths(p, A, B.T[seen])
        assert found.log_likelihood[i] == pytest.approx(np.log(total), rel=1e-13)
        start, trans = start + first, trans + moved
        np.add.at(stat, seen, posterior)
        rows.append(posterior)
        at += n
    np.testing.assert_allclose(found.start, start, atol=1e-13)
    np.testing.assert_allclose(found.trans, trans, atol=1e-13)
    np.testing.assert_allclose(found.stat, stat if shared else np.concatenate(rows), atol=1e-13)


@pytest.mark.parametrize("states", [3, 14])
def test_each_sequence_apart_adds_up_to_all_of_them(states):
    rng = np.random.default_rng(0)
    p, A, B, x = drawn(rng, states)
    frames = frames_of(np.log(B.T), LENGTHS, x)
    whole, each = expect(frames, p, A), expect(frames, p, A, each=True)
    for name in ("start", "trans", "stat"):
        np.testing.assert_allclose(getattr(each, name).sum(0), getattr(whole, name), atol=1e-13)


@pytest.mark.parametrize("states", [2, 4, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_lanes_of_all_lengths_are_as_each_alone(states, shared):
    """Lanes end at different frames; one collapses, and counts nothing there."""
    rng = np.random.default_rng(states)
    p, A, B = random_model(rng, states, 4)
    lengths = np.array([40, 7, 1, 23, 23, 39, 2, 1, 12, 40, 5, 17, 3])
    bounds = np.concatenate([[0], lengths.cumsum()])
    x = rng.integers(0, 4, bounds[-1])
    logs = np.log(B.T)
    logs[3] -= np.arange(states) * 10.0
    table = logs if shared else logs[x]
    if not shared:
        # Each state alone explains one of two frames, and none moves: the sum collapses.
        A = np.full((states, states), 1e-170 / (states - 1))
        A[np.diag_indices(states)] = 1.0
        table[bounds[3] + 4, 1:] = table[bounds[3] + 5, 0] = -np.inf
    found = expect(frames_of(table.copy(), lengths, x if shared else None), p, A)
    for i in range(len(lengths)):
        at = slice(bounds[i], bounds[i + 1])
        rows = logs[x[at]] if shared else table[at]
        assert found.log_likelihood[i] == pytest.approx(log_likelihood(p, A, rows), rel=1e-13)
    alone = []
    for a, b in itertools.pairwise(bounds):
        own = table.copy() if shared else table[a:b].copy()
        alone.append(expect(frames_of(own, [b - a], x[a:b] if shared else None), p, A))
    for name in ("start", "trans"):
        total = np.sum([getattr(e, name) for e in alone], axis=0)
        np.testing.assert_allclose(getattr(found, name), total, rtol=1e-11, atol=1e-13)
    stats = [e.stat for e in alone]
    stat = np.sum(stats, axis=0) if shared else np.concatenate(stats)
    np.testing.assert_allclose(found.stat, stat, rtol=1e-11, atol=1e-13)


def test_the_best_path_is_the_best_of_all():
    rng = np.random.default_rng(5)
    p, A, B, x = drawn(rng, 3)
    found, states = decode(frames_of(np.log(B.T), LENGTHS, x), p, A)
    at = 0
    for i, n in enumerate(LENGTHS):
        *_, (weight, path) = by_paths(p, A, B.T[x[at : at + n]])
        assert found[i] == pytest.approx(np.log(weight), rel=1e-13)
        assert tuple(states[at : at + n]) == path
        at += n


@pytest.mark.parametrize("states", [4, 20])
def test_pieces_of_a_long_sequence_make_the_whole(states):
    rng = np.random.default_rng(2)
    p, A, B = random_model(rng, states, 4)
    x = rng.integers(0, 4, 1003)
    table = np.log(B.T)[x]
    whole = expect(frames_of(table, [1003]), p, A)
    pieces = expect(frames_of(table, [1003]), p, A, chunk=64)
    assert pieces.log_likelihood == pytest.approx(whole.log_likelihood, rel=1e-14)
    np.testing.assert_allclose(pieces.stat, whole.stat, atol=1e-12)
    np.testing.assert_allclose(pieces.trans, whole.trans, atol=1e-10)
    np.testing.assert_allclose(pieces.stat.sum(1), 1, atol=1e-12)


def test_a_long_likelihood_is_correct():
    rng = np.random.default_rng(3)
    p, A, B = random_model(rng, 3, 5)
    x = rng.integers(0, 5, 100_000)
    found = e_step.log_likelihood(frames_of(np.log(B.T), [100_000], x), p, A)
    assert found[0] == pytest.approx(log_likelihood(p, A, np.log(B.T)[x]), rel=1e-12)


def test_memory_of_a_long_posterior_is_bounded():
    rng = np.random.default_rng(4)
    p, A, B = random_model(rng, 16, 4)
    hmm = CategoricalHMM(16, n_features=4)
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = p, A, B
    x = rng.integers(0, 4, 1_000_000)
    frames = hmm._frames(hmm._data(x[:, None], np.array([0, 1_000_000])), hmm._values())
    expect(frames, p, A)
    tracemalloc.start()
    expect(frames, p, A)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # of the 256 MB that α and β of all frames take


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_outliers_of_60_sigma_do_not_underflow(kind):
    hmm = GaussianHMM(2, kind, n_features=2)
    hmm.startprob_ = [0.5, 0.5]
    hmm.transmat_ = [[0.9, 0.1], [0.2, 0.8]]
    hmm.means_ = [[0.0, 0.0], [3.0, 0.0]]
    one = {"spherical": np.ones(2), "diag": np.ones((2, 2)), "tied": np.eye(2)}
    hmm.covars_ = one.get(kind, np.stack([np.eye(2)] * 2))
    X = np.array([[0.0, 0.1], [60.0, 0.0], [-60.0, 5.0], [3.0, 0.2], [0.0, 200.0]])
    away = X[:, None] - hmm.means_
    logs = -0.5 * (away**2).sum(-1) - np.log(2 * np.pi)
    expected = log_likelihood(hmm.startprob_, hmm.transmat_, logs)
    assert hmm.score(X) == pytest.approx(expected, rel=1e-13)
    assert np.isfinite(hmm.predict_proba(X)).all()


def test_what_scaling_would_lose_is_found_in_logarithms():
    """The state that is 10⁻⁴⁰⁰ behind after one frame leads after the next."""
    p, A = np.array([0.5, 0.5]), np.eye(2)
    logs = np.array([[0.0, -1000.0], [-3000.0, 0.0], [0.0, 0.0]])
    found = expect(frames_of(logs, [3]), p, A)
    assert found.log_likelihood[0] == pytest.approx(log_likelihood(p, A, logs), rel=1e-14)
    np.testing.assert_allclose(found.stat, [[0, 1]] * 3, atol=1e-12)
    np.testing.assert_allclose(found.trans, [[0, 0], [0, 2]], atol=1e-12)


def test_an_impossible_sequence_has_likelihood_zero():
    p, A = np.array([1.0, 0.0]), np.array([[0.0, 1.0], [0.0, 1.0]])
    with np.errstate(divide="ignore"):
        logs = np.log(np.array([[1.0, 1.0], [1.0, 0.0]]))
    frames = frames_of(logs, [2])
    assert e_step.log_likelihood(frames, p, A)[0] == -np.inf
    found = expect(frames, p, A)
    assert found.log_likelihood[0] == -np.inf
    assert not found.trans.any()
