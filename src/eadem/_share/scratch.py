"""Tensors in scratch files, mapped: the system reads and forgets their pages by need."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from eadem.errors import DataError

__all__ = ["mapped", "room"]


@contextmanager
def room() -> Iterator[None]:
    """Raise DataError where a scratch file cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"scratch files cannot be written to {tempfile.gettempdir()}: "
            f"{error.strerror or error}; make room there for two copies of the weights, or "
            "name another folder in TMPDIR"
        ) from error


def mapped(value: Tensor) -> Tensor:
    """The same values in a file without a name; on another device than the CPU, `value`.

    A change stays in memory, so a tensor that nothing writes to takes none. The file is in the
    folder for temporary files (TMPDIR) and goes with the tensor.

    >>> x = torch.arange(6.0).view(2, 3)
    >>> torch.equal(mapped(x), x)
    True
    """
    if value.device.type != "cpu" or not value.numel():
        return value
    flat = value.detach().contiguous().reshape(-1)
    with (
        room(),
        tempfile.TemporaryDirectory(prefix="eadem-share-", ignore_cleanup_errors=True) as at,
    ):
        file = Path(at) / "values"
        flat.view(torch.uint8).numpy().tofile(file)
        held = torch.from_file(str(file), shared=False, size=flat.numel(), dtype=flat.dtype)
    return held.view(value.shape)
