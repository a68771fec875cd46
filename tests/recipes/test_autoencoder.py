"""The recipe autoencoder: its quick run, its ties, and the theorem on the linear one."""

import json

import pytest
import torch

import eadem
from eadem.recipes import _autoencoder_linear as linear
from eadem.recipes import _autoencoder_nets as nets
from eadem.recipes import run

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("autoencoder", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claims_hold(metrics):
    assert [c["id"] for c in metrics["claims"]] == ["C08", "C08"]
    assert all(c["holds"] for c in metrics["claims"]), metrics["claims"]


@pytest.mark.parametrize("depth", list(nets.WIDTHS))
def test_tied_decoders_are_the_encoders_transposed(depth):
    model = nets.autoencoder(nets.WIDTHS[depth], tied=True)
    layers = [m for m in model if isinstance(m, torch.nn.Linear)]
    for down, up in zip(layers, reversed(layers), strict=True):
        assert torch.equal(up.weight, down.weight.T)
    twin = nets.autoencoder(nets.WIDTHS[depth], tied=False)
    assert not eadem.ties(twin)
    half, whole = (sum(p.numel() for p in m.parameters() if p.dim() > 1) for m in (model, twin))
    assert 2 * half == whole


def test_without_a_penalty_the_linear_decoder_is_no_transpose(metrics):
    """The contrast that the theorem needs: both matrices are as good, and differ."""
    linear = metrics["linear"]
    assert linear["none"]["distance"] > 0.1
    assert linear["penalty"]["path"][0] > 0.1


def test_a_penalised_residual_adds_up_to_error_and_penalty():
    torch.manual_seed(3)
    root = torch.randn(5, 5, dtype=torch.float64)
    model = linear.Linear(root, 0.3)
    left = (torch.eye(5, dtype=torch.float64) - model.up @ model.down) @ root
    wanted = left.square().sum() + 0.3 * (model.up.square().sum() + model.down.square().sum())
    torch.testing.assert_close(model.residual().square().sum(), wanted)
