"""The log density as a function of torch, its evidence, and fits along its gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import eadem
from eadem.hmm import CategoricalHMM, GaussianHMM, MixtureHMM, PoissonHMM
from eadem.hmm.density import recursion
from eadem.hmm.fitting import Member, begin

LENGTHS = [6, 1, 9]


def model(kind: str):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(16, 2)) + 4
    if kind == "categorical":
        hmm, X = CategoricalHMM(2, n_features=3), rng.integers(0, 3, (16, 1))
        hmm.emissionprob_ = rng.dirichlet(np.ones(3), 2)
    elif kind == "poisson":
        hmm, X = PoissonHMM(2, n_features=2), rng.poisson(4, (16, 2))
        hmm.lambdas_ = rng.uniform(2, 6, (2, 2))
    elif kind.startswith("mixture"):
        hmm, X = MixtureHMM(2, 2, n_features=2, covariance_type=kind.split()[1]), vectors
        begin(hmm, [Member("", hmm, hmm._data(X, np.array([0, 16])))], None)
        hmm.weights_ = rng.dirichlet(np.ones(2), 2)
    else:
        hmm, X = GaussianHMM(2, kind.split()[1], n_features=2), vectors
        begin(hmm, [Member("", hmm, hmm._data(X, np.array([0, 16])))], None)
    hmm.startprob_, hmm.transmat_ = rng.dirichlet(np.ones(2)), rng.dirichlet(np.ones(2), 2)
    return hmm, X


GAUSSIAN = ("spherical", "diag", "full", "tied")
KINDS = [
    "categorical",
    "poisson",
    *(f"{m} {k}" for m in ("gaussian", "mixture") for k in GAUSSIAN),
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_torchs_own_recursion(kind):
    hmm, X = model(kind)
    data = hmm._data(X, np.array([0, 6, 7, 16]))
    sites = {n: getattr(hmm, n) for n in hmm.letters}
    ours = hmm.log_density(X, LENGTHS)
    assert ours.shape == (3,)
    plain = recursion(hmm, data, sites)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    given = list(sites.values())
    mine = torch.autograd.grad((weight * ours).sum(), given)
    theirs = torch.autograd.grad((weight * plain).sum(), given)
    for name, a, b in zip(sites, mine, theirs, strict=True):
        if "covars" in name and "full" in kind + " full" and a.ndim > 2:
            a, b = a + a.transpose(-1, -2), b + b.transpose(-1, -2)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_the_gradient_is_count_over_probability():
    hmm, X = model("categorical")
    hmm.log_density(X).sum().backward()
    data = hmm._data(X, np.array([0, 16]))
    values = hmm._values()
    stats = hmm._expected(data, values)
    np.testing.assert_allclose(hmm.transmat.grad, stats["trans"] / values["transmat"])
    np.testing.assert_allclose(hmm.emissionprob.grad, stats["obs"] / values["emissionprob"])


def test_second_derivatives_are_exact():
    hmm, X = model("categorical")
    total = hmm.log_density(X, LENGTHS).sum()
    (slope,) = torch.autograd.grad(total, hmm.transmat, create_graph=True)
    (second,) = torch.autograd.grad(slope[0, 1], hmm.transmat)
    step = 1e-6
    found = []
    for sign in (1, -1):
        with torch.no_grad():
            hmm.transmat[1, 0] += sign * step
        (g,) = torch.autograd.grad(hmm.log_density(X, LENGTHS).sum(), hmm.transmat)
        found.append(float(g[0, 1]))
        with torch.no_grad():
            hmm.transmat[1, 0] -= sign * step
    assert float(second[1, 0]) == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-6)


MOVE = np.array([[0.80, 0.15, 0.05], [0.10, 0.80, 0.10], [0.10, 0.15, 0.75]])
EMIT = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.05, 0.15, 0.2, 0.6]])
#: A tie that the truth satisfies, and one that it does not.
TRUE, WRONG = ("transmat[0, 1]", "transmat[2, 1]"), ("transmat[0, 0]", "transmat[0, 1]")


def truth() -> CategoricalHMM:
    hmm = CategoricalHMM(3, n_features=4, init_params="", n_iter=3000, tol=1e-10)
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = [0.5, 0.3, 0.2], MOVE, EMIT
    return hmm


def sequences(count: int = 40, length: int = 50) -> list[np.ndarray]:
    return [truth().sample(length, random_state=i)[0] for i in range(count)]


def density(hmm: CategoricalHMM, batch: torch.Tensor) -> torch.Tensor:
    return hmm.log_density((batch.reshape(-1, 1), [batch.shape[1]] * len(batch)))


def test_a_score_test_agrees_with_the_likelihood_ratio_and_rejects_what_is_wrong():
    X = sequences()
    data = torch.tensor(np.stack(X))[:, :, 0]
    free, *others = (truth() for _ in range(3))
    for hmm in (free, *others):  # its fit is at the edge, which the data hardly identify
        hmm.startprob.requires_grad_(False)
    free.fit(X)
    for (pair, alike), tied in zip(((TRUE, True), (WRONG, False)), others, strict=True):
        eadem.tie(tied, *pair)
        tied.fit(X)
        found = eadem.score_test(tied, density, data, information="outer")
        # At the wrong fit's edge, where p is 10⁻¹⁸, the observed information is count/p².
        ratio = eadem.likelihood_ratio_test(tied, free, density, data, information="outer")
        assert found.df == ratio.df == 1
        assert ratio.statistic == pytest.approx(2 * (free.score(X) - tied.score(X)), abs=1e-6)
        assert (found.pvalue > 0.05) == alike
        assert (ratio.pvalue > 0.05) == alike
        if alike:
            observed = eadem.score_test(tied, density, data)
            assert observed.statistic == pytest.approx(ratio.statistic, rel=0.1, abs=0.05)


@pytest.mark.parametrize("ties", [[], [TRUE], [("emissionprob[0, 3]", "emissionprob[1, 3]")]])
def test_the_gradient_reaches_the_optimum_of_em_on_the_simplex(ties):
    X = sequences(20)
    one = truth()
    for pair in ties:
        eadem.tie(one, *pair)
    two = copy.deepcopy(one)
    one.fit(X)
    two.fit(X, method="gradient")
    assert two.score(X) == pytest.approx(one.score(X), abs=1e-5)
    assert (np.diff(two.monitor_.history) > 0).all()
    for name in ("startprob", "transmat", "emissionprob"):
        value = two._value(name)
        assert value.min() >= 0
        np.testing.assert_allclose(value.sum(-1), 1, atol=1e-13)


@pytest.mark.parametrize("kind", ["diag", "full"])
def test_the_gradient_reaches_the_optimum_of_gaussians(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(150, 2)) + np.repeat(rng.integers(0, 2, 30), 5)[:, None] * 4
    one = GaussianHMM(
        2, kind, n_features=2, covars_prior=0.0, random_state=0, n_iter=500, tol=1e-10
    )
    eadem.tie(one, "covars[0]", "covars[1]")
    begin(one, [Member("", one, one._data(X, np.array([0, 150])))], None)
    one.init_params = ""
    two = copy.deepcopy(one)
    one.fit(X)
    two.fit(X, method="gradient")
    assert two.score(X) == pytest.approx(one.score(X), abs=1e-6)
    np.testing.assert_allclose(two.covars_, one.covars_, atol=1e-3)


def test_non_linear_ties_of_moments_are_fitted_by_the_gradient():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 1)) * np.repeat(rng.choice([0.5, 3.0], 20), 5)[:, None]
    hmm = GaussianHMM(2, "spherical", n_features=1, covars_prior=0.0, n_iter=200, tol=1e-9)
    hmm.startprob_, hmm.transmat_ = [0.5, 0.5], [[0.8, 0.2], [0.2, 0.8]]
    hmm.means_, hmm.covars_ = [[0.0], [0.1]], [0.3, 5.0]
    hmm.init_params = ""
    plain = copy.deepcopy(hmm).fit(X)
    eadem.tie(hmm, "covars", via=eadem.Positive())
    with pytest.raises(eadem.Unsupported, match="gradient"):
        hmm.fit(X)
    hmm.fit(X, method="gradient")
    assert hmm.score(X) == pytest.approx(plain.score(X), abs=1e-5)
