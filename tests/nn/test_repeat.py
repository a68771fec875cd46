"""Repeat against plain loops over functions, and what trace, twin and a file see of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import eadem
from eadem.errors import NoSuchSite, OutOfRange, ShapeError
from eadem.nn import Repeat

FORMS = [{}, {"step": 0.3}]


def block() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double()


def by_hand(weight: Tensor, bias: Tensor, x: Tensor, depth: int, step=None) -> Tensor:
    for _ in range(depth):
        y = torch.tanh(x @ weight.T + bias)
        x = y if step is None else x + step * y
    return x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("segment", [None, 1, 3, 100])
def test_values_and_gradients_are_those_of_the_loop(x, form, reuse, segment):
    net = Repeat(block(), 7, reuse=reuse, checkpoint=segment, **form)
    weight, bias = (p.detach().clone().requires_grad_() for p in net.parameters())
    expected = by_hand(weight, bias, x, 7, **form)
    found = net(x)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    found.square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(net.parameters(), (weight, bias), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("form", FORMS)
def test_each_layer_has_its_part_of_the_gradient(x, form):
    """As the layers of the untied net have, whose gradients autograd does not add up."""
    net = Repeat(block(), 4, **form)
    twin = eadem.twin(net)
    twin(x).square().sum().backward()
    with eadem.trace(net) as seen:
        net(x).square().sum().backward()
    assert len(seen.sites) == 8
    for name, value in twin.named_parameters():
        torch.testing.assert_close(seen.sites[name], value.grad)
    owner = net.blocks[0][0].weight
    torch.testing.assert_close(seen.pulled()["blocks.0.0.weight"], owner.grad)


@pytest.mark.parametrize("segment", [None, 2])
def test_the_calls_of_a_reused_block_are_told_apart(x, segment):
    shared = block()
    tied = Repeat(copy.deepcopy(shared), 5)
    net = Repeat(shared, 5, reuse=True, checkpoint=segment)
    with eadem.trace(tied) as sites:
        tied(x).square().sum().backward()
    with eadem.trace(net, "blocks.0.**") as seen:
        net(x).square().sum().backward()
    assert set(seen.calls) == {"blocks.0.0.weight", "blocks.0.0.bias"}
    for i, grad in enumerate(seen.calls["blocks.0.0.weight"]):
        torch.testing.assert_close(grad, sites.sites[f"blocks.{i}.0.weight"])
    total = seen.sites["blocks.0.0.weight"]
    torch.testing.assert_close(total, shared[0].weight.grad)
    torch.testing.assert_close(seen.pulled()["blocks.0.0.weight"], total)
    assert seen.conflict()["blocks.0.0.weight"] < 1e-12


def test_a_trace_of_no_parameter_is_refused():
    net = Repeat(block(), 2, reuse=True)
    with pytest.raises(NoSuchSite, match=r"blocks\.0\.0\.weight"), eadem.trace(net, "blocks.0"):
        pass


def test_one_set_of_weights_is_stored(x):
    net, again = Repeat(block(), 6), Repeat(block(), 6, reuse=True)
    assert list(net.state_dict()) == list(again.state_dict())
    assert eadem.counts(net).free == eadem.counts(again).free == 30
    assert eadem.counts(net).expanded == 180
    other = Repeat(nn.Sequential(nn.Linear(5, 5), nn.Tanh()).double(), 6)
    other.load_state_dict(again.state_dict())
    assert torch.equal(other(x), again(x))


def test_untied_it_is_a_deep_network(x):
    net = Repeat(block(), 3, step=0.5)
    free = eadem.twin(net)
    torch.testing.assert_close(free(x), net(x), rtol=0, atol=0)
    assert sum(p.numel() for p in free.parameters()) == 90
    with torch.no_grad():
        free.blocks[2][0].bias += 1.0
    assert not torch.allclose(free(x), net(x))


@pytest.mark.parametrize("reuse", [False, True])
def test_a_structured_weight_is_recomputed(x, reuse):
    """A computed site is kept for one forward; what the backward pass computes is the same."""
    whole = Repeat(block(), 6, reuse=reuse)
    eadem.tie(whole, "blocks.0.0.weight", via=eadem.Palindrome(dim=-1))
    cut = copy.deepcopy(whole)
    cut.checkpoint = 2
    for net in (whole, cut):
        net(x).square().sum().backward()
    for p, q in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_buffers_stay_apart():
    net = Repeat(nn.BatchNorm1d(5), 3)
    net(torch.randn(8, 5, generator=torch.Generator().manual_seed(0)) + 3.0)
    means = [b.running_mean for b in net.blocks]
    assert (means[0] - means[2]).abs().max() > 0.1
    assert eadem.counts(net).free == 10


def test_a_block_without_parameters():
    assert torch.equal(Repeat(nn.ReLU(), 3)(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2]))


def test_under_functional_call_and_vmap(x):
    net = Repeat(block(), 4, step=0.25)
    values = {k: v.detach() for k, v in net.named_parameters()}
    each = torch.func.vmap(lambda one: functional_call(net, values, (one,)))(x)
    torch.testing.assert_close(each, net(x))


@pytest.mark.parametrize(("depth", "segment"), [(0, None), (-1, None), (2.0, None), (4, 0)])
def test_impossible_depths(depth, segment):
    with pytest.raises(OutOfRange, match="whole number"):
        Repeat(block(), depth, checkpoint=segment)


@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_changes_the_shape(form):
    """x + step · y would broadcast without a word."""
    with pytest.raises(ShapeError, match=r"\(3, 1\) of \(3, 5\)"):
        Repeat(nn.Linear(5, 1), 2, **form)(torch.zeros(3, 5))
