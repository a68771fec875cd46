"""score_test on models: textbook statistics, statsmodels, releases, clusters, many values."""

import numpy as np
import pytest
import statsmodels.api as sm
import torch
from scipy import stats
from statsmodels.stats._diagnostic_other import lm_robust
from torch import nn

import eadem
from eadem.bind import at_sites, free_vector, resolved, set_free_vector
from eadem.errors import NoSuchSite
from eadem.evidence import EvidenceError
from eadem.evidence import _iterative as by_products
from eadem.evidence._likelihood import Likelihood


def double(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


class Linear(nn.Module):
    """y = x·w + σ·noise."""

    def __init__(self, k, scale=True):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(k, dtype=torch.float64))
        if scale:
            self.log_sigma = nn.Parameter(torch.zeros((), dtype=torch.float64))

    @property
    def sigma(self):
        return self.log_sigma.exp() if hasattr(self, "log_sigma") else torch.ones(())


def gauss(model, batch):
    x, y = batch
    r = (y - x @ model.w) / model.sigma
    return -0.5 * r**2 - model.sigma.log() - 0.5 * np.log(2 * np.pi)


def gauss_embedding(model, batch):
    """JᵀJ is the expected information of a Gaussian: of its mean, and of log σ."""
    x, _ = batch
    mean = x @ model.w / model.sigma.detach()
    if not hasattr(model, "log_sigma"):
        return mean
    return torch.stack([mean, np.sqrt(2) * model.log_sigma.expand(len(x))])


def fit(model, log_density, batch):
    """Newton's method on the free values, with steps halved until they climb."""
    at = Likelihood(model, log_density, batch)

    def total(theta):
        return at.at(at.plan.expand(theta), batch).sum()

    theta = free_vector(model).double()
    for _ in range(200):
        g = torch.func.grad(total)(theta)
        values, vectors = torch.linalg.eigh(torch.func.hessian(total)(theta))
        step = vectors @ ((vectors.T @ g) / values.abs())
        if float(step @ g) < 1e-20:
            break
        while float(step @ g) > 1e-8 and not total(theta + step) > total(theta):
            step = step / 2
        theta = theta + step
    set_free_vector(model, theta)
    return model


#: w₀ = w₁ and w₂ = −w₃; w₄ is free.
TIES = [("w[0]", "w[1]", 1.0), ("w[2]", "w[3]", -1.0)]
PHI = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], dtype=float)
R = np.array([[1, -1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=float)


def tied(model):
    for a, b, c in TIES:
        eadem.tie(model, {a: eadem.Same(), b: eadem.Scale(c)})
    return model


def regression(seed, n=80, effect=(1.0, 1.2, 0.5, -0.4, 0.0)):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 5)) * np.array([1.0, 30.0, 1.0, 0.1, 1.0]) + 0.3
    noise = rng.normal(size=n) * (1 + 0.5 * np.abs(x[:, 0]))
    return x, x @ np.array(effect) + noise


def squares(x, y):
    at = np.linalg.lstsq(x, y, rcond=None)[0]
    return float(((y - x @ at) ** 2).sum())


