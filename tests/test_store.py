"""Records and checkpoints: one plan, one record; a file loads whole or not at all."""

from __future__ import annotations

import copy
import itertools
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import eadem
from eadem import bind
from eadem.store import INLINE_BYTES, VERSION, layout, read_record
from eadem.store.layout import TensorFile, write


def mlp(n: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(nn.Linear(4, 4) for _ in range(n)), nn.BatchNorm1d(4))


def tied(seed: int = 0) -> nn.Sequential:
    """A model with a pose, a structure within a site and a part of one."""
    model = mlp(seed=seed)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Rotate(1)})
    eadem.tie(model, "2.weight[0]", "2.weight[2]")
    eadem.tie(model, "2.bias", via=eadem.Palindrome())
    return model


SITES = ("0.weight", "1.weight", "2.weight", "2.bias")


def read(model: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    found: Tensor = getattr(model.get_submodule(owner), leaf)
    return found.detach().clone()


def equal_sites(a: nn.Module, b: nn.Module) -> None:
    for name in SITES:
        torch.testing.assert_close(read(a, name), read(b, name), rtol=0, atol=0)


def state(model: nn.Module) -> tuple[Any, ...]:
    return (
        {n: id(p) for n, p in model.named_parameters()},
        {n: p.detach().tolist() for n, p in model.named_parameters()},
        {n: b.tolist() for n, b in model.named_buffers()},
        {n: type(m) for n, m in model.named_modules()},
        {n: sorted(vars(m)) for n, m in model.named_modules()},
    )


def with_metadata(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite a checkpoint with another record."""
    with safe_open(path, "pt") as f:
        found = json.loads(f.metadata()["eadem"])
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={"eadem": json.dumps(change(found))})


# records


def test_a_record_is_json() -> None:
    found = eadem.record(tied())
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["version"] == VERSION
    assert found["sites"]["2.bias"] == [4]
    assert len(found["ties"]) == 3


def test_a_record_does_not_depend_on_the_order_of_declaration() -> None:
    calls: list[Callable[[nn.Module], object]] = [
        lambda m: eadem.tie(m, "0.weight", "1.weight"),
        lambda m: eadem.tie(m, "2.weight", to="0.weight", via=eadem.Transpose()),
        lambda m: eadem.tie(m, "2.bias", via=eadem.Palindrome()),
        lambda m: eadem.tie(m, "0.bias[1]", "1.bias[-1]"),
    ]
    found = []
    for order in itertools.permutations(calls):
        model = mlp()
        for call in order:
            call(model)
        found.append(eadem.record(model))
    assert all(r == found[0] for r in found)


def test_a_record_does_not_depend_on_the_order_of_sites() -> None:
    found = []
    for order in itertools.permutations(["0.weight", "1.weight", "2.weight"]):
        model = mlp()
        eadem.tie(model, *order)
        found.append(eadem.record(model))
    assert all(r == found[0] for r in found)


def test_a_record_of_an_untied_model_declares_nothing() -> None:
    found = eadem.record(mlp())
    assert found["ties"] == []
    model = mlp()
    before = state(model)
    assert eadem.apply(model, found) == []
    assert state(model) == before


def test_apply_ties_a_fresh_model() -> None:
    found = json.loads(json.dumps(eadem.record(tied())))
    model = mlp(seed=4)
    ties = eadem.apply(model, found)
    assert len(ties) == 3
    assert eadem.record(model) == found
    w = read(model, "0.weight")
    torch.testing.assert_close(read(model, "1.weight"), torch.rot90(w), rtol=0, atol=0)
    torch.testing.assert_close(w, read(mlp(seed=4), "0.weight"), rtol=0, atol=0)


def test_apply_on_the_same_plan_changes_nothing() -> None:
    model = tied()
    before = state(model)
    eadem.apply(model, eadem.record(tied(seed=3)))
    assert state(model) == before


def test_apply_knows_a_plan_in_other_words() -> None:
    """a = b, b = c says what a = b = c says."""
    one, two = mlp(), mlp()
    eadem.tie(one, "0.weight", "1.weight", "2.weight")
    eadem.tie(two, "0.weight", "1.weight")
    eadem.tie(two, "1.weight", "2.weight")
    before = state(one)
    eadem.apply(one, eadem.record(two))
    assert state(one) == before


def test_apply_of_another_plan_says_the_difference() -> None:
    model = mlp()
    eadem.tie(model, "0.weight", "1.weight")
    before = state(model)
    with pytest.raises(eadem.RecordError, match=r"2\.bias"):
        eadem.apply(model, eadem.record(tied()))
    assert state(model) == before


def test_every_map_survives_a_record() -> None:
    basis = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(1)))[0]
    maps: dict[str, Any] = {
        "permute": eadem.Permute((1, 0)),
        "flip": eadem.Flip(0, 1),
        "scale": eadem.Scale(0.1),
        "affine": eadem.Affine(-2.0, 0.3),
        "gather": eadem.Gather(torch.arange(16).reshape(4, 4) % 7),
        "fixed": eadem.Fixed(torch.arange(16.0).reshape(4, 4)),
        "palindrome": eadem.Palindrome(dim=0, odd=True),
        "subspace": eadem.Subspace(basis),
        "composed": eadem.Transpose() @ eadem.Scale(3.0) @ eadem.Palindrome(dim=0),
        "toeplitz": eadem.Toeplitz1d(in_size=4, kernel_size=3, padding=1),
        "local": eadem.Local1d(in_size=4, kernel_size=3, padding=1),
        "positive": eadem.Positive(),
        "bounded": eadem.Bounded(-1.0, 2.0),
        "function": eadem.Function(torch.tanh),
    }
    for name, phi in maps.items():
        model = mlp()
        with torch.no_grad():
            model[0].weight.clamp_(0.1, 0.9)
        eadem.tie(model, "0.weight", via=phi)
        found = json.loads(json.dumps(eadem.record(model), allow_nan=False))
        fresh = mlp()
        with torch.no_grad():
            fresh[0].weight.clamp_(0.1, 0.9)
        eadem.apply(fresh, found)
        torch.testing.assert_close(
            read(fresh, "0.weight"), read(model, "0.weight"), rtol=0, atol=0, msg=name
        )
        assert eadem.record(fresh) == found, name


def test_non_finite_constants_survive() -> None:
    value = torch.tensor([0.0, float("-inf"), 1.5, 2.5])
    model = mlp()
    try:
        eadem.tie(model, "0.bias", via=eadem.Fixed(value))
    except eadem.EademError:
        return
    found = json.loads(json.dumps(eadem.record(model), allow_nan=False))
    fresh = mlp()
    eadem.apply(fresh, found)
    torch.testing.assert_close(read(fresh, "0.bias"), value, rtol=0, atol=0)


class Big(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(200, 100))
        self.v = nn.Parameter(torch.randn(200, 100))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w.t() + x @ self.v.t()


def big() -> Big:
    model = Big()
    order = torch.randperm(20000, generator=torch.Generator().manual_seed(0))
    eadem.tie(model, "w", "v", via=eadem.Gather(order.reshape(200, 100)))
    return model


def test_large_arrays_are_recorded_by_hash_and_kept_in_the_file(tmp_path: Path) -> None:
    model = big()
    found = eadem.record(model)
    text = json.dumps(found)
    assert len(text) < INLINE_BYTES
    assert "sha256" in text
    fresh = Big()
    before = state(fresh)
    with pytest.raises(eadem.RecordError, match="hash"):
        eadem.apply(fresh, found)
    assert state(fresh) == before
    path = tmp_path / "big.safetensors"
    eadem.save(model, path)
    with safe_open(path, "pt") as f:
        arrays = {
            k.removeprefix("eadem/"): f.get_tensor(k)
            for k in f.keys()  # noqa: SIM118
            if k.startswith("eadem/")
        }
    assert len(arrays) == 1
    assert len(next(iter(arrays))) == 64
    assert "eadem/" not in str(list(model.state_dict()))
    eadem.apply(fresh, found, arrays)
    eadem.load(Big(), path)
    loaded = Big()
    eadem.load(loaded, path)
    torch.testing.assert_close(read(loaded, "v"), read(model, "v"), rtol=0, atol=0)


def test_a_large_array_that_was_changed_is_found(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    eadem.save(big(), path)
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    key = next(k for k in tensors if k.startswith("eadem/"))
    tensors[key].view(-1)[0] += 1
    save_file(tensors, path, metadata=metadata)
    fresh = Big()
    before = state(fresh)
    with pytest.raises(eadem.RecordError):
        eadem.load(fresh, path)
    assert state(fresh) == before


# files


def test_save_and_load(tmp_path: Path) -> None:
    model = tied(seed=2)
    model(torch.randn(8, 4))
    path = tmp_path / "m.safetensors"
    eadem.save(model, path)
    assert os.listdir(tmp_path) == ["m.safetensors"]
    for fresh in (mlp(seed=5), tied(seed=5)):
        eadem.load(fresh, str(path))
        equal_sites(fresh, model)
        torch.testing.assert_close(fresh[3].running_mean, model[3].running_mean)
        assert int(fresh[3].num_batches_tracked) == 1
        eadem.check(fresh)
    assert read_record(path) == eadem.record(model)


def test_saving_twice_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        eadem.save(tied(seed=2), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_is_also_a_plain_safetensors_state_dict(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = tied(seed=2)
    path = tmp_path / "m.safetensors"
    eadem.save(model, path)
    other = tied(seed=5)
    other.load_state_dict(load_file(path), strict=True)
    equal_sites(other, model)


def test_native_aliases_in_a_checkpoint(tmp_path: Path) -> None:
    model = mlp(seed=2)
    model[1].weight = model[0].weight
    eadem.tie(model, "2.bias", via=eadem.Palindrome())
    path = tmp_path / "m.safetensors"
    eadem.save(model, path)
    fresh = mlp(seed=5)
    fresh[1].weight = fresh[0].weight
    eadem.load(fresh, path)
    for name in ("0.weight", "1.weight", "2.bias"):
        torch.testing.assert_close(read(fresh, name), read(model, name), rtol=0, atol=0)
    with torch.no_grad():
        fresh[0].weight.add_(1)
    torch.testing.assert_close(read(fresh, "0.weight"), read(fresh, "1.weight"))
    stock = mlp(seed=5)
    eadem.load(stock, path)
    torch.testing.assert_close(read(stock, "1.weight"), read(model, "0.weight"))


def test_an_alias_that_the_record_does_not_know(tmp_path: Path) -> None:
    """torch would fill the shared parameter twice, and keep the last."""
    path = tmp_path / "m.safetensors"
    eadem.save(tied(seed=2), path)
    model = mlp(seed=5)
    model[2].bias = model[0].bias
    before = state(model)
    with pytest.raises(eadem.RecordError, match=r"0\.bias"):
        eadem.load(model, path)
    assert state(model) == before
    eadem.save(mlp(seed=2), path)
    with pytest.raises(eadem.RecordError, match=r"0\.bias"):
        eadem.load(model, path)
    assert state(model) == before


def test_load_into_another_dtype(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    eadem.save(tied(seed=2), path)
    model = mlp().double()
    eadem.load(model, path)
    assert read(model, "1.weight").dtype == torch.float64
    torch.testing.assert_close(read(model, "1.weight").float(), read(tied(seed=2), "1.weight"))


def test_load_into_a_larger_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    eadem.save(tied(), path)
    model = nn.Sequential(*mlp(), nn.Linear(4, 2))
    before = state(model)
    with pytest.raises(eadem.RecordError, match=r"4\.weight"):
        eadem.load(model, path)
    assert state(model) == before


def _cut(keep: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return cut


def _foreign(path: Path) -> None:
    save_file({"0.weight": torch.zeros(4, 4)}, path, metadata={"format": "pt"})


def _no_metadata(path: Path) -> None:
    save_file({"0.weight": torch.zeros(4, 4)}, path)


def _pickle(path: Path) -> None:
    torch.save(mlp().state_dict(), path)


def _remove(path: Path) -> None:
    path.unlink()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _huge_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")


def _lose_tensor(path: Path) -> None:
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        tensors = {k: f.get_tensor(k) for k in f.keys() if k != "0.weight"}  # noqa: SIM118
    save_file(tensors, path, metadata=metadata)


def _wrong_shape(path: Path) -> None:
    with safe_open(path, "pt") as f:
        metadata = f.metadata()
        tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
    tensors["0.weight"] = torch.zeros(5, 5)
    save_file(tensors, path, metadata=metadata)


def _record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda path: with_metadata(path, change)


def _first_map(found: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = found["ties"][0][-1]
    return first


def _set_kind(kind: str) -> Callable[[dict[str, Any]], Any]:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        _first_map(found)["map"] = {"kind": kind, "args": {}}
        return found

    return change


def _set_site(name: str) -> Callable[[dict[str, Any]], Any]:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        _first_map(found)["sites"] = [name]
        return found

    return change


def _contradict(found: dict[str, Any]) -> dict[str, Any]:
    same = {"kind": "Same", "args": {}}
    double = {"kind": "Scale", "args": {"c": 2.0}}
    tie = [{"sites": ["0.weight"], "map": same}, {"sites": ["1.weight"], "map": double}]
    return found | {"ties": [[{"sites": ["0.weight", "1.weight"], "map": same}], tie]}


SPOILED: dict[str, Callable[[Path], None]] = {
    "empty": _cut(0.0),
    "cut in the length": lambda p: p.write_bytes(p.read_bytes()[:5]) and None,
    "cut in the header": _cut(0.3),
    "cut in the data": _cut(0.95),
    "foreign": _foreign,
    "no metadata": _no_metadata,
    "a pickle": _pickle,
    "not there": _remove,
    "a folder": _folder,
    "huge header": _huge_header,
    "a tensor lost": _lose_tensor,
    "a wrong shape": _wrong_shape,
    "newer": _record(lambda r: r | {"version": VERSION + 1}),
    "version 0": _record(lambda r: r | {"version": 0}),
    "version text": _record(lambda r: r | {"version": "1"}),
    "version true": _record(lambda r: r | {"version": True}),
    "a list": _record(lambda r: [r]),
    "another format": _record(lambda r: r | {"format": "other"}),
    "no ties": _record(lambda r: {k: v for k, v in r.items() if k != "ties"}),
    "ties null": _record(lambda r: r | {"ties": None}),
    "ties text": _record(lambda r: r | {"ties": "abc"}),
    "tie empty": _record(lambda r: r | {"ties": [[]]}),
    "tie number": _record(lambda r: r | {"ties": [3]}),
    "entry without map": _record(lambda r: r | {"ties": [[{"sites": ["0.weight"]}]]}),
    "sites number": _record(lambda r: r | {"sites": {"0.weight": 3}}),
    "unknown site": _record(lambda r: r | {"sites": {"0.wieght": [4, 4]}}),
    "site of another shape": _record(lambda r: r | {"sites": {"0.weight": [9, 9]}}),
    "unknown map": _record(_set_kind("Nonsense")),
    "a class of python's": _record(_set_kind("os:system")),
    "unknown site in a tie": _record(_set_site("9.weight")),
    "index outside": _record(_set_site("0.weight[9]")),
    "a contradiction": _record(_contradict),
}


@pytest.mark.parametrize("case", list(SPOILED))
def test_spoiled_files_are_refused_and_change_nothing(case: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    eadem.save(tied(seed=2), path)
    SPOILED[case](path)
    for model in (mlp(), tied()):
        before = state(model)
        with pytest.raises(eadem.RecordError) as caught:
            eadem.load(model, path)
        assert len(str(caught.value)) > 20
        assert state(model) == before


def test_metadata_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"0.weight": torch.zeros(4, 4)}, path, metadata={"eadem": "{not json"})
    with pytest.raises(eadem.RecordError, match="damaged"):
        eadem.load(mlp(), path)
    with pytest.raises(eadem.RecordError):
        read_record(path)


def test_load_on_a_model_with_another_plan_says_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    eadem.save(tied(seed=2), path)
    model = mlp()
    eadem.tie(model, "0.bias", "1.bias")
    before = state(model)
    with pytest.raises(eadem.RecordError) as caught:
        eadem.load(model, path)
    assert "0.bias" in str(caught.value)
    assert "2.bias" in str(caught.value)
    assert "untie" in str(caught.value)
    assert state(model) == before


def test_an_unwritable_place_is_a_typed_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(eadem.RecordError, match="write"):
        eadem.save(tied(), tmp_path / "nowhere" / "m.safetensors")
    (tmp_path / "m").mkdir()
    with pytest.raises(eadem.RecordError):
        eadem.save(tied(), tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    eadem.save(tied(seed=2), path)
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(eadem.RecordError, match="disk full"):
        eadem.save(tied(seed=5), path)
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["m.safetensors"]


def test_what_safetensors_cannot_hold_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"a": 1}

        def set_extra_state(self, state: object) -> None:
            del state

    model = nn.Sequential(Extra(2, 2), nn.Linear(2, 2))
    eadem.tie(model, "*.weight")
    with pytest.raises(eadem.Unsupported, match="extra"):
        eadem.save(model, tmp_path / "m")
    with torch.device("meta"):
        far = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    eadem.tie(far, "*.weight")
    with pytest.raises(eadem.Unsupported, match="meta"):
        eadem.save(far, tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_map_that_no_module_defines_is_refused(tmp_path: Path) -> None:
    model = mlp()
    eadem.tie(model, "0.weight", via=eadem.Function(lambda t: t.tanh()))
    with pytest.raises(eadem.RecordError, match="module"):
        eadem.record(model)
    with pytest.raises(eadem.RecordError):
        eadem.save(model, tmp_path / "m")
    assert os.listdir(tmp_path) == []


# declarations and materialize


def test_declarations_are_canonical() -> None:
    one, two = mlp(), mlp()
    eadem.tie(one, "1.weight", "0.weight")
    eadem.tie(one, "2.bias", via=eadem.Palindrome())
    eadem.tie(two, "2.bias", via=eadem.Palindrome())
    eadem.tie(two, "0.weight", "1.weight")
    texts = [[str(d) for d in bind.declarations(m)] for m in (one, two)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2


def test_materialize_of_a_structured_site() -> None:
    model = tied(seed=2)
    found = eadem.materialize(model)
    assert list(found) == list(mlp().state_dict())
    for name in SITES:
        torch.testing.assert_close(found[name], read(model, name), rtol=0, atol=0)
    stock = mlp()
    stock.load_state_dict(found, strict=True)
    x = torch.randn(3, 4)
    torch.testing.assert_close(stock.eval()(x), model.eval()(x))


# the layout


def test_bytes_are_those_of_the_library(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "b": torch.randn(3, 5, generator=generator),
        "a": torch.randn(7, generator=generator).to(torch.bfloat16),
        "é": torch.arange(4),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "mask": torch.tensor([True, False]),
        "turned": torch.randn(4, 6, generator=generator).t().contiguous(),
        "complex": torch.randn(3, generator=generator, dtype=torch.complex64),
    }
    for name, dtype in layout.DTYPES.items():
        tensors[f"of {name}"] = torch.zeros(2, dtype=torch.uint8).to(dtype)
    for metadata in ({"eadem": "x"}, {}):
        write(tmp_path / "ours", tensors, metadata)
        save_file(tensors, tmp_path / "theirs", metadata=metadata or None)
        assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    with TensorFile(tmp_path / "theirs") as file:
        for name, value in tensors.items():
            torch.testing.assert_close(file.tensor(name), value, rtol=0, atol=0)
    write(tmp_path / "ours", {"t": tensors["b"].t(), "c": tensors["complex"].conj()}, {})
    read_back = load_file(tmp_path / "ours")
    assert torch.equal(read_back["t"], tensors["b"].t())
    assert torch.equal(read_back["c"], tensors["complex"].conj().resolve_conj())


def test_a_file_is_the_same_whatever_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, torch, eadem; torch.manual_seed(0)\n"
        "m = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(4)))\n"
        "eadem.tie(m, '*.weight'); eadem.save(m, sys.argv[1])"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed}, check=True,
        )  # fmt: skip
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    with safe_open(tmp_path / "1", "pt") as f:
        assert f.metadata()["format"] == "pt"
        assert set(f.metadata()) == {"eadem", "format"}


def test_values_go_into_any_kind_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "WINDOW", 40)  # many pieces
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Linear(5, 7), nn.BatchNorm2d(6))
    eadem.tie(model, "0.bias", "2.bias")
    eadem.save(model, tmp_path / "x")
    for fresh in (
        copy.deepcopy(model).to(memory_format=torch.channels_last),
        copy.deepcopy(model).double(),
        copy.deepcopy(model).double().to(memory_format=torch.channels_last),
        copy.deepcopy(model).bfloat16(),
    ):
        with torch.no_grad():
            for p in fresh.parameters():
                p.zero_()
        strides = fresh[0].weight.stride()
        eadem.load(fresh, tmp_path / "x")
        assert fresh[0].weight.stride() == strides
        for name, value in model.state_dict().items():
            found = fresh.state_dict()[name]
            torch.testing.assert_close(found, value.to(found.dtype), rtol=0, atol=0)


def test_a_load_is_seen_by_autograd(tmp_path: Path) -> None:
    model = mlp()
    eadem.save(model, tmp_path / "x")
    out = (model[0].weight ** 2).sum()
    eadem.load(model, tmp_path / "x")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


@pytest.mark.parametrize("what", ["meta", "integers", "complex", "extra state"])
def test_values_that_a_model_cannot_take(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    model = mlp()
    eadem.save(model, path)
    with TensorFile(path) as file:
        tensors = {n: file.tensor(n) for n in file.tensors}
        metadata = file.metadata
    error: type[Exception] = eadem.RecordError
    match what:
        case "meta":
            model.to("meta")
            says = "meta device"
        case "integers":
            tensors["3.num_batches_tracked"] = torch.tensor(1.5)
            says = "F32"
        case "complex":
            tensors["0.weight"] = torch.zeros(4, 4, dtype=torch.complex64)
            says = "C64"
        case _:
            model[0].__class__ = type("Extra", (nn.Linear,), {"get_extra_state": lambda s: {}})
            error, says = eadem.Unsupported, "extra state"
    write(path, tensors, metadata)
    before = state(model) if what != "meta" else None
    with pytest.raises(error, match=says):
        eadem.load(model, path)
    assert before is None or state(model) == before


def test_what_a_fresh_model_holds_does_not_matter(tmp_path: Path) -> None:
    """θ comes from the file, so nothing is lifted from values that a map could not give."""
    model = mlp()
    with torch.no_grad():
        for layer in model[:2]:
            layer.weight.abs_().add_(0.1)
    eadem.tie(model, "0.weight", "1.weight", via=eadem.Positive())
    eadem.save(model, tmp_path / "x")
    fresh = mlp(seed=3)
    assert bool((fresh[0].weight < 0).any())
    eadem.load(fresh, tmp_path / "x")
    torch.testing.assert_close(read(fresh, "1.weight"), read(model, "0.weight"))
    (tie,) = eadem.ties(fresh)
    assert set(tie.residual.values()) == {0.0}


def test_a_model_with_its_own_loading_code(tmp_path: Path) -> None:
    """It is called: the layer counts its loads."""

    class Counts(nn.Linear):
        loads = 0

        def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
            super()._load_from_state_dict(*args, **kwargs)
            self.loads += 1

    model = nn.Sequential(nn.Linear(3, 3), Counts(3, 3))
    eadem.tie(model, "*.weight")
    eadem.save(model, tmp_path / "x")
    fresh = nn.Sequential(nn.Linear(3, 3), Counts(3, 3))
    eadem.load(fresh, tmp_path / "x")
    assert fresh[1].loads == 1
    assert torch.equal(fresh[1].weight, model[0].weight)
    eadem.check(fresh)
