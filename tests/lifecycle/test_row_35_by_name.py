"""Row 35: asked for a site by name, torch gives the value, or an error that names θ."""

import copy
import pickle

import pytest
import torch
from by_hand import batches, objective, pair
from lifecycle_systems import SYSTEMS, System, assert_tied, value
from torch import Tensor, nn

import eadem
from eadem.errors import NotAParameter

DERIVED = [(s, n) for s in SYSTEMS for n, count in s.owned.items() if not count]
IDS = [f"{s.name}-{n}" for s, n in DERIVED]


def _owner(system: System) -> str:
    return next(n for n, count in system.owned.items() if count)


def test_what_is_listed_is_found(system: System) -> None:
    """`get_parameter` gives what `named_parameters` lists, θ of a part among it."""
    model = system.tied()
    for where in (model, nn.Sequential(model), copy.deepcopy(model)):
        listed = dict(where.named_parameters())
        again = dict(where.named_parameters(remove_duplicate=False))
        assert list(again) == list(listed)
        for name, p in listed.items():
            assert where.get_parameter(name) is p
            assert again[name] is p


@pytest.mark.parametrize(("system", "name"), DERIVED, ids=IDS)
def test_a_derived_site_is_theta_or_an_error_that_names_it(system: System, name: str) -> None:
    owner = _owner(system)
    model = system.tied()
    if system.name == "equality":
        assert model.get_parameter(name) is model.get_parameter(owner)
        return
    module, _, attr = name.rpartition(".")
    wrapped = nn.ModuleDict({"inner": model})
    asked = (
        (model, name, name, owner),
        (wrapped, f"inner.{name}", f"inner.{name}", f"inner.{owner}"),
        (model.get_submodule(module), attr, attr, owner),
        (pickle.loads(pickle.dumps(model)), name, name, owner),
    )
    for where, target, site, theta in asked:
        says = rf"^'{site}' has no parameter of its own.*comes from '{theta}'.*eadem\.explain"
        with pytest.raises(NotAParameter, match=says) as caught:
            where.get_parameter(target)
        assert isinstance(caught.value, AttributeError)  # what torch's callers look for
        assert isinstance(caught.value, eadem.EademError)


def test_other_names_are_torchs_own_answers(system: System) -> None:
    model = system.tied()
    for name, error in (
        ("nothing", "has no attribute `nothing`"),
        ("no.where", "has no attribute `no`"),
        ("forward", "not an nn.Parameter"),
    ):
        with pytest.raises(AttributeError, match=error):
            model.get_parameter(name)
    untied = eadem.untie(system.tied())
    for name in system.sites:
        assert isinstance(untied.get_parameter(name), nn.Parameter)


def test_submodules_are_found_and_are_what_they_were(system: System) -> None:
    model, stock = system.tied(), system.stock()
    assert [n for n, _ in model.named_modules()] == [n for n, _ in stock.named_modules()]
    for name, m in stock.named_modules():
        found = model.get_submodule(name)
        assert isinstance(found, type(m))
        assert type(found).__name__ == type(m).__name__
        assert repr(found) == repr(m)


# hooks


def test_a_hook_on_theta_sees_the_whole_gradient_once(system: System) -> None:
    model, hand = pair(system)
    x = batches(system, 1)[0]
    objective(hand, x).backward()
    seen: list[list[Tensor]] = []
    after: list[Tensor] = []
    for p in model.parameters():
        mine: list[Tensor] = []
        seen.append(mine)
        p.register_hook(mine.append)
        p.register_post_accumulate_grad_hook(lambda q: after.append(q.grad.clone()))
    objective(model, x).backward()
    assert [len(s) for s in seen] == [1] * len(seen)
    wanted = [p.grad for p in hand.parameters()]
    torch.testing.assert_close([s[0] for s in seen], wanted, rtol=1e-9, atol=1e-12)
    assert len(after) == len(seen)


def test_a_hook_may_change_the_gradient_of_theta(system: System) -> None:
    model = system.tied()
    for p in model.parameters():
        p.register_hook(lambda g: torch.full_like(g, 3.0))
    objective(model, system.input()).backward()
    for p in model.parameters():
        assert torch.equal(p.grad, torch.full_like(p, 3.0))
    assert_tied(model, system)


@pytest.mark.parametrize(("system", "name"), DERIVED, ids=IDS)
def test_a_hook_on_a_value_is_a_hook_on_that_value(system: System, name: str) -> None:
    """It sees what was computed from it, as for any tensor that is no parameter."""
    model = system.tied()
    module, _, attr = name.rpartition(".")
    read = getattr(model.get_submodule(module), attr)
    seen: list[Tensor] = []
    read.register_hook(seen.append)
    (read * read).sum().backward()
    torch.testing.assert_close(seen[0], 2 * value(model, name))


def test_a_step_in_the_backward_pass_steps_theta_once(system: System) -> None:
    """torch's recipe: an optimizer for each parameter, stepped by its accumulation hook."""
    model, hand = pair(system)
    held = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}

    def step(p: Tensor) -> None:
        held[p].step()
        held[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    optimizer = torch.optim.SGD(hand.parameters(), lr=0.1)
    for x in batches(system, 3):
        objective(model, x).backward()
        optimizer.zero_grad()
        objective(hand, x).backward()
        optimizer.step()
    for p, q in zip(model.parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
