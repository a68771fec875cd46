"""A model as a function of its sites' values, and what a plan is without some of its ties."""

import pytest
import torch
from torch import nn

import eadem
from eadem.bind import at_sites, free_vector, resolved, site_coordinates, trainable, without
from eadem.errors import NoSuchSite


def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()
    eadem.tie(net, "2.weight", to="0.weight", via=eadem.Transpose())
    return net


def test_at_the_models_own_values_it_is_the_model():
    net, x = model(), torch.randn(5, 3)
    values = resolved(net).expand(free_vector(net))
    torch.testing.assert_close(at_sites(net, lambda m, x: m(x))(values, x), net(x).detach())
    wide = at_sites(net, lambda m, x: m(x), torch.float64)(values.double(), x.double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), net(x).detach())


def test_the_site_gradient_pulled_back_is_the_models():
    net, x = model(), torch.randn(5, 3)
    plan = resolved(net)
    at = at_sites(net, lambda m, x: m(x).square().sum())
    g = torch.func.grad(at)(plan.expand(free_vector(net)), x)
    net(x).square().sum().backward()
    own = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    torch.testing.assert_close(plan.adjoint(g), own)


def test_the_gradient_of_a_recurrent_network_reaches_its_sites():
    net = nn.LSTM(2, 3, num_layers=2).double()
    eadem.tie(net, "bias_ih_l0", "bias_hh_l0")
    x = torch.randn(4, 1, 2, dtype=torch.float64)
    plan = resolved(net)
    at = at_sites(net, lambda m, x: m(x)[0].square().sum())
    values = plan.expand(free_vector(net)).requires_grad_()
    g = torch.autograd.grad(at(values, x), values)[0]
    net(x)[0].square().sum().backward()
    own = torch.cat([p.grad.reshape(-1) for p in net.parameters()])
    torch.testing.assert_close(plan.adjoint(g), own)


def test_coordinates_are_those_of_the_plan():
    net = model()
    plan = resolved(net)
    values = plan.expand(free_vector(net))
    found = values[site_coordinates(net, "2.weight[:, 1]", "0.bias")]
    expected = torch.cat([net[0].bias.detach(), net[2].weight[:, 1].detach()])
    torch.testing.assert_close(found, expected)
    assert site_coordinates(net, "0.bias", "0.bias[1]").numel() == 4
    with pytest.raises(NoSuchSite):
        site_coordinates(net, "nothing")


def test_without_a_tie_the_plan_is_that_of_the_others():
    net = nn.ModuleDict({k: nn.Linear(2, 2) for k in "abc"})
    first = eadem.tie(net, "a.weight", "b.weight")
    second = eadem.tie(net, "b.weight", "c.weight")
    third = eadem.tie(net, "*.bias")
    assert resolved(net).rank == 6
    assert [without(net, t).rank for t in (first, second, third)] == [10, 10, 10]
    assert without(net, first, second, third).rank == 18
    left = without(net, first)
    theta = torch.arange(left.in_shape[0], dtype=torch.float64)
    sites = left.split(left.expand(theta))
    assert torch.equal(sites["b.weight"], sites["c.weight"])
    assert not torch.equal(sites["a.weight"], sites["b.weight"])
    eadem.untie(net)
    with pytest.raises(NoSuchSite):
        without(net, first)


def test_trainable_follows_requires_grad():
    net = model()
    net[2].bias.requires_grad_(False)
    mask = trainable(net)
    assert int((~mask).sum()) == 3
    assert mask.numel() == free_vector(net).numel()
