"""Row 32: edited in place between two evaluations, by any means, a site is never stale."""

from collections.abc import Callable

import pytest
import torch
from lifecycle_systems import System, assert_holds, site_gradients, value
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import eadem


def _no_grad(m: nn.Module) -> None:
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.3)


def _data(m: nn.Module) -> None:
    for p in m.parameters():
        p.data.mul_(1.5)


def _data_replaced(m: nn.Module) -> None:
    for p in m.parameters():
        p.data = p.data + 0.3


def _vector(m: nn.Module) -> None:
    v = parameters_to_vector(m.parameters()).detach()
    vector_to_parameters(v + 0.3, m.parameters())


def _inference(m: nn.Module) -> None:
    with torch.inference_mode():
        for p in m.parameters():
            p.add_(0.3)


def _numpy(m: nn.Module) -> None:
    for p in m.parameters():
        p.detach().numpy()[...] += 0.3


def _fused(m: nn.Module) -> None:
    optimizer = torch.optim.AdamW(m.parameters(), lr=0.1, fused=True)
    for p in m.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


def _foreach(m: nn.Module) -> None:
    torch._foreach_add_([p.data for p in m.parameters()], 0.3)


def _load(m: nn.Module) -> None:
    m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()})


def _requires_grad(m: nn.Module) -> None:
    m.requires_grad_(False)
    for p in m.parameters():
        p.add_(0.3)
    m.requires_grad_(True)


EDITS: dict[str, Callable[[nn.Module], None]] = {
    f.__name__.lstrip("_"): f
    for f in (
        _no_grad,
        _data,
        _data_replaced,
        _vector,
        _inference,
        _numpy,
        _fused,
        _foreach,
        _load,
        _requires_grad,
    )
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("grad", ["no_grad", "inference", "grad"])
def test_the_second_evaluation_sees_the_edit(system: System, edit: str, grad: str) -> None:
    mode = {
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
        "grad": torch.enable_grad,
    }[grad]
    model = system.tied().eval()
    x = system.input()
    with mode():
        first = model(x).clone()
    EDITS[edit](model)
    with mode():
        second = model(x).clone()
    assert not torch.equal(first, second)
    assert_holds(model, system)
    sites, _ = site_gradients(model, system)
    stock = system.stock().eval()
    stock.load_state_dict(
        sites | {n: b.detach() for n, b in model.named_buffers()}, strict=True
    )
    torch.testing.assert_close(second, stock(x), rtol=1e-5, atol=1e-6)


def test_first_read_under_inference_mode_then_trained(system: System) -> None:
    """Constants built in inference mode could not be saved for backward."""
    model = system.tied()
    with torch.inference_mode():
        model(system.input())
        for name in system.sites:
            value(model, name)
    model(system.input()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_tied_under_inference_mode_then_trained(system: System) -> None:
    model = system.stock()
    with torch.inference_mode():
        system.tie(model)
    model(system.input()).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_forward_pass_that_fails_leaves_nothing_behind(system: System) -> None:
    model = system.tied().eval()

    def fail(module: nn.Module, args: object, output: object) -> None:
        raise ZeroDivisionError

    handle = next(model.children()).register_forward_hook(fail)
    with torch.no_grad(), pytest.raises(ZeroDivisionError):
        model(system.input())
    handle.remove()
    with torch.no_grad():
        first = model(system.input()).clone()
    for p in model.parameters():
        p.data.mul_(0.5)
    with torch.no_grad():
        second = model(system.input())
    assert not torch.equal(first, second)
    stock = system.stock().eval()
    stock.load_state_dict(eadem.materialize(model))
    torch.testing.assert_close(second, stock(system.input()).detach(), rtol=1e-5, atol=1e-6)


def test_a_site_is_read_afresh_outside_a_forward_pass(system: System) -> None:
    """Also in a hook of a forward pass that has computed the site already."""
    model = system.tied().eval()
    for p in model.parameters():
        before = [value(model, n) for n in system.sites]
        p.data.add_(0.25)
        after = [value(model, n) for n in system.sites]
        owner = next(n for n, q in model.named_parameters() if q is p)
        moved = owner in system.sites
        assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) == moved


def test_an_edit_within_one_forward_pass_is_seen(system: System) -> None:
    """A hook that changes θ between two reads in one forward: both reads agree with θ."""
    model = system.tied().eval()

    def halve(module: nn.Module, args: object) -> None:
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(0.5)

    handle = model.register_forward_pre_hook(halve)
    with torch.no_grad():
        found = model(system.input())
    handle.remove()
    with torch.no_grad():
        torch.testing.assert_close(found, model(system.input()), rtol=0, atol=0)
