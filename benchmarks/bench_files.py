"""Files: saving, loading and summing up checkpoints, against safetensors and the disk.

A model of 1 GB, two of its layers tied and one a mirror of another. `save` stands against
`save_file` of the same state dict, `load` against `load_state_dict(load_file(path))`
(`load_file` alone maps the file and reads nothing) and against `load_file` with every tensor
copied out of the file. A summary is of a file of 4 GB in which every tensor has an equal, so
that all of it has to be read; it stands against reading the same file from end to end, in the
system's cache and out of it. Memory is the peak of a process of its own, over what it was
before the call where that is said.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import eadem
from eadem.store.checkpoint import checkpoint
from timing import Ratio, Row, paired, row, seconds

__all__ = ["rows"]

#: Layers of 32 MB, and tensors of 64 MB.
LAYERS, TENSORS = 34, 64
#: Throughput of at least 0.8 and 0.7 of the peer's.
FILES, DISK = 1 / 0.8, 1 / 0.7
#: Peak memory of `load` over θ, and of a summary in bytes.
LOAD, SUMMARY = 1.1, 512 << 20

MODEL = f"""
import json, sys, torch, eadem
from torch import nn
from safetensors.torch import load_file

def peak(key="VmHWM"):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def model(tied):
    found = nn.ModuleList(nn.Linear(2048, 4096, bias=False) for _ in range({LAYERS}))
    if tied:
        eadem.tie(found, "0.weight", "33.weight")
        eadem.tie(found, "1.weight", "32.weight", via=eadem.Flip(0))
    return found
"""
#: What is measured, whether its model is tied before, the call, and its limit over θ.
PEAKS = (
    ("peak memory of load into a tied model", True, "eadem.load(m, path)", LOAD),
    ("peak memory of load into an untied model", False, "eadem.load(m, path)", LOAD),
    ("  load_state_dict(load_file(path))", True, "m.load_state_dict(load_file(path))", None),
)


def model() -> nn.Module:
    """The model that every row is about, tied."""
    space: dict[str, Callable[[bool], nn.Module]] = {}
    exec(MODEL, space)
    return space["model"](True)


def files(folder: Path) -> list[Row]:
    """Time and memory of saving and loading."""
    path = folder / "model"
    found, theta = times(model(), path)
    for name, tied, call, limit in PEAKS:
        use = f"""
m, path = model({tied}), sys.argv[1]
open("/proc/self/clear_refs", "w").write("5")
before = peak("VmRSS")
{call}
print(peak() - before)
"""
        extra = float(_process(MODEL + use, str(path)))
        found.append(Row(f"{name}, over before", "the size of θ", extra / theta, limit=limit))
    return found


def times(tied: nn.Module, path: Path) -> tuple[list[Row], int]:
    """Rows of time, and the bytes of θ. The file stays."""
    state = tied.state_dict()
    theirs = path.with_name("theirs")
    save_file(state, theirs)
    eadem.save(tied, path)
    load = partial(eadem.load, tied, path)
    pairs: list[tuple[str, str, Callable[[], object], Callable[[], object]]] = [
        (
            "save, 1 GB",
            "safetensors' save_file",
            partial(eadem.save, tied, path),
            partial(save_file, state, theirs),
        ),
        (
            "load, 1 GB",
            "load_state_dict(load_file(path))",
            load,
            lambda: tied.load_state_dict(load_file(theirs)),
        ),
        ("load, 1 GB", "load_file, copied to memory", load, partial(_copied, theirs)),
    ]
    found = [
        row(name, peer, paired(a, b, rounds=5, pairs=2, calls=1, warmup=1), FILES)
        for name, peer, a, b in pairs
    ]
    theirs.unlink()
    return found, sum(t.numel() * t.element_size() for t in state.values())


def _copied(path: Path) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in load_file(path).items()}


def summaries(folder: Path) -> list[Row]:
    """Time and memory of a summary that has to read everything."""
    path = folder / "large"
    half = {f"a{i}": torch.randn(4096, 4096) for i in range(TENSORS // 2)}
    save_file(half | {f"b{i}": t.clone() for i, t in enumerate(half.values())}, path)
    del half
    gc.collect()
    with path.open("rb") as file:
        os.fsync(file.fileno())
    found = []
    for where, before in (("in the cache", _warm), ("out of the cache", _cold)):
        ratio = _alternated(path, before)
        name = f"summary of 4 GB, all equal in pairs, {where}"
        found.append(row(name, "reading the file", ratio, DISK))
    use = """
from eadem.cli import main
try:
    main(["summary", sys.argv[1]])
except SystemExit:
    pass
print(peak())
"""
    text = _process(MODEL + use, str(path))
    peak = int(text.splitlines()[-1])
    found.append(
        Row("peak memory of `eadem summary` of 4 GB", "512 MB", peak / SUMMARY, limit=1)
    )
    return found


def _alternated(path: Path, before: Callable[[Path], None]) -> Ratio:
    ratios = []
    for i in range(5):
        times = {}
        for use in (checkpoint, _read) if i % 2 else (_read, checkpoint):
            before(path)
            times[use] = seconds(lambda use=use: use(path))
        ratios.append(times[checkpoint] / times[_read])
    ratios.sort()
    return Ratio(ratios[2], ratios[0], ratios[-1])


def _read(path: Path) -> None:
    """As `cat` to nowhere does, in its pieces of 128 KB."""
    into = memoryview(bytearray(1 << 17))
    with path.open("rb", buffering=0) as file:
        while file.readinto(into):
            pass


def _warm(path: Path) -> None:
    _read(path)


def _cold(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _process(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def rows() -> list[Row]:
    """All of the table."""
    with tempfile.TemporaryDirectory(prefix="eadem-bench-") as name:
        return [*files(Path(name)), *summaries(Path(name))]


if __name__ == "__main__":
    from timing import table

    print(table(rows()))
