"""Periodic against cosines and sines written out, and what a network behind it cannot do."""

import math

import pytest
import torch
from torch import nn

from eadem.errors import OutOfRange, ShapeError
from eadem.nn import Periodic


def test_columns_are_cosines_and_sines():
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = Periodic(3, (2.0, 5.0), dims=(0, -1), harmonics=2)(x)
    a, b, c = x.unbind(1)
    expected = [b]
    for value, period in ((a, 2.0), (c, 5.0)):
        for f in (torch.cos, torch.sin):
            expected += [f(2 * math.pi * k * value / period) for k in (1, 2)]
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-14, atol=1e-14)


def test_a_network_behind_it_is_periodic_with_its_derivatives():
    torch.manual_seed(0)
    layer = Periodic(2, 2 * math.pi, harmonics=3)
    net = nn.Sequential(layer, nn.Linear(layer.out_features, 9), nn.Tanh(), nn.Linear(9, 1))
    net.double()
    left = torch.tensor([[0.3, 0.1]], dtype=torch.float64, requires_grad=True)
    right = (
        left.detach() + torch.tensor([0.0, 2 * math.pi], dtype=torch.float64)
    ).requires_grad_()
    ends = []
    for x in (left, right):
        (first,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[0, 1], x)
        ends.append(torch.cat([net(x)[0], first[0], second[0]]).detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-12, atol=1e-13)
    assert (net(left) - net(left + 1.0)).abs().item() > 1e-3


def test_one_point_or_many():
    layer = Periodic(2, 1.0)
    x = torch.rand(4, 5, 2, dtype=torch.float64)
    assert layer(x).shape == (4, 5, 3)
    assert torch.equal(torch.func.vmap(torch.func.vmap(layer))(x), layer(x))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"period": 0.0}, "positive"),
        ({"period": (1.0, 2.0)}, "positive"),
        ({"period": 1.0, "dims": (2,)}, "once"),
        ({"period": 1.0, "dims": (1, -1)}, "once"),
        ({"period": 1.0, "dims": ()}, "once"),
        ({"period": 1.0, "harmonics": 0}, "whole number"),
    ],
)
def test_impossible_arguments(given, message):
    with pytest.raises(OutOfRange, match=message):
        Periodic(2, **given)


def test_another_number_of_columns():
    with pytest.raises(ShapeError, match="2 columns"):
        Periodic(2, 1.0)(torch.zeros(4, 3))
