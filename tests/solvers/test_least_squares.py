"""Gauss–Newton through a plan: certified problems, and ties substituted by hand in scipy."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares as scipy_least_squares

from eadem.errors import ShapeError
from eadem.maps import Affine, Same
from eadem.maps.algebra import blocks, stack
from eadem.maps.base import LinearMap, Map
from eadem.solvers import SolverError, least_squares, levenberg

# NIST Statistical Reference Datasets, nonlinear regression (www.itl.nist.gov/div898/strd):
# x, y, model, start, certified values, certified residual sum of squares.
MISRA1A = (
    [
        77.6,
        114.9,
        141.1,
        190.8,
        239.9,
        289.0,
        332.8,
        378.4,
        434.8,
        477.3,
        536.8,
        593.1,
        689.1,
        760,
    ],
    [
        10.07,
        14.73,
        17.94,
        23.93,
        29.61,
        35.18,
        40.02,
        44.82,
        50.76,
        55.05,
        61.01,
        66.4,
        75.47,
        81.78,
    ],
    lambda x, b: b[0] * (1 - torch.exp(-b[1] * x)),
    [500.0, 0.0001],
    [2.3894212918e02, 5.5015643181e-04],
    1.2455138894e-01,
)
BOXBOD = (
    [1, 2, 3, 5, 7, 10],
    [109, 149, 149, 191, 213, 224],
    lambda x, b: b[0] * (1 - torch.exp(-b[1] * x)),
    [100.0, 0.75],
    [2.1380940889e02, 5.4723748542e-01],
    1.1680088766e03,
)
MGH09 = (
    [4, 2, 1, 0.5, 0.25, 0.167, 0.125, 0.1, 0.0833, 0.0714, 0.0625],
    [0.1957, 0.1947, 0.1735, 0.16, 0.0844, 0.0627, 0.0456, 0.0342, 0.0323, 0.0235, 0.0246],
    lambda x, b: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    [25.0, 39.0, 41.5, 39.0],
    [1.9280693458e-01, 1.9128232873e-01, 1.2305650693e-01, 1.3606233068e-01],
    3.0750560385e-04,
)


@dataclass(frozen=True, eq=False)
class Exp(Map):
    """A positive site, W = exp(θ)."""

    def expand(self, theta):
        return theta.exp()

    def lift(self, values):
        return values.log()

    def linearize(self, theta):
        return Times(theta.exp()).bind(self.out_shape)


@dataclass(frozen=True, eq=False)
class Times(LinearMap):
    factor: torch.Tensor

    def forward(self, theta):
        return self.factor * theta


def double(values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "problem", [MISRA1A, BOXBOD, MGH09], ids=["Misra1a", "BoxBOD", "MGH09"]
)
def test_certified_problems(problem):
    x, y, model, start, certified, chi2 = problem
    x, y = double(x), double(y)
    plan = Same().bind((len(start),))
    fit = least_squares(plan, lambda b: y - model(x, b), double(start))
    assert fit.converged, fit.message
    np.testing.assert_allclose(fit.theta, certified, rtol=1e-7)
    assert abs(fit.objective / chi2 - 1) < 1e-9
    assert all(b <= a for a, b in zip(fit.history, fit.history[1:], strict=False))


def curves(x, w):
    """Two decays: amplitudes w[0:2], rates w[2:4]."""
    return torch.stack([w[0] * torch.exp(-w[2] * x), w[1] * torch.exp(-w[3] * x)])


def test_ties_agree_with_constraints_substituted_by_hand():
    generator = np.random.default_rng(5)
    x = torch.linspace(0, 3, 40, dtype=torch.float64)
    clean = curves(x, double([2.0, 5.0, 1.3, 1.3]))
    y = clean + 0.02 * double(generator.normal(size=clean.shape))
    amplitudes = stack([Same().bind(()), Affine(2.0, 1.0).bind(())])
    rates = stack([Exp().bind(()), Exp().bind(())])
    plan = blocks([amplitudes, rates])
    fit = least_squares(plan, lambda w: (y - curves(x, w)) / 0.02, double([1.0, 0.0]))

    def by_hand(theta):
        a, r = theta[0], np.exp(theta[1])
        t = x.numpy()
        model = np.stack([a * np.exp(-r * t), (2 * a + 1) * np.exp(-r * t)])
        return ((y.numpy() - model) / 0.02).ravel()

    oracle = scipy_least_squares(by_hand, [1.0, 0.0], xtol=1e-15, ftol=1e-15, gtol=1e-15)
    np.testing.assert_allclose(fit.theta, oracle.x, rtol=1e-7)
    assert abs(fit.objective / (2 * oracle.cost) - 1) < 1e-10
    assert float(fit.values[1]) == pytest.approx(2 * float(fit.values[0]) + 1, rel=1e-14)
    pulled = plan.linearize(fit.theta).adjoint(fit.gradient)
    assert float(pulled.abs().max()) < 1e-6 * float(fit.gradient.abs().max())


def test_what_the_data_do_not_identify_is_left_where_it_was():
    plan = Same().bind((2,))
    fit = least_squares(plan, lambda w: w[:1] - 3.0, double([0.0, 7.0]))
    assert fit.converged
    torch.testing.assert_close(fit.theta, double([3.0, 7.0]))


def test_a_wrong_start_and_a_residual_that_is_not_finite_say_so():
    plan = Same().bind((2,))
    with pytest.raises(ShapeError, match="start"):
        least_squares(plan, lambda w: w, double([0.0]))
    with pytest.raises(SolverError, match="not finite"):
        least_squares(plan, lambda w: w.log(), double([-1.0, 1.0]))


def test_steps_that_end_up_a_share_too_long_are_seen_and_made_up_for(monkeypatch):
    """r = (z + 1, c·z² + z − 1), rotated (after Dennis & Schnabel, 1983, example 10.2.4): at
    z = 0 a Gauss–Newton step leaves the share c of what was left, for each z its own.
    """
    c = torch.tensor([0.9, 0.8, 0.6], dtype=torch.float64)
    turn = torch.linalg.qr(torch.vander(torch.tensor([1.0, 2.0, 4.0]).double())).Q

    def residual(w):
        z = turn @ w
        return torch.cat([z + 1, c * z * z + z - 1])

    def iterations():
        start = turn.T @ torch.tensor([0.05, -0.04, 0.06], dtype=torch.float64)
        found = least_squares(Same().bind((3,)), residual, start, tolerance=1e-7)
        assert found.converged
        torch.testing.assert_close(found.theta, torch.zeros(3).double(), rtol=0, atol=1e-5)
        return len(found.history)

    looking = iterations()
    monkeypatch.setattr(levenberg, "_looking_back", lambda *given: given[-1])
    assert 3 * looking < iterations()
