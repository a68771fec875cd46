"""All recipes one after the other, each in a process of its own, and one page of what came out.

A recipe that fails, or whose data are not here, does not stop the rest. Each arrives in a
folder of its own, whole or not at all; the page and `claims.json` are written again after each,
so that they always say how far the run is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from ..errors import MissingPackage
from . import METRICS, RunError, recipes, run
from ._run import REPORT, progress_bars, write_atomic
from ._statements import STATEMENTS

__all__ = ["CLAIMS", "INDEX", "Outcome", "collected", "run_all"]

CLAIMS = "claims.json"
INDEX = "index.html"
SCHEMA = 1
#: Exit code of a process whose recipe's data or packages are not here.
MISSING = 3
#: Seconds that running recipes have to end by themselves after Ctrl-C.
PATIENCE = 10.0
#: What a process runs; its arguments are those of `run`.
CHILD = "from eadem.recipes._all import child; child()"


@dataclass(frozen=True)
class Outcome:
    """What became of a recipe. `state` is "whole", "missing" (its data or packages), "failed",
    "interrupted" or "not run"; `reason` says why it is not whole. `seconds` is wall time,
    `cpu_seconds` the processor's.
    """

    recipe: str
    title: str
    state: str = "not run"
    reason: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    claims: list[dict[str, Any]] = field(default_factory=list)
    page: str | None = None


def run_all(
    *,
    out: Path | None = None,
    quick: bool = False,
    seed: int = 0,
    device: str = "cpu",
    jobs: int = 1,
    resume: bool = False,
    console: Console | None = None,
) -> Path:
    """Run every recipe, `jobs` at a time, and return the folder that holds one folder for
    each, `index.html` and `claims.json`. With `resume` those that are whole there, of the same
    settings, stay.

    On Ctrl-C what is whole stays, the page says so, and KeyboardInterrupt goes on. Raises
    `RunError` when the folder cannot be written.
    """
    folder = (out or Path("runs") / f"all-seed{seed}{'-quick' if quick else ''}").expanduser()
    folder = folder.resolve()
    _prepared(folder)
    known = recipes()
    console = console or Console(quiet=True)
    outcomes = {name: Outcome(name, title) for name, title in known.items()}
    settings = {"quick": quick, "seed": seed, "device": device}

    def keep(outcome: Outcome) -> None:
        outcomes[outcome.recipe] = outcome
        _write(folder, list(outcomes.values()), settings)
        console.print(_line(outcome), highlight=False, markup=False)

    _write(folder, list(outcomes.values()), settings)
    waiting = []
    for name in known:
        if resume and _there(folder / name / METRICS, settings):
            keep(_read(folder, outcomes[name]))
        else:
            waiting.append(outcomes[name])
    words = [str(seed), device, "quick" if quick else "full"]
    with _bar(console, len(known), len(known) - len(waiting)) as advance:
        _processes(folder, waiting, words, jobs, keep, advance)
    return folder


def child() -> None:
    """One recipe in this process; what goes wrong is the last line of stderr."""
    name, out, seed, device, size = sys.argv[1:]
    try:
        run(name, out=Path(out), quick=size == "quick", seed=int(seed), device=device)
    except MissingPackage as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        sys.exit(MISSING)
    except KeyboardInterrupt:
        sys.exit(130)


def collected(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What came out for each statement, and for each claim of a recipe that is not about one.

    `status` is "holds", "does not hold", "holds in part" or "not run".

    >>> [one["status"] for one in collected([])][:2]
    ['not run', 'not run']
    """
    results: dict[str, list[dict[str, Any]]] = {key: [] for key in STATEMENTS}
    for outcome in outcomes:
        for claim in outcome.claims:
            entry = {k: v for k, v in claim.items() if k != "id"}
            entry |= {"recipe": outcome.recipe, "page": outcome.page}
            results.setdefault(claim["id"], []).append(entry)
    return [
        {
            "id": key,
            "statement": STATEMENTS.get(key, ""),
            "status": _status([bool(r["holds"]) for r in found]),
            "results": found,
        }
        for key, found in sorted(results.items())
    ]


def _status(holds: Sequence[bool]) -> str:
    if not holds:
        return "not run"
    if all(holds):
        return "holds"
    return "holds in part" if any(holds) else "does not hold"


