"""Runs `distributed_worker.py` under torchrun, once for each number of processes, and hands out
what its processes found.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

#: Checkpoints pass from one number of processes to the next in here.
_folder = tempfile.TemporaryDirectory(prefix="eadem-distributed-")
FOLDER = Path(_folder.name)
_HERE = Path(__file__).parent


def found(processes: int) -> dict[str, list[Any]]:
    """By case, what each process returned."""
    every, error = _run(processes)
    assert not error, error
    return every


@functools.cache
def _run(processes: int) -> tuple[dict[str, list[Any]], str]:
    """What was found, or what went wrong; tried once. Two go on from the files of four."""
    if processes == 2:
        found(4)
    out = FOLDER / f"found-{processes}.json"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", str(processes), "--max-restarts", "0"),
        *(str(_HERE / "distributed_worker.py"), str(FOLDER), str(out)),
    ]
    paths = [str(_HERE), str(_HERE.parents[1] / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    except subprocess.TimeoutExpired as e:
        return {}, f"{processes} processes did not end: {_tail(e.stderr)}"
    if run.returncode:
        return {}, _tail(run.stderr)
    return json.loads(out.read_text()), ""


def _tail(text: str | bytes | None) -> str:
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return (text or "")[-6000:]


def result(processes: int, case: str) -> list[Any]:
    """What each process returned for a case; fails with the traceback of one that raised."""
    every = found(processes)
    assert case in every, f"{case!r} was not run; there are {', '.join(every)}"
    for one in every[case]:
        if isinstance(one, dict) and "traceback" in one:
            raise AssertionError(one["traceback"])
    return every[case]
