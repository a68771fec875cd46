"""Colour for data: perceptually even (OKLCH), told apart by lightness as well as by hue.

Everything here is drawn on a light or a dark page alike, so no colour comes near either end
of the lightness range, and "nothing" is transparent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HUES",
    "Bytes",
    "Floats",
    "diverging",
    "entries",
    "grain",
    "oklch",
    "slopes",
]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

#: One hue per tie, in the order that keeps neighbours apart; blue and orange first.
HUES = (250.0, 50.0, 165.0, 330.0, 100.0, 215.0, 20.0, 290.0)

GOLDEN = 0.6180339887498949


def oklch(lightness: Any, chroma: Any, hue: Any) -> Bytes:
    """OKLCH (L in 0–1, C, hue in degrees), broadcast, to sRGB bytes (…, 3).

    Source: B. Ottosson, "A perceptual color space for image processing" (2020).
    """
    l, c, h = np.broadcast_arrays(
        np.asarray(lightness, float), np.asarray(chroma, float), np.asarray(hue, float)
    )
    a, b = c * np.cos(np.radians(h)), c * np.sin(np.radians(h))
    lms = np.stack(
        [
            l + 0.3963377774 * a + 0.2158037573 * b,
            l - 0.1055613458 * a - 0.0638541728 * b,
            l - 0.0894841775 * a - 1.2914855480 * b,
        ],
        axis=-1,
    )
    linear = lms**3 @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0.0, 1.0)
    low, high = 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
    srgb: Bytes = np.round(255 * np.where(linear <= 0.0031308, low, high)).astype(np.uint8)
    return srgb


#: Up to this many values neighbours are kept apart; beyond, only a hash keeps them from
#: drawing patterns that are not there.
SPREAD = 4096


def _spread(index: NDArray[np.int64], size: int) -> Floats:
    """Numbers in 0–1: the golden-ratio sequence, or a hash (lowbias32) of more than SPREAD."""
    if size <= SPREAD:
        golden: Floats = np.mod(index * GOLDEN, 1.0)
        return golden
    x = index.astype(np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    hashed: Floats = (x ^ (x >> np.uint32(16))) / 2.0**32
    return hashed


def entries(index: NDArray[np.int64], size: int, hue: float = 250.0, steps: int = 48) -> Bytes:
    """A colour for each of `size` free values, (…, 3): equal values are equal.

    The ramp runs from a deep `hue` to a light one 200° on (from blue through rose to yellow),
    so that its steps stay apart for every kind of colour vision.
    """
    t = np.floor(_spread(index, size) * steps) / (steps - 1)
    return oklch(0.42 + 0.40 * t, 0.13 + 0.03 * np.sin(np.pi * t), hue + 200.0 * t)


def slopes(row: Floats, column: Floats, hue: float) -> Bytes:
    """A colour per place in an owner, (…, 3): it brightens down and changes hue across.

    A transposed, flipped or rotated copy therefore looks transposed, flipped or rotated.
    """
    return oklch(0.46 + 0.34 * row, 0.10 - 0.03 * row, hue + 56.0 * (column - 0.5))


def grain(index: NDArray[np.int64], levels: int = 10) -> Bytes:
    """A grey per value, (…, 3): what is tied to nothing has a grain and no colour."""
    t = np.floor(_spread(index, SPREAD + 1) * levels) / (levels - 1)
    return oklch(0.56 + 0.22 * t, 0.008, 260.0)


def diverging(values: Floats, limit: float) -> Bytes:
    """Signed values as RGBA (…, 4): blue below zero, orange above, transparent at zero."""
    t = np.clip(values / (limit or 1.0), -1.0, 1.0)
    rgb = np.where((t < 0)[..., None], oklch(0.58, 0.15, 245.0), oklch(0.68, 0.16, 52.0))
    alpha = np.round(255 * np.abs(t) ** 0.8)
    rgba: Bytes = np.concatenate([rgb, alpha[..., None]], axis=-1).astype(np.uint8)
    return rgba
