"""The same models as hmmlearn's: likelihood, posterior, best path, and one step of EM."""

from __future__ import annotations

import numpy as np
import pytest
from hmmlearn import hmm as peer

from eadem.hmm import HMMError, from_hmmlearn

LENGTHS = [60, 1, 39, 100]


def categorical(rng, states):
    model = peer.CategoricalHMM(states, n_features=4, init_params="")
    model.emissionprob_ = rng.dirichlet(np.ones(4), states)
    return model, rng.integers(0, 4, (200, 1))


def gaussian(kind):
    def make(rng, states):
        model = peer.GaussianHMM(states, kind, init_params="")
        model.means_ = rng.normal(size=(states, 2)) * 2 + 50
        half = rng.normal(size=(states, 2, 2))
        full = half @ half.transpose(0, 2, 1) + np.eye(2)
        diag = full.diagonal(axis1=1, axis2=2)
        model._covars_ = {
            "spherical": np.repeat(diag[:, :1], 2, axis=1),
            "diag": diag,
            "full": full,
            "tied": full[0],
        }[kind]
        return model, rng.normal(size=(200, 2)) * 2 + 50

    return make


def poisson(rng, states):
    model = peer.PoissonHMM(states, init_params="")
    model.lambdas_ = rng.uniform(1, 9, (states, 2))
    return model, rng.poisson(4, (200, 2))


def mixture(kind):
    def make(rng, states):
        model = peer.GMMHMM(states, 2, covariance_type=kind, init_params="")
        X = rng.normal(size=(200, 2)) * 2
        model._init(X)
        model.means_ = rng.normal(size=(states, 2, 2))
        model.covars_ = model.covars_ * rng.uniform(0.5, 1)
        model.weights_ = rng.dirichlet(np.ones(2), states)
        return model, X

    return make


KINDS = {
    "categorical": categorical,
    "poisson": poisson,
    **{f"gaussian {k}": gaussian(k) for k in ("spherical", "diag", "full", "tied")},
    **{f"mixture {k}": mixture(k) for k in ("spherical", "diag", "full", "tied")},
}


def pair(kind, states, seed=0):
    rng = np.random.default_rng(seed)
    model, X = KINDS[kind](rng, states)
    model.startprob_ = rng.dirichlet(np.ones(states))
    model.transmat_ = rng.dirichlet(np.ones(states), states)
    model.n_iter, model.tol = 1, -np.inf
    return model, from_hmmlearn(model), X


@pytest.mark.parametrize("states", [2, 13])
@pytest.mark.parametrize("kind", KINDS)
def test_questions_have_the_same_answers(kind, states):
    theirs, ours, X = pair(kind, states)
    assert ours.score(X, LENGTHS) == pytest.approx(theirs.score(X, LENGTHS), rel=1e-10)
    total, posterior = ours.score_samples(X, LENGTHS)
    assert total == pytest.approx(theirs.score(X, LENGTHS), rel=1e-10)
    np.testing.assert_allclose(posterior, theirs.predict_proba(X, LENGTHS), atol=1e-10)
    for algorithm in ("viterbi", "map"):
        value, path = ours.decode(X, LENGTHS, algorithm)
        expected, their_path = theirs.decode(X, LENGTHS, algorithm)
        assert value == pytest.approx(expected, rel=1e-10)
        np.testing.assert_array_equal(path, their_path)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_the_same(kind):
    theirs, ours, X = pair(kind, 3)
    theirs.fit(X, LENGTHS)
    ours.fit(X, LENGTHS)
    assert ours.monitor_.history == pytest.approx(list(theirs.monitor_.history), rel=1e-10)
    for name in ours.letters:
        if name == "covars":
            continue
        expected = getattr(theirs, f"{name}_")
        np.testing.assert_allclose(getattr(ours, f"{name}_"), expected, atol=1e-10, rtol=1e-10)
    if kind.startswith("gaussian"):
        covars = theirs._covars_
        covars = covars.mean(1) if kind == "gaussian spherical" else covars
        np.testing.assert_allclose(ours._value("covars"), covars, rtol=1e-9)


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith("mixture")])
def test_criteria_are_the_same_where_nothing_is_tied(kind):
    theirs, ours, X = pair(kind, 3)
    theirs.n_features = ours.n_features
    assert ours.aic(X, LENGTHS) == pytest.approx(theirs.aic(X, LENGTHS), rel=1e-12)
    assert ours.bic(X, LENGTHS) == pytest.approx(theirs.bic(X, LENGTHS), rel=1e-12)


@pytest.mark.parametrize("kind", ["categorical", "poisson", "gaussian diag", "gaussian full"])
def test_samples_are_the_same(kind):
    theirs, ours, _ = pair(kind, 3)
    for mine, expected in zip(
        ours.sample(20, random_state=7), theirs.sample(20, random_state=7), strict=True
    ):
        np.testing.assert_allclose(mine, expected, rtol=1e-10)


def test_another_model_is_refused():
    with pytest.raises(HMMError, match="MultinomialHMM is none of"):
        from_hmmlearn(peer.MultinomialHMM(2))
