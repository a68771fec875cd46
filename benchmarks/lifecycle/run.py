"""Runs every case of every row for every way of tying, each in a process of its own."""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from .verdict import Outcome, Verdict, short

__all__ = ["Found", "main", "run"]

OUT = Path(__file__).resolve().parents[2] / "docs" / "guide" / "lifecycle-table.md"


@dataclass(frozen=True)
class Job:
    """One probe: a row, a case, a way and a declaration, by their names."""

    row: int
    case: int
    way: str
    subject: int


@dataclass(frozen=True)
class Found:
    """What a probe found, and whether the row allows it of Eadem."""

    job: Job
    declaration: str
    case: str
    library: str
    outcome: Outcome
    allowed: bool


def jobs(wanted: list[int]) -> list[Job]:
    """Every probe of the rows wanted (none: all)."""
    from .table import rows

    return [
        Job(row.number, i, way.key, j)
        for row in rows()
        if not wanted or row.number in wanted
        for i, case in enumerate(row.cases)
        for way in case.ways
        for j, _ in enumerate(case.subjects() if _installed(case.needs) else [None])
    ]


def _installed(names: tuple[str, ...]) -> bool:
    return not _missing(names)


def _missing(names: tuple[str, ...]) -> str:
    return ", ".join(n for n in names if importlib.util.find_spec(n) is None)


def probe(job: Job) -> Found:
    """Run one probe here."""
    from .oracle import Stopped, stopped
    from .table import rows
    from .ways import EADEM, GENERAL, NATIVE

    row = next(r for r in rows() if r.number == job.row)
    case = row.cases[job.case]
    way = next(w for w in (*GENERAL, NATIVE) if w.key == job.way)
    if missing := _missing(case.needs):
        outcome = Outcome(Verdict.NOT_APPLICABLE, f"{missing} is not installed")
        return Found(job, "", case.name, case.library, outcome, allowed=False)
    subject = case.subjects()[job.subject]
    lacks = way.lacks(subject)
    if lacks:
        outcome = Outcome(Verdict.NOT_APPLICABLE, lacks)
    else:
        try:
            outcome = case.probe(way, subject)
        except Stopped as error:
            outcome = stopped(error, way is EADEM)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            at = f" ({Path(where.filename).name}:{where.lineno})"
            text = short(f"{type(error).__name__}: {error}") + at
            outcome = Outcome(Verdict.RAISES, text)
    allowed = outcome.verdict is Verdict.KEPT or (
        outcome.verdict is Verdict.REFUSED and case.refusable(subject)
    )
    return Found(job, subject.name, case.name, case.library, outcome, allowed)


def _child(job: Job, answer: Connection) -> None:
    os.setsid()
    if not os.environ.get("LIFECYCLE_DEBUG"):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answer.send(probe(job))
    answer.close()


def _seconds(job: Job) -> float:
    from .table import rows

    return next(r for r in rows() if r.number == job.row).cases[job.case].seconds


def isolated(context: multiprocessing.context.BaseContext, job: Job) -> Found:
    """Run one probe in a process of its own, and end it when its time is over."""
    mine, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_child, args=(job, theirs))  # type: ignore[attr-defined]
    worker.start()
    theirs.close()
    limit = _seconds(job)
    try:
        if mine.poll(limit):
            found: Found = mine.recv()
            return found
        why = f"no answer within {limit:.0f} s"
    except EOFError:
        worker.join(10)
        why = f"the process ended with {worker.exitcode}"
    finally:
        _end(worker.pid)
        worker.join(10)
        mine.close()
    return _lost(job, why)


def _end(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _lost(job: Job, why: str) -> Found:
    from .table import rows

    case = next(r for r in rows() if r.number == job.row).cases[job.case]
    subject = case.subjects()[job.subject]
    outcome = Outcome(Verdict.RAISES, why)
    return Found(job, subject.name, case.name, case.library, outcome, allowed=False)


def run(wanted: list[int], workers: int) -> list[Found]:
    """Every probe, with progress on stderr."""
    everything = jobs(wanted)
    # the server imports all once and forks; it finds modules by PYTHONPATH, not by sys.path
    os.environ["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preload"])
    began, found = time.monotonic(), []
    with ThreadPoolExecutor(workers) as pool:
        for i, one in enumerate(pool.map(lambda j: isolated(context, j), everything), 1):
            found.append(one)
            if i % 10 == 0 or i == len(everything):
                spent = time.monotonic() - began
                print(
                    f"row {one.job.row:2d}: {i} of {len(everything)} probes, {spent:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    return found


def main(argv: list[str]) -> int:
    """Runs, writes the page, prints what Eadem does not hold; 1 where there is any."""
    from .page import page, problems

    parser = argparse.ArgumentParser(prog="python -m benchmarks lifecycle")
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows (all by default)")
    parser.add_argument("--out", type=Path, help=f"where the page goes ({OUT.name})")
    parser.add_argument("--workers", type=int, default=max(1, min(4, os.cpu_count() or 1)))
    given = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["PYTHONWARNINGS"] = "ignore"
    found = run(given.rows, given.workers)
    out = given.out or (None if given.rows else OUT)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page(found), encoding="utf-8")
        print(f"written: {out}")
    else:
        for f in found:
            print(
                f"{f.job.row:2d} {f.case} | {f.library or f.job.way} | {f.declaration} | "
                f"{f.outcome.verdict.symbol} {f.outcome.verdict.value}: {f.outcome.detail}"
            )
    broken = problems(found)
    for line in broken:
        print(line, file=sys.stderr)
    return 1 if broken else 0
