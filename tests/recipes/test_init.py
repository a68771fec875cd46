"""The recipe init: its quick run, its modules and its gradients."""

import json

import pytest
import torch

import eadem
from eadem.recipes import init as recipe
from eadem.recipes import render, run

pytest.importorskip("pywt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("init", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C07"
    assert claim["holds"], claim["measured"]


def test_a_dense_layers_own_scale_is_wrong_for_windows(metrics):
    at = metrics["variance"]["windows"]["first"]
    for uses in (1, 10, 100):  # drawn for the whole input, read over 24 of it
        draws = at[str(uses)]
        assert sum(draws) / len(draws) == pytest.approx(24 / 3 / (uses + 23), rel=0.5)
    assert max(at["100"]) < 0.5 * min(metrics["variance"]["windows"]["init"]["100"])


def test_gradients_add_up_between_independent_and_equal(metrics):
    grown = {
        kind: at["100"]["whole"] / at["100"]["one"] for kind, at in metrics["gradients"].items()
    }
    assert grown["independent"] < grown["ecg"] < grown["same"]
    cancels = {kind: at["100"]["cancels"] for kind, at in metrics["gradients"].items()}
    assert cancels["same"] < 1e-12
    assert cancels["independent"] == pytest.approx(0.99, abs=0.01)
    steps = metrics["gradients"]["same"]
    assert steps["100"]["SGD"] > 30 * steps["1"]["SGD"]
    assert steps["100"]["Adam"] == pytest.approx(steps["1"]["Adam"], rel=1e-3)


@pytest.mark.parametrize("kind", recipe.MODULES)
@pytest.mark.parametrize("uses", [1, 7])
def test_the_modules_use_one_value_as_often_as_they_say(kind, uses):
    model = recipe.tied(kind, uses, "init")
    counts = eadem.counts(model)
    outputs = recipe.TAPS if kind == "layers" else recipe.CHANNELS
    assert counts.free == recipe.TAPS * outputs
    sites = eadem.materialize(model)
    some = next(model.parameters()).reshape(-1)[3]
    assert sum(int((v == some).sum()) for v in sites.values()) == uses


def test_the_record_is_a_thousand_windows():
    assert len(recipe.ecg()) == 1000 + recipe.TAPS


def test_towers_are_one_filter():
    model = recipe.towers(4)
    x = torch.randn(4, recipe.TAPS, dtype=torch.float64)
    weight = next(model.parameters()).reshape(-1)
    torch.testing.assert_close(model(x), x @ weight)
    model(x).sum().backward()
    torch.testing.assert_close(next(model.parameters()).grad.reshape(-1), x.sum(0))


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C07" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
