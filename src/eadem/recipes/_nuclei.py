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
