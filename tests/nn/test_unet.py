"""The U-Net against the same network by hand, and its decoder against its encoder."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, conv_transpose2d, interpolate, max_pool2d

import eadem
from eadem.errors import OutOfRange, ShapeError
from eadem.nn import UNet

WIDTHS = (3, 5, 4)


def net(tied: bool) -> UNet:
    torch.manual_seed(6)
    return UNet(2, 1, WIDTHS, tied=tied).double()


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 12, 8, dtype=torch.float64, generator=generator)


def test_decoder_is_a_convolution_of_the_two_side_by_side(x):
    """As in the paper: concatenate, then one convolution."""
    model = net(tied=False)
    skips, y = [], x
    for i, down in enumerate(model.down):
        y = down.second(down.first(y if i == 0 else max_pool2d(y, 2)).relu()).relu()
        skips.append(y)
    for i in (1, 0):
        up = model.up[i]
        both = torch.cat([interpolate(y, scale_factor=2), skips[i]], 1)
        weight = torch.cat([up.below.weight, up.skip.weight], 1)
        y = conv2d(both, weight, up.below.bias, padding=1).relu()
    torch.testing.assert_close(model(x), model.head(y), rtol=1e-12, atol=1e-12)


def test_tied_decoder_applies_the_adjoint_of_the_encoder():
    """torch's transposed convolution, with the encoder's own weight."""
    model = net(tied=True)
    for i, (up, wide) in enumerate(zip(model.up, WIDTHS[1:], strict=True)):
        for conv, source, channels in (
            (up.below, model.down[i + 1].first, wide),
            (up.skip, model.down[i].second, WIDTHS[i]),
        ):
            y = torch.randn(1, channels, 6, 7, dtype=torch.float64)
            wanted = conv_transpose2d(y, source.weight, padding=1)
            torch.testing.assert_close(conv2d(y, conv.weight, padding=1), wanted)


def test_parameters_are_counted_once():
    model = net(tied=True)
    saved = 9 * (3 * 5 + 5 * 4 + 3 * 3 + 5 * 5)
    whole = sum(p.numel() for p in net(tied=False).parameters())
    assert eadem.counts(model).free == whole - saved
    assert sum(p.numel() for p in model.parameters()) == whole - saved
    assert eadem.counts(eadem.twin(model)).free == whole
    assert len(eadem.ties(model)) == 4


def test_gradient_is_the_sum_of_both_uses(x):
    model = net(tied=True)
    twin = eadem.twin(model)
    assert torch.equal(twin(x), model(x))
    for one in (model, twin):
        one(x).square().sum().backward()
    for i in range(2):
        for site, source in (
            (twin.up[i].below, f"down.{i + 1}.first.weight"),
            (twin.up[i].skip, f"down.{i}.second.weight"),
        ):
            back = site.weight.grad.flip(-2, -1).transpose(0, 1)
            wanted = twin.get_parameter(source).grad + back
            found = model.get_parameter(source).grad
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_tying_survives_a_step_of_training(x):
    model = net(tied=True)
    before = model.up[0].below.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x).square().mean().backward()
    optimizer.step()
    after = model.up[0].below.weight
    assert not torch.equal(after, before)
    assert torch.equal(after, model.down[1].first.weight.transpose(0, 1).flip(-2, -1))
    eadem.check(model)


def test_bad_input_is_refused(x):
    with pytest.raises(OutOfRange, match="two levels or more"):
        UNet(1, 1, (8,))
    with pytest.raises(OutOfRange, match="whole numbers from 1"):
        UNet(1, 1, (8, 0))
    with pytest.raises(ShapeError, match="multiples of 4"):
        net(tied=True)(x[..., :6])
    assert isinstance(net(tied=True).head, nn.Conv2d)
