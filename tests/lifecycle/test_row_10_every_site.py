"""Row 10: a checkpoint with every site loads where the values agree and raises where not."""

import re

import pytest
import torch
from lifecycle_systems import (
    System,
    assert_tied,
    assert_unchanged,
    close,
    snapshot,
    value,
    values,
)
from torch import Tensor, nn

import eadem

Refused = (eadem.EademError, RuntimeError)


def full_state(system: System, seed: int) -> dict[str, Tensor]:
    """The stock class's state dict, holding the values of a tied model."""
    state = {k: v.clone() for k, v in system.stock(seed).state_dict().items()}
    return state | values(system.tied(seed), system.sites)


def spoiled(system: System, by: float) -> dict[str, Tensor]:
    """One value at the last site off by `by`."""
    state = full_state(system, 2)
    state[system.sites[-1]].view(-1)[-1] += by
    return state


def test_agreeing_sites_load(system: System) -> None:
    model = system.tied()
    found = model.load_state_dict(full_state(system, 2), strict=True)
    assert not found.missing_keys
    assert not found.unexpected_keys
    want = values(system.tied(2), system.sites)
    close(values(model, system.sites), want, system)
    assert_tied(model, system)


def test_disagreeing_sites_raise_with_the_largest_difference(system: System) -> None:
    model = system.tied()
    before = snapshot(model)
    with pytest.raises(Refused) as caught:
        model.load_state_dict(spoiled(system, 0.75), strict=True)
    text = str(caught.value)
    assert system.sites[-1] in text
    found = [float(n) for n in re.findall(r"\d+\.\d+(?:e-?\d+)?", text)]
    assert any(0.3 <= n <= 0.76 for n in found), text
    assert_unchanged(model, before)
    assert_tied(model, system)


def test_disagreement_is_not_a_matter_of_strict_or_assign(system: System) -> None:
    for options in ({"strict": False}, {"assign": True}):
        model = system.tied()
        before = snapshot(model)
        with pytest.raises(Refused, match=system.sites[-1].replace(".", r"\.")):
            model.load_state_dict(spoiled(system, 0.75), **options)
        assert_unchanged(model, before)


def test_not_a_number_is_a_disagreement(system: System) -> None:
    model = system.tied()
    before = snapshot(model)
    with pytest.raises(Refused):
        model.load_state_dict(spoiled(system, float("nan")))
    assert_unchanged(model, before)


def test_rounding_is_no_disagreement(system: System) -> None:
    """A checkpoint written in another dtype agrees to that dtype."""
    state = {k: v.bfloat16() for k, v in full_state(system, 2).items()}
    model = system.tied()
    model.load_state_dict(state)
    assert_tied(model, system)


def test_a_missing_owner_is_recovered_from_the_sites_present(system: System) -> None:
    if not system.derived:
        return
    state = full_state(system, 2)
    owner = next(n for n, count in system.owned.items() if count)
    del state[owner]
    model = system.tied()
    model.load_state_dict(state, strict=True)
    want = values(system.tied(2), system.sites)
    close(values(model, system.sites), want, system)
    assert_tied(model, system)


def test_short_and_full_forms_of_partly_owned_sites() -> None:
    """Both forms of one checkpoint load: θ's short vector, or every site in full."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    eadem.tie(model, "0.weight[:2]", "1.weight[:2]")
    short = {k: v.clone() for k, v in model.state_dict().items()}
    assert short["1.weight"].shape == (8,)
    full = {"0.weight": value(model, "0.weight"), "1.weight": value(model, "1.weight")}
    before = snapshot(model)
    for state in (full, short):
        with torch.no_grad():
            for p in model.parameters():
                p.zero_()
        model.load_state_dict(state, strict=True)
        assert_unchanged(model, before)


def test_mixture_with_a_palindrome_raises() -> None:
    model = nn.ModuleDict({"a": nn.Conv1d(1, 1, 5, bias=False), "b": nn.Conv1d(1, 1, 5)})
    eadem.tie(model, "*.weight", via=eadem.Palindrome(dim=-1))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert state["a.weight"].shape == (3,)
    state["b.weight"] = value(model, "b.weight")
    before = snapshot(model)
    with pytest.raises(Refused, match=r"b\.weight|a\.weight"):
        model.load_state_dict(state)
    assert_unchanged(model, before)


def test_stock_checkpoint_in_an_outer_model(system: System) -> None:
    outer = nn.Sequential(system.tied(), nn.Identity())
    outer.load_state_dict({f"0.{k}": v for k, v in full_state(system, 2).items()})
    want = values(system.tied(2), system.sites)
    close(values(outer[0], system.sites), want, system)
    bad = {f"0.{k}": v for k, v in spoiled(system, 0.75).items()}
    before = snapshot(outer)
    with pytest.raises(Refused, match=system.sites[-1].replace(".", r"\.")):
        outer.load_state_dict(bad)
    assert_unchanged(outer, before)