@pytest.mark.parametrize("seed", range(3))
def test_linear_regression_with_known_variance_has_one_statistic(seed):
    x, y = regression(seed)
    data = (double(x), double(y))
    null = fit(tied(Linear(5, scale=False)), gauss, data)
    free = fit(Linear(5, scale=False), gauss, data)
    drop = squares(x @ PHI, y) - squares(x, y)
    lm = eadem.score_test(null, gauss, data)
    assert lm.statistic == pytest.approx(drop, rel=1e-8)
    assert eadem.wald_test(null, free, gauss, data).statistic == pytest.approx(drop, rel=1e-8)
    lr = eadem.likelihood_ratio_test(null, free, gauss, data)
    assert lr.statistic == pytest.approx(drop, rel=1e-8)
    assert lm.df == lr.df == 2
    assert lm.pvalue == pytest.approx(stats.chi2.sf(drop, 2), rel=1e-7)
    # Quadratic: the expected change is the refit's.
    moved = free.w.detach() - null.w.detach()
    torch.testing.assert_close(lm.changes["w"], moved, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_linear_regression_with_unknown_variance_is_textbook(seed):
    x, y = regression(seed)
    n, data = len(y), (double(x), double(y))
    null, free = fit(tied(Linear(5)), gauss, data), fit(Linear(5), gauss, data)
    rss0, rss1 = squares(x @ PHI, y), squares(x, y)
    lm = eadem.score_test(null, gauss, data, information=gauss_embedding)
    assert lm.statistic == pytest.approx(n * (rss0 - rss1) / rss0, rel=1e-8)
    assert lm.information == "expected"
    wald = eadem.wald_test(null, free, gauss, data)
    assert wald.statistic == pytest.approx(n * (rss0 - rss1) / rss1, rel=1e-8)
    lr = eadem.likelihood_ratio_test(null, free, gauss, data)
    assert lr.statistic == pytest.approx(n * np.log(rss0 / rss1), rel=1e-8)
    found = eadem.compare(
        {"tied": null, "free": free}, gauss, data, residual=lambda m, b: b[1] - b[0] @ m.w
    )
    ols = sm.OLS(y, x).fit()
    f = ols.f_test(R)
    assert found.rows[0].f.statistic == pytest.approx(float(f.fvalue), rel=1e-8)
    assert found.rows[0].f.pvalue == pytest.approx(float(f.pvalue), rel=1e-7)
    assert [r.free for r in found.rows] == [4, 6]
    assert found.rows[1].log_likelihood == pytest.approx(ols.llf, rel=1e-10)
    assert found.rows[1].aic == pytest.approx(ols.aic + 2, rel=1e-10)  # σ counts here
    assert found.rows[1].bic == pytest.approx(ols.bic + np.log(n), rel=1e-10)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("cluster", [None, 4])
def test_the_robust_form_is_that_of_statsmodels(seed, cluster):
    x, y = regression(seed, n=160)
    data = (double(x), double(y))
    null = fit(tied(Linear(5, scale=False)), gauss, data)
    found = eadem.score_test(null, gauss, data, cluster=cluster)
    r = y - x @ null.w.detach().numpy()
    each = x * r[:, None]
    if cluster:
        each = each.reshape(-1, cluster, 5).sum(1)
    theirs = lm_robust((x * r[:, None]).sum(0), R, np.linalg.inv(x.T @ x), each.T @ each)
    assert found.robust.statistic == pytest.approx(float(theirs), rel=1e-8)
    assert found.robust.df == 2


@pytest.mark.parametrize("family", ["logistic", "poisson"])
def test_glm_score_tests_are_those_of_statsmodels(family):
    rng = np.random.default_rng(11)
    n = 300
    x = np.column_stack([np.ones(n), rng.normal(size=(n, 3))])
    eta = x @ np.array([0.2, 0.5, 0.1, -0.1])
    if family == "logistic":
        y = (rng.random(n) < 1 / (1 + np.exp(-eta))).astype(float)
        kind = sm.families.Binomial()

        def density(model, batch):
            e = batch[0] @ model.w
            return batch[1] * e - nn.functional.softplus(e)
    else:
        y = rng.poisson(np.exp(eta)).astype(float)
        kind = sm.families.Poisson()

        def density(model, batch):
            e = batch[0] @ model.w
            return batch[1] * e - e.exp()

    data = (double(x), double(y))
    model = Linear(4, scale=False)
    eadem.tie(model, {"w[2:4]": eadem.Fixed(0.0)})
    fit(model, density, data)
    small = sm.GLM(y, x[:, :2], family=kind).fit(tol=1e-14)
    theirs = small.model.score_test(small.params, exog_extra=x[:, 2:])
    ours = eadem.score_test(model, density, data, release="w")
    assert ours.statistic == pytest.approx(float(np.squeeze(theirs[0])), rel=1e-7)
    assert ours.pvalue == pytest.approx(float(np.squeeze(theirs[1])), rel=1e-6)
    assert ours.df == 2


def test_expected_change_predicts_the_refit():
    """Logistic regression, small departures: within a tenth of what refitting gives."""
    rng = np.random.default_rng(5)
    n = 4000
    x = rng.normal(size=(n, 4))
    p = 1 / (1 + np.exp(-(x @ np.array([0.5, 0.6, -0.3, -0.2]))))
    data = (double(x), double((rng.random(n) < p).astype(float)))

    def density(model, batch):
        e = batch[0] @ model.w
        return batch[1] * e - nn.functional.softplus(e)

    null = Linear(4, scale=False)
    eadem.tie(null, "w[0]", "w[1]")
    eadem.tie(null, "w[2]", "w[3]")
    fit(null, density, data)
    free = fit(Linear(4, scale=False), density, data)
    moved = free.w.detach() - null.w.detach()
    expected = eadem.score_test(null, density, data).expected_change
    assert float((expected - moved).norm() / moved.norm()) < 0.1
    only = Linear(4, scale=False)
    eadem.tie(only, "w[2]", "w[3]")
    fit(only, density, data)
    alone = eadem.score_test(null, density, data, release=eadem.ties(null)[0])
    moved = only.w.detach() - null.w.detach()
    assert float((alone.expected_change - moved).norm() / moved.norm()) < 0.1
    assert alone.df == 1


def small(seed=2):
    x, y = regression(seed)
    data = (double(x), double(y))
    return fit(tied(Linear(5, scale=False)), gauss, data), data


def test_releases_by_name_tie_and_matrix_agree():
    model, data = small()
    by_name = eadem.score_test(model, gauss, data, release=["w[0]"])
    by_tie = eadem.score_test(model, gauss, data, release=eadem.ties(model)[0])
    by_matrix = eadem.score_test(model, gauss, data, release=double([[1, 0, 0, 0, 0]]).T)
    assert by_name.df == 1
    for other in (by_tie, by_matrix):
        assert other.statistic == pytest.approx(by_name.statistic, rel=1e-10)
        torch.testing.assert_close(other.expected_change, by_name.expected_change)
    again = by_name.again(eadem.ties(model)[1])
    other = eadem.score_test(model, gauss, data, release=eadem.ties(model)[1])
    assert (again.statistic, again.pvalue) == (other.statistic, other.pvalue)
    assert again.robust == other.robust
    table = eadem.score_test(model, gauss, data).table()
    assert [(r.kind, r.df) for r in table.rows] == [
        ("joint", 2),
        ("tie", 1),
        ("tie", 1),
        ("site", 1),
        ("site", 1),
        ("site", 1),
        ("site", 1),
    ]
    assert table.rows[1].statistic == pytest.approx(by_name.statistic, rel=1e-10)
    assert "w[2], w[3]" in str(table)


def test_frozen_parameters_are_fixed_and_can_be_released():
    x, y = regression(4)
    data = (double(x), double(y))
    model = Linear(5, scale=False)
    part = nn.Parameter(torch.tensor(0.1, dtype=torch.float64), requires_grad=False)
    model.shift = part

    def density(m, batch):
        return gauss(m, (batch[0], batch[1] - m.shift))

    tied(model)
    columns, target = x @ PHI, y - 0.1
    theta = np.linalg.lstsq(columns, target, rcond=None)[0]
    set_free_vector(model, double([*theta, 0.1]))
    joint = eadem.score_test(model, density, data)
    assert joint.df == 2
    assert float(joint.changes["shift"]) == 0.0
    found = eadem.score_test(model, density, data, release="shift")
    wide = np.column_stack([columns, np.ones(len(y))])
    assert found.df == 1
    assert found.statistic == pytest.approx(squares(columns, target) - squares(wide, target))


def test_unidentified_directions_lower_df_and_are_listed():
    x, y = regression(6)
    x[:, 4] = x[:, 2] + x[:, 3]  # collinear: one release cannot be seen
    data = (double(x), double(y))
    model = Linear(5, scale=False)
    eadem.tie(model, "w[0]", "w[1]")
    eadem.tie(model, {"w[2:5]": eadem.Fixed(0.0)})
    fit(model, gauss, data)
    found = eadem.score_test(model, gauss, data, release="w[2:5]")
    assert found.df == 2
    lost = found.unidentified.squeeze(1)
    expected = double([0, 0, 1, 1, -1]) / np.sqrt(3)
    assert float((lost @ expected).abs()) == pytest.approx(1.0, abs=1e-6)
    assert any("not identified" in note for note in found.notes)


def test_away_from_the_optimum_it_says_so():
    model, data = small()
    good = eadem.score_test(model, gauss, data)
    assert good.stationarity < 1e-10
    with torch.no_grad():
        next(model.parameters()).add_(0.5)
    off = eadem.score_test(model, gauss, data)
    assert off.stationarity > 1.0
    assert any("φᵀg is not zero" in note for note in off.notes)
    # The information is constant here, so the correction is exact.
    assert off.statistic == pytest.approx(good.statistic, rel=1e-7)


def test_a_boundary_is_noted():
    rng = np.random.default_rng(0)
    y = double(np.abs(rng.normal(size=60)) * -1.0)  # the positive mean wants to be negative
    data = (double(np.eye(2)[np.arange(60) % 2]), y)
    model = Linear(2, scale=False)
    with torch.no_grad():
        model.w.fill_(1e-3)
    eadem.tie(model, "w[0]", "w[1]", via=eadem.Positive())
    found = eadem.score_test(model, gauss, data)
    assert any("boundary" in note for note in found.notes)
    with torch.no_grad():
        next(model.parameters()).fill_(5.0)
    found = eadem.score_test(model, gauss, (data[0], y + 10.0))
    assert not any("boundary" in note for note in found.notes)


def test_clusters_by_id_and_by_block_agree_and_the_table_says_how_size_matters():
    x, y = regression(8, n=96)
    data = (double(x), double(y))
    model = fit(tied(Linear(5, scale=False)), gauss, data)
    block = eadem.score_test(model, gauss, data, cluster=3)
    ids = eadem.score_test(model, gauss, data, cluster=np.repeat(np.arange(32) * 7, 3))
    assert block.robust == ids.robust
    assert [(r.size, r.clusters) for r in block.clusters] == [
        (1, 96), (3, 32), (6, 16), (12, 8),
    ]  # fmt: skip
    alone = eadem.score_test(model, gauss, data)
    assert block.clusters[0].statistic == pytest.approx(alone.robust.statistic)
    assert block.clusters[1].statistic == pytest.approx(block.robust.statistic)
    assert "cluster size" in str(block)


def test_batches_give_what_one_batch_gives():
    model, (x, y) = small()
    whole = eadem.score_test(model, gauss, (x, y))
    parts = list(zip(x.split(17), y.split(17), strict=True))
    for data in (parts, iter(parts), torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=17)):  # fmt: skip
        found = eadem.score_test(model, gauss, data)
        assert found.statistic == pytest.approx(whole.statistic, rel=1e-10)
        assert found.robust.statistic == pytest.approx(whole.robust.statistic, rel=1e-10)


