"""The electrocardiogram that PyWavelets ships (MIT licence)."""

from __future__ import annotations

import torch
from torch import Tensor

from eadem.recipes._data import Package

__all__ = ["ecg"]

PACKAGE = Package("pywavelets", "≥1.6", "pywt", "MIT", 'install "eadem[recipes]"')


def ecg() -> Tensor:
    """The record, of zero mean and unit variance: (1024,) float64."""
    import pywt

    signal = torch.as_tensor(pywt.data.ecg(), dtype=torch.float64)
    return (signal - signal.mean()) / signal.std()
