"""Peaks as seen through slits."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["sub_peaks"]


def sub_peaks(position: Tensor, divergence: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Peaks at 2θ (n,) as seen through slits: the positions of 2·nodes peaks for each and
    their shares, both (n, 2·nodes).

    Finger, Cox & Jephcoat (J. Appl. Cryst. 27, 892, 1994) integrate over 2φ, where their
    weight W/(h cos 2φ) has a pole. By their eq. 8, cos 2φ = cos 2θ √(1 + h²), so that over h,
    the height at the detector in units of L, it is W(h)/((1 + h²) sin 2φ) without one: W is
    flat up to |S − D| and falls to nothing at S + D, and each part has a Gauss–Legendre
    quadrature of its own.
    """
    at, by = (torch.from_numpy(v).to(position) for v in np.polynomial.legendre.leggauss(nodes))
    at, by = (1 + at) / 2, by / 2
    sample, slit = divergence[0], divergence[1]
    flat, end = (sample - slit).abs(), sample + slit
    fall = end - flat
    h = torch.cat([flat * at, flat + fall * at])
    open_ = torch.cat([fall * torch.ones_like(at), fall * (1 - at)])
    measure = torch.cat([flat * by, fall * by])
    double = (position * (math.pi / 180)).unsqueeze(1)
    cosine = torch.cos(double) * torch.sqrt(1 + h * h)
    # below 2θ = arctan h the cone misses the detector
    cosine = cosine.clamp(-1 + 1e-12, 1 - 1e-12)
    weight = measure * open_ / ((1 + h * h) * torch.sqrt(1 - cosine * cosine))
    share = weight / weight.sum(1, keepdim=True)
    return torch.acos(cosine) * (180 / math.pi), share
