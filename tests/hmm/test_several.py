"""Several models of one module, fitted together."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

import eadem
from eadem.hmm import CategoricalHMM, GaussianHMM, HMMError, PoissonHMM, fit
from eadem.hmm.fitting import Sums


def gaussian(K: int, seed: int, kind: str = "diag") -> GaussianHMM:
    rng = np.random.default_rng(seed)
    hmm = GaussianHMM(K, kind, n_features=2, init_params="", n_iter=6, tol=-np.inf)
    hmm.startprob_ = rng.dirichlet(np.ones(K))
    hmm.transmat_ = rng.dirichlet(np.full(K, 4.0), size=K)
    hmm.means_ = rng.normal(size=(K, 2))
    one = {"spherical": np.ones(K), "tied": np.eye(2)}
    hmm.covars_ = one.get(
        kind, np.ones((K, 2)) if kind == "diag" else np.stack([np.eye(2)] * K)
    )
    return hmm


def signals(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [seed + rng.normal(size=(n, 2)) + (np.arange(n) // 6 % 2)[:, None] for n in (30, 17)]


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_without_ties_each_is_fitted_by_itself(kind):
    models = nn.ModuleDict({"a": gaussian(2, 1, kind), "b": gaussian(3, 2, kind)})
    data = {"a": signals(1), "b": signals(4)}
    alone = {name: gaussian(K, K - 1, kind).fit(data[name]) for name, K in (("a", 2), ("b", 3))}
    history = fit(models, data, n_iter=6, tol=-np.inf).history
    for name, hmm in alone.items():
        for site in hmm.letters:
            np.testing.assert_allclose(
                models[name]._value(site), hmm._value(site), rtol=1e-9, atol=1e-12
            )
    total = sum(np.array(h.monitor_.history) for h in alone.values())
    np.testing.assert_allclose(history, total, rtol=1e-12)


def test_the_same_parameters_are_one_model_on_both_data():
    models = nn.ModuleDict({"a": gaussian(2, 1), "b": gaussian(2, 1)})
    with eadem.plan(models):
        for site in ("startprob", "transmat", "means", "covars"):
            eadem.tie(models, f"*.{site}")
    # The prior of the covariances is counted once for each site.
    models["a"].covars_prior = models["b"].covars_prior = 0.0
    one = gaussian(2, 1)
    one.covars_prior = 0.0
    one.fit(signals(1) + signals(4))
    found = fit(models, {"a": signals(1), "b": signals(4)}, n_iter=6, tol=-np.inf)
    np.testing.assert_allclose(found.history, one.monitor_.history, rtol=1e-12)
    np.testing.assert_allclose(models["b"].means_, one.means_, rtol=1e-10)
    np.testing.assert_allclose(models["b"].covars_, one.covars_, rtol=1e-9)
    np.testing.assert_allclose(models["a"].transmat_, one.transmat_, rtol=1e-10)


def test_ties_across_models_hold_and_no_step_falls():
    rng = np.random.default_rng(0)
    models = nn.ModuleDict()
    for name, K in (("a", 2), ("b", 3)):
        models[name] = CategoricalHMM(K, n_features=4, random_state=K)
    data = {n: [rng.integers(0, 4, k) for k in (40, 25)] for n in "ab"}
    with eadem.plan(models):
        eadem.tie(models, "a.emissionprob[0]", "b.emissionprob[2]")
        eadem.tie(models, "a.transmat[0, 0]", "b.transmat[1, 1]")
    history = fit(models, data, n_iter=30, tol=-np.inf).history
    assert np.diff(history).min() > -1e-9
    a, b = models["a"], models["b"]
    assert (a.emissionprob_[0] == b.emissionprob_[2]).all()
    assert a.transmat_[0, 0] == pytest.approx(b.transmat_[1, 1], abs=1e-14)
    for p in (a.emissionprob_, b.emissionprob_, a.transmat_, b.transmat_):
        np.testing.assert_allclose(p.sum(1), 1, atol=1e-12)


def test_rates_are_tied_across_models():
    models = nn.ModuleDict({n: PoissonHMM(1, n_features=1) for n in "ab"})
    eadem.tie(models, {"a.lambdas": eadem.Same(), "b.lambdas": eadem.Scale(2.0)})
    fit(models, {"a": [np.array([3, 5])], "b": [np.array([10, 6, 8])]}, n_iter=3)
    # θ of the greatest Σx·log θ − (2 + 2·3)·θ
    assert models["a"].lambdas_.item() == pytest.approx(32 / 8)


def test_what_is_not_a_model_stays():
    models = nn.ModuleDict({"a": gaussian(2, 1)})
    models.register_parameter("other", nn.Parameter(models["a"].means.detach() * 3))
    before = models.other.detach().clone()
    fit(models, {"a": signals(1)})
    assert (models.other == before).all()


def test_what_cannot_be_fitted_together_is_refused():
    models = nn.ModuleDict({"a": gaussian(2, 1), "b": gaussian(2, 2, "full")})
    with pytest.raises(HMMError, match=r"models are \['a', 'b'\].*data for \['a'\]"):
        fit(models, {"a": signals(1)})
    with pytest.raises(HMMError, match="one class"):
        fit(models, {"a": signals(1), "b": signals(2)})
    with pytest.raises(HMMError, match="no hidden Markov models"):
        fit(nn.ModuleDict(), {})


def test_alone_nothing_is_pooled():
    assert Sums.of([], {}, np.zeros(0, int), None).together([{"log_likelihood": 2.0}])[0] == 2.0
