"""What a recipe is given while it runs, and the folder its results arrive in.

A run writes into `<out>.partial` beside `<out>`. That folder carries a file `PARTIAL` from its
first moment and takes its final name only when the recipe has finished, so a folder without
that suffix is always whole.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..errors import EademError

__all__ = [
    "METRICS",
    "PARTIAL",
    "REPORT",
    "Claim",
    "Context",
    "RunError",
    "marker",
    "output_folder",
    "progress_bars",
    "write_atomic",
]

METRICS = "metrics.json"
PARTIAL = "PARTIAL"
REPORT = "report.html"
SCHEMA = 1

T = TypeVar("T")


class RunError(EademError):
    """A recipe cannot run as asked: its name, its device or its output folder."""


@dataclass(frozen=True)
class Claim:
    """A statement that a recipe reproduces: what was expected, what came, whether it holds."""

    id: str
    text: str
    predicate: str
    expected: Any
    measured: Any
    holds: bool


@dataclass(frozen=True)
class Context:
    """All that a recipe's `run(context)` may use of the world around it.

    `out` is a private working folder; everything a recipe leaves there is kept. Randomness
    starts from `seed` (torch, numpy and Python are seeded with it before the recipe starts).

    >>> import tempfile
    >>> context = Context("demo", Path(tempfile.mkdtemp()), quick=True)
    >>> context.claim("C00", "one is one", "|measured - expected| <= 1e-12", 1.0, 1.0, True)
    Claim(id='C00', text='one is one', predicate='|measured - expected| <= 1e-12', \
expected=1.0, measured=1.0, holds=True)
    >>> path = context.write_metrics({"models": {"cnn": {"free": 10, "expanded": 40}}})
    >>> json.loads(path.read_text())["claims"][0]["holds"]
    True
    """

    name: str
    out: Path
    quick: bool = False
    seed: int = 0
    device: str = "cpu"
    title: str = ""
    console: Console = field(default_factory=lambda: Console(quiet=True), repr=False)
    claims: list[Claim] = field(default_factory=list, repr=False)
    _bars: list[Progress] = field(default_factory=list, repr=False)
    _metrics: dict[str, Any] = field(default_factory=dict, repr=False)

    def progress(
        self, items: Iterable[T], description: str, total: int | None = None
    ) -> Iterator[T]:
        """Yield `items` under a progress bar; bars nest, and vanish when they are done."""
        if total is None:
            with contextlib.suppress(TypeError):
                total = len(items)  # type: ignore[arg-type]
        with self.stage(description, total) as advance:
            for item in items:
                yield item
                advance(1)

    @contextlib.contextmanager
    def stage(
        self, description: str, total: int | None = None
    ) -> Iterator[Callable[[int], None]]:
        """A progress bar of `total` steps; the block is given `advance(steps)`."""
        outermost = not self._bars
        if outermost:
            self._bars.append(progress_bars(self.console))
            self._bars[0].start()
        bars = self._bars[0]
        task = bars.add_task(description, total=total)
        try:
            yield lambda steps: bars.advance(task, steps)
        finally:
            bars.remove_task(task)
            if outermost:
                self._bars.pop().stop()

    def say(self, *renderables: Any) -> None:
        """Print text or tables (anything rich renders) above the progress bars."""
        self.console.print(*renderables)

    def claim(
        self,
        id: str,  # noqa: A002  (the key it has in metrics.json)
        text: str,
        predicate: str,
        expected: Any,
        measured: Any,
        holds: bool,
    ) -> Claim:
        """Put a claim on record; `predicate` says in words or symbols what `holds` tested."""
        entry = Claim(id, text, predicate, _plain(expected), _plain(measured), bool(holds))
        self.claims.append(entry)
        return entry

    def write_metrics(self, metrics: Mapping[str, Any]) -> Path:
        """Write `metrics.json`: the run, its claims so far, and `metrics` (JSON-ready, or
        tensors and arrays, written as lists; a non-finite number becomes a string).

        Later calls add to earlier ones. The keys `schema, recipe, title, quick, seed, device,
        claims` are the run's own.
        """
        own = {
            "schema": SCHEMA,
            "recipe": self.name,
            "title": self.title,
            "quick": self.quick,
            "seed": self.seed,
            "device": self.device,
            "claims": [asdict(claim) for claim in self.claims],
        }
        if clash := sorted(own.keys() & metrics.keys()):
            raise RunError(
                f"write_metrics was given {', '.join(clash)}, which the run itself writes; "
                "use other keys, and context.claim(...) for claims"
            )
        self._metrics.update(_plain(metrics))
        return self.write_text(
            METRICS, json.dumps(own | self._metrics, indent=2, allow_nan=False) + "\n"
        )

    def write_text(self, name: str, text: str) -> Path:
        """Write a file of the working folder in one step."""
        path = self.out / name
        write_atomic(path, text)
        return path


def progress_bars(console: Console) -> Progress:
    """Bars that vanish when they are done, and show on a terminal only."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _plain(value: Any) -> Any:
    """`value` in JSON's own types."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Path):
        return str(value)
    return value


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file whole or not at all: a temporary file beside it, then `os.replace`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.txt"
    >>> write_atomic(path, "whole")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('whole', 1)
    """
    payload = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; a result is an ordinary file.
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