def test_scores_without_batching_rules_are_the_same():
    """A density that looks at its values, or mixes observations, is taken row by row."""
    model, data = small()
    whole = Likelihood(model, gauss, data).scores()

    def looks(m, batch):
        assert float(batch[0][0, 0]) != 123.0
        return gauss(m, batch)

    def mixes(m, batch):
        each = gauss(m, batch)
        return each + each.mean()

    torch.testing.assert_close(Likelihood(model, looks, data).scores(), whole)
    mixed = Likelihood(model, mixes, data).scores()
    torch.testing.assert_close(mixed, whole + whole.mean(0))


@pytest.mark.parametrize("cut", [True, False])
def test_an_expected_information_is_the_jacobians_square(cut):
    """By rows where an observation stands alone, by columns where observations mix."""
    model, (x, y) = small()

    def embedding(m, batch):
        found = (batch[0] @ m.w).reshape(len(batch[0]), -1)
        both = torch.cat([found, found.square()], 1)
        return both if cut else both - both.mean(0)

    at = Likelihood(model, gauss, (x, y))
    jacobian = torch.func.jacrev(at_sites(model, embedding, torch.float64))(at.values, (x, y))
    rows = jacobian.reshape(-1, len(at.values))
    torch.testing.assert_close(at.gram(embedding), rows.T @ rows)


