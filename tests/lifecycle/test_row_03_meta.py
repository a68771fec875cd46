"""Row 3: built on meta, materialised with `to_empty`, then initialised."""

import pytest
import torch
from lifecycle_systems import System, assert_tied
from torch import nn


def initialise(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            nn.init.uniform_(p, 0.1, 1.0, generator=torch.Generator().manual_seed(p.numel()))
        for name, b in model.named_buffers():
            b.fill_(1 if name.endswith("var") else 0)


def on_meta(system: System) -> nn.Module:
    with torch.device("meta"):
        return system.factory()


def test_tied_on_meta(system: System) -> None:
    model = on_meta(system)
    system.tie(model)
    assert all(p.is_meta for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == system.free
    model.to_empty(device="cpu")
    initialise(model)
    assert_tied(model, system)


def test_tied_then_sent_to_meta_and_back(system: System) -> None:
    model = system.tied().to("meta")
    model.to_empty(device="cpu")
    initialise(model)
    assert_tied(model, system)


def test_tied_after_to_empty(system: System) -> None:
    model = on_meta(system).to_empty(device="cpu")
    initialise(model)
    system.tie(model)
    assert_tied(model, system)


def test_meta_model_filled_by_assign(system: System) -> None:
    model = on_meta(system)
    system.tie(model)
    model.load_state_dict(system.tied(seed=5).state_dict(), assign=True)
    assert_tied(model, system)


def test_meta_sites_have_shapes(system: System) -> None:
    model = on_meta(system)
    system.tie(model)
    stock = dict(system.stock().named_parameters())
    for name in system.sites:
        owner, _, leaf = name.rpartition(".")
        found = getattr(model.get_submodule(owner), leaf)
        assert found.shape == stock[name].shape
        assert found.is_meta


@pytest.mark.parametrize("start", ["first", "mean"])
def test_start_modes_do_not_need_values(start: str) -> None:
    import eadem

    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    t = eadem.tie(model, "*.weight", start=start)
    assert t.sites == ("0.weight", "1.weight")
