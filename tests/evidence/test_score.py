"""The score statistic against closed forms, its invariances, and its size by simulation."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats

from eadem.evidence import EvidenceError, score_statistic
from eadem.maps import Same
from eadem.maps.algebra import stack
from eadem.maps.base import LinearMap
from eadem.maps.simplex import SumToOne


@dataclass(frozen=True, eq=False)
class Matrix(LinearMap):
    """W = matrix·θ."""

    matrix: torch.Tensor

    def infer(self, out_shape):
        return (self.matrix.shape[1],)

    def forward(self, theta):
        return (self.matrix @ theta).reshape(self.out_shape)


def matrix_map(columns):
    columns = double(columns)
    return Matrix(columns).bind((columns.shape[0],))


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def homogeneity(counts):
    """The score test that the rows of a table are draws from one distribution."""
    counts = double(counts)
    rows, columns = counts.shape
    p = (counts.sum(0) / counts.sum()).expand(rows, columns)
    null = stack([SumToOne().bind((columns,))] * rows)
    alternative = SumToOne().bind((rows, columns))
    # Expected information of multinomial rows, in the coordinates p: E[c]/p² = N/p.
    information = torch.diag((counts.sum(1, keepdim=True) / p).reshape(-1))
    return score_statistic(null, counts / p, information, alternative)


@pytest.mark.parametrize("seed", range(5))
def test_tied_multinomial_rows_give_pearsons_chi_square(seed):
    table = np.random.default_rng(seed).poisson(12.0, size=(3, 4)) + 1
    result = homogeneity(table)
    expected = stats.chi2_contingency(table, correction=False)
    assert result.statistic == pytest.approx(expected.statistic, rel=1e-10)
    assert result.df == expected.dof
    assert result.pvalue == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.stationarity < 1e-20
    assert result.notes == ()
    change = result.expected_change.reshape(3, 4)
    observed = table / table.sum(1, keepdims=True)
    pooled = table.sum(0) / table.sum()
    np.testing.assert_allclose(change, observed - pooled, atol=1e-12)


def regression(seed, n=60, k=5, weight=None, effect=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, k)) * np.array([1.0, 1e3, 1.0, 1e-4, 1.0])[:k]
    effect = np.zeros(k) if effect is None else np.asarray(effect)
    noise = rng.normal(size=n) * (1.0 if weight is None else weight(x))
    return x, x @ effect + noise


def tied_fit(x, y, phi):
    theta = np.linalg.lstsq(x @ phi, y, rcond=None)[0]
    return y - x @ phi @ theta


PHI = np.array([[1, 0, 0], [1000, 0, 0], [0, 1, 0], [0, 0, 1e4], [0, 0, -1]], dtype=float)


@pytest.mark.parametrize("seed", range(3))
def test_linear_regression_gives_the_drop_in_residual_sum_of_squares(seed):
    x, y = regression(seed)
    r = tied_fit(x, y, PHI)
    free = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    result = score_statistic(matrix_map(PHI), double(x.T @ r), double(x.T @ x))
    assert result.statistic == pytest.approx(r @ r - free @ free, rel=1e-9)
    assert result.df == 2
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    tied = PHI @ np.linalg.lstsq(x @ PHI, y, rcond=None)[0]
    np.testing.assert_allclose(result.expected_change, beta - tied, rtol=1e-7)
    inverse = np.linalg.inv(x.T @ x)
    within = PHI @ np.linalg.inv(PHI.T @ x.T @ x @ PHI) @ PHI.T
    np.testing.assert_allclose(result.stderr**2, np.diag(inverse - within), rtol=1e-6)


def test_one_released_direction_is_the_square_of_its_t_statistic():
    x, y = regression(7, k=3)
    phi = np.array([[1.0, 0], [0, 1], [0, 0]])
    r = tied_fit(x, y, phi)
    result = score_statistic(
        matrix_map(phi), double(x.T @ r), double(x.T @ x), release=double([[0], [0], [2.5]])
    )
    beta, cov = np.linalg.lstsq(x, y, rcond=None)[0], np.linalg.inv(x.T @ x)
    assert result.statistic == pytest.approx(beta[2] ** 2 / cov[2, 2], rel=1e-10)


def test_the_robust_form_is_whites():
    x, y = regression(3, n=200)
    r = tied_fit(x, y, PHI)
    scores = x * r[:, None]
    result = score_statistic(
        matrix_map(PHI), double(x.T @ r), double(x.T @ x), middle=double(scores.T @ scores)
    )
    # By hand: the released columns, residualised on the tied ones, times the residuals.
    tied, released = x @ PHI, x[:, [0, 3]] / np.array([1.0, 1e-4])
    left = released - tied @ np.linalg.lstsq(tied, released, rcond=None)[0]
    each = left * r[:, None]
    u = each.sum(0)
    assert result.robust.statistic == pytest.approx(
        u @ np.linalg.solve(each.T @ each, u), rel=1e-8
    )
    assert result.robust.df == 2


def random_case(seed, n=8, p=3, q=3):
    rng = np.random.default_rng(seed)
    phi, extra = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    root = rng.normal(size=(30, n))
    info = root.T @ root
    g = rng.normal(size=n) * 5
    inverse = np.linalg.inv(phi.T @ info @ phi)
    g = g - info @ phi @ inverse @ (phi.T @ g)
    scores = rng.normal(size=(40, n))
    return phi, extra, info, g, scores.T @ scores, rng


@pytest.mark.parametrize("seed", range(4))
def test_it_depends_on_subspaces_and_not_on_bases_or_units(seed):
    phi, extra, info, g, middle, rng = random_case(seed)
    base = score_statistic(
        matrix_map(phi), double(g), double(info), release=double(extra), middle=double(middle)
    )
    mixed_phi = phi @ rng.normal(size=(3, 3))
    mixed = extra @ rng.normal(size=(3, 3)) + phi @ rng.normal(size=(3, 3))
    units = 10.0 ** rng.integers(-6, 7, size=8)
    scaled = score_statistic(
        matrix_map(mixed_phi * units[:, None]),
        double(g / units),
        double(info / np.outer(units, units)),
        matrix_map(np.hstack([phi, mixed]) * units[:, None]),
        middle=double(middle / np.outer(units, units)),
    )
    assert scaled.df == base.df == 3
    assert scaled.statistic == pytest.approx(base.statistic, rel=1e-7)
    assert scaled.robust.statistic == pytest.approx(base.robust.statistic, rel=1e-7)
    expected = base.expected_change.numpy() * units
    np.testing.assert_allclose(scaled.expected_change, expected, rtol=1e-6)


def test_by_the_formula_written_out():
    phi, extra, info, g, middle, _ = random_case(11)
    n_ = extra
    c = n_.T @ (np.eye(8) - info @ phi @ np.linalg.solve(phi.T @ info @ phi, phi.T))
    u = n_.T @ g
    result = score_statistic(
        matrix_map(phi), double(g), double(info), release=double(extra), middle=double(middle)
    )
    assert result.statistic == pytest.approx(u @ np.linalg.solve(c @ info @ c.T, u), rel=1e-9)
    assert result.robust.statistic == pytest.approx(
        u @ np.linalg.solve(c @ middle @ c.T, u), rel=1e-9
    )


def test_directions_that_the_data_do_not_identify_lower_df_and_are_listed():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(50, 3))
    x = np.column_stack([x, x[:, 1] + x[:, 2]])
    phi = np.array([[1.0], [1.0], [0.0], [0.0]])
    y = x[:, 0] + rng.normal(size=50)
    r = tied_fit(x, y, phi)
    result = score_statistic(matrix_map(phi), double(x.T @ r), double(x.T @ x))
    assert result.df == 2
    assert result.unidentified.shape == (4, 1)
    lost = result.unidentified[:, 0].numpy()
    np.testing.assert_allclose(np.abs(lost), np.array([0, 1, 1, 1]) / 3**0.5, atol=1e-7)
    assert "not identified" in result.notes[0]
    small = np.linalg.lstsq(x[:, :3], y, rcond=None)[0]
    free = y - x[:, :3] @ small
    assert result.statistic == pytest.approx(r @ r - free @ free, rel=1e-8)


def test_a_fit_that_has_not_converged_is_said_and_corrected():
    x, y = regression(1)
    r = tied_fit(x, y, PHI)
    moved = r - x @ PHI @ np.array([0.0002, 0.3, 0.2])
    good = score_statistic(matrix_map(PHI), double(x.T @ r), double(x.T @ x))
    result = score_statistic(matrix_map(PHI), double(x.T @ moved), double(x.T @ x))
    assert result.stationarity > 1
    assert "φᵀg is not zero" in result.notes[0]
    assert result.statistic == pytest.approx(good.statistic, rel=1e-6)


def test_negative_information_is_said():
    tie = stack([Same().bind(()), Same().bind(())])
    info = double([[1.0, 2.0], [2.0, 1.0]])
    result = score_statistic(tie, double([1.0, -1.0]), info)
    assert result.df == 0
    assert np.isnan(result.pvalue)
    assert any("negative" in note for note in result.notes)


def test_too_few_clusters_give_no_robust_statistic_and_say_so():
    phi, extra, info, g, _, rng = random_case(0)
    scores = rng.normal(size=(2, 8))
    result = score_statistic(
        matrix_map(phi),
        double(g),
        double(info),
        release=double(extra),
        middle=double(scores.T @ scores),
    )
    assert result.robust is None
    assert any("clusters" in note for note in result.notes)


def test_nothing_to_release():
    result = score_statistic(Same().bind((2,)), torch.zeros(2), torch.eye(2))
    assert result.df == 0
    assert "nothing to release" in result.notes[-1]


def test_arguments_that_do_not_fit_together_are_refused():
    tie = stack([Same().bind(()), Same().bind(())])
    g, info = torch.zeros(2), torch.eye(2)
    with pytest.raises(EvidenceError, match="gradient"):
        score_statistic(tie, torch.zeros(3), info)
    with pytest.raises(EvidenceError, match="information"):
        score_statistic(tie, g, torch.eye(3))
    with pytest.raises(EvidenceError, match="finite"):
        score_statistic(tie, torch.tensor([0.0, float("nan")]), info)
    with pytest.raises(EvidenceError, match="nested"):
        score_statistic(Same().bind((2,)), g, info, tie)
    with pytest.raises(EvidenceError, match="same sites"):
        score_statistic(tie, g, info, Same().bind((3,)))
    with pytest.raises(EvidenceError, match="release"):
        score_statistic(tie, g, info, release=torch.ones(2))
    with pytest.raises(EvidenceError, match="not both"):
        score_statistic(tie, g, info, tie, torch.ones(2, 1))


def pvalues(draws, effect, weight, robust):
    """p-values of the tie of three slopes in a Poisson-like regression, over fresh data."""
    phi, found = np.array([[1.0], [1.0], [1.0]]), []
    for seed in range(draws):
        x, y = regression(1000 + seed, n=150, k=3, weight=weight, effect=effect)
        x[:, 1] /= 1e3
        r = tied_fit(x, y, phi)
        scores = x * r[:, None]
        result = score_statistic(
            matrix_map(phi), double(x.T @ r), double(x.T @ x), middle=double(scores.T @ scores)
        )
        found.append(result.robust.pvalue if robust else result.pvalue)
    return np.array(found)


def test_its_p_values_are_uniform_when_the_tie_is_true():
    p = pvalues(300, [0.7, 0.7e-3, 0.7], None, robust=False)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    p = pvalues(300, [0.7, 0.7e-3, 0.7], None, robust=True)
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_only_the_robust_form_keeps_its_size_when_the_variance_is_misstated():
    def weight(x):
        return 0.6 + np.abs(x[:, 0])

    plain = pvalues(300, [0.7, 0.7e-3, 0.7], weight, robust=False)
    robust = pvalues(300, [0.7, 0.7e-3, 0.7], weight, robust=True)
    assert (plain < 0.05).mean() > 0.12
    assert 0.01 <= (robust < 0.05).mean() <= 0.1


def test_it_has_power_against_a_wrong_tie():
    assert np.median(pvalues(20, [0.7, 0.7e-3, 1.4], None, robust=False)) < 1e-6
