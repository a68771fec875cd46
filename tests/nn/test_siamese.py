"""Siamese towers against one module used twice, and what trace and twin see of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import OutOfRange, ShapeError
from eadem.nn import Siamese


def tower() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)).double()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 7, 1, 6, 6, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("towers", [2, 3])
def test_towers_are_one_module_used_for_every_input(inputs, towers):
    pair, once = Siamese(tower(), towers), tower()
    found, wanted = pair(*inputs[:towers]), [once(x) for x in inputs[:towers]]
    for a, b in zip(found, wanted, strict=True):
        assert torch.equal(a, b)
    sum((i + 1) * y.square().sum() for i, y in enumerate(found)).backward()
    sum((i + 1) * y.square().sum() for i, y in enumerate(wanted)).backward()
    assert len(list(pair.parameters())) == len(list(once.parameters()))
    for p, q in zip(pair.parameters(), once.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-13, atol=1e-13)


def test_each_tower_has_the_gradient_of_its_own_input(inputs):
    """As the towers of the twin have, which adds nothing up."""
    pair = Siamese(tower())
    twin = eadem.twin(pair)

    def loss(model):
        left, right = model(*inputs[:2])
        return (left - right).square().sum() + left.sum()

    loss(twin).backward()
    with eadem.trace(pair) as seen:
        loss(pair).backward()
    for name, value in twin.named_parameters():
        torch.testing.assert_close(seen.sites[name], value.grad, rtol=1e-13, atol=1e-13)
    assert (seen.sites["towers.0.3.bias"] - seen.sites["towers.1.3.bias"]).norm() > 1.0


def test_untied_towers_start_alike_and_are_free(inputs):
    apart = Siamese(tower(), tied=False)
    assert not eadem.ties(apart)
    left, right = apart(inputs[0], inputs[0])
    assert torch.equal(left, right)
    assert eadem.counts(apart).free == 2 * eadem.counts(Siamese(tower())).free
    with torch.no_grad():
        apart.towers[1][3].bias += 1.0
    left, right = apart(inputs[0], inputs[0])
    torch.testing.assert_close(right - left, torch.ones_like(left))


def test_a_copy_keeps_the_tie_and_a_tower_without_parameters_needs_none(inputs):
    assert len(eadem.ties(copy.deepcopy(Siamese(tower())))) == 4
    assert Siamese(nn.Flatten())(*inputs[:2])[0].shape == (7, 36)


def test_bad_input_is_refused(inputs):
    with pytest.raises(OutOfRange, match="towers=1; give a whole number from 2"):
        Siamese(tower(), 1)
    with pytest.raises(ShapeError, match="1 inputs for 2 towers"):
        Siamese(tower())(inputs[0])
