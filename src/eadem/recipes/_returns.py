"""Daily returns of the S&P 500, 1990 to 1999, from the package pydataset (MIT)."""

from __future__ import annotations

import csv
import io
import tarfile

import torch
from torch import Tensor

from eadem.errors import DataError
from eadem.recipes._data import Package
from eadem.recipes._over_time import Data

__all__ = ["DAYS", "months", "returns"]

PYDATASET = Package("pydataset", "0.2.0", "pydataset", "MIT")
SHA256 = "ab30a6fb322491c3fee4fe1040c37c807c40f1732dc9318c757395319be77bd1"
MEMBER = "resources/rdata/csv/MASS/SP500.csv"
DAYS = 20


def returns() -> Tensor:
    """The daily returns (2783,) in per cent."""
    raw = PYDATASET.read("resources.tar.gz", SHA256)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        stream = archive.extractfile(MEMBER)
        if stream is None:
            raise DataError(f"pydataset's archive holds no file {MEMBER}")
        rows = list(csv.reader(io.TextIOWrapper(stream, encoding="ascii")))[1:]
    return torch.tensor([100 * float(row[1]) for row in rows])


def months(series: Tensor, task: str) -> Data:
    """Windows (n, 2, 20) of returns and their sizes, and the next day's sign or log size."""
    windows = series.unfold(0, DAYS, 1)[:-1]
    following = series[DAYS:]
    up = (following > 0).long()
    answers = up if task == "sign" else (following.abs() + 0.1).log()
    return Data(torch.stack([windows, windows.abs() - windows.abs().mean()], 1), answers)
