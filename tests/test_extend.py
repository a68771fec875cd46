"""Ties declared one call at a time give what one declaration gives."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import eadem
from eadem import bind


def layers(n: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(3, 3) for _ in range(n)))


def state(model: nn.Module) -> tuple[list[str], str, list[tuple[str, ...]]]:
    plan = bind.resolved(model)
    names = [n for n, _ in model.named_parameters()]
    shown = sorted((n, repr(e.outer), e.owners) for n, e in plan.expressions.items())
    return names, repr(shown), list(plan.groups)


def test_one_by_one_is_the_same_plan() -> None:
    together, apart = layers(), layers()
    eadem.tie(together, "*.weight")
    for i in range(1, 6):
        eadem.tie(apart, f"{i}.weight", to="0.weight")
    assert state(together) == state(apart)
    assert [t.residual for t in eadem.ties(apart)]
    x = torch.randn(2, 3)
    torch.testing.assert_close(together[0](x), apart[0](x), rtol=0, atol=0)
    eadem.check(apart)


def test_views_compose_along_a_chain() -> None:
    model = layers()
    for i in range(5):
        eadem.tie(model, f"{i + 1}.weight", to=f"{i}.weight", via=eadem.Rotate(1))
    for i in range(6):
        want = torch.rot90(model[0].weight, i, (-2, -1))
        torch.testing.assert_close(model[i].weight, want, rtol=0, atol=0)
    assert eadem.counts(model).free == 9 + 18


def test_an_earlier_site_takes_the_place_of_the_owner() -> None:
    model = layers()
    eadem.tie(model, "2.weight", "3.weight")
    eadem.tie(model, "1.weight", "3.weight")
    eadem.tie(model, "0.weight", to="3.weight", via=eadem.Transpose())
    assert [n for n, _ in model.named_parameters() if n.endswith("weight")] == [
        "0.weight",
        "4.weight",
        "5.weight",
    ]
    torch.testing.assert_close(model[2].weight, model[0].weight.t(), rtol=0, atol=0)


def test_a_group_that_grows_leaves_its_old_scope() -> None:
    model = nn.Sequential(layers(2), layers(2))
    eadem.tie(model[0], "*.weight")
    assert len(eadem.ties(model[0])) == 1
    eadem.tie(model, "1.0.weight", to="0.0.weight")
    assert not eadem.ties(model[0])
    assert len(eadem.ties(model)) == 2
    with pytest.raises(eadem.Unsupported, match=r"'0.0.weight' and '0.1.weight'"):
        copy.deepcopy(model[0])
    assert isinstance(copy.deepcopy(model[0][1]).weight, nn.Parameter)
    again = copy.deepcopy(model)
    assert len(eadem.ties(again)) == 2
    eadem.untie(model, "1.0.weight")
    assert isinstance(model[1][0].weight, nn.Parameter)


def test_a_refused_extension_changes_nothing() -> None:
    model = layers(3)
    eadem.tie(model, "0.weight", "1.weight")
    before = state(model)
    model[2].double()
    with pytest.raises(eadem.Unsupported, match="dtype"):
        eadem.tie(model, "2.weight", to="0.weight")
    with pytest.raises(eadem.ShapeError):
        eadem.tie(model, "0.bias", to="0.weight")
    assert state(model) == before


def test_a_parameter_held_twice_since_the_last_tie_is_seen() -> None:
    model = layers(4)
    eadem.tie(model, "0.weight", "1.weight")
    model[3].weight = model[2].weight
    eadem.tie(model, "2.weight", "1.weight")
    for i in range(4):
        torch.testing.assert_close(model[i].weight, model[0].weight, rtol=0, atol=0)
    assert eadem.counts(model).free == 9 + 12


def test_a_removed_module_is_named() -> None:
    model = layers(2)
    eadem.tie(model, "*.weight")
    del model[1]
    with pytest.raises(eadem.TieBroken, match="no longer"):
        eadem.check(model)


def test_a_tied_model_is_freed_with_its_last_reference() -> None:
    model = layers(3)
    eadem.tie(model, "*.weight", via=eadem.Palindrome(dim=-1))
    eadem.tie(model, "0.bias", "1.bias")
    eadem.counts(model)
    model(torch.randn(2, 3))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
