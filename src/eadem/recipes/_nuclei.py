"""Fluorescent nuclei, 125 of them, as the package stardist ships them (BSD-3).

Source: U. Schmidt, M. Weigert, C. Broaddus, G. Myers, "Cell detection with star-convex
polygons", MICCAI 2018; the picture is of its example data (512×512, with each nucleus
outlined by hand).
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch import Tensor

from eadem.recipes._data import Package

__all__ = ["nuclei"]

STARDIST = Package("stardist", "0.9.2", "stardist", "BSD-3-Clause")
IMAGE = "f9ccc1571b92c861ff87e28463068b43f61bd47357ed0503f711e5cd1eb97750"
SIDE, CROP = 128, 64
MASK = "59ad5e820b7982ca9d13e946fa6e7f64e2714899e00a2ae6c69aa79aad53d46f"


def nuclei(side: int) -> tuple[Tensor, Tensor]:
    """The picture cut into tiles of side×side: logarithms of the intensity, of zero mean and
    unit variance over the picture, and 1 inside a nucleus; each (tiles, 1, side, side) float32.
    """
    image = torch.log1p(_read("img2d", IMAGE))
    image = (image - image.mean()) / image.std()
    inside = (_read("mask2d", MASK) > 0).float()
    return _tiles(image, side), _tiles(inside, side)


def _read(name: str, sha256: str) -> Tensor:
    from PIL import Image

    data = STARDIST.read(f"data/images/{name}.tif", sha256)
    return torch.as_tensor(np.asarray(Image.open(io.BytesIO(data))).astype(np.float32))


def _tiles(image: Tensor, side: int) -> Tensor:
    """(rows·side, columns·side) → (rows·columns, 1, side, side)."""
    return image.unfold(0, side, side).unfold(1, side, side).reshape(-1, 1, side, side)


def crops(tiles: tuple[Tensor, Tensor], n: int, generator: torch.Generator) -> list[Tensor]:
    """n crops of image and mask, turned and mirrored by chance: (n, 1, CROP, CROP) each."""
    both = torch.cat(tiles, 1)
    places = torch.randint(SIDE - CROP + 1, (n, 2), generator=generator).tolist()
    which = torch.randint(len(both), (n,), generator=generator).tolist()
    turns = torch.randint(4, (n,), generator=generator).tolist()
    cut = [
        both[t, :, y : y + CROP, x : x + CROP].rot90(k, (-2, -1))
        for t, (y, x), k in zip(which, places, turns, strict=True)
    ]
    mirrored = torch.rand(n, generator=generator) < 0.5
    found = torch.stack(cut)
    found = torch.where(mirrored[:, None, None, None], found.flip(-1), found)
    return list(found.split(1, 1))


def dice(found: Tensor, wanted: Tensor) -> float:
    """2|A ∩ B| / (|A| + |B|) of two masks of one shape, over all their pixels."""
    a, b = found.bool(), wanted.bool()
    return 2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1)