def _there(metrics: Path, settings: dict[str, Any]) -> bool:
    """Whether a whole result of these settings is there."""
    if not metrics.is_file():
        return False
    held = json.loads(metrics.read_text(encoding="utf-8"))
    return all(held.get(key) == value for key, value in settings.items())


def _prepared(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise RunError(
            f"cannot write to the output folder {folder}: {error.strerror or error}; "
            "give one that can be written with --out"
        ) from error
    if names and CLAIMS not in names:
        raise RunError(
            f"the output folder {folder} holds files that no run of all recipes wrote; "
            "give an empty or a new one with --out"
        )


def _processes(
    folder: Path,
    waiting: list[Outcome],
    words: Sequence[str],
    jobs: int,
    keep: Callable[[Outcome], None],
    advance: Callable[[str, bool], None],
) -> None:
    """Run `waiting`, at most `jobs` at a time."""
    running: dict[str, tuple[Outcome, subprocess.Popen[bytes], IO[bytes]]] = {}

    def end(name: str, interrupted: bool = False) -> None:
        outcome, process, log = running.pop(name)
        log.close()
        keep(_ended(folder, outcome, 130 if interrupted else process.returncode))
        advance(name, True)

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                outcome = waiting.pop(0)
                log = (folder / f"{outcome.recipe}.log").open("wb")
                process = _started(folder, outcome.recipe, words, jobs, log)
                running[outcome.recipe] = (outcome, process, log)
                advance(outcome.recipe, False)
            for name in [n for n, (_, p, _) in running.items() if p.poll() is not None]:
                end(name)
            time.sleep(0.05)
    except BaseException:
        # A terminal sends Ctrl-C to these processes as well; others are asked to end.
        deadline = time.monotonic() + PATIENCE
        for name, (_, process, _) in list(running.items()):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait()
            end(name, interrupted=process.returncode != 0)
        raise


def _started(
    folder: Path, name: str, words: Sequence[str], jobs: int, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    env = dict(os.environ)
    if jobs > 1:
        env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, name, str(folder / name), *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=env,
    )


def _ended(folder: Path, outcome: Outcome, code: int) -> Outcome:
    log = folder / f"{outcome.recipe}.log"
    if code == 0:
        log.unlink()
        return _read(folder, outcome)
    if code == 130:
        return replace(outcome, state="interrupted", reason="stopped by Ctrl-C")
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if code == MISSING:
        log.unlink()
        return replace(outcome, state="missing", reason=last)
    how = f"killed by signal {-code}" if code < 0 else last or f"exit code {code}"
    return replace(outcome, state="failed", reason=f"{how} (see {log.name})")


def _read(folder: Path, outcome: Outcome) -> Outcome:
    metrics = json.loads((folder / outcome.recipe / METRICS).read_text(encoding="utf-8"))
    page = f"{outcome.recipe}/{REPORT}"
    return replace(
        outcome,
        state="whole",
        seconds=metrics.get("seconds"),
        cpu_seconds=metrics.get("cpu_seconds"),
        claims=metrics["claims"],
        page=page if (folder / page).is_file() else None,
    )


def _write(folder: Path, outcomes: Sequence[Outcome], settings: dict[str, Any]) -> None:
    """`claims.json` and the page."""
    from ._all_page import render

    found = collected(outcomes)
    record = {
        "schema": SCHEMA,
        **settings,
        "claims": found,
        "recipes": [{k: v for k, v in asdict(o).items() if k != "claims"} for o in outcomes],
    }
    write_atomic(folder / CLAIMS, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    write_atomic(folder / INDEX, render(record))


def _line(outcome: Outcome) -> str:
    if outcome.state != "whole":
        return f"{outcome.recipe}: {outcome.state}: {outcome.reason}"
    held = sum(bool(claim["holds"]) for claim in outcome.claims)
    took = f"{outcome.seconds:.0f} s" if outcome.seconds is not None else ""
    return f"{outcome.recipe}: {held} of {len(outcome.claims)} claims hold, {took}"


@contextmanager
def _bar(console: Console, total: int, done: int) -> Iterator[Callable[[str, bool], None]]:
    """A bar of all recipes; the block is given `advance(name, ended)`."""
    with progress_bars(console) as bars:
        task = bars.add_task("recipes", total=total, completed=done)
        names: list[str] = []

        def advance(name: str, ended: bool) -> None:
            names.remove(name) if ended else names.append(name)
            bars.update(task, advance=ended, description=" and ".join(names) or "recipes")

        yield advance
