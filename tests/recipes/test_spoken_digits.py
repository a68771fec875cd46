"""The recipe spoken-digits: its quick run, and what its ties share."""

import json

import numpy as np
import pytest

import eadem
from eadem.recipes import run

pytest.importorskip("numba")

from eadem.recipes import _spoken_digits as data
from eadem.recipes import spoken_digits as recipe


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("spoken-digits", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def parts():
    return data.split(data.utterances(), 4, 3, np.random.default_rng(3))


def test_what_is_shared_is_learned_from_less(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C21"
    assert claim["measured"]["gain"] > 0
    assert claim["holds"] == (claim["measured"]["gain"] >= 0.03)


def test_free_values_are_counted_by_hand(metrics):
    """Ten digits of five states, 13 variances and means each; nine last states' means."""
    free = [metrics["free"][arm] for arm in recipe.ARMS]
    assert (-np.diff(free)).tolist() == [10 * 4 * 13, 9 * 13, 9 * 13]


def test_every_tie_costs_likelihood(metrics):
    """The models are nested, so no tied one fits better but by a local maximum."""
    for tests in metrics["tests"].values():
        for one in tests:
            assert all(t["statistic"] > 0 for t in one.values())


def test_more_utterances_are_heard_better(metrics):
    for by in metrics["right"].values():
        few, many = (np.mean(v) for v in by.values())
        assert 0.2 < few < many < 1


def test_the_data_are_3000_utterances_of_13_coefficients(parts):
    whole = data.utterances()
    assert [len(of) for of in whole] == [300] * 10
    assert sum(len(u) for of in whole for u in of) == 53_999
    train, test = parts
    frames = np.concatenate([u for of in train for u in of])
    np.testing.assert_allclose(frames.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(frames.std(0), 1, atol=1e-12)
    assert [len(of) for of in test] == [3] * 10


def test_one_variance_is_the_pooled_scatter_of_all_digits(parts):
    """At the fixed point: Σ γ(x − μ)² over every state of every digit, and the prior's 0.01
    for each, over the number of frames.
    """
    digits, _ = recipe.fitted(parts[0], "one for all")
    fitted = {f"d{i}": of for i, of in enumerate(parts[0])}
    eadem.hmm.fit(digits, fitted, n_iter=300, tol=1e-9)
    scatter, frames = 50 * 0.01, 0
    for name, hmm in digits.items():
        _, posterior = hmm.score_samples(fitted[name])
        X = np.concatenate(fitted[name])
        away = X[:, None] - hmm.means_
        scatter = scatter + (posterior[:, :, None] * away**2).sum((0, 1))
        frames += len(X)
    for hmm in digits.values():
        for row in hmm.covars.detach().numpy():
            np.testing.assert_allclose(row, scatter / frames, rtol=1e-4)


def test_moves_go_from_left_to_right(parts):
    digits, _ = recipe.fitted(parts[0], "untied")
    for hmm in digits.values():
        moves = hmm.transmat_
        assert (np.tril(moves, -1) == 0).all()
        assert (np.triu(moves, 2) == 0).all()
        assert hmm.startprob_.tolist() == [1, 0, 0, 0, 0]
