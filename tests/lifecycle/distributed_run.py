"""Runs `distributed_worker.py` under torchrun, once for all tests and all workers of pytest,
and hands out what its processes found.
"""

from __future__ import annotations

import fcntl
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: What the processes found, and the checkpoints that pass from four of them to two.
FOLDER = Path(os.environ["EADEM_TESTS_FOLDER"])
_HERE = Path(__file__).parent


def found(processes: int) -> dict[str, list[Any]]:
    """By case, what each process returned."""
    every = _every()
    assert "error" not in every, every["error"]
    return every[str(processes)]


@functools.cache
def _every() -> dict[str, Any]:
    """By number of processes what they found, or what went wrong; tried once."""
    with (FOLDER / "distributed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        out = FOLDER / "distributed.json"
        if not out.exists():
            out.write_text(json.dumps(_run()))
        return json.loads(out.read_text())


def _run() -> dict[str, Any]:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--nproc-per-node", "4", "--max-restarts", "0"),
        *(str(_HERE / "distributed_worker.py"), str(FOLDER)),
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
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
    except subprocess.TimeoutExpired as e:
        return {"error": f"the processes did not end: {_tail(e.stderr)}"}
    if run.returncode:
        return {"error": _tail(run.stderr)}
    found: dict[str, dict[str, list[Any]]] = {"2": {}, "4": {}}
    for file in FOLDER.glob("found-*.json"):
        found[file.name.split("-")[1]] |= json.loads(file.read_text())
    return found


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
