"""The M-step against closed forms and an independent optimiser; EM on a mixture."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from eadem.errors import ShapeError
from eadem.maps.algebra import orthonormal
from eadem.maps.base import LinearMap
from eadem.maps.simplex import SumToOne
from eadem.solvers import SolverError, em, m_step


@dataclass(frozen=True, eq=False)
class Dense(LinearMap):
    """W = matrix·θ + shift."""

    matrix: torch.Tensor
    shift: torch.Tensor

    def infer(self, out_shape):
        return (self.matrix.shape[1],)

    def forward(self, theta):
        return (self.matrix @ theta).reshape(self.out_shape)

    @property
    def offset(self):
        return self.shift.reshape(self.out_shape)


def affine(constraints, target, shape):
    """The plan {p : constraints·p = target}, in an orthonormal basis."""
    constraints, target = double(constraints), double(target)
    n = constraints.shape[1]
    point = torch.linalg.pinv(constraints) @ target
    projector = torch.eye(n, dtype=torch.float64) - torch.linalg.pinv(constraints) @ constraints
    return Dense(orthonormal(projector), point).bind(shape)


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def row_sums(shape):
    k, m = shape
    return np.kron(np.eye(k), np.ones(m))


def difference(shape, a, b):
    row = np.zeros(shape)
    row[a], row[b] = 1.0, -1.0
    return row.reshape(1, -1)


counts_of = st.integers(0, 10**6).map(
    lambda seed: np.random.default_rng(seed).gamma(0.7, 20.0, size=(3, 4)) + 1e-3
)


@settings(max_examples=25, deadline=None)
@given(counts_of)
def test_rows_are_normalised(counts):
    plan = SumToOne().bind((3, 4))
    p = plan.expand(m_step(plan, double(counts), torch.zeros(3, 3, dtype=torch.float64)))
    np.testing.assert_allclose(p, counts / counts.sum(1, keepdims=True), rtol=1e-10)


@settings(max_examples=25, deadline=None)
@given(counts_of)
def test_whole_rows_tied_are_pooled_then_normalised(counts):
    shape = (3, 4)
    ties = [difference(shape, (0, j), (2, j)) for j in range(4)]
    plan = affine(np.vstack([row_sums(shape), *ties]), [1, 1, 1, 0, 0, 0, 0], shape)
    p = plan.expand(m_step(plan, double(counts), plan.lift(torch.full(shape, 0.25).double())))
    pooled = counts[0] + counts[2]
    np.testing.assert_allclose(p[0], pooled / pooled.sum(), rtol=1e-9)
    np.testing.assert_allclose(p[2], p[0], rtol=1e-12)
    np.testing.assert_allclose(p[1], counts[1] / counts[1].sum(), rtol=1e-9)


@settings(max_examples=25, deadline=None)
@given(counts_of)
def test_equal_entries_of_one_row_share_its_pooled_count(counts):
    shape = (3, 4)
    plan = affine(
        np.vstack([row_sums(shape), difference(shape, (0, 1), (0, 3))]), [1, 1, 1, 0], shape
    )
    p = plan.expand(m_step(plan, double(counts), plan.lift(torch.full(shape, 0.25).double())))
    expected = (counts[0, 1] + counts[0, 3]) / (2 * counts[0].sum())
    np.testing.assert_allclose(p[0, [1, 3]], expected, rtol=1e-9)


def test_entries_tied_across_rows_that_differ_elsewhere():
    shape, a, b = (2, 3), (0, 1), (1, 2)
    counts = np.array([[5.0, 9.0, 2.0], [4.0, 1.0, 3.0]])
    plan = affine(np.vstack([row_sums(shape), difference(shape, a, b)]), [1, 1, 0], shape)
    start = plan.lift(torch.full(shape, 1 / 3).double())
    p = plan.expand(m_step(plan, double(counts), start)).numpy()

    def negative(tied):  # the rest of each row, given the tied entry, is normalised counts
        rest = [5.0 * np.log(5 / 7) + 2.0 * np.log(2 / 7), 4.0 * np.log(0.8) + np.log(0.2)]
        return -(12.0 * np.log(tied) + (7.0 + 5.0) * np.log(1 - tied) + sum(rest))

    oracle = minimize(lambda t: negative(t[0]), [0.3], bounds=[(1e-6, 1 - 1e-6)], tol=1e-14)
    assert p[a] == pytest.approx(p[b], rel=1e-14)
    assert p[a] == pytest.approx(0.5, rel=1e-10)  # 12 / (12 + 12)
    assert p[a] == pytest.approx(oracle.x[0], rel=1e-5)
    pooled = plan.adjoint(double(counts) / double(p))
    assert float(pooled.abs().max()) < 1e-8


def test_a_count_of_zero_goes_to_the_floor():
    plan = SumToOne().bind((5,))
    counts = double([0.0, 3.0, 0.0, 5.0, 0.0])
    p = plan.expand(m_step(plan, counts, torch.zeros(4, dtype=torch.float64)))
    np.testing.assert_allclose(p, counts / 8, atol=1e-12)
    assert float(p.min()) > 0


def test_a_coordinate_held_at_zero_stays_and_refuses_counts():
    half = 0.5**0.5
    plan = Dense(double([[0.0], [half], [-half]]), double([0.0, 0.5, 0.5])).bind((3,))
    start = plan.lift(double([0.0, 0.5, 0.5]))
    p = plan.expand(m_step(plan, double([0.0, 1.0, 3.0]), start))
    np.testing.assert_allclose(p, [0.0, 0.25, 0.75], atol=1e-12)
    with pytest.raises(SolverError, match="held at zero"):
        m_step(plan, double([1.0, 1.0, 3.0]), start)


def test_a_start_that_is_not_positive_is_refused():
    plan = SumToOne().bind((2,))
    with pytest.raises(SolverError, match="start"):
        m_step(plan, double([1.0, 1.0]), double([0.9]))
    with pytest.raises(ShapeError, match="counts"):
        m_step(plan, double([1.0]), double([0.0]))
    with pytest.raises(SolverError, match="not negative"):
        m_step(plan, double([1.0, -1.0]), double([0.0]))


def mixture(data):
    """Two coins thrown ten times each; sites are (weights, heads₁, heads₂) as three rows."""

    def e_step(p):
        weights, heads = p[0], p[1:]
        tails = 10 - data
        joint = weights.log() + data[:, None] * heads[:, 0].log()
        joint = joint + tails[:, None] * heads[:, 1].log()
        total = torch.logsumexp(joint, 1)
        share = (joint - total[:, None]).exp()
        heads_counts = torch.stack([share.T @ data, share.T @ tails], 1)
        return float(total.sum()), torch.cat([share.sum(0)[None], heads_counts])

    return e_step


def test_em_is_monotone_and_ends_where_the_pooled_gradient_vanishes():
    generator = np.random.default_rng(0)
    which = generator.random(200) < 0.3
    data = double(
        np.where(which, generator.binomial(10, 0.8, 200), generator.binomial(10, 0.3, 200))
    )
    plan = SumToOne().bind((3, 2))
    start = plan.lift(double([[0.5, 0.5], [0.7, 0.3], [0.4, 0.6]]))
    fit = em(plan, mixture(data), start, tolerance=1e-14)
    assert fit.converged, fit.message
    assert all(b >= a for a, b in zip(fit.history, fit.history[1:], strict=False))
    pulled = plan.adjoint(fit.gradient.reshape(3, 2))
    assert float(pulled.abs().max()) < 1e-3
    assert float(fit.values[2]) == pytest.approx(0.8, abs=0.05)


def test_counts_of_another_likelihood_are_refused():
    plan = SumToOne().bind((2,))

    def wrong(p):
        return float(p.flatten()[0]), double([1.0, 9.0])

    with pytest.raises(SolverError, match="fell"):
        em(plan, wrong, double([0.0]))


def test_em_refuses_a_start_outside_the_simplex_before_it_counts_anything():
    plan = SumToOne().bind((2,))

    def never(p):
        raise AssertionError("the E-step was called")

    with pytest.raises(SolverError, match="start from positive"):
        em(plan, never, double([0.9]))
