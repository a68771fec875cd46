"""What a fit can be asked: bounds, losses, starts, profiles, score tests, reports."""

import math

import numpy as np
import pytest
import torch
from curves import Decay, decays, dense, double
from scipy.optimize import brentq
from scipy.optimize import least_squares as scipy_least_squares
from scipy.stats import f as f_law
from torch import nn

import eadem
from eadem.bind import at_sites, resolved
from eadem.errors import Unsupported
from eadem.evidence import score_statistic
from eadem.fits import callables

TRUTHS = [(3.0, 0.7, 0.1), (5.0, 0.9, 0.2), (2.0, 0.7, 0.3)]


def joint(seed=0, sizes=(30, 30, 30)):
    return eadem.Joint({f"d{i}": Decay(*d) for i, d in enumerate(decays(TRUTHS, sizes, seed))})


def test_bounds_end_where_scipy_does():
    model = joint()
    eadem.tie(model, {"d0.rate": eadem.Same(), "d1.rate": eadem.Affine(-1.0, 2.0)})
    low, high = 0.5, 1.2
    fit = eadem.least_squares(
        model, bounds={"d1.rate": (low, high), "*.floor": (None, 0.15), "d2.height": (None, 9)}
    )
    assert fit.converged
    names = fit.names
    lower = {"d0.rate": 2 - high}
    upper = {n: 0.15 for n in names if n.endswith("floor")}
    upper |= {"d0.rate": 2 - low, "d2.height": 9}
    given = callables(model)
    box = [[b.get(n, w) for n in names] for b, w in ((lower, -np.inf), (upper, np.inf))]
    start = np.clip(given.start, np.add(box[0], 1e-3), np.subtract(box[1], 1e-3))
    oracle = scipy_least_squares(
        given.residual,
        start,
        jac=given.jacobian,
        bounds=box,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-12,
    )
    assert fit.chi2 == pytest.approx(2 * oracle.cost, rel=1e-6)
    np.testing.assert_allclose(fit.theta, oracle.x, rtol=1e-4)
    assert float(fit.values["d0.floor"]) == 0.15
    assert float(fit.stderr["d0.floor"]) == 0.0
    assert any("held by a bound" in n and "d0.floor" in n for n in fit.notes)


@pytest.mark.parametrize("loss", ["huber", "soft_l1", "cauchy", "arctan"])
def test_robust_losses_end_where_scipy_does(loss):
    model = joint()
    with torch.no_grad():
        for block in model.blocks.values():
            block.y[::7] += 0.5  # gross errors of 25 σ
    eadem.tie(model, "d0.rate", "d2.rate")
    fit = eadem.least_squares(model, loss=loss, loss_scale=1.5)
    assert fit.converged, fit.message
    given = callables(model)
    oracle = scipy_least_squares(
        given.residual, fit.theta.numpy() * 1.01, jac=given.jacobian, loss=loss, f_scale=1.5,
        xtol=1e-15, ftol=1e-15, gtol=1e-12,
    )  # fmt: skip
    assert fit.history[-1] == pytest.approx(2 * oracle.cost, rel=1e-8)
    np.testing.assert_allclose(fit.theta, oracle.x, rtol=1e-4, atol=1e-5)
    assert all(b <= a for a, b in zip(fit.history, fit.history[1:], strict=False))
    assert fit.chi2 > fit.history[-1]


def test_errors_of_a_robust_fit_are_hubers():
    model = joint(sizes=(400, 400, 400))
    with torch.no_grad():
        model.d0.y[::20] += 1.0
    fit = eadem.least_squares(model, loss="huber", loss_scale=1.345)
    clean = eadem.least_squares(joint(sizes=(400, 400, 400)))
    ratio = float(fit.stderr["d1.rate"]) / float(clean.stderr["d1.rate"])
    assert 0.9 < ratio < 1.2  # efficiency 95 % at the normal, and little harm from outliers
    j, r = dense(model)
    psi = r.clamp(-1.345, 1.345)
    inside = (r.abs() <= 1.345).double().mean()
    scale = psi.square().sum() / fit.dof / inside**2
    error = (scale * torch.linalg.inv(j.T @ j).diagonal()).sqrt()
    found = torch.cat([e.reshape(-1) for e in fit.stderr.values()])
    torch.testing.assert_close(found, error, rtol=1e-6, atol=0)


