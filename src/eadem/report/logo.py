"""Sequence logos as SVG text: at each place the letters, as tall as they inform."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["information", "logo"]

_HUES = {"A": 145, "C": 250, "G": 75, "T": 25}
_WIDTH, _HEIGHT, _LEFT, _FOOT = 26.0, 96.0, 30.0, 18.0


def information(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """The height of each letter in bits, (places, letters), from how often it was seen.

    A letter's share of log₂(letters) less the entropy of its place; places without a count
    are empty. Source: T. D. Schneider and R. M. Stephens, Nucleic Acids Research 18, 6097
    (1990), without its correction for small samples.

    >>> information(np.array([[8.0, 0, 0, 0], [2, 2, 2, 2]])).tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    """
    total = counts.sum(1, keepdims=True)
    share = counts / np.where(total > 0, total, 1.0)
    logs = np.log2(np.where(share > 0, share, 1.0))
    entropy = -(share * logs).sum(1, keepdims=True)
    bits: NDArray[np.float64] = share * (np.log2(counts.shape[1]) - entropy)
    return bits


def logo(counts: NDArray[np.float64], letters: str, caption: str, label: str = "") -> str:
    """The logo of counts (places, letters) as one figure."""
    bits = information(np.asarray(counts, dtype=np.float64))
    places, top = len(bits), float(np.log2(len(letters)))
    width = _LEFT + places * _WIDTH + 4
    parts = [_axis(top, places)]
    for place, heights in enumerate(bits):
        parts += _stack(place, heights, letters, top)
    read = "".join(letters[int(row.argmax())] if row.max() > 0 else "–" for row in bits)
    title = escape(label or caption)
    return (
        f'<figure class="logo"><svg viewBox="0 0 {width:g} {_HEIGHT + _FOOT + 10:g}" '
        f'style="max-width:{1.6 * width:.0f}px;min-width:{0.9 * width:.0f}px;width:100%" '
        'role="img" '
        f'aria-label="{title}: {read}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _axis(top: float, places: int) -> str:
    found = []
    for bit in (0.0, top / 2, top):
        y = 6 + _HEIGHT * (1 - bit / top)
        found.append(
            f'<line x1="{_LEFT - 4:g}" x2="{_LEFT + places * _WIDTH:g}" y1="{y:g}" y2="{y:g}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
            f'<text x="{_LEFT - 8:g}" y="{y + 3.5:g}" text-anchor="end" font-size="10" '
            f'fill="currentColor">{bit:g}</text>'
        )
    return "".join(found)


def _stack(place: int, heights: NDArray[np.float64], letters: str, top: float) -> Sequence[str]:
    """The letters of one place, the tallest uppermost."""
    x, y = _LEFT + (place + 0.5) * _WIDTH, 6 + _HEIGHT
    found = [
        f'<text x="{x:g}" y="{y + 14:g}" text-anchor="middle" font-size="10" '
        f'fill="currentColor">{place + 1}</text>'
    ]
    for i in np.argsort(heights, kind="stable"):
        tall = _HEIGHT * float(heights[i]) / top
        if tall < 0.5:
            continue
        hue = _HUES.get(letters[i], 300)
        # a capital of a bold sans-serif is about 0.72 of its size tall
        found.append(
            f'<text transform="translate({x:g} {y:.2f}) scale(1.15 {tall / 20 / 0.72:.4f})" '
            'text-anchor="middle" font-size="20" font-weight="700" '
            f'font-family="Arial, Helvetica, sans-serif" fill="oklch(0.62 0.15 {hue})">'
            f"{escape(letters[i])}</text>"
        )
        y -= tall
    return found
