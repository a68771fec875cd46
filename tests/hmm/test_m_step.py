"""No EM step lowers the likelihood, whatever is tied; and closed forms are the maximum."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import eadem
from eadem.bind import resolved
from eadem.errors import TieConflict
from eadem.hmm import CategoricalHMM, GaussianHMM, HMMError, MixtureHMM, PoissonHMM
from eadem.hmm.fitting import Member, distributions
from eadem.hmm.mstep import Affine, Simplex

K = 3


def never_falls(hmm) -> None:
    history = np.array(hmm.monitor_.history)
    assert len(history) > 1
    worst = np.diff(history).min()
    assert worst >= -1e-11 * max(1.0, np.abs(history).max()), f"a step lost {-worst}"


def sums_to_one(hmm) -> None:
    for name, kind in hmm.site_constraints.items():
        if kind == "rows":
            value = hmm._value(name)
            assert value.min() >= -1e-15
            np.testing.assert_allclose(value.sum(-1), 1, atol=1e-12)


def categorical(seed: int = 0) -> tuple[CategoricalHMM, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    X = [rng.integers(0, 4, n) for n in (30, 1, 12, 40)]
    hmm = CategoricalHMM(K, n_features=4, n_iter=25, tol=-np.inf, random_state=seed)
    return hmm, X


ENTRIES = st.tuples(
    st.sampled_from(["transmat", "emissionprob"]), st.integers(0, K - 1), st.integers(0, 2)
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(ENTRIES, ENTRIES), min_size=1, max_size=3), st.integers(0, 99))
def test_no_step_falls_under_random_ties_of_entries(pairs, seed):
    hmm, X = categorical(seed)
    with eadem.plan(hmm):
        for one, two in pairs:
            if one != two:
                eadem.tie(hmm, *(f"{name}[{i}, {j}]" for name, i, j in (one, two)))
    try:
        hmm.fit(X)
    except TieConflict:
        return  # the ties leave no positive probabilities
    never_falls(hmm)
    sums_to_one(hmm)
    for (a, i, j), (b, k, l) in pairs:
        assert hmm._value(a)[i, j] == pytest.approx(hmm._value(b)[k, l], abs=1e-14)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_no_step_falls_under_random_ties_of_moments(data):
    kind = data.draw(st.sampled_from(["spherical", "diag", "full", "tied"]))
    seed = data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    X = [rng.normal(size=(n, 2)) + rng.integers(0, 3, (n, 1)) * 2 for n in (60, 40)]
    hmm = GaussianHMM(
        K, kind, n_features=2, covars_prior=0.0, n_iter=12, tol=-np.inf, random_state=seed
    )
    scale = data.draw(st.sampled_from([1.0, -1.0, 0.5]))
    shift = data.draw(st.sampled_from([0.0, 1.0]))
    chosen = eadem.Affine(scale, shift) if shift else eadem.Scale(scale)
    eadem.tie(hmm, {"means[0]": eadem.Same(), "means[2]": chosen})
    if kind in ("full", "diag", "spherical") and data.draw(st.booleans()):
        eadem.tie(hmm, "covars[0]", "covars[1]")
    if kind == "full" and data.draw(st.booleans()):
        eadem.tie(hmm, "covars[2, 0, 0]", "covars[2, 1, 1]")
    if data.draw(st.booleans()):
        eadem.tie(hmm, "transmat[0]", "transmat[1]")
    with contextlib.suppress(HMMError):  # where a variance went to zero, and ℓ without bound
        hmm.fit(X)
    never_falls(hmm)
    sums_to_one(hmm)
    np.testing.assert_allclose(hmm.means_[2], scale * hmm.means_[0] + shift, atol=1e-12)


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_no_step_of_a_mixture_falls(kind):
    rng = np.random.default_rng(1)
    X = [rng.normal(size=(80, 2)) + rng.integers(0, 4, (80, 1)) * 3 for _ in range(2)]
    hmm = MixtureHMM(
        2, 2, covariance_type=kind, n_features=2, n_iter=15, tol=-np.inf, random_state=0
    )
    eadem.tie(hmm, "weights[0]", "weights[1]")
    if kind == "diag":
        eadem.tie(hmm, "covars[0, 0]", "covars[1, 1]")
    hmm.fit(X)
    never_falls(hmm)
    sums_to_one(hmm)


def test_no_step_of_tied_rates_falls():
    rng = np.random.default_rng(1)
    X = rng.poisson(rng.integers(1, 4, (150, 1)) * 4)
    hmm = PoissonHMM(3, n_features=1, n_iter=20, tol=-np.inf, random_state=0)
    hmm.startprob_, hmm.transmat_ = np.full(3, 1 / 3), np.full((3, 3), 1 / 3)
    hmm.lambdas_ = [[4.0], [8.0], [13.0]]
    hmm.init_params = ""
    eadem.tie(hmm, {"lambdas[0]": eadem.Same(), "lambdas[1]": eadem.Scale(2.0)})
    eadem.tie(hmm, {"lambdas[0]": eadem.Same(), "lambdas[2]": eadem.Affine(2.0, 5.0)})
    hmm.fit(X)
    never_falls(hmm)
    low, middle, high = hmm.lambdas_[:, 0]
    assert (middle, high) == pytest.approx((2 * low, 2 * low + 5), rel=1e-12)


def step(hmm, counts: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Simplex]:
    """The probabilities that one M-step makes of counts."""
    affine = Affine.of(resolved(hmm))
    theta = eadem.bind.free_vector(hmm).numpy().copy()
    simplex = Simplex(
        affine,
        distributions(affine, [Member("", hmm, None)]),
        theta,
        np.zeros(len(theta), bool),
    )
    flat = np.concatenate([counts[n].reshape(-1) for n in affine.where])
    return affine.split(affine.expand(simplex.maximise(flat, theta))), simplex


def counted(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"startprob": (K,), "transmat": (K, K), "emissionprob": (K, 4)}
    return {n: rng.uniform(0.5, 9, s) for n, s in shapes.items()}


def test_whole_rows_pool_and_then_normalise():
    hmm, _ = categorical()
    eadem.tie(hmm, "emissionprob[0]", "emissionprob[2]")
    c = counted()
    found, simplex = step(hmm, c)
    assert not simplex.general
    both = c["emissionprob"][0] + c["emissionprob"][2]
    for row in (0, 2):
        np.testing.assert_allclose(found["emissionprob"][row], both / both.sum(), rtol=1e-14)
    alone = c["transmat"] / c["transmat"].sum(1, keepdims=True)
    np.testing.assert_allclose(found["transmat"], alone, rtol=1e-14)


def test_equal_entries_of_a_row_share_their_counts():
    hmm, _ = categorical()
    eadem.tie(hmm, "emissionprob[1, 0]", "emissionprob[1, 3]")
    eadem.tie(hmm, "emissionprob[0, 0]", via=eadem.Fixed(0.25))
    c = counted()
    found, simplex = step(hmm, c)
    assert not simplex.general
    row = c["emissionprob"][1]
    assert found["emissionprob"][1, 0] == pytest.approx((row[0] + row[3]) / 2 / row.sum())
    assert found["emissionprob"][1, 1] == pytest.approx(row[1] / row.sum())
    rest = c["emissionprob"][0, 1:]
    np.testing.assert_allclose(found["emissionprob"][0, 1:], 0.75 * rest / rest.sum())


def test_entries_tied_across_rows_satisfy_the_multipliers():
    """θ_g = C_g / Σ_r λ_r n_rg: the gradient is a combination of the row sums'."""
    hmm, _ = categorical()
    eadem.tie(hmm, "transmat[0, 1]", "transmat[1, 2]")
    hmm.normalize()
    c = counted()
    found, simplex = step(hmm, c)
    assert len(simplex.general) == 1
    p, n = found["transmat"], c["transmat"]
    one, two = n[0, 0] / p[0, 0], n[1, 0] / p[1, 0]
    assert n[0, 2] / p[0, 2] == pytest.approx(one, rel=1e-7)
    assert n[1, 1] / p[1, 1] == pytest.approx(two, rel=1e-7)
    assert (n[0, 1] + n[1, 2]) / p[0, 1] == pytest.approx(one + two, rel=1e-7)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-14)
    np.testing.assert_allclose(p[2], n[2] / n[2].sum(), rtol=1e-14)


