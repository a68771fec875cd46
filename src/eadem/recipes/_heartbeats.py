"""Heartbeats of a record, cut into windows."""

from __future__ import annotations

import torch
from scipy.signal import find_peaks
from torch import Tensor

from eadem.recipes._data import Package

__all__ = [
    "AHEAD",
    "APART",
    "AVERAGED",
    "BEFORE",
    "DTW",
    "FOLDS",
    "INPUT",
    "MOMENTS",
    "RIDGE",
    "SHA256",
    "TAPS",
    "WINDOW",
    "Cut",
    "explained",
    "fold_of",
    "record",
    "starts",
    "windows",
]


def record() -> Tensor:
    """The electrocardiogram at 120 Hz, of zero mean and unit variance, float64."""
    raw = DTW.read("data/aami3a.csv", SHA256).decode("ascii").split()
    values = torch.tensor([float(v) for v in raw], dtype=torch.float64)
    values = values[: len(values) // AVERAGED * AVERAGED].reshape(-1, AVERAGED).mean(1)
    return (values - values.mean()) / values.std()


def starts(signal: Tensor, cut: str) -> Tensor:
    """Where windows may begin, in order."""
    last = len(signal) - WINDOW
    if cut == "anywhere":
        return torch.arange(last + 1)
    peaks = find_peaks(signal.numpy(), distance=APART, prominence=2.0)[0]
    found = torch.from_numpy(peaks) - BEFORE
    return found[(found >= 0) & (found <= last)]


def windows(signal: Tensor, first: Tensor) -> Cut:
    """The windows that begin at `first`."""
    whole = signal[first.unsqueeze(1) + torch.arange(WINDOW)]
    seen = whole[:, :INPUT].unfold(1, TAPS, 1)
    ones = torch.ones(*seen.shape[:2], 1, dtype=seen.dtype)
    return torch.cat([seen, ones], 2), whole[:, TAPS - 1 + AHEAD :]


DTW = Package("dtw-python", "1.9.0", "dtw", "GPL-3.0")
SHA256 = "12dd6501f2746673f94f790ebfe06e9511ae3053463575e279a95317115a5e70"
AVERAGED, TAPS, MOMENTS, AHEAD = 6, 12, 36, 6
INPUT, WINDOW = MOMENTS + TAPS - 1, MOMENTS + TAPS - 1 + AHEAD
BEFORE, APART, RIDGE = 24, 48, 1e-2
#: Inputs (n, MOMENTS, TAPS + 1), the last a one, and what comes AHEAD of each (n, MOMENTS).
Cut = tuple[Tensor, Tensor]
FOLDS = 5


def explained(found: Tensor, cut: Cut) -> float:
    """The share of the variance that filters explain."""
    rest = cut[1] - torch.einsum("nmt,mt->nm", cut[0], found)
    return float(1 - rest.square().mean() / cut[1].var(unbiased=False))


def fold_of(signal: Tensor, first: Tensor, fold: int) -> tuple[Tensor, Tensor]:
    """Windows that lie outside a fifth of the record, and those that lie inside."""
    low, high = (len(signal) * f // FOLDS for f in (fold, fold + 1))
    inside = (first >= low) & (first + WINDOW <= high)
    outside = (first + WINDOW <= low) | (first >= high)
    return first[outside], first[inside]
