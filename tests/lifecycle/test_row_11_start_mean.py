"""Row 11: tied when the sites differ; `start="mean"` is least squares, residual reported."""

import pytest
import torch
from lifecycle_systems import SYSTEMS, assert_tied, value
from torch import nn

import eadem


def test_mean_of_equal_sites() -> None:
    model = nn.Sequential(*(nn.Linear(3, 2, dtype=torch.float64) for _ in range(3)))
    held = [m.weight.detach().clone() for m in model]
    with eadem.plan(model):
        t = eadem.tie(model, "*.weight", start="mean")
    mean = torch.stack(held).mean(0)
    torch.testing.assert_close(value(model, "1.weight"), mean)
    for i, w in enumerate(held):
        assert t.residual[f"{i}.weight"] >= 0
        assert (t.residual[f"{i}.weight"] > 0) == (not torch.equal(w, mean))


def test_mean_of_transposed_sites_is_least_squares() -> None:
    system = SYSTEMS[1]
    model = system.stock().double()
    e, d = value(model, "encoder.weight"), value(model, "decoder.weight")
    eadem.tie(model, "decoder.weight", to="encoder.weight", via=eadem.Transpose(), start="mean")
    torch.testing.assert_close(value(model, "encoder.weight"), (e + d.t()) / 2)


def test_mean_with_scales_is_least_squares() -> None:
    model = nn.Sequential(nn.Linear(1, 2, dtype=torch.float64), nn.Linear(1, 2).double())
    a, b = value(model, "0.weight"), value(model, "1.weight")
    eadem.tie(
        model, {"0.weight": eadem.Same(), "1.weight": eadem.Affine(2.0, 1.0)}, start="mean"
    )
    theta = (a + 2 * (b - 1)) / (1 + 4)
    torch.testing.assert_close(value(model, "0.weight"), theta)
    torch.testing.assert_close(value(model, "1.weight"), 2 * theta + 1)


def test_mean_of_a_structured_site() -> None:
    system = SYSTEMS[4]
    model = system.stock()
    w = value(model, "conv.weight")
    t = eadem.tie(model, "conv.weight", via=eadem.Palindrome(dim=-1), start="mean")
    torch.testing.assert_close(value(model, "conv.weight"), (w + w.flip(-1)) / 2)
    assert t.residual["conv.weight"] > 0
    assert_tied(model, system)


@pytest.mark.parametrize("start", ["first", "mean"])
def test_agreeing_sites_have_no_residual(start: str) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(3, 2))
    model[1].load_state_dict(model[0].state_dict())
    t = eadem.tie(model, "*.weight", start=start)
    assert all(r == 0 for r in t.residual.values())
