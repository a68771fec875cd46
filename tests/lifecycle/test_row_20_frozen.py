"""Row 20: frozen at one site, θ is frozen, and it is said where that reaches further."""

import copy
import pickle
import warnings

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, assert_tied, value
from torch import nn

import eadem

HELD = [
    (s, n, next(o for o, count in s.owned.items() if count))
    for s in SYSTEMS
    for n, count in s.owned.items()
    if not count
]
IDS = [f"{s.name}-{n}" for s, n, _ in HELD]


def _module(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


@pytest.mark.parametrize(("system", "name", "owner"), HELD, ids=IDS)
def test_freezing_a_derived_site_freezes_theta_and_says_so(
    system: System, name: str, owner: str
) -> None:
    model = system.tied()
    module = _module(model, name)
    says = rf"requires_grad_\(False\) at {name} freezes {owner} too.*{owner}.*untie"
    with pytest.warns(UserWarning, match=says):
        assert module.requires_grad_(False) is module
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    own = {n for n, _ in model.named_parameters() if _module(model, n) is module}
    assert frozen == own | {owner}
    assert not module.weight.requires_grad
    assert "frozen" in eadem.explain(model, name)
    held = value(model, name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(system.input()).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(value(model, name), held, rtol=0, atol=0)
    eadem.check(model)
    eadem.check_optimizers(model, optimizer)

    with pytest.warns(UserWarning, match=rf"requires_grad_\(True\) at {name} thaws {owner}"):
        module.requires_grad_(True)
    assert "frozen" not in eadem.explain(model, name)
    assert_tied(model, system)


def test_freezing_the_owner_freezes_every_site(system: System) -> None:
    """The owner's module is the stock one or holds all of θ: torch's own way, no warning."""
    owner = next(n for n, count in system.owned.items() if count)
    model = system.tied()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _module(model, owner).requires_grad_(False)
    held = {n: value(model, n) for n in system.sites}
    for name in system.sites:
        assert "frozen" in eadem.explain(model, name)
        assert not getattr(_module(model, name), name.rpartition(".")[2]).requires_grad
    rest = [p for p in model.parameters() if p.requires_grad]
    if rest:
        model(system.input()).square().sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    for name, old in held.items():
        torch.testing.assert_close(value(model, name), old, rtol=0, atol=0)


def test_freezing_the_whole_model_is_torchs_own(system: System) -> None:
    model = system.tied()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.requires_grad_(False)
        assert not any(p.requires_grad for p in model.parameters())
        model.requires_grad_(True)
    assert all(p.requires_grad for p in model.parameters())
    assert_tied(model, system)


def test_a_container_freezes_the_parameters_it_holds() -> None:
    """A derived site has none, so θ goes on being learned: as `parameters()` says."""
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.Linear(2, 2))})
    eadem.tie(model, "a.weight", "b.0.weight")
    model["b"].requires_grad_(False)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["a.weight", "a.bias"]
    assert [n for n, _ in model["b"].named_parameters()] == ["0.bias"]


# one θ whose free values live in two parameters: neither is frozen or moved alone


def _across() -> nn.ModuleDict:
    model = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4), "c": nn.Linear(3, 4)})
    eadem.tie(model, "a.weight[1]", "b.weight[2]", "c.weight[3]")
    return model


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_of_several_owners_freezes_them_all(name: str) -> None:
    model = _across()
    with pytest.warns(UserWarning, match=rf"at {name}\.weight freezes"):
        model[name].requires_grad_(False)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"a.weight", "b.weight", "c.weight", f"{name}.bias"}
    eadem.check(model)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_a_parameter_frozen_behind_the_ties_back_is_found(name: str) -> None:
    model = _across()
    dict(model.named_parameters())[f"{name}.weight"].requires_grad_(False)
    with pytest.raises(eadem.TieBroken, match=r"a\.weight.*differ in requires_grad"):
        eadem.check(model)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_one_of_several_owners_moves_them_all(name: str) -> None:
    """Row 1, where θ lives in several parameters."""
    model = _across()
    model[name].to(torch.float64)
    kinds = {n: p.dtype for n, p in model.named_parameters()}
    assert {kinds[f"{m}.weight"] for m in "abc"} == {torch.float64}
    assert [m for m in "abc" if kinds[f"{m}.bias"] == torch.float64] == [name]
    with torch.no_grad():
        model["a"].weight[1] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    assert torch.equal(model["b"].weight[2], model["a"].weight[1])
    assert torch.equal(model["c"].weight[3], model["a"].weight[1])
    eadem.check(model)


def test_an_owner_that_is_not_alone_stays_itself() -> None:
    """Same parameter, same behaviour; copies, pickles and untied, the stock class again."""
    stock = nn.ModuleDict({"a": nn.Linear(3, 4), "b": nn.Linear(3, 4)})
    held = stock["a"].weight
    eadem.tie(stock, "a.weight[1]", "b.weight[2]")
    assert stock["a"].weight is held
    assert isinstance(stock["a"], nn.Linear)
    assert repr(stock["a"]) == repr(nn.Linear(3, 4))
    for again in (copy.deepcopy(stock), pickle.loads(pickle.dumps(stock))):
        assert torch.equal(again["b"].weight[2], again["a"].weight[1])
        again["a"].double()
        assert again["b"].weight.dtype == torch.float64
        eadem.check(again)
    alone = copy.deepcopy(stock["a"])
    assert type(alone) is nn.Linear
    assert torch.equal(alone.weight, held)
    eadem.untie(stock)
    assert type(stock["a"]) is nn.Linear
    assert stock["a"].weight is held
