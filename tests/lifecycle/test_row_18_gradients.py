"""Row 18: θ.grad is Σ φᵀ(site gradients), and its derivatives are right."""

import pytest
import torch
from lifecycle_systems import System, loss, site_gradients, value
from torch import Tensor
from torch.func import functional_call

import eadem
from eadem import bind


def test_gradient_is_the_adjoint_of_the_site_gradients(system: System) -> None:
    model = system.tied().double()
    loss(model, system).backward()
    _, grads = site_gradients(model, system)
    plan = bind.resolved(model)
    pulled = plan.linearize(bind.free_vector(model)).adjoint(plan.cat(grads))
    found = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(found, pulled, rtol=1e-12, atol=1e-13)


def test_expansion_of_theta_is_what_the_sites_read(system: System) -> None:
    model = system.tied().double()
    plan = bind.resolved(model)
    sites = plan.split(plan.expand(bind.free_vector(model)))
    assert list(sites) == list(dict(system.stock().named_parameters()))
    for name, v in sites.items():
        torch.testing.assert_close(v, value(model, name), rtol=0, atol=0)


def _as_function(system: System) -> tuple[object, list[Tensor]]:
    model = system.tied().double().eval()
    names = [n for n, _ in model.named_parameters()]
    theta = [p.detach().clone().requires_grad_() for p in model.parameters()]
    x = system.input(model)

    def f(*parameters: Tensor) -> Tensor:
        return functional_call(model, dict(zip(names, parameters, strict=True)), (x,))

    return f, theta


def test_gradcheck(system: System) -> None:
    f, theta = _as_function(system)
    assert torch.autograd.gradcheck(f, theta, fast_mode=True)


def test_gradgradcheck(system: System) -> None:
    f, theta = _as_function(system)
    assert torch.autograd.gradgradcheck(f, theta, fast_mode=True)


def test_gradient_accumulates_over_backward_calls(system: System) -> None:
    model = system.tied().double().eval()
    loss(model, system).backward()
    once = [p.grad.clone() for p in model.parameters()]
    loss(model, system).backward()
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)


@pytest.mark.parametrize("mode", ["double", "reentrant"])
def test_derived_reads_do_not_pile_up_graphs(system: System, mode: str) -> None:
    """Two reads of a site are two expressions of the same leaf; neither holds the other."""
    model = system.tied().double().eval()
    with torch.no_grad():
        first = loss(model, system)
    second = loss(model, system)
    assert not first.requires_grad
    assert second.requires_grad
    if mode == "double":
        (g,) = torch.autograd.grad(second, [next(model.parameters())], create_graph=True)
        g.square().sum().backward()
    else:
        out = torch.utils.checkpoint.checkpoint(
            model, system.input(model).clone(), use_reentrant=False
        )
        out.sum().backward()
    assert eadem.check(model) is None
