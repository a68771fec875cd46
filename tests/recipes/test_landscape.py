"""The recipe landscape: its quick run, its exchanges and its Jacobian."""

import json
import math

import pytest
import torch

import eadem
from eadem.recipes import landscape as recipe
from eadem.recipes import render, run

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("landscape", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C12"
    assert claim["holds"], claim["measured"]
    assert claim["measured"]["zero"] == {"relu, untied": 48, "relu, tied": 3}


def test_the_counts_are_factorials(metrics):
    at = metrics["solutions"]
    assert int(at["48"]["relu"]) == math.factorial(48)
    assert int(at["48"]["tanh"]) == math.factorial(48) * 2**48
    assert (at["3"]["relu"], at["3"]["tanh"]) == ("6", "48")


def test_the_way_between_equal_settings_leads_over_a_hill(metrics):
    for networks in metrics["networks"].values():
        for n in networks.values():
            assert n["way"][0] == pytest.approx(n["way"][-1], rel=1e-9)
            assert max(n["way"]) > 1.05 * n["way"][0]


def test_only_whole_filters_can_be_exchanged_within_the_tie():
    model = recipe.build(True, "tanh", 1).double()
    at, ones = recipe.setting(model), torch.ones(48, dtype=torch.float64)
    swap = torch.arange(48).reshape(3, 16)
    whole, one = swap[[1, 0, 2]].reshape(-1), torch.arange(48)
    one[[0, 16]] = one[[16, 0]]  # the first places of two filters
    assert recipe.away(model, at) == 0
    assert recipe.away(model, recipe.exchanged(at, whole, ones)) <= 1e-12
    assert recipe.away(model, recipe.exchanged(at, one, ones)) > 1e-2


@pytest.mark.parametrize("tied", [True, False])
def test_the_jacobian_is_that_of_the_free_values(tied):
    model = recipe.build(tied, "tanh", 2).double()
    x = torch.randn(3, 36, dtype=torch.float64)
    found = recipe.jacobian(model, "tanh", x)
    assert found.shape == (30, eadem.counts(model).free)
    rows = []
    for out in model(x).reshape(-1):
        grads = torch.autograd.grad(out, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    torch.testing.assert_close(found, torch.stack(rows))


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C12" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
