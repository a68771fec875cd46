"""Windows of a record, disturbed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "DISTURBANCE",
    "SHIFT",
    "TAPS",
    "WHITE",
    "Windows",
    "disturbance",
    "gain",
    "hearing",
    "taps_of",
    "windows",
]

TAPS = 33
SHIFT = 3  # samples by which the middle of a disturbance is early where the tie is wrong
DISTURBANCE, WHITE = 2.0, 0.5  # standard deviations; the signal's is 1


@dataclass(frozen=True)
class Windows:
    """Contaminated windows (n, 1, TAPS), and the clean sample in the middle of each (n,)."""

    inputs: Tensor
    wanted: Tensor


def disturbance(n: int, generator: torch.Generator, shift: int = 0) -> Tensor:
    """Smooth random curves (n, TAPS), antisymmetric about a point `shift` before the middle."""
    wide = TAPS + 2 * shift
    rough = torch.randn(n, 1, wide + 16, dtype=torch.float64, generator=generator)
    bell = torch.exp(-(torch.arange(-8.0, 9.0, dtype=torch.float64) ** 2) / 8)
    smooth = nn.functional.conv1d(rough, bell.reshape(1, 1, -1)).squeeze(1)
    odd = (smooth - smooth.flip(1)) / math.sqrt(2 * float(bell.square().sum()))
    return DISTURBANCE * odd[:, 2 * shift :]


def windows(
    signal: Tensor, rows: Tensor, generator: torch.Generator, shift: int = 0
) -> Windows:
    """The windows of a signal that begin at `rows`, contaminated."""
    clean = signal.unfold(0, TAPS, 1)[rows]
    white = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    noisy = clean + disturbance(len(rows), generator, shift) + WHITE * white
    return Windows(noisy.unsqueeze(1), clean[:, TAPS // 2])


def taps_of(model: nn.Module) -> Tensor:
    """The filter's taps (TAPS,), detached."""
    return model.get_submodule("0").weight.detach().reshape(-1)  # type: ignore[operator]


@torch.no_grad()
def gain(model: nn.Module, data: Windows) -> float:
    """Output SNR over input SNR, in dB; the signal has unit power."""
    error = (model(data.inputs).reshape(-1) - data.wanted).square().mean()
    return 10 * math.log10((DISTURBANCE**2 + WHITE**2) / float(error))


@torch.no_grad()
def hearing(model: nn.Module, generator: torch.Generator) -> float:
    """Largest output to antisymmetric windows, over what the taps could add up to."""
    odd = disturbance(1000, generator)
    most = odd.abs() @ taps_of(model).abs()
    return float((model(odd.unsqueeze(1)).reshape(-1).abs() / most).max())
