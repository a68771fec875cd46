"""Blocks that bring the derivative of their residual: asked for, checked, and done without."""

import pytest
import torch
from torch import nn

import eadem
from eadem.solvers import SolverError

X = torch.linspace(0, 3, 40, dtype=torch.float64)


class Decay(nn.Module):
    """height·exp(−rate·x) with a matrix of heights of which the first row counts."""

    def __init__(self, height, rate):
        super().__init__()
        y = height * torch.exp(-rate * X) + 0.01 * torch.sin(37 * X * height)
        self.y = nn.Buffer(y, persistent=False)
        self.height = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
        self.rate = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def residual(self):
        return self.y - self.height[0] * torch.exp(-self.rate * X)


class Own(Decay):
    asked = 0

    def residual_jvp(self, along):
        Own.asked += 1
        wave = torch.exp(-self.rate * X)
        height, rate = along["height"][:, 0], along["rate"][:, None]
        return -height * wave + rate * self.height[0] * X * wave


class Declines(Decay):
    def residual_jvp(self, along):
        return NotImplemented


class Wrong(Own):
    def residual_jvp(self, along):
        return super().residual_jvp(along) * torch.where(X > 1.5, 1.001, 1.0)


class Short(Own):
    def residual_jvp(self, along):
        return super().residual_jvp(along)[:, :-1]


def joint(kind):
    found = eadem.Joint({"a": kind(3.0, 0.7), "b": kind(5.0, 0.7)})
    eadem.tie(found, "*.rate")
    for block in found.blocks.values():
        eadem.tie(block, "height", via=eadem.Gather(torch.tensor([[0], [-1]])))
    return found


def test_it_is_asked_and_the_fit_is_that_of_torch():
    Own.asked = 0
    wanted = eadem.least_squares(joint(Decay))
    found = eadem.least_squares(joint(Own))
    assert Own.asked > 4
    assert found.converged
    assert found.free == wanted.free == 3
    torch.testing.assert_close(found.theta, wanted.theta, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.stderr["a.rate"], wanted.stderr["b.rate"])


def test_a_block_that_declines_is_left_to_torch():
    wanted, found = (eadem.least_squares(joint(kind)) for kind in (Decay, Declines))
    torch.testing.assert_close(found.theta, wanted.theta, rtol=0, atol=0)


def test_a_derivative_that_is_not_that_of_the_residual_is_refused():
    with pytest.raises(SolverError, match=r"residual_jvp\(\) of a.*not the derivative"):
        eadem.least_squares(joint(Wrong))


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(SolverError, match=r"residual_jvp\(\) of a gave \(\d, 39\)"):
        eadem.least_squares(joint(Short))
