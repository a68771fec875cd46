"""The recipe subspace: its quick run, and its estimators against the normal equations."""

import json

import numpy as np
import pytest
import torch

from eadem.recipes import _subspace_worlds, render, run
from eadem.recipes import subspace as recipe

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("subspace", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_tied_fit_is_a_projection(metrics):
    exact, *_ = metrics["claims"]
    assert exact["id"] == "C29"
    assert exact["holds"], exact["measured"]
    phi, onto = (np.array(metrics[key]) for key in ("phi", "projector"))
    np.testing.assert_allclose(onto, phi @ phi.T / 6, atol=1e-12)
    assert np.trace(onto) == pytest.approx(_subspace_worlds.GROUPS)


def test_each_belief_wins_where_it_is_true(metrics):
    _, _, worth = metrics["claims"]
    assert worth["holds"], worth["measured"]
    equal = metrics["splits"]["equal"]
    for n in ("45", "240"):
        total = {m: s[n]["bias"] + s[n]["variance"] for m, s in equal.items()}
        assert min(total, key=total.get) == "tie"
        assert total["tie"] < 0.5 * min(total[m] for m in recipe.METHODS[1:])
        assert abs(equal["tie"][n]["bias"]) <= 4 * equal["tie"][n]["bias_error"]
    assert metrics["zeros"] > 3  # lasso selects, the tie does not


def test_the_ratio_of_variances_is_the_closed_form():
    generator = torch.Generator().manual_seed(6)
    root = torch.linalg.cholesky(recipe.covariance())
    basis = torch.nn.functional.one_hot(recipe.INDEX).double()
    x = torch.randn(2000, 60, recipe.COEFFICIENTS, dtype=root.dtype, generator=generator)
    y = torch.randn(2000, 60, 1, dtype=root.dtype, generator=generator)
    x = x @ root.T
    free = torch.linalg.lstsq(x, y).solution.var(0)
    tied = (basis @ torch.linalg.lstsq(x @ basis, y).solution).var(0)
    assert float(tied.sum() / free.sum()) == pytest.approx(recipe.ratio_form(60), rel=0.05)


def test_a_nearly_right_tie_on_digits_helps_where_they_are_few(metrics):
    error = metrics["digits"]["error"]
    assert np.mean(error["tie"]["80"]) < 0.8 * np.mean(error["least squares"]["80"])
    assert max(metrics["digits"]["pvalues"]["800"]) < 1e-3
    tied = np.array(metrics["digits"]["weights"][0])
    np.testing.assert_allclose(tied, tied[:, ::-1])


@pytest.mark.parametrize("tied", [True, False])
def test_a_fit_is_that_of_the_normal_equations(tied):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(60, recipe.COEFFICIENTS, dtype=torch.float64, generator=generator)
    y = torch.randn(60, dtype=torch.float64, generator=generator)
    basis = torch.eye(recipe.COEFFICIENTS, dtype=torch.float64)
    plan = recipe.plan_of(recipe.INDEX if tied else None, recipe.COEFFICIENTS)
    if tied:
        basis = torch.nn.functional.one_hot(recipe.INDEX).double()
    wanted = basis @ torch.linalg.lstsq(x @ basis, y).solution
    found = recipe.solved(plan, x, y)
    torch.testing.assert_close(found.values, wanted, rtol=1e-7, atol=1e-8)
    plain = torch.linalg.lstsq(x, y).solution
    torch.testing.assert_close(recipe.projected(plan, x, plain), wanted)


def test_the_score_test_is_the_textbook_lagrange_multiplier():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(90, recipe.COEFFICIENTS, dtype=torch.float64, generator=generator)
    y = torch.randn(90, dtype=torch.float64, generator=generator)
    plan = recipe.plan_of(recipe.INDEX, recipe.COEFFICIENTS)
    fit = recipe.solved(plan, x, y)
    residual = y - x @ fit.values
    explained = x @ torch.linalg.lstsq(x, residual).solution
    found = recipe.verdict(plan, fit, len(y))
    wanted = len(y) * float(explained @ explained / (residual @ residual))  # n·R²
    assert found.statistic == pytest.approx(wanted, rel=1e-8)
    assert found.df == recipe.COEFFICIENTS - _subspace_worlds.GROUPS


def test_the_worlds_have_unit_power():
    for name in recipe.WORLDS:
        beta = recipe.truth(name, 3)
        assert float(beta @ recipe.covariance() @ beta) == pytest.approx(1.0)
    assert len(recipe.truth("equal", 3).unique()) == _subspace_worlds.GROUPS
    assert int((recipe.truth("sparse", 3) != 0).sum()) == 4


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C29" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
