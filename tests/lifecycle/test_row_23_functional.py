"""Row 23: `functional_call`, `vmap` over stacked models, `jacrev` and `jvp`, by θ's name."""

import pytest
import torch
from lifecycle_systems import System, loss, value, values
from torch import Tensor
from torch.func import functional_call, jacrev, jvp, stack_module_state, vmap

import eadem
from eadem import bind


def thetas(system: System, seed: int = 4) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in system.tied(seed).named_parameters()}


def test_functional_call_by_the_name_of_theta(system: System) -> None:
    model, other = system.tied().eval(), system.tied(seed=4).eval()
    held = values(model, system.sites)
    found = functional_call(model, thetas(system), (system.input(),))
    torch.testing.assert_close(found, other(system.input()), rtol=0, atol=0)
    assert not torch.equal(found, model(system.input()))
    torch.testing.assert_close(values(model, system.sites), held, rtol=0, atol=0)


def test_a_derived_site_by_its_own_name_is_refused_or_followed(system: System) -> None:
    """Its value is not a parameter: to give one and see it ignored would be a lie."""
    model = system.tied().eval()
    plain = model(system.input())
    for name, count in system.owned.items():
        if count:
            continue
        wrong = {name: value(model, name) + 1}
        try:
            found = functional_call(model, wrong, (system.input(),))
        except (eadem.EademError, KeyError, AttributeError, RuntimeError):
            continue
        finally:
            eadem.check(model)
        assert not torch.equal(found, plain), f"{name} was ignored"


def test_jacobian_is_that_of_the_sites_times_the_map(system: System) -> None:
    model = system.tied().double().eval()
    x = system.input(model)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    by_theta = jacrev(lambda p: functional_call(model, p, (x,)).reshape(-1))(parameters)
    found = torch.cat([j.flatten(1) for j in by_theta.values()], dim=1)
    twin = eadem.twin(model)
    plan = bind.resolved(model)
    theta = bind.free_vector(model)
    sites = plan.split(plan.expand(theta))
    by_site = jacrev(lambda w: functional_call(twin, w, (x,)).reshape(-1))(sites)
    rows = torch.cat([j.flatten(1) for j in by_site.values()], dim=1)
    phi = plan.linearize(theta)
    want = torch.stack([phi.adjoint(r) for r in rows])
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-11)


def test_jvp_is_forward_then_the_sites_jacobian(system: System) -> None:
    model = system.tied().double().eval()
    x = system.input(model)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    tangents = {n: torch.ones_like(p) for n, p in parameters.items()}
    f = lambda p: functional_call(model, p, (x,))  # noqa: E731
    _, found = jvp(f, (parameters,), (tangents,))
    step = 1e-6
    moved = {n: p + step * tangents[n] for n, p in parameters.items()}
    back = {n: p - step * tangents[n] for n, p in parameters.items()}
    torch.testing.assert_close(found, (f(moved) - f(back)) / (2 * step), rtol=1e-5, atol=1e-7)


def test_vmap_over_stacked_models(system: System) -> None:
    models = [system.tied(seed=s).eval() for s in (1, 2, 3)]
    parameters, buffers = stack_module_state(models)
    assert sum(p[0].numel() for p in parameters.values()) == system.free
    base = system.tied().eval()
    x = system.input()
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    for m, out in zip(models, found, strict=True):
        torch.testing.assert_close(out, m(x))
    # nothing of the transform stays behind in the model
    torch.testing.assert_close(base(x), system.tied().eval()(x), rtol=0, atol=0)


def test_gradients_of_each_sample(system: System) -> None:
    model = system.tied().double().eval()
    x = system.input(model)
    parameters = {n: p.detach() for n, p in model.named_parameters()}

    def one(p: dict[str, Tensor], sample: Tensor) -> Tensor:
        return functional_call(model, p, (sample[None],)).square().sum()

    found = vmap(torch.func.grad(one), in_dims=(None, 0))(parameters, x)
    model.zero_grad()
    model(x).square().sum().backward()
    for n, p in model.named_parameters():
        torch.testing.assert_close(found[n].sum(0), p.grad, rtol=1e-10, atol=1e-11)


def test_after_a_transform_the_model_trains(system: System) -> None:
    model = system.tied()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    jacrev(lambda p: functional_call(model.eval(), p, (system.input(),)).sum())(parameters)
    loss(model.train(), system).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("times", [2])
def test_repeated_reads_under_vmap_and_grad(system: System, times: int) -> None:
    """A value kept within a forward belongs to its transform level."""
    model = system.tied().eval()
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    x = system.input()

    def f(p: dict[str, Tensor]) -> Tensor:
        total = x.new_zeros((), dtype=torch.float32)
        for _ in range(times):
            total = total + functional_call(model, p, (x,)).square().sum()
        return total

    stacked = {n: torch.stack([p, p + 0.1]) for n, p in parameters.items()}
    both = vmap(torch.func.grad(f))(stacked)
    single = torch.func.grad(f)({n: p[1] for n, p in stacked.items()})
    for n, g in single.items():
        torch.testing.assert_close(both[n][1], g, rtol=1e-4, atol=1e-5)