def test_zeros_stay_zero():
    hmm, X = categorical()
    hmm.init_params = "e"
    hmm.startprob_ = [1.0, 0.0, 0.0]
    move = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]])
    hmm.transmat_ = move
    hmm.fit(X)
    assert (hmm.transmat_[move == 0] == 0).all()
    assert (hmm.startprob_ == [1, 0, 0]).all()
    never_falls(hmm)


def test_a_state_never_visited_keeps_its_row():
    hmm, X = categorical()
    hmm.init_params = ""
    hmm.startprob_ = [0.5, 0.5, 0.0]
    hmm.transmat_ = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]]
    hmm.emissionprob_ = np.random.default_rng(0).dirichlet(np.ones(4), 3)
    hmm.fit(X)
    np.testing.assert_allclose(hmm.transmat_[2], [0.2, 0.3, 0.5])


def test_means_are_weighted_by_precision():
    """μ₁ = −μ₀ with unlike variances, against the minimum found numerically."""
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(2, 0.3, 50), rng.normal(-1.8, 1.5, 70)])
    hmm = GaussianHMM(2, "spherical", n_features=1, covars_prior=0.0, params="m", n_iter=1)
    hmm.startprob_, hmm.transmat_ = [0.5, 0.5], np.full((2, 2), 0.5)
    hmm.means_, hmm.covars_ = [[1.9], [-1.9]], [0.1, 2.0]
    hmm.init_params = ""
    posterior = hmm.predict_proba(X)
    eadem.tie(hmm, {"means[0]": eadem.Same(), "means[1]": eadem.Scale(-1.0)})
    hmm.fit(X)
    grid = np.linspace(1.5, 2.5, 200_001)
    n, s = posterior.sum(0), posterior.T @ X
    loss = (n[0] * grid**2 - 2 * grid * s[0]) / 0.1 + (n[1] * grid**2 + 2 * grid * s[1]) / 2.0
    assert hmm.means_[0, 0] == pytest.approx(grid[loss.argmin()], abs=1e-5)


