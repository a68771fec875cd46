"""The models as modules and as estimators: values, ties, copies, files, and bad input."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import eadem
from eadem.hmm import (
    CategoricalHMM,
    ConvergenceMonitor,
    GaussianHMM,
    HMMError,
    MixtureHMM,
    NotFitted,
    PoissonHMM,
)

X = np.random.default_rng(0).integers(0, 4, (60, 1))
V = np.random.default_rng(1).normal(size=(60, 2))
MODELS = {
    "categorical": (lambda **k: CategoricalHMM(2, n_features=4, **k), X),
    "poisson": (lambda **k: PoissonHMM(2, **k), X),
    "gaussian": (lambda **k: GaussianHMM(2, "full", **k), V),
    "mixture": (lambda **k: MixtureHMM(2, 2, **k), V),
}


def tied() -> CategoricalHMM:
    hmm = CategoricalHMM(3, n_features=4, random_state=0, n_iter=5)
    eadem.tie(hmm, "emissionprob[0]", "emissionprob[2]")
    eadem.tie(hmm, "transmat[0, 1]", "transmat[1, 2]")
    return hmm


@pytest.mark.parametrize("kind", MODELS)
def test_it_is_a_module_and_an_estimator(kind):
    from sklearn.base import clone

    make, data = MODELS[kind]
    hmm = make(random_state=3, n_iter=4, tol=-np.inf)
    with pytest.raises(NotFitted, match="has not been set"):
        hmm.score(data)
    assert not hasattr(hmm, "transmat_")
    assert hmm.fit(data, [20, 40]) is hmm
    assert hmm.monitor_.iter == len(hmm.monitor_.history) == 4
    again = clone(hmm)
    assert again.get_params() == hmm.get_params()
    assert not hasattr(again, "transmat_")
    assert again.fit(data, [20, 40]).score(data) == pytest.approx(hmm.score(data))
    assert hmm.set_params(n_iter=7).n_iter == 7
    with pytest.raises(HMMError, match="no parameter 'n_iters'"):
        hmm.set_params(n_iters=7)
    sampled, states = hmm.sample(5, random_state=0)
    assert len(sampled) == len(states) == 5
    assert dict(hmm.named_parameters()).keys() == set(hmm.letters)
    other = pickle.loads(pickle.dumps(hmm))
    assert other.score(data) == hmm.score(data)


def test_a_list_of_sequences_is_one_array_with_lengths():
    hmm = MODELS["categorical"][0](random_state=0).fit([X[:20], X[20:]])
    assert hmm.score([X[:20], X[20:]]) == pytest.approx(hmm.score(X, [20, 40]), rel=1e-15)
    assert hmm.score((torch.from_numpy(X), [20, 40])) == pytest.approx(hmm.score(X, [20, 40]))
    assert hmm.log_density([X[:20], X[20:]]).sum().item() == pytest.approx(
        hmm.score(X, [20, 40])
    )


def test_ties_before_the_first_fit_survive_it():
    hmm = tied().fit(X)
    np.testing.assert_array_equal(hmm.emissionprob_[0], hmm.emissionprob_[2])
    assert hmm.transmat_[0, 1] == hmm.transmat_[1, 2]
    assert eadem.counts(hmm).free == 2 + 6 - 1 + 6
    assert eadem.summary(hmm).free == eadem.counts(hmm).free
    k = eadem.counts(hmm).free
    assert hmm.aic(X) == pytest.approx(-2 * hmm.score(X) + 2 * k)
    assert hmm.bic(X) == pytest.approx(-2 * hmm.score(X) + k * np.log(60))


def test_rows_and_symmetry_are_counted():
    free = {"spherical": 3, "diag": 6, "full": 9, "tied": 3}
    for kind, covars in free.items():
        hmm = GaussianHMM(3, kind, n_features=2)
        assert eadem.counts(hmm).free == 2 + 6 + 6 + covars
    assert eadem.counts(torch.nn.ModuleDict({"a": hmm, "b": hmm.fit(V)})).free == 17


def test_a_tied_model_is_saved_loaded_copied_and_cloned(tmp_path):
    from sklearn.base import clone

    hmm = tied().fit(X)
    eadem.save(hmm, tmp_path / "hmm.safetensors")
    other = CategoricalHMM(3, n_features=4)
    eadem.apply(other, eadem.record(hmm))
    eadem.load(other, tmp_path / "hmm.safetensors")
    for each in (other, copy.deepcopy(hmm), pickle.loads(pickle.dumps(hmm))):
        assert each.score(X) == hmm.score(X)
        assert each.fit(X).transmat_[0, 1] == each.transmat_[1, 2]
    fresh = clone(hmm)
    assert len(eadem.ties(fresh)) == 2
    assert fresh.fit(X).score(X) == pytest.approx(tied().fit(X).score(X))


def test_a_state_dict_is_probabilities():
    hmm = CategoricalHMM(2, random_state=0).fit(X)
    other = CategoricalHMM(2)
    other.load_state_dict(hmm.state_dict())
    assert other.n_features == 4
    np.testing.assert_array_equal(other.emissionprob_, hmm.emissionprob_)
    assert other.score(X) == hmm.score(X)


def test_values_that_ties_cannot_hold_are_refused():
    hmm = tied()
    with pytest.raises(HMMError, match="the ties of emissionprob cannot hold"):
        hmm.emissionprob_ = np.random.default_rng(0).dirichlet(np.ones(4), 3)
    row = [0.1, 0.2, 0.3, 0.4]
    hmm.emissionprob_ = [row, [0.25] * 4, row]
    np.testing.assert_allclose(hmm.emissionprob_[2], row)


def test_rows_that_a_tie_broke_are_made_whole():
    hmm = CategoricalHMM(2, n_features=2)
    hmm.startprob_, hmm.emissionprob_ = [0.5, 0.5], np.eye(2)
    hmm.transmat_ = [[0.9, 0.1], [0.4, 0.6]]
    eadem.tie(hmm, "transmat[0, 0]", "transmat[1, 1]")
    with pytest.raises(HMMError, match="do not sum to 1"):
        hmm.score(np.array([0, 1]))
    hmm.normalize()
    np.testing.assert_allclose(hmm.transmat_.sum(1), 1)
    assert np.isfinite(hmm.score(np.array([0, 1])))


def test_a_missing_symbol_says_nothing():
    hmm = MODELS["categorical"][0](random_state=0).fit(X)
    B, p, A = hmm.emissionprob_, hmm.startprob_, hmm.transmat_
    by_hand = np.log((p * B[:, 1]) @ A @ (A @ B[:, 2]))
    assert hmm.score(np.array([1.0, np.nan, 2.0])) == pytest.approx(by_hand)
    with_gaps = X.astype(float)
    with_gaps[::7] = np.nan
    hmm.set_params(n_iter=20, tol=-np.inf).fit(with_gaps)
    assert (np.diff(hmm.monitor_.history) > -1e-10).all()


def test_missing_features_are_left_out():
    hmm = GaussianHMM(2, "diag", random_state=0, covars_prior=0.0).fit(V)
    seen = np.array([[np.nan, 0.5], [0.1, np.nan], [np.nan, np.nan]])
    logs = -0.5 * (
        np.log(2 * np.pi * hmm._value("covars"))[None]
        + (np.nan_to_num(seen)[:, None] - hmm.means_) ** 2 / hmm._value("covars")
    )
    logs = np.where(np.isnan(seen)[:, None], 0.0, logs).sum(-1)
    alpha = np.log(hmm.startprob_) + logs[0]
    for row in logs[1:]:
        alpha = logsumexp(alpha[:, None] + np.log(hmm.transmat_), axis=0) + row
    assert hmm.score(seen) == pytest.approx(logsumexp(alpha))
    gaps = V.copy()
    gaps[::5, 0] = gaps[1::6, 1] = np.nan
    hmm.set_params(n_iter=20, tol=-np.inf).fit(gaps)
    assert (np.diff(hmm.monitor_.history) > -1e-10).all()
    full = GaussianHMM(2, "full", random_state=0)
    with pytest.raises(HMMError, match="lack some of their features"):
        full.fit(gaps)
    gaps[np.isnan(gaps).any(1)] = np.nan
    assert np.isfinite(full.fit(gaps).score(gaps))


def test_missing_counts_are_left_out():
    counts = X.astype(float)
    counts[3] = np.nan
    hmm = PoissonHMM(1).fit(counts)
    assert hmm.lambdas_[0, 0] == pytest.approx(np.nanmean(counts))


def test_priors_are_counts_of_one_less():
    hmm = CategoricalHMM(1, n_features=4, emissionprob_prior=3.0).fit(X)
    expected = np.bincount(X[:, 0], minlength=4) + 2.0
    np.testing.assert_allclose(hmm.emissionprob_[0], expected / expected.sum())
    rates = PoissonHMM(1, lambdas_prior=5.0, lambdas_weight=2.0).fit(X)
    assert rates.lambdas_[0, 0] == pytest.approx((5 + X.sum()) / (2 + 60))


def test_the_best_of_several_starts_is_kept():
    many = CategoricalHMM(3, n_features=4, random_state=5, n_init=6, n_iter=60, tol=1e-6)
    many.fit(X)
    rng, found = np.random.RandomState(5), []
    for _ in range(6):
        one = CategoricalHMM(3, n_features=4, n_iter=60, tol=1e-6)
        one.random_state = int(rng.randint(2**31 - 1))
        found.append(one.fit(X).score(X))
    assert many.score(X) == pytest.approx(max(found), rel=1e-12)
    assert many.random_state == 5


def test_another_criterion_of_convergence():
    class Three(ConvergenceMonitor):
        @property
        def converged(self) -> bool:
            return self.iter == 3

    hmm = MODELS["categorical"][0](random_state=0)
    hmm.monitor_ = Three(0.0, 10, False)
    assert len(hmm.fit(X).monitor_.history) == 3


def test_a_large_offset_costs_no_digits():
    near = GaussianHMM(2, "full", random_state=0, n_iter=20).fit(V)
    far = GaussianHMM(2, "full", random_state=0, n_iter=20).fit(V + 1e7)
    assert far.score(V + 1e7) == pytest.approx(near.score(V), rel=1e-6)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda h: h.fit([[0.5]]), "integers"),
        (lambda h: h.fit([[-1]]), "start at 0"),
        (lambda h: h.fit([[7]]), "symbols up to 3"),
        (lambda h: h.fit(np.zeros((3, 2), int)), "one column"),
        (lambda h: h.fit(np.zeros((2, 2, 2))), "frames, features"),
        (lambda h: h.fit(np.array([["a"]])), "must be numbers"),
        (lambda h: h.fit(np.array([[np.inf]])), "infinite"),
        (lambda h: h.fit(X, [20, 20]), "add up to the 60 rows"),
        (lambda h: h.fit(X[:0]), "no observations"),
        (lambda h: h.fit(X, method="newton"), "'em' or 'gradient'"),
        (lambda h: setattr(h, "startprob_", [0.5, 0.6]), "sum to 1"),
        (lambda h: setattr(h, "startprob_", [1.5, -0.5]), "below 0"),
        (lambda h: setattr(h, "transmat_", [0.5, 0.5]), "shape"),
        (lambda h: h.fit(X).decode(X, algorithm="best"), "'viterbi' or 'map'"),
        (lambda h: CategoricalHMM(0), "a state at least"),
        (lambda h: GaussianHMM(2, "round"), "covariance_type"),
        (lambda h: MixtureHMM(2, 0), "at least one component"),
        (lambda h: PoissonHMM(2).fit([[1.5]]), "integers, not negative"),
        (lambda h: GaussianHMM(2, n_features=3).fit(V), "3 features; X has 2"),
        (lambda h: CategoricalHMM(2, random_state="x").fit(X), "neither a seed"),
    ],
)
def test_bad_input_is_refused(ask, message):
    with pytest.raises(eadem.EademError, match=message):
        ask(CategoricalHMM(2, n_features=4))


def test_an_impossible_sequence_cannot_be_fitted():
    hmm = CategoricalHMM(1, n_features=2, init_params="")
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = [1.0], [[1.0]], [[1.0, 0.0]]
    assert hmm.score([[1]]) == -np.inf
    with pytest.raises(HMMError, match="likelihood zero"):
        hmm.fit([[1]])


def test_without_numba_the_extra_is_named():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import eadem\n"
        "try: eadem.hmm\n"
        "except eadem.MissingPackage as e: print(e)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "eadem[hmm]" in found.stdout