CLOSE = {"atol": 1e-5, "rtol": 1e-4}


class Towers(nn.Module):
    """Three towers that share their weights, and a head."""

    def __init__(self, features=4, units=3):
        super().__init__()
        self.towers = nn.ModuleList(nn.Linear(features, units) for _ in range(3))
        self.head = nn.Linear(units, 1)

    def forward(self, x):
        seen = zip(self.towers, x.unbind(1), strict=True)
        return self.head(sum(torch.tanh(t(part)) for t, part in seen)).squeeze(1)


def towers_density(model, batch):
    return -0.5 * (batch[1] - model(batch[0])) ** 2


def towers_embedding(model, batch):
    return model(batch[0])


def towers(seed=0, n=400):
    torch.manual_seed(seed)
    model, truth = Towers().double(), Towers().double()
    eadem.tie_modules(model, "towers.*")
    eadem.tie_modules(truth, "towers.*")
    with torch.no_grad():
        for a, b in zip(model.parameters(), truth.parameters(), strict=True):
            b.mul_(1.5)
            a.copy_(b)
    x = torch.randn(n, 3, 4, dtype=torch.float64)
    y = truth(x).detach() + torch.randn(n, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=400, tolerance_grad=1e-10, tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = -towers_density(model, (x, y)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, (x, y)


@pytest.mark.parametrize(
    ("information", "kept"),
    [("outer", by_products.KEPT), (towers_embedding, by_products.KEPT), (towers_embedding, 0)],
)
def test_products_give_what_the_matrix_gives(monkeypatch, information, kept):
    monkeypatch.setattr(by_products, "KEPT", kept)
    model, data = towers()
    exact = eadem.score_test(model, towers_density, data, information=information)
    monkeypatch.setattr("eadem.evidence._score_test.EXACT", 10)
    monkeypatch.setattr("eadem.evidence._score_test.ROWS", 10)
    found = eadem.score_test(model, towers_density, data, information=information)
    assert (
        (found.df, found.information)
        == (exact.df, exact.information)
        == (30, found.information)
    )
    assert found.statistic == pytest.approx(exact.statistic, rel=1e-6)
    assert found.robust.statistic == pytest.approx(exact.robust.statistic, rel=1e-6)
    torch.testing.assert_close(
        found.expected_change, exact.expected_change, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(found.stderr, exact.stderr, **CLOSE)
    monkeypatch.setattr(by_products, "COLUMNS", 5)
    many = eadem.score_test(model, towers_density, data, information=information)
    assert (many.statistic, many.df) == (pytest.approx(exact.statistic, rel=1e-6), 30)
    torch.testing.assert_close(
        many.expected_change, exact.expected_change, atol=1e-5, rtol=1e-4
    )
    assert many.robust is None


def test_what_does_not_fit_is_refused():
    model, data = small()
    with pytest.raises(EvidenceError, match="one log density for each observation"):
        eadem.score_test(model, lambda m, b: gauss(m, b).mean(), data)
    with pytest.raises(EvidenceError, match="not finite"):
        eadem.score_test(model, lambda m, b: gauss(m, b).log(), data)
    with pytest.raises(EvidenceError, match="7 ids for 80"):
        eadem.score_test(model, gauss, data, cluster=[0] * 7)
    with pytest.raises(EvidenceError, match="one row for each"):
        eadem.score_test(model, gauss, data, release=torch.ones(3, 1))
    with pytest.raises(EvidenceError, match="information='fisher'"):
        eadem.score_test(model, gauss, data, information="fisher")
    with pytest.raises(NoSuchSite):
        eadem.score_test(model, gauss, data, release="v")
    with pytest.raises(EvidenceError, match="no tie"):
        eadem.score_test(Linear(5, scale=False), gauss, data)
    noisy = nn.Sequential(nn.Linear(5, 1), nn.Dropout()).double()
    eadem.tie(noisy, "0.weight[0, 0]", "0.weight[0, 1]")
    with pytest.raises(EvidenceError, match=r"model\.eval"):
        eadem.score_test(noisy, lambda m, b: -((b[1] - m(b[0]).squeeze(1)) ** 2), data)


def test_nestedness_is_checked():
    x, y = regression(1)
    data = (double(x), double(y))
    null = fit(tied(Linear(5, scale=False)), gauss, data)
    other = Linear(5, scale=False)
    eadem.tie(other, "w[0]", "w[4]")
    fit(other, gauss, data)
    free = fit(Linear(5, scale=False), gauss, data)
    for test in (eadem.wald_test, eadem.likelihood_ratio_test):
        with pytest.raises(EvidenceError, match="not nested"):
            test(null, other, gauss, data)
        with pytest.raises(EvidenceError, match="not nested"):
            test(free, null, gauss, data)
    with pytest.raises(EvidenceError, match="same sites"):
        eadem.wald_test(null, Linear(4, scale=False), gauss, data)
    with pytest.raises(EvidenceError, match="fits worse"):
        eadem.likelihood_ratio_test(null, Linear(5, scale=False), gauss, data)
    found = eadem.compare({"null": null, "other": other, "free": free}, gauss, data)
    assert found.rows[0].ratio is None
    assert found.rows[1].ratio.df == 1
    assert resolved(free).rank == found.rows[2].free == 5
    assert "free" in str(found)


@pytest.mark.parametrize("cluster", [None, 4])
def test_the_robust_wald_test_is_that_of_statsmodels(cluster):
    x, y = regression(3, n=160)
    data = (double(x), double(y))
    null = tied(Linear(5, scale=False))
    free = fit(Linear(5, scale=False), gauss, data)
    found = eadem.wald_test(null, free, gauss, data, cluster=cluster)
    if cluster is None:
        fitted = sm.OLS(y, x).fit(cov_type="HC0")
    else:
        groups = {"groups": np.arange(160) // cluster, "use_correction": False}
        fitted = sm.OLS(y, x).fit(cov_type="cluster", cov_kwds=groups)
    theirs = fitted.wald_test(R, use_f=False, scalar=True)
    assert found.robust.statistic == pytest.approx(float(theirs.statistic), rel=1e-8)
    assert found.robust.df == found.df == 2
    assert "robust" in str(found)


def test_a_non_linear_tie_is_tested_at_its_tangent():
    """Two positive rates, one: the same statistic as for the rates tied plainly."""
    rng = np.random.default_rng(9)
    y = rng.poisson([3.0, 3.4], size=(200, 2)).astype(float)

    class Rates(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.rate = nn.Parameter(torch.full((2,), value, dtype=torch.float64))

    def density(model, batch):
        return (batch * model.rate.log() - model.rate).sum(1)

    pooled = float(y.mean())
    found = []
    for phi in (eadem.Same(), eadem.Positive()):
        model = Rates(pooled)
        tie = eadem.tie(model, "rate[0]", "rate[1]", via=phi)
        joint = eadem.score_test(model, density, double(y))
        alone = eadem.score_test(model, density, double(y), release=tie)
        assert alone.statistic == pytest.approx(joint.statistic, rel=1e-9)
        found.append(joint)
    assert found[0].statistic == pytest.approx(found[1].statistic, rel=1e-9)
    torch.testing.assert_close(found[0].expected_change, found[1].expected_change)
