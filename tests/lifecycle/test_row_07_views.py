"""Row 7: a mapped site stays one θ, counted once, through copies, casts and pickles."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from lifecycle_systems import System, assert_tied
from torch import nn
from torch.nn.utils import parameters_to_vector

import eadem

CHAIN: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copy": copy.deepcopy,
    "double": lambda m: m.double(),
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "bfloat16": lambda m: m.bfloat16(),
    "eval": lambda m: m.eval().train(),
    "float": lambda m: m.float(),
    "share_memory": lambda m: m.share_memory(),
}


def test_through_all_of_them(system: System) -> None:
    model = system.tied()
    for step in CHAIN.values():
        model = step(model)
        assert parameters_to_vector(model.parameters()).numel() == system.free
        counts = eadem.counts(model)
        assert (counts.free, counts.stored) == (system.free, system.free)
        assert counts.expanded == system.expanded
    assert_tied(model, system)


@pytest.mark.parametrize("step", list(CHAIN))
def test_each_alone(system: System, step: str) -> None:
    model = CHAIN[step](system.tied())
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    assert len(set(names)) == len(names) == len(list(model.parameters()))
    assert_tied(model, system)


def test_an_optimizer_holds_one_state_for_each(system: System) -> None:
    model = copy.deepcopy(system.tied()).double()
    optimizer = torch.optim.AdamW(model.parameters())
    model(system.input(model)).square().sum().backward()
    optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))
    assert sum(s["exp_avg"].numel() for s in optimizer.state.values()) == system.free
    assert all(int(s["step"]) == 1 for s in optimizer.state.values())
