"""Runnable studies on real data, one flat file each.

A recipe is a module here whose docstring's first line is its title and which has
`run(context: Context) -> None`. Its name on the command line has hyphens for underscores. A
recipe that can draw its page from a finished folder alone also has `report(folder: Path)`.
"""

from __future__ import annotations

import ast
import importlib
import json
import random
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from rich.console import Console

from ..errors import EademError, MissingPackage, nearest
from ._run import METRICS as METRICS
from ._run import PARTIAL, SCHEMA, output_folder
from ._run import REPORT as REPORT
from ._run import Claim as Claim
from ._run import Context as Context
from ._run import RunError as RunError
from ._run import marker as marker

__all__ = [
    "METRICS",
    "REPORT",
    "Claim",
    "Context",
    "RunError",
    "default_out",
    "marker",
    "recipes",
    "render",
    "run",
]


def recipes() -> dict[str, str]:
    """The title of each recipe by name, read without importing any of them."""
    files = sorted(
        file for folder in __path__ for file in Path(folder).glob("*.py") if file.stem[0] != "_"
    )
    return {file.stem.replace("_", "-"): _title(file) for file in files}


def _title(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0].rstrip(".")


def default_out(name: str, seed: int, quick: bool) -> Path:
    """Where a run's results go unless told.

    >>> default_out("mnist", 0, quick=True).as_posix()
    'runs/mnist-seed0-quick'
    """
    return Path("runs") / f"{name}-seed{seed}{'-quick' if quick else ''}"


def run(
    name: str,
    *,
    out: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    device: str = "cpu",
    console: Console | None = None,
) -> Path:
    """Run a recipe and return the folder of its results (see `output_folder`).

    Raises `RunError` for an unknown name, device or unusable folder, and `MissingPackage` when
    the recipe's data package is not installed.
    """
    name = name.replace("_", "-")
    known = recipes()
    if name not in known:
        raise RunError(f"there is no recipe {name!r}; {nearest(name, known)}")
    device = _device(device)
    target = (out or default_out(name, seed, quick)).expanduser().resolve()
    with output_folder(target, _command(name, out, quick, seed, device)) as folder:
        context = Context(
            name=name,
            out=folder,
            quick=quick,
            seed=seed,
            device=device,
            title=known[name],
            console=console or Console(quiet=True),
        )
        start, processor = time.perf_counter(), time.process_time()
        with _seeded(seed, device), _packages(name):
            _module(name).run(context)
        context.write_metrics(
            {
                "seconds": round(time.perf_counter() - start, 2),
                "cpu_seconds": round(time.process_time() - processor, 2),
            }
        )
    return target


def render(folder: Path) -> None:
    """Write a finished run's page again, where its recipe has `report(folder)`.

    Raises `RunError` when `folder` is not the whole result of a run.
    """
    folder = folder.expanduser().resolve()
    if (folder / PARTIAL).exists():
        raise RunError(f"{folder} is not a whole result; its file {PARTIAL} says what to do")
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        name = str(metrics["recipe"])
        schema = int(metrics["schema"])
        list(metrics["claims"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{folder} holds no readable {METRICS} ({type(error).__name__}); "
            "give a folder that `eadem run` wrote"
        ) from error
    if schema > SCHEMA:
        raise RunError(
            f"{folder / METRICS} has schema {schema}, newer than this version's {SCHEMA}; "
            "upgrade eadem"
        )
    if name in recipes():
        with _packages(name):
            page = getattr(_module(name), "report", None)
            if page is not None:
                page(folder)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _command(name: str, out: Path | None, quick: bool, seed: int, device: str) -> str:
    words = ["eadem", "run", name]
    words += ["--quick"] * quick
    words += ["--out", str(out)] if out else []
    words += ["--seed", str(seed)] if seed else []
    words += ["--device", device] if device != "cpu" else []
    return shlex.join(words)


def _device(name: str) -> str:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise RunError(
            f"the device {name!r} cannot be used: {reason}; try --device cpu"
        ) from error
    return str(torch.device(name))


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Every generator starts from `seed` inside the block, and goes on as before after it."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[] if device == "cpu" else [device]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


@contextmanager
def _packages(name: str) -> Iterator[None]:
    """A package that is not installed is named with the extra that brings it."""
    try:
        yield
    except EademError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "eadem"):
            raise
        raise MissingPackage(
            f"the recipe {name!r} needs the package {package!r}, which is not installed: "
            'pip install "eadem[recipes]"'
        ) from error
