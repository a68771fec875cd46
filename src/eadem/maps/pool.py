"""The threads that torch itself divides its work among, for compiled loops.

torch on Linux has them from GNU's OpenMP: a loop that is begun there uses the threads that have
just computed a product, and that still wait for more. Threads of one's own would fight them for
the processor.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

__all__ = ["table"]

#: What runs a function in all threads, a thread's number, their count, and a barrier.
_CALLS = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads", "GOMP_barrier")


@functools.cache
def _calls() -> tuple[int, ...] | None:
    """Their addresses in the library that torch was linked with; None where it has others."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        found = ctypes.CDLL(str(library))
        return tuple(ctypes.cast(getattr(found, n), ctypes.c_void_p).value or 0 for n in _CALLS)
    except (OSError, AttributeError):
        return None


@functools.cache
def table(threads: int, workers: Sequence[int]) -> np.ndarray | None:
    """What `_row_kernels` needs to divide its work among so many threads, as integers; None
    where torch has no such threads.
    """
    calls = _calls()
    return None if calls is None else np.array([*calls, threads, *workers], dtype=np.uint64)
