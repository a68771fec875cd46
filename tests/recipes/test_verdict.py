"""The recipe verdict: its quick run, its network against a plain convolution, its fit."""

import json

import pytest
import torch
from torch.nn import functional as F

import eadem
from eadem.evidence.score import holm
from eadem.recipes import run
from eadem.recipes import verdict as recipe

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("verdict", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert "framed" in (folder / "report.html").read_text()
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C30"
    assert claim["holds"], claim["measured"]


def test_the_digits_reject_more_than_a_true_tie_does(metrics):
    (drawn,) = metrics["drawn"]
    digits = metrics["splits"][0]["verdicts"]
    below = [sum(v["pvalue"] < 0.01 for v in each) / len(each) for each in (digits, drawn)]
    assert below[0] > 3 * below[1] + 0.05


def test_free_values_are_counted(metrics):
    free = {name: m["free"] for name, m in metrics["splits"][0]["models"].items()}
    head = 48 * 10 + 10
    # a remainder of rank 1 of a 3 × 9 matrix: 3 + 9 − 1 directions at a point
    assert free == {
        "tied": 27 + head,
        "most": 27 + head + 6 * 11,
        "least": 27 + head + 6 * 11,
        "untied": 49 * 27 + head,
    }


def model_and_data(n=60):
    model = recipe.Tiles(torch.Generator().manual_seed(0))
    eadem.tie(model, "kernels.*")
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(n, 1, 14, 14, generator=generator, dtype=torch.float64)
    targets = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    return model, images, targets


def test_tied_tiles_are_one_convolution():
    model, images, _ = model_and_data()
    whole = F.conv2d(images, model.kernels[0], padding=1).relu()
    wanted = F.adaptive_avg_pool2d(whole, 4).flatten(1)
    torch.testing.assert_close(model.features(images), wanted, rtol=1e-12, atol=1e-12)
    assert eadem.counts(model).free == 27 + 48 * 10 + 10


def test_the_fit_comes_back_to_what_drew_the_targets():
    model, images, noise = model_and_data(300)
    truth = model.kernels[0].detach().clone()
    with torch.no_grad():
        targets = model(images) + 0.01 * noise
        model.kernels[0].add_(0.1 * torch.randn(truth.shape, dtype=truth.dtype))
    fit = recipe.fitted(model, images, targets, 80)
    error = (model(images) - targets).square().mean()
    named = [(n, p) for n, p in model.named_parameters() if n.startswith("head")]
    slopes = torch.autograd.grad(error, [p for _, p in named])
    assert max(float(g.abs().max()) for g in slopes) < 1e-8  # the best head for its kernels
    assert fit.error == pytest.approx(float(error.detach()), rel=1e-9)
    assert fit.error < 1.05e-4


def test_holm_is_monotone_and_no_less_than_the_p_values():
    given = [0.04, 0.01, 0.03, 0.9]
    assert holm(given) == pytest.approx([0.09, 0.04, 0.09, 0.9])
