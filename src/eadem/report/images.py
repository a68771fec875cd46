"""Learned filters as images: signed values, blue below zero and orange above."""

from __future__ import annotations

import math
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.report.colour import Bytes, Floats, diverging
from eadem.report.png import data_uri, encode

__all__ = ["contact_sheet", "filters"]


def contact_sheet(images: Floats, columns: int, gap: int = 1) -> Floats:
    """(n, h, w) images side by side, (rows·(h+gap)−gap, columns·(w+gap)−gap); gaps are NaN.

    >>> contact_sheet(np.ones((3, 1, 1)), columns=2).shape
    (3, 3)
    """
    n, h, w = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * (h + gap), columns * (w + gap)), np.nan)
    for i, image in enumerate(images):
        r, c = divmod(i, columns)
        sheet[r * (h + gap) : r * (h + gap) + h, c * (w + gap) : c * (w + gap) + w] = image
    return sheet[: rows * (h + gap) - gap, : columns * (w + gap) - gap]


def filters(
    values: NDArray[Any], columns: int, caption: str, width: int, gap: int = 1, note: str = ""
) -> str:
    """Images (n, h, w) as one figure, `width` CSS pixels wide, on a scale of their own.

    The scale ends at the 99th percentile of the magnitudes, which one outlier cannot move.
    """
    images: Floats = np.asarray(values, dtype=np.float64)
    limit = float(np.quantile(np.abs(images), 0.99)) or 1.0
    sheet = contact_sheet(images, columns, gap)
    rgba: Bytes = diverging(np.nan_to_num(sheet), limit)
    ground = np.array([128, 128, 128, 26], np.uint8)
    inside = ~np.isnan(sheet)
    faint = inside & (rgba[..., 3] < 26)
    rgba[faint] = ground
    small = f"<small>{escape(note)}</small>" if note else ""
    return (
        f'<figure class="filters" style="--w:{width}px"><img src="{data_uri(encode(rgba))}" '
        f'alt="{escape(caption, quote=True)}"><figcaption>{escape(caption)}{small}'
        "</figcaption></figure>"
    )
