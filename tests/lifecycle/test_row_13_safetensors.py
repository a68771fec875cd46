"""Row 13: saved as safetensors and rebuilt from its own record on a fresh, untied model."""

from pathlib import Path

import torch
from lifecycle_systems import System, assert_tied, trained, values
from safetensors import safe_open

import eadem


def test_round_trip_on_an_untied_model(system: System, tmp_path: Path) -> None:
    model = system.tied(seed=2)
    trained(model, system)
    path = tmp_path / "model.safetensors"
    eadem.save(model, path)
    fresh = system.stock(seed=9)
    eadem.load(fresh, path)
    want = values(model, system.sites)
    torch.testing.assert_close(values(fresh, system.sites), want, rtol=0, atol=0)
    torch.testing.assert_close(
        fresh.eval()(system.input()), model.eval()(system.input()), rtol=0, atol=0
    )
    assert eadem.record(fresh) == eadem.record(model)
    assert_tied(fresh, system)


def test_round_trip_on_a_tied_model(system: System, tmp_path: Path) -> None:
    model = system.tied(seed=2)
    path = tmp_path / "model.safetensors"
    eadem.save(model, path)
    other = system.tied(seed=9)
    identity = [id(p) for p in other.parameters()]
    eadem.load(other, path)
    assert [id(p) for p in other.parameters()] == identity
    torch.testing.assert_close(
        values(other, system.sites), values(model, system.sites), rtol=0, atol=0
    )
    assert_tied(other, system)


def test_every_free_value_is_written_once(system: System, tmp_path: Path) -> None:
    model = system.tied(seed=2)
    path = tmp_path / "model.safetensors"
    eadem.save(model, path)
    with safe_open(path, "pt") as f:
        keys = [k for k in f.keys() if not k.startswith("eadem/")]  # noqa: SIM118
    assert sorted(keys) == sorted(model.state_dict())
