"""One long sequence by two threads, from both ends: what one thread finds."""

from __future__ import annotations

import numpy as np
import pytest

from eadem.hmm import CategoricalHMM, GaussianHMM
from eadem.hmm import expect as e_step


def started(hmm, K: int):
    rng = np.random.default_rng(K)
    hmm.startprob_ = rng.dirichlet(np.ones(K))
    hmm.transmat_ = rng.dirichlet(np.ones(K), K)
    return hmm


def both(hmm, X):
    """The E-step of one thread and of two."""
    data, values = hmm._data(X, np.array([0, len(X)])), hmm._values()
    found = []
    for threads in (1, 2):
        frames = hmm._frames(data, values)
        one = e_step.expect(frames, values["startprob"], values["transmat"], threads=threads)
        found.append((one.log_likelihood, one.start, one.trans, one.stat.copy()))
    return found


@pytest.mark.parametrize("K", [4, 12])
def test_symbols(K, monkeypatch):
    used = []
    stock = e_step._from_both_ends
    monkeypatch.setattr(
        e_step, "_from_both_ends", lambda *given: used.append(1) or stock(*given)
    )
    rng = np.random.default_rng(1)
    hmm = started(CategoricalHMM(K, n_features=4), K)
    hmm.emissionprob_ = rng.dirichlet(np.ones(4), K)
    one, two = both(hmm, rng.integers(0, 4, (9001, 1)))
    assert used == [1]
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10)


def test_vectors_with_outliers_of_60_sigma():
    rng = np.random.default_rng(2)
    hmm = started(GaussianHMM(4, n_features=2), 4)
    hmm.means_, hmm.covars_ = rng.normal(size=(4, 2)), np.ones((4, 2))
    X = rng.normal(size=(9000, 2))
    X[2000], X[7000] = 60, -60
    one, two = both(hmm, X)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-13)


def test_what_collapses_is_left_to_logarithms():
    """A start that forbids what the end needs: β alone says so, too late for a scaled sum."""
    hmm = GaussianHMM(2, n_features=1)
    hmm.startprob_, hmm.transmat_ = [1.0, 0.0], [[1.0, 0.0], [0.5, 0.5]]
    hmm.means_, hmm.covars_ = [[0.0], [30.0]], np.ones((2, 1))
    one, two = both(hmm, np.full((5000, 1), 29.0))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-13)
