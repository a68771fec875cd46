"""Row 5: a whole copy keeps its tie, a copy of one site is independent."""

import copy

import pytest
import torch
from lifecycle_systems import (
    SYSTEMS,
    System,
    assert_holds,
    assert_related,
    assert_tied,
    assert_unchanged,
    snapshot,
    value,
    values,
)
from torch import nn

import eadem


def test_whole_copy_keeps_the_tie_and_is_independent(system: System) -> None:
    model = system.tied()
    before = values(model, system.sites)
    twice = copy.deepcopy(copy.deepcopy(model))
    torch.testing.assert_close(values(twice, system.sites), before, rtol=0, atol=0)
    assert not {id(p) for p in twice.parameters()} & {id(p) for p in model.parameters()}
    assert_tied(twice, system)
    torch.testing.assert_close(values(model, system.sites), before, rtol=0, atol=0)
    assert_tied(model, system)
    assert len(eadem.ties(twice)) == len(eadem.ties(model)) == 1
    assert type(twice) is type(model)


def test_copy_outlives_the_original(system: System) -> None:
    model = copy.deepcopy(system.tied())
    assert_tied(model, system)
    eadem.untie(model)
    assert_related(model, system)


@pytest.mark.parametrize("system", [s for s in SYSTEMS if s.derived], ids=lambda s: s.name)
def test_copy_of_one_derived_site_is_a_stock_module(system: System) -> None:
    model = system.tied()
    stock = system.stock()
    for name in system.derived:
        alone = copy.deepcopy(model.get_submodule(name))
        assert type(alone) is type(stock.get_submodule(name))
        assert [n for n, _ in alone.named_parameters()] == [
            n for n, _ in stock.get_submodule(name).named_parameters()
        ]
        assert isinstance(alone.weight, nn.Parameter)
        held = value(model, f"{name}.weight")
        torch.testing.assert_close(alone.weight.detach(), held, rtol=0, atol=0)
        with torch.no_grad():
            alone.weight.add_(1.0)
        torch.testing.assert_close(value(model, f"{name}.weight"), held, rtol=0, atol=0)
    assert_tied(model, system)


def test_copy_of_an_owner_alone_is_independent() -> None:
    system = SYSTEMS[1]
    model = system.tied()
    alone = copy.deepcopy(model.get_submodule("encoder"))
    with torch.no_grad():
        alone.weight.zero_()
    assert type(alone) is nn.Linear
    assert value(model, "encoder.weight").abs().sum() > 0
    assert value(model, "decoder.weight").abs().sum() > 0
    assert_tied(model, system)


def test_copy_of_a_tied_part_of_a_larger_model(system: System) -> None:
    outer = nn.ModuleDict({"inner": system.tied(), "other": nn.Linear(2, 2)})
    part = copy.deepcopy(outer["inner"])
    assert_tied(part, system)
    assert_tied(copy.deepcopy(outer)["inner"], system)


def test_copy_of_a_part_of_a_model_tied_from_its_root(system: System) -> None:
    outer = nn.ModuleDict({"inner": system.stock(), "other": nn.Linear(2, 2)})
    system.tie(outer, "inner.")
    whole = copy.deepcopy(outer)
    assert_holds(whole["inner"], system)
    part = copy.deepcopy(outer["inner"])
    assert_holds(part, system)
    with torch.no_grad():
        for p in part.parameters():
            p.add_(1.0)
    assert_related(part, system)
    assert_holds(outer["inner"], system)


def test_shallow_copy_shares_and_does_not_break(system: System) -> None:
    model = system.tied()
    same = copy.copy(model)
    assert_related(same, system)
    assert_tied(model, system)


def test_gradients_of_a_copy_stay_with_the_copy(system: System) -> None:
    model = system.tied()
    twin = copy.deepcopy(model)
    twin(system.input()).float().square().sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.grad is not None for p in twin.parameters())


def test_copy_of_several_sites_without_the_rest_is_refused() -> None:
    """A container made on the fly holds two sites of three: their tie would be lost unseen."""
    model = nn.Sequential(*[nn.Linear(3, 3) for _ in range(3)])
    eadem.tie(model, "*.weight")
    before = snapshot(model)
    with pytest.raises(eadem.Unsupported, match=r"'0.weight' and '1.weight'.*whole tie.*untie"):
        copy.deepcopy(model[:2])
    assert_unchanged(model, before)
    part = copy.deepcopy(model)[:2]
    assert part[0].weight is part[1].weight
    assert "not all of their tie" in eadem.explain(model, "1.weight")
