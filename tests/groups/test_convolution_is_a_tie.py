"""A linear layer under Toeplitz2d is the convolution (C03), and shifts with its input (C04)."""

import itertools

import pytest
import torch
from torch import nn

import eadem
from eadem.maps import Gather, Toeplitz2d

SIDE = (5, 6)
CASES = [
    (kernel, stride, padding, channels)
    for kernel, stride, padding, channels in itertools.product(
        [(1, 1), (3, 3), (2, 3)],
        [(1, 1), (2, 2), (1, 3)],
        [(0, 0), (1, 1), (2, 0)],
        [(1, 1), (3, 2)],
    )
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "channels"), CASES)
def test_a_tied_linear_layer_is_the_convolution(kernel, stride, padding, channels):
    torch.manual_seed(0)
    inputs, outputs = channels
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding).double()
    phi = Toeplitz2d(SIDE, kernel, stride, padding)
    positions = phi.out_size[0] * phi.out_size[1]
    layer = nn.Linear(inputs * 30, outputs * positions).double()
    eadem.tie(layer, "weight", via=phi, start=conv.weight)
    shared = Gather(torch.arange(outputs).repeat_interleave(positions))
    eadem.tie(layer, "bias", via=shared, start=conv.bias)
    used = sum(
        bool((phi.bind(layer.weight.shape).index().position == i).any())
        for i in range(conv.weight.numel())
    )
    assert eadem.counts(layer).free == used + outputs
    x = torch.randn(3, inputs, *SIDE, dtype=torch.float64)
    want = conv(x)
    got = layer(x.flatten(1)).reshape(want.shape)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    (got**2).sum().backward()
    (want**2).sum().backward()
    pulled = torch.zeros_like(conv.weight)
    theta = layer._parameters["weight"]
    phi = phi.bind(layer.weight.shape)
    hit = phi.index().used().reshape(conv.weight.shape)
    pulled[hit] = conv.weight.grad[hit]
    again = phi.lift(layer.weight.detach())
    torch.testing.assert_close(again[hit], conv.weight.detach()[hit], rtol=0, atol=0)
    assert theta.grad.norm() == pytest.approx(float(pulled.norm()), rel=1e-11)


def test_the_matrix_is_doubly_block_toeplitz():
    phi = Toeplitz2d(in_size=6, kernel_size=3).bind((16, 36))
    matrix = phi.forward(torch.arange(1.0, 10).reshape(1, 1, 3, 3)).reshape(4, 4, 6, 6)
    for row, column in itertools.product(range(3), range(3)):
        # one step down or right at the output is the same step at the input
        assert torch.equal(matrix[row, :, :-1], matrix[row + 1, :, 1:])
        assert torch.equal(matrix[:, column, :, :-1], matrix[:, column + 1, :, 1:])


@pytest.mark.parametrize(("mode", "margin"), [("circular", 0), ("zeros", 1)])
def test_shared_over_positions_it_follows_shifts(mode, margin):
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode).double()
    x = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    shifts = eadem.Shifts((-2, -1), margin=margin)
    found = eadem.certify(conv, shifts, x)
    assert found.tried == 30
    assert found.holds()
    assert (found.compared == 1.0) == (margin == 0)
    if mode == "circular":
        highest = eadem.certify(lambda v: conv(v).amax((-2, -1)), shifts, x, kind="invariance")
        assert highest.holds()
    else:
        assert not eadem.certify(conv, eadem.Shifts((-2, -1)), x).holds()


def test_an_untied_layer_does_not():
    torch.manual_seed(0)
    layer = nn.Linear(30, 30).double()
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    found = eadem.certify(
        lambda v: layer(v.flatten(1)).reshape(v.shape), eadem.Shifts((-2, -1)), x
    )
    assert found.relative > 1e-2
    assert found.verdict == "broken"
