"""Row 25: `torch.export`, saved and loaded: one tensor for each θ, and the tie alive in it."""

import io
import json
import zipfile

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, loss
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import eadem

SYSTEM = {s.name: s for s in SYSTEMS}


def _exported(model: nn.Module, x: Tensor, strict: bool = False) -> ExportedProgram:
    return torch.export.export(
        model, (x,), dynamic_shapes=({0: Dim("batch", min=2, max=64)},), strict=strict
    )


def _saved(program: ExportedProgram) -> bytes:
    file = io.BytesIO()
    torch.export.save(program, file)
    return file.getvalue()


def _assert_stored_once(program: ExportedProgram, model: nn.Module) -> None:
    """The program holds what the model's state dict does, each in memory of its own."""
    held, want = program.state_dict, model.state_dict()
    assert list(held) == list(want)
    torch.testing.assert_close(dict(held), dict(want), rtol=0, atol=0)
    assert {n for n, _ in program.named_parameters()} == {
        n for n, _ in model.named_parameters()
    }
    pointers = [t.data_ptr() for t in held.values()]
    assert len(set(pointers)) == len(pointers)


def _values_in_file(file: bytes) -> dict[str, int]:
    """The number of values that each entry of an archive's weights has in the file."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        names = {n.rpartition("data/weights/")[2]: n for n in archive.namelist()}
        config = json.loads(archive.read(names["model_weights_config.json"]))["config"]
        paths = [entry["path_name"] for entry in config.values()]
        assert len(set(paths)) == len(paths)
        stored = {p for p in names if p.startswith("weight_")}
        assert stored == set(paths)
        return {k: archive.getinfo(names[e["path_name"]]).file_size for k, e in config.items()}


def test_saved_and_loaded(system: System) -> None:
    model = system.tied().eval()
    x = system.input()
    file = _saved(_exported(model, x))
    wanted = {k: t.numel() * t.element_size() for k, t in model.state_dict().items()}
    assert _values_in_file(file) == wanted
    loaded = torch.export.load(io.BytesIO(file))
    _assert_stored_once(loaded, model)
    call = loaded.module()
    for batch in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(call(batch), model(batch), rtol=0, atol=0)
    # the tie is alive in the program: its sites follow another θ
    other = system.tied(seed=3).eval()
    call.load_state_dict(other.state_dict())
    torch.testing.assert_close(call(x), other(x), rtol=0, atol=0)
    assert not torch.equal(call(x), model(x))


@pytest.mark.parametrize("name", ["equality", "kernels"])
def test_strict_export_stores_the_same(name: str) -> None:
    """Through Dynamo, and not by running the module's own Python."""
    system = SYSTEM[name]
    model = system.tied().eval()
    program = _exported(model, system.input(), strict=True)
    _assert_stored_once(program, model)
    x = system.input()
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)


def test_the_exported_program_trains(system: System) -> None:
    """Gradients of θ in the program are those of the model: sums over its sites."""
    model = system.tied()
    program = torch.export.export(model, (system.input(),)).module()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05) for m in (model, program)]
    for _ in range(3):
        for m, optimizer in zip((model, program), optimizers, strict=True):
            optimizer.zero_grad()
            loss(m, system).backward()
            optimizer.step()
    found = dict(program.named_parameters())
    for name, p in model.named_parameters():
        torch.testing.assert_close(found[name], p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["transpose", "part"])
def test_after_a_load_and_an_untie(name: str) -> None:
    """What is exported is the model as it stands."""
    system = SYSTEM[name]
    model = system.tied().eval()
    model.load_state_dict(system.tied(seed=3).state_dict())
    eadem.untie(model, *system.sites)
    with torch.no_grad():
        model.get_parameter(system.sites[-1]).mul_(1.5)
    program = _exported(model, system.input())
    _assert_stored_once(program, model)
    assert set(system.sites) <= set(program.state_dict)
    x = system.input()
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=0)
