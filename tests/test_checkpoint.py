"""What a checkpoint of any kind holds: names, shared memory, equal tensors."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import eadem
from eadem.report.checkpoint import checkpoint_summary
from eadem.store import duplicates
from eadem.store.checkpoint import Checkpoint, checkpoint
from eadem.store.duplicates import equal_sets


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(found: Checkpoint) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(d.names, d.transposed) for d in found.duplicates]


def some() -> dict[str, Tensor]:
    w = torch.randn(40, 30, generator=generator())
    return {
        "a": w,
        "b": torch.randn(40, 30, generator=generator(1)),
        "c": w.clone(),
        "d": w.t().contiguous(),
        "e": w.double(),
        "f": w.reshape(30, 40).clone(),
        "g": torch.zeros(7),
        "h": torch.zeros(7),
        "i": torch.zeros(7, dtype=torch.int32),
    }


EQUAL = [(("a", "c"), ("d",)), (("g", "h"), ())]


def shards(folder: Path, tensors: dict[str, Tensor], torch_files: bool = False) -> None:
    """As transformers writes them: every name in one of three files, and an index."""
    folder.mkdir(exist_ok=True)
    ending = "bin" if torch_files else "safetensors"
    stem = "pytorch_model" if torch_files else "model"
    names = {n: f"{stem}-{i % 3 + 1:05}-of-00003.{ending}" for i, n in enumerate(tensors)}
    for file in set(names.values()):
        part = {n: t for n, t in tensors.items() if names[n] == file}
        if torch_files:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": names}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["safetensors", "torch", "sharded", "sharded torch", "index"])
def test_equal_tensors_and_transposes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if kind == "safetensors":
        save_file(some(), path)
    elif kind == "torch":
        torch.save(some(), path)
    else:
        shards(path, some(), torch_files=kind == "sharded torch")
        if kind == "index":
            path = path / "model.safetensors.index.json"
    found = checkpoint(path)
    want = {
        (frozenset(names), frozenset(turned)) for names, turned in EQUAL
    }  # shards have another order
    got = {(frozenset(n), frozenset(t)) for n, t in pairs(found)}
    turned = {(t, n) for n, t in got}
    assert len(got) == 2
    assert want <= got | turned
    assert {t.name: t.shape for t in found.tensors} == {
        n: tuple(t.shape) for n, t in some().items()
    }
    constants = {d.names[0]: d.constant for d in found.duplicates}
    assert constants["g"]
    assert sum(constants.values()) == 1
    assert found.saved == 2 * 40 * 30 * 4 + 7 * 4
    assert found.nbytes == sum(t.numel() * t.element_size() for t in some().values())
    assert found.record is None


@given(
    seed=st.integers(0, 2**32),
    length=st.integers(1, 40_000),
    items=st.integers(2, 9),
)
@settings(max_examples=60, deadline=None)
def test_sets_are_those_of_the_contents(seed: int, length: int, items: int) -> None:
    """Against a dictionary by content; members differ in one byte, anywhere."""
    random_ = random.Random(seed)
    base = random_.randbytes(length)
    data: dict[int, bytes] = {}
    for i in range(items):
        held = bytearray(random_.choice([base, *data.values()]))
        if random_.random() < 0.5:
            held[random_.randrange(length)] ^= 1 << random_.randrange(8)
        data[i] = bytes(held)
    want: dict[bytes, list[int]] = {}
    for i, d in data.items():
        want.setdefault(d, []).append(i)
    read_bytes = settled = 0

    def read(item: int, at: int, into: memoryview) -> None:
        nonlocal read_bytes
        into[:] = data[item][at : at + len(into)]
        read_bytes += len(into)

    def done(n: int) -> None:
        nonlocal settled
        settled += n

    found = list(equal_sets(list(data), length, read, done))
    assert sorted(found) == sorted(v for v in want.values() if len(v) > 1)
    assert read_bytes <= items * length
    assert settled == items * length


def test_what_differs_early_is_hardly_read(tmp_path: Path) -> None:
    reads = 0

    def read(item: int, at: int, into: memoryview) -> None:
        nonlocal reads
        reads += len(into)
        into[:] = random.Random(item).randbytes(len(into))

    assert list(equal_sets(range(50), 10**9, read)) == []
    assert reads <= 50 * duplicates.FIRST


def test_transposes_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "BUDGET", 1000)
    w = torch.randn(33, 50, generator=generator())
    off = w.t().contiguous()
    off[-1, -1] += 1
    for dtype in (torch.float32, torch.bfloat16, torch.float64, torch.uint8):
        tensors = {"w": w.to(dtype), "t": w.to(dtype).t().contiguous(), "x": off.to(dtype)}
        if dtype is torch.uint8:
            del tensors["x"]
        save_file(tensors, tmp_path / "x")
        assert {frozenset(a + b) for a, b in pairs(checkpoint(tmp_path / "x"))} == {
            frozenset({"w", "t"})
        }


def test_a_transpose_off_by_one_value_is_none(tmp_path: Path) -> None:
    w = torch.randn(33, 50, generator=generator())
    for place in ((0, 1), (32, 48), (17, 17)):
        turned = w.t().contiguous()
        turned[place[::-1]] += 1
        save_file({"w": w, "t": turned}, tmp_path / "x")
        assert pairs(checkpoint(tmp_path / "x")) == []


def test_a_symmetric_matrix_is_no_pair_of_its_own(tmp_path: Path) -> None:
    save_file({"eye": torch.eye(8), "other": torch.ones(8, 8).tril()}, tmp_path / "x")
    assert pairs(checkpoint(tmp_path / "x")) == []


def test_names_that_share_memory(tmp_path: Path) -> None:
    w = torch.randn(6, 4, generator=generator())
    flat = torch.randn(20, generator=generator(1))
    tied = nn.Linear(4, 6, bias=False)
    tensors = {
        "embed": w,
        "head": w,
        "turned": w.t(),
        "flat.0": flat[:8],
        "flat.1": flat[8:],
        "over": torch.as_strided(flat, (9,), (1,), (7)),
        "nested": {"list": [tied.weight, {"again": tied.weight}], "step": 3},
    }
    torch.save(tensors, tmp_path / "x.pt")
    found = checkpoint(tmp_path / "x.pt")
    assert [(set(s.names), s.whole) for s in found.shared] == [
        ({"embed", "head", "turned"}, True),
        ({"flat.0", "flat.1", "over"}, False),
        ({"nested.list.0", "nested.list.1.again"}, True),
    ]
    assert found.nbytes == 4 * (24 + 20 + 24)
    assert pairs(found) == []


def test_nothing_of_a_torch_file_but_weights(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "unpickled"),))

    torch.save({"w": torch.zeros(3), "x": Evil()}, tmp_path / "x.pt")
    with pytest.raises(eadem.RecordError, match="weights"):
        checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "unpickled").exists()


def test_a_torch_file_in_the_old_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, w = tmp_path / "old.pt", torch.randn(3, 4, generator=generator())
    state = {"w": w, "same": w, "equal": w.clone(), "v": torch.zeros(3)}
    torch.save(state, old, _use_new_zipfile_serialization=False)
    found = checkpoint(old)
    assert [t.name for t in found.tensors] == list(state)
    assert [s.names for s in found.shared] == [("w", "same")]
    assert [d.names for d in found.duplicates] == [("w", "equal")]
    old.write_bytes(old.read_bytes()[:-8])
    with pytest.raises(eadem.RecordError, match=r"old\.pt"):
        checkpoint(old)
    monkeypatch.setattr("eadem.store.torchfile.OLD_BYTES", 10)
    with pytest.raises(eadem.RecordError, match=r"torch 1\.6.*write it again"):
        checkpoint(old)


def test_strided_and_permuted_values(tmp_path: Path) -> None:
    conv = torch.randn(4, 3, 2, 2, generator=generator()).to(memory_format=torch.channels_last)
    torch.save(
        {
            "a": conv,
            "b": conv.clone(),
            "every other": torch.arange(10.0)[::2],
            "one": conv[:, :1],
        },
        tmp_path / "x.pt",
    )
    found = checkpoint(tmp_path / "x.pt")
    assert pairs(found) == [(("a", "b"), ())]
    torch.save({"s": torch.eye(3).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(eadem.RecordError):
        checkpoint(tmp_path / "x.pt")


def test_ties_recorded_by_eadem(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(200, 100), nn.Linear(100, 100))
    order = torch.randperm(20_000, generator=generator()).reshape(100, 200)
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Gather(order)})
    with torch.no_grad():
        model[2].bias.copy_(model[0].bias)
    eadem.save(model, tmp_path / "x.safetensors")
    found = checkpoint(tmp_path / "x.safetensors")
    assert found.record == eadem.record(model)
    assert [t.name for t in found.arrays] != []
    assert {t.name for t in found.tensors} == set(model.state_dict())
    assert pairs(found) == [(("0.bias", "2.bias"), ())]
    text = str(checkpoint_summary(tmp_path / "x.safetensors"))
    assert "Gather" in text
    assert "one copy of each would save 400 B" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda index: {}, "weight_map"),
        (lambda index: [], "weight_map"),
        (lambda index: {"weight_map": {"a": "../../etc/passwd"}}, "no file beside it"),
        (lambda index: {"weight_map": {"a": "/etc/passwd"}}, "no file beside it"),
        (lambda index: {"weight_map": {"a": ".."}}, "no file beside it"),
        (lambda index: {"weight_map": {"a": 3}}, "no file beside it"),
        (lambda index: {"weight_map": {"a": "x\n.bin"}}, "no file beside it"),
        (lambda index: {"weight_map": {"a": "absent.safetensors"}}, "not there"),
        (
            lambda index: {
                "weight_map": index["weight_map"] | {"zz": index["weight_map"]["a"]}
            },
            "does not fit its shards",
        ),
    ],
)
def test_an_index_is_not_trusted(change: object, says: str, tmp_path: Path) -> None:
    shards(tmp_path / "x", some())
    path = tmp_path / "x" / "model.safetensors.index.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(eadem.RecordError, match=says):
        checkpoint(tmp_path / "x")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(eadem.RecordError, match="no file or folder"):
        checkpoint(tmp_path / "absent")
    with pytest.raises(eadem.RecordError, match="holds no checkpoint"):
        checkpoint(tmp_path)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(eadem.RecordError, match="safetensors"):
        checkpoint(tmp_path / "x")
    (tmp_path / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(eadem.RecordError, match="damaged"):
        checkpoint(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(eadem.RecordError, match="several indices"):
        checkpoint(tmp_path)


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    save_file({"[red]a[/red]": torch.ones(2000), "b": torch.ones(2000)}, tmp_path / "x")
    found = checkpoint_summary(tmp_path / "x")
    assert "[red]a[/red]" in str(found)
    assert "<b>" not in found._repr_html_().replace("<br>", "")
    save_file({"\x1b[31ma": torch.ones(2)}, tmp_path / "x")
    with pytest.raises(eadem.RecordError, match="printed"):
        checkpoint(tmp_path / "x")


def test_spoiled_torch_files_are_typed_errors(tmp_path: Path) -> None:
    """A byte changed, cut or put in, anywhere in the archive."""
    torch.save({"m": some(), "n": [torch.ones(3)]}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    random_ = random.Random(0)
    errors = []
    for _ in range(300):
        held = bytearray(data)
        at = random_.choice((random_.randrange(len(data)), random_.randrange(1500)))
        match random_.randrange(4):
            case 0:
                held[at] ^= 1 << random_.randrange(8)
            case 1:
                del held[at:]
            case 2:
                del held[at : at + random_.choice((1, 8, 64))]
            case _:
                held[at:at] = random_.randbytes(random_.choice((1, 8, 64)))
        (tmp_path / "y.pt").write_bytes(held)
        try:
            checkpoint(tmp_path / "y.pt")
        except eadem.EademError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all(str(tmp_path / "y.pt") in e for e in errors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Equal tensors of 64 MB in all, read to the end in far less."""
    tensors = {f"w{i}": torch.full((1024, 4096), 0.5) for i in range(4)}
    tensors["w3"][-1, -1] = 0
    save_file(tensors, tmp_path / "x")
    code = (
        "import sys; from eadem.store.checkpoint import checkpoint\n"
        "def peak():\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"
        "    return next(int(x.split()[1]) for x in lines if x.startswith('VmHWM'))\n"
        "before = peak()\n"
        "found = checkpoint(sys.argv[1])\n"
        "assert [d.names for d in found.duplicates] == [('w0', 'w1', 'w2')]\n"
        "print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert int(done.stdout) * 1024 < 8 << 20


def test_the_bar_is_told_how_far(tmp_path: Path) -> None:
    save_file(some(), tmp_path / "x")
    told: list[tuple[int, int]] = []
    checkpoint(tmp_path / "x", lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert [a for a, _ in told] == sorted(a for a, _ in told)