class Wave(nn.Module):
    """A sine, whose χ² has many minima over the frequency."""

    def __init__(self):
        super().__init__()
        self.x = torch.linspace(0, 6, 60, dtype=torch.float64)
        self.y = torch.sin(5.0 * self.x)
        self.frequency = nn.Parameter(double(2.0))

    def residual(self):
        return self.y - torch.sin(self.frequency * self.x)


def test_further_starts_find_the_least_of_several_minima():
    alone = eadem.least_squares(Wave())
    assert alone.converged
    assert alone.chi2 > 1
    model = Wave()
    fit = eadem.least_squares(model, starts=12, bounds={"frequency": (0.5, 9.0)}, seed=2)
    assert fit.chi2 < 1e-20
    assert float(model.frequency.detach()) == pytest.approx(5.0)
    assert len(fit.starts) == 13
    assert min(c for c, _ in fit.starts) == pytest.approx(fit.chi2, abs=1e-20)
    given = eadem.least_squares(Wave(), starts=[double([4.8]), double([9.0])])
    assert float(given.values["frequency"]) == pytest.approx(5.0)


@pytest.mark.parametrize("known", [False, True])
def test_profile_intervals_are_where_chi2_reaches_the_quantile(known):
    model = joint(sizes=(8, 8, 8))
    eadem.tie(model, "d0.rate", "d2.rate", via=eadem.Positive(), start="mean")
    fit = eadem.least_squares(model, absolute_sigma=known)
    found = fit.profile("d2.rate", level=0.9)
    limit = 2.705543454 if known else fit.reduced_chi2 * f_law.ppf(0.9, 1, fit.dof)

    def excess(rate):
        other = joint(sizes=(8, 8, 8))
        eadem.tie(other, "d0.rate", via=eadem.Fixed(double(rate)))
        eadem.tie(other, "d2.rate", via=eadem.Fixed(double(rate)))
        return eadem.least_squares(other).chi2 - fit.chi2 - limit

    centre, error = float(fit.values["d2.rate"]), float(fit.stderr["d2.rate"])
    low = brentq(excess, centre - 4 * error, centre, xtol=1e-7)
    high = brentq(excess, centre, centre + 4 * error, xtol=1e-7)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-4)
    assert "d2.rate = " in str(found)


def test_a_profile_that_the_data_do_not_close_is_open():
    x = torch.linspace(0, 1, 6, dtype=torch.float64)

    class Saturated(nn.Module):
        def __init__(self):
            super().__init__()
            self.rate = nn.Parameter(double(2.0))

        def residual(self):
            return (0.01 - torch.exp(-self.rate * (x + 5))) / 0.3

    found = eadem.least_squares(Saturated(), absolute_sigma=True).profile("rate")
    assert math.isinf(found.high)
    assert 0 < found.low < 1
    with pytest.raises(Unsupported, match="one at a time"):
        eadem.least_squares(joint()).profile("*.rate")


def test_the_score_test_is_that_of_dense_algebra():
    model = joint()
    eadem.tie(model, "*.rate")
    t = eadem.tie(model, "d0.floor", "d2.floor")
    fit = eadem.least_squares(model)
    j, r = dense(model)
    phi = resolved(model).linearize(fit.theta)
    s2 = fit.reduced_chi2
    want = score_statistic(phi, -j.T @ r / s2, j.T @ j / s2)
    found = fit.score_test()
    assert (found.statistic, found.df) == (pytest.approx(want.statistic, rel=1e-6), want.df)
    assert found.df == 3
    assert found.pvalue < 1e-6  # d1 has another rate
    change = found.changes["d1.rate"] - found.changes["d0.rate"]
    assert float(change) == pytest.approx(0.2, abs=0.08)
    assert fit.score_test(release=t).df == 1
    assert len(fit.score_test(cluster=5).clusters) > 1
    before = fit.theta.clone()
    with torch.no_grad():
        model.d0.height.add_(1.0)  # the test is of the fit, not of the model as it is now
    assert fit.score_test().statistic == pytest.approx(found.statistic, rel=1e-9)
    assert model.d0.height.item() == pytest.approx(float(before[0]) + 1.0)


