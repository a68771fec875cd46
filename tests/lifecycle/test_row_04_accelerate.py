"""Row 4: accelerate's `init_empty_weights`, its loading, dispatching and offloading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lifecycle_systems import (
    SYSTEMS,
    System,
    assert_tied,
    assert_unchanged,
    snapshot,
    value,
    values,
)
from safetensors.torch import save_file
from torch import nn

import eadem

accelerate = pytest.importorskip("accelerate")


def filled(system: System) -> nn.Module:
    """A tied model in evaluation, whose values the others are to get."""
    return system.tied(seed=5).eval()


def empty(system: System, buffers: bool = False, inside: bool = True) -> nn.Module:
    """The tied model without values, tied inside or after the context."""
    with accelerate.init_empty_weights(include_buffers=buffers):
        model = system.factory()
        if inside:
            system.tie(model)
    if not inside:
        system.tie(model)
    assert all(p.is_meta for p in model.parameters())
    return model


@pytest.fixture
def checkpoint(system: System, tmp_path: Path) -> tuple[Path, Path]:
    """The free values, and every site, as safetensors."""
    source = filled(system)
    theta, full = tmp_path / "model.safetensors", tmp_path / "full.safetensors"
    state = {k: v.contiguous() for k, v in source.state_dict().items()}
    save_file(state, theta, metadata={"format": "pt"})
    save_file(eadem.materialize(source), full, metadata={"format": "pt"})
    return theta, full


def assert_same(model: nn.Module, system: System) -> None:
    """The filled model's values and outputs, and its ties."""
    model.eval()
    source = filled(system)
    for name, want in values(source, system.sites).items():
        assert torch.equal(value(model, name), want), name
    with torch.no_grad():
        assert torch.equal(model(system.input()), source(system.input()))
    assert_tied(model, system)


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "after"])
@pytest.mark.parametrize("how", ["assign", "to_empty"])
def test_tied_without_values_then_loaded(system: System, inside: bool, how: str) -> None:
    model = empty(system, inside=inside)
    state = filled(system).state_dict()
    if how == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(state, assign=how == "assign")
    assert_same(model, system)


@pytest.mark.parametrize("name", [s.name for s in SYSTEMS if s.name != "subspace"])
def test_buffers_too(name: str) -> None:
    """The default device is meta here: what the maps are made of must not be."""
    system = next(s for s in SYSTEMS if s.name == name)
    model = empty(system, buffers=True)
    assert all(b.is_meta for b in model.buffers())
    model.to_empty(device="cpu")
    model.load_state_dict(filled(system).state_dict())
    assert_same(model, system)


def test_a_tied_model_inside_the_context() -> None:
    """`__init__` ties: accelerate replaces each registered parameter; the tie is by place."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            eadem.tie(self, "head.weight", to="embed.weight")

    with accelerate.init_empty_weights():
        model = Own()
    model.to_empty(device="cpu")
    with torch.no_grad():
        model.embed.weight.normal_()
    assert torch.equal(model.head.weight, model.embed.weight)
    assert [n for n, _ in model.named_parameters()] == ["embed.weight"]


@pytest.mark.parametrize(
    ("form", "device_map"), [("theta", {"": "cpu"}), ("full", {"": "cpu"}), ("full", None)]
)
def test_load_checkpoint_and_dispatch(
    system: System, checkpoint: tuple[Path, Path], form: str, device_map: dict[str, str] | None
) -> None:
    model = empty(system)
    path = checkpoint[form == "full"]
    if device_map is None:
        model.to_empty(device="cpu")
    accelerate.load_checkpoint_and_dispatch(model, str(path), device_map=device_map)
    assert_same(model, system)


def test_sites_that_disagree_are_refused(tmp_path: Path) -> None:
    system = SYSTEMS[0]
    wrong = {k: v + torch.rand_like(v) for k, v in eadem.materialize(filled(system)).items()}
    save_file(wrong, tmp_path / "full.safetensors", metadata={"format": "pt"})
    model = system.tied()
    before = snapshot(model)
    with pytest.raises(eadem.TieConflict, match=r"embed\.weight.*head\.weight.*disagree"):
        accelerate.load_checkpoint_and_dispatch(
            model, str(tmp_path / "full.safetensors"), device_map={"": "cpu"}
        )
    assert_unchanged(model, before)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_offloaded(system: System, where: str, tmp_path: Path) -> None:
    """A parameter that a site reads elsewhere is there for the forward of its module."""
    from accelerate.hooks import remove_hook_from_submodules

    model = filled(system)
    want = model(system.input()).detach()
    if where == "cpu":
        accelerate.cpu_offload(model)
    else:
        accelerate.disk_offload(model, tmp_path)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(system.input()), want)
            assert all(p.is_meta for p in model.parameters())
    remove_hook_from_submodules(model)
    assert_same(model, system)


def test_dispatched_in_part(tmp_path: Path) -> None:
    """The owner offloaded, the site that reads it not."""
    system = SYSTEMS[0]
    model = filled(system)
    want = model(system.input()).detach()
    places = {"embed": "disk", "hidden": "cpu", "head": "cpu"}
    accelerate.dispatch_model(model, places, offload_dir=tmp_path)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(model(system.input()), want)
            assert model.embed.weight.is_meta
            assert not model.hidden.weight.is_meta


def test_a_tie_on_several_devices_is_refused() -> None:
    system = SYSTEMS[0]
    model = filled(system)
    before = snapshot(model)
    with pytest.raises(
        eadem.Unsupported,
        match=r"'embed\.weight' on meta, 'head\.weight' on cuda:0.*device_map",
    ):
        accelerate.dispatch_model(
            model, device_map={"embed": "meta", "hidden": "meta", "head": "cuda:0"}
        )
    assert_unchanged(model, before)


def test_a_module_loaded_whole_is_refused() -> None:
    model = filled(SYSTEMS[1])
    before = snapshot(model)
    with pytest.raises(
        eadem.Unsupported, match=r"encoder\.weight.*decoder\.weight.*preload_module_classes"
    ):
        accelerate.cpu_offload(model, preload_module_classes=["Linear"])
    assert_unchanged(model, before)


def test_prepared(system: System) -> None:
    accelerator = accelerate.Accelerator(cpu=True)
    model = filled(system)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        accelerator.backward(model(system.input()).square().mean())
        optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))
    assert sum(p.numel() for p in model.parameters()) == system.free
    assert_tied(accelerator.unwrap_model(model), system)
