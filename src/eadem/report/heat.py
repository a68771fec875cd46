"""A grid of numbers as SVG text: the larger, the stronger the colour of its square."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

__all__ = ["heat"]

_SQUARE, _GAP = 44.0, 2.0


def heat(
    values: NDArray[np.float64],
    tips: Sequence[str],
    caption: str,
    *,
    marked: Sequence[int] = (),
    shown: Sequence[str] = (),
) -> str:
    """Values (rows, columns) as one figure; a NaN is an empty square.

    `tips` says in words what each square is, row by row, on hover and to a screen reader;
    `shown` is written into the squares, and those of `marked` have a frame.

    >>> heat(np.array([[0.0, 1.0]]), ["none", "one"], "Two").count("<rect")
    2
    """
    grid = np.asarray(values, dtype=np.float64)
    seen = np.where(np.isnan(grid), 0.0, np.maximum(grid, 0.0))
    strength = seen / (float(seen.max()) or 1.0)
    parts = []
    for place, (share, tip) in enumerate(zip(strength.reshape(-1), tips, strict=True)):
        row, column = divmod(place, grid.shape[1])
        x, y = (column * (_SQUARE + _GAP) + _GAP, row * (_SQUARE + _GAP) + _GAP)
        empty = bool(np.isnan(grid[row, column]))
        fill = "var(--faint)" if empty else "var(--s2)"
        alpha = 1.0 if empty else 0.06 + 0.94 * share
        said = escape(tip, quote=True)
        frame = ' stroke="currentColor" stroke-width="2"' if place in marked else ""
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_SQUARE:g}" height="{_SQUARE:g}" rx="3" '
            f'fill="{fill}" fill-opacity="{alpha:.3f}"{frame} tabindex="0" '
            f'role="img" aria-label="{said}" data-tip="{said}"/>'
        )
        if shown:
            parts.append(
                f'<text x="{x + _SQUARE / 2:g}" y="{y + _SQUARE / 2 + 4:g}" font-size="11" '
                'text-anchor="middle" fill="currentColor" pointer-events="none">'
                f"{escape(shown[place])}</text>"
            )
    width, height = (n * (_SQUARE + _GAP) + _GAP for n in (grid.shape[1], grid.shape[0]))
    return (
        f'<figure class="heat"><svg viewBox="0 0 {width:g} {height:g}" '
        f'style="max-width:{width:.0f}px;width:100%" role="img" '
        f'aria-label="{escape(caption, quote=True)}">{"".join(parts)}</svg>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