def test_the_sandwich_counts_residuals_in_the_order_of_the_joint():
    model = joint(sizes=(30, 20, 30))  # d0 and d2 are one batch, d1 another
    eadem.tie(model, "*.rate")
    fit = eadem.least_squares(model)
    ids = [0] * 30 + [1] * 20 + [2] * 30
    found = fit.score_test(cluster=[i * 100 + k // 5 for k, i in enumerate(ids)])
    j, r = dense(model)
    s = -(j * r.unsqueeze(1)) / fit.reduced_chi2
    blocks = torch.stack([s[5 * k : 5 * k + 5].sum(0) for k in range(16)])
    phi = resolved(model).linearize(fit.theta)
    want = score_statistic(phi, s.sum(0), j.T @ j / fit.reduced_chi2, middle=blocks.T @ blocks)
    assert found.robust.statistic == pytest.approx(want.robust.statistic, rel=1e-6)


def test_progress_is_told_per_iteration(capsys):
    steps = []
    fit = eadem.least_squares(joint(), progress=steps.append)
    assert [s.cost for s in steps] == list(fit.history)
    assert steps[-1].offset < 1e-6
    eadem.least_squares(joint(), progress=True)
    assert len(capsys.readouterr().out.splitlines()) == len(steps)


def test_callables_are_the_residual_and_its_derivative():
    model = joint()
    eadem.tie(model, "*.rate")
    model.d1.floor.requires_grad_(False)
    given = callables(model)
    x = given.start + 0.1
    jacobian = given.jacobian(x)
    step = 1e-6
    for k in range(len(x)):
        e = np.eye(len(x))[k] * step
        numeric = (given.residual(x + e) - given.residual(x - e)) / (2 * step)
        np.testing.assert_allclose(jacobian[:, k], numeric, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(given.sparse(x).toarray(), jacobian)
    assert len(x) == 6


def test_a_report_prints_and_makes_a_page(tmp_path):
    model = joint()
    eadem.tie(model, "*.rate")
    fit = eadem.least_squares(model)
    report = fit.report("Three <decays>")
    text = str(report)
    assert "d1.rate" in text
    assert "tied" in text
    assert "What the data say of the ties" in text
    assert str(fit).startswith("Least squares of Joint")
    for row in report.values:
        where, _, _ = row.site.partition("[")
        assert row.value == float(fit.values[where])
        assert row.stderr == float(fit.stderr[where])
    assert sum(b.chi2 for b in report.blocks) == pytest.approx(fit.chi2)
    assert "Three &lt;decays&gt;" in report._repr_html_()
    page = report.save(tmp_path / "fit.html").read_text()
    assert page.count("residuals of d") == 6  # three blocks, wide and narrow
    assert "Three &lt;decays&gt;" in page


def test_second_order_steps_change_the_way_and_not_the_end():
    for accelerate in (True, False):
        model = joint()
        eadem.tie(model, "*.rate", via=eadem.Positive(), start="mean")
        fit = eadem.least_squares(model, accelerate=accelerate)
        at = at_sites(model, lambda m: m.residual())
        r = at(fit._found.point.values)
        assert float(r @ r) == pytest.approx(fit.chi2, rel=1e-12)
        if accelerate:
            first = fit.theta
    torch.testing.assert_close(fit.theta, first, rtol=1e-6, atol=1e-8)
