"""Toeplitz is torch's convolution, Local the naive loop, and bias goes by Gather (C02, C03)."""

import math

import pytest
import torch
from torch.nn import functional

from eadem.errors import ShapeError, Unsupported
from eadem.maps import Gather, Local1d, Local2d, Toeplitz1d, Toeplitz2d

GEOMETRIES = [
    ((5, 6), (3, 2), (1, 2), (1, 0)),
    ((4, 4), (3, 3), (1, 1), (1, 1)),
    ((7, 5), (2, 5), (3, 1), (2, 3)),
    ((1, 2), (3, 3), (1, 1), (1, 1)),
    ((3, 3), (1, 1), (2, 2), (0, 0)),
]


def site(phi, out_channels, in_channels):
    return (
        out_channels * math.prod(phi.out_size),
        in_channels * math.prod(phi.in_size),
    )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_linear_layer_under_toeplitz2d_is_conv2d(geometry):
    size, kernel, stride, padding = geometry
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(2, 3, kernel, stride, padding, dtype=torch.float64)
    unbound = Toeplitz2d(size, kernel, stride, padding)
    phi = unbound.bind(site(unbound, 3, 2))
    assert phi.in_shape == tuple(conv.weight.shape)
    assert phi.fan_in == 2 * math.prod(kernel)
    positions = math.prod(phi.out_size)
    bias = Gather(torch.arange(3).repeat_interleave(positions)).bind((3 * positions,))
    weight, shift = (p.detach().clone().requires_grad_() for p in conv.parameters())
    x = torch.randn(4, 2, *size, dtype=torch.float64)
    want = conv(x).flatten(1)
    got = functional.linear(x.flatten(1), phi.expand(weight), bias.expand(shift))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    (got**2).sum().backward()
    (want**2).sum().backward()
    torch.testing.assert_close(weight.grad, conv.weight.grad, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(shift.grad, conv.bias.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (1, 2)])
def test_a_linear_layer_under_toeplitz1d_is_conv1d(stride, padding):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    want = functional.conv1d(x, weight, stride=stride, padding=padding)
    phi = Toeplitz1d(6, 3, stride, padding).bind((3 * want.shape[-1], 12))
    got = functional.linear(x.flatten(1), phi.forward(weight))
    torch.testing.assert_close(got, want.flatten(1), rtol=1e-12, atol=1e-13)


def test_a_linear_layer_under_local2d_is_the_naive_loop():
    torch.manual_seed(0)
    phi = Local2d((4, 5), (3, 2), (1, 2)).bind((2 * 4, 3 * 20))
    theta = torch.randn(phi.in_shape, dtype=torch.float64)
    windows = theta.reshape(2, *phi.out_size, 3, 3, 2)
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    want = torch.zeros(2, *phi.out_size, dtype=torch.float64)
    for o in range(2):
        for i in range(phi.out_size[0]):
            for j in range(phi.out_size[1]):
                patch = x[:, i : i + 3, 2 * j : 2 * j + 2]
                want[o, i, j] = (windows[o, i, j] * patch).sum()
    got = phi.forward(theta) @ x.flatten()
    torch.testing.assert_close(got, want.flatten(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_free_value_of_local_is_used_once(geometry):
    unbound = Local2d(*geometry)
    phi = unbound.bind(site(unbound, 2, 3))
    assert phi.rank == math.prod(phi.in_shape)
    assert bool((phi.gram_diagonal() == 1).all())


def test_convolution_is_a_locally_connected_layer():
    torch.manual_seed(0)
    shape = (2 * 16, 16)
    conv = Toeplitz2d(4, 3, 1, 1).bind(shape)
    local = Local2d(4, 3, 1, 1).bind(shape)
    weight = conv.forward(torch.randn(conv.in_shape))
    assert torch.equal(local.forward(local.lift(weight)), weight)
    assert (conv.rank, local.rank) == (2 * 9, 2 * 100)


def test_a_tap_that_never_meets_a_pixel_lowers_the_rank():
    assert Toeplitz2d(1, 3, padding=1).bind((2, 1)).rank == 2


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Toeplitz2d(3, 5), ShapeError, "no window fits"),
        (lambda: Local1d(3, 0), ShapeError, "kernel_size must be at least 1"),
        (lambda: Local1d(3, 2, padding=-1), ShapeError, "padding must be at least 0"),
        (lambda: Local2d((3, 3, 3), 2), ShapeError, "in_size must be an int or 2"),
        (lambda: Local2d("33", 2.5), Unsupported, "kernel_size must be an int"),
        (lambda: Toeplitz2d(3, 2).bind((7, 9)), ShapeError, "out_channels·4"),
        (lambda: Toeplitz2d(3, 2).bind((4, 10)), ShapeError, "in_channels·9"),
        (lambda: Toeplitz2d(3, 2).bind((4, 9, 1)), ShapeError, "two axes"),
        (lambda: Local2d(3, 2).bind((0, 9)), ShapeError, "4 positions"),
    ],
)
def test_bad_windows(make, error, says):
    with pytest.raises(error, match=says):
        make()
