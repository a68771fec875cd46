"""Row 9: a checkpoint that holds θ only loads with `strict=True`."""

import pytest
import torch
from lifecycle_systems import System, assert_tied, assert_unchanged, snapshot, values
from torch import nn


def test_theta_only_loads(system: System) -> None:
    state = system.tied(seed=2).state_dict()
    assert sum(v.numel() for n, v in state.items() if "num_" not in n) <= system.free + 4
    model = system.tied()
    found = model.load_state_dict(state, strict=True)
    assert not found.missing_keys
    assert not found.unexpected_keys
    want = values(system.tied(seed=2), system.sites)
    torch.testing.assert_close(values(model, system.sites), want, rtol=0, atol=0)
    assert_tied(model, system)


def test_loading_leaves_the_callers_state_dict_alone(system: System) -> None:
    state = system.tied(seed=2).state_dict()
    keys, copies = list(state), {k: v.clone() for k, v in state.items()}
    model = system.tied()
    model.load_state_dict(state)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert list(state) == keys
    for k, v in copies.items():
        torch.testing.assert_close(state[k], v, rtol=0, atol=0)


def test_as_part_of_an_outer_model(system: System) -> None:
    outer = nn.ModuleDict({"inner": system.tied(), "other": nn.Linear(2, 2)})
    other = nn.ModuleDict({"inner": system.tied(seed=2), "other": nn.Linear(2, 2)})
    outer.load_state_dict(other.state_dict(), strict=True)
    want = values(other["inner"], system.sites)
    torch.testing.assert_close(values(outer["inner"], system.sites), want, rtol=0, atol=0)
    assert_tied(outer["inner"], system)


def test_a_missing_free_value_is_reported(system: System) -> None:
    owner = next(n for n, count in system.owned.items() if count)
    state = system.tied(seed=2).state_dict()
    del state[owner]
    model = system.tied()
    with pytest.raises(RuntimeError, match=owner.replace(".", r"\.")):
        model.load_state_dict(state, strict=True)
    assert_tied(model, system)


def test_a_key_too_many_is_reported(system: System) -> None:
    state = dict(system.tied(seed=2).state_dict()) | {"nonsense": torch.zeros(1)}
    with pytest.raises(RuntimeError, match="nonsense"):
        system.tied().load_state_dict(state, strict=True)


def test_a_wrong_shape_is_reported(system: System) -> None:
    owner = next(n for n, count in system.owned.items() if count)
    model = system.tied()
    state = dict(system.tied(seed=2).state_dict()) | {owner: torch.zeros(2, 2, 2, 2, 2)}
    before = snapshot(model)
    with pytest.raises((RuntimeError, ValueError), match=owner.replace(".", r"\.")):
        model.load_state_dict(state, strict=True)
    assert_unchanged(model, before | {"values": {}})
    assert_tied(model, system)