def test_tied_covariances_of_two_states_pool():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 2)) + rng.integers(0, 3, (200, 1)) * 3
    hmm = GaussianHMM(3, "full", n_features=2, covars_prior=0.0, random_state=0, n_iter=1)
    hmm.fit(X)
    hmm.init_params = ""
    eadem.tie(hmm, "covars[0]", "covars[2]", start="mean")
    data = hmm._data(X, np.array([0, 200]))
    hmm.means_ = hmm.means_
    posterior = hmm.predict_proba(X)
    hmm.params = "c"
    means = hmm.means_
    hmm.fit(X)
    total = np.zeros((2, 2))
    for k in (0, 2):
        away = X - means[k]
        total += (away * posterior[:, k : k + 1]).T @ away
    expected = total / posterior[:, [0, 2]].sum()
    np.testing.assert_allclose(hmm.covars_[0], expected, rtol=1e-9)
    np.testing.assert_array_equal(hmm.covars_[0], hmm.covars_[2])
    assert data.frames == 200


def test_params_left_out_do_not_move_nor_what_is_tied_to_them():
    hmm, X = categorical()
    hmm.fit(X)
    hmm.init_params, hmm.params = "", "st"
    before = hmm.emissionprob_
    eadem.tie(hmm, "transmat[0, 0]", "emissionprob[0, 0]", start=torch.tensor(before[0, 0]))
    hmm.normalize()
    hmm.fit(X)
    np.testing.assert_array_equal(hmm.emissionprob_[1:], before[1:])
    assert hmm.transmat_[0, 0] == hmm.emissionprob_[0, 0]
    never_falls(hmm)


def test_ties_that_leave_no_probabilities_are_refused():
    hmm, X = categorical()
    with eadem.plan(hmm):
        for j in range(4):
            eadem.tie(
                hmm,
                {
                    "emissionprob[0, 0]": eadem.Same(),
                    f"emissionprob[1, {j}]": eadem.Affine(1.0, 0.3),
                },
            )
    with pytest.raises(TieConflict, match="no positive probabilities"):
        hmm.fit(X)


@pytest.mark.slow
def test_an_m_step_of_whole_rows_costs_nothing_beside_the_e_step():
    rng = np.random.default_rng(0)
    hmm = CategoricalHMM(16, n_features=32, random_state=0, n_iter=2, tol=-np.inf)
    eadem.tie(hmm, "emissionprob[0]", "emissionprob[1]")
    X = rng.integers(0, 32, 20_000)
    hmm.fit(X)
    affine = Affine.of(resolved(hmm))
    theta = eadem.bind.free_vector(hmm).numpy().copy()
    simplex = Simplex(
        affine,
        distributions(affine, [Member("", hmm, None)]),
        theta,
        np.zeros(len(theta), bool),
    )
    data, values = hmm._data(X[:, None], np.array([0, 20_000])), hmm._values()
    counts = np.ones(affine.phi.shape[0])

    def best(work):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    maximise = best(lambda: simplex.maximise(counts, theta))
    assert maximise < 0.1 * best(lambda: hmm._expected(data, values))
