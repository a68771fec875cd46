"""The recipe depth: its quick run, and its solver, slopes and byte counts against oracles."""

import json

import pytest
import torch
from torch import nn

import eadem
from eadem.nn import Repeat
from eadem.recipes import _depth_nets as nets
from eadem.recipes import run
from eadem.recipes._depth_ode import Flow, saved_bytes

pytest.importorskip("torchdiffeq")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("depth", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claims_hold(metrics):
    assert [c["id"] for c in metrics["claims"]] == ["C19", "C20"]
    assert all(c["holds"] for c in metrics["claims"]), metrics["claims"]


def test_budgets_are_equal(metrics):
    free = {k: v["500"][0]["free"] for k, v in metrics["networks"].items()}
    assert 0.97 * free["deep, untied"] <= free["wide, tied"] <= free["deep, untied"]
    assert free["narrow, tied"] == free["deep, untied"] - 7 * (24 * 24 + 24)


def test_the_widest_is_the_widest():
    budget = eadem.counts(nets.build("deep, untied")).free
    width = nets.wide(budget)
    counts = [eadem.counts(nets.classifier(w, 2)).free for w in (width, width + 1)]
    assert counts[0] <= budget < counts[1]


def test_the_deep_net_starts_with_layers_apart():
    blocks = nets.build("deep, untied")[2].blocks
    assert (blocks[0][0].weight - blocks[1][0].weight).abs().max() > 1e-2


def test_the_solution_is_the_matrix_exponential():
    """dx/dt = A x; the gradient of a sum of outputs is that of autograd through matrix_exp."""
    torch.manual_seed(0)
    block = nn.Linear(3, 3, bias=False).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    out = Flow(block, 1e-11)(x)
    (found,) = torch.autograd.grad(out.square().sum(), block.weight)
    exact = x @ torch.linalg.matrix_exp(block.weight).T
    (expected,) = torch.autograd.grad(exact.square().sum(), block.weight)
    torch.testing.assert_close(out, exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_bytes_of_a_stack_of_tanh():
    """Each keeps its output; the first block of a checkpointed segment only its input."""
    x = torch.zeros(10, 5, dtype=torch.float64, requires_grad=True)
    net = Repeat(nn.Tanh(), 6)
    assert saved_bytes(lambda: net(x), set()) == 6 * 10 * 5 * 8
    cut = Repeat(nn.Tanh(), 6, checkpoint=3)
    assert saved_bytes(lambda: cut(x), set()) == 2 * 10 * 5 * 8


def test_memory_by_depth(metrics):
    kept = metrics["memory"]
    assert kept["plain"][-1] == 64 * kept["plain"][0]
    assert len(set(kept["adjoint"])) == 1
    assert kept["adjoint"][-1] < kept["checkpoints"][-1] < kept["plain"][-1] / 8