@contextlib.contextmanager
def output_folder(out: Path, command: str, whole: str = METRICS) -> Iterator[Path]:
    """The working folder `<out>.partial`, renamed to `out` when the block ends without error.
    `whole` is a file that every whole result holds.

    An earlier whole result at `out` stays until that moment. On an error or Ctrl-C the working
    folder stays, and its file `PARTIAL` says what happened and which `command` starts again.
    Raises `RunError` when `out` cannot be written, holds something that no run wrote, or is
    being written by another run.
    """
    out = out.expanduser().resolve()
    if not out.name:
        raise RunError(f"the output folder cannot be {out}; give another with --out")
    mark = marker(out)
    work = mark.parent
    replaced = out.with_name(out.name + ".replaced")
    try:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        for folder in (out, work):
            _refuse_foreign(folder, whole)
        work.mkdir(parents=True, exist_ok=True)
        lock = _lock(mark, out)
    except OSError as error:
        raise RunError(
            f"cannot write to the output folder {out}: {error.strerror or error}; "
            "give one that can be written with --out"
        ) from error
    try:
        _clear(work)
        write_marker(mark, "This run has not finished", command)
        yield work
        mark.unlink()
        _install(work, out, replaced)
    except BaseException as error:
        how = "was interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        with contextlib.suppress(OSError):
            write_marker(mark, f"This run {how} ({type(error).__name__})", command)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"no space is left for the output folder {out}; free some, or give "
                "another with --out"
            ) from error
        raise
    finally:
        os.close(lock)


def marker(out: Path) -> Path:
    """The file that marks the working folder of an unfinished run with results at `out`."""
    out = out.expanduser().resolve()
    return out.with_name(out.name + ".partial") / PARTIAL


def write_marker(mark: Path, state: str, command: str) -> None:
    """The file that says a folder is not a whole result, and what to do about it."""
    mark.write_text(
        f"{state}: the files here are not a whole result.\n"
        f"Start it again (this folder is then emptied):\n    {command}\n"
        "or delete this folder.\n"
    )


def _refuse_foreign(folder: Path, whole: str) -> None:
    """Only what a run wrote may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"the output folder {folder} is a file; give another with --out")
    names = {entry.name for entry in folder.iterdir()}
    if names and not names & {PARTIAL, whole}:
        raise RunError(
            f"the output folder {folder} holds files that no run wrote; "
            "give an empty or a new one with --out"
        )


def _lock(mark: Path, out: Path) -> int:
    """Hold the marker for this process, so that two runs never share a folder."""
    handle = os.open(mark, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl
    except ImportError:
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise RunError(
            f"another run is writing to {out}; wait for it, or give another folder with --out"
        ) from error
    return handle


def _clear(work: Path) -> None:
    for entry in work.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != PARTIAL:
            entry.unlink()


def _install(work: Path, out: Path, replaced: Path) -> None:
    """Give a finished folder its name; a directory cannot be renamed onto a full one."""
    if out.exists():
        if replaced.exists():
            shutil.rmtree(replaced)
        out.rename(replaced)
    try:
        work.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise
    if replaced.exists():
        shutil.rmtree(replaced)
