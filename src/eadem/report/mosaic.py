"""The mosaic: every site of a model as an image of its coordinates, coloured by their θ.

What shares a value shares a colour. A coordinate that is constant is blank, so that
structure within a site shows as diagonals and blocks; a whole site that is tied carries the
slopes of its owner, turned as the map turns them; what is tied to nothing is grey.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.report.colour import HUES, SPREAD, Bytes, entries, grain, oklch, slopes
from eadem.report.numbers import count
from eadem.report.png import data_uri, encode, encode_indices

__all__ = ["SiteView", "flat_image", "mosaic", "tile"]

Index = NDArray[np.int64]

#: Above this many coordinates a tile does not carry its indices into the page.
_EXPLORED = 4_000_000


@dataclass(frozen=True)
class SiteView:
    """One site as the mosaic draws it.

    `position` (flat) says which free value each coordinate uses, −1 where it is constant; None
    where the map mixes free values. `tie` numbers the ties of a model, None for an untied
    site. `start` is where the owner's values begin among the free values.
    """

    name: str
    shape: tuple[int, ...]
    position: Index | None
    tie: int | None = None
    map: str = "Same"
    owner: str = ""
    owner_shape: tuple[int, ...] = ()
    start: int = 0
    free: int = 0

    @property
    def expanded(self) -> int:
        """The number of coordinates."""
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """`own` (untied), `whole` (a rearranged copy of its owner), `entries` or `mixed`."""
        if self.tie is None:
            return "own"
        if self.position is None:
            return "mixed"
        whole = (
            self.expanded == math.prod(self.owner_shape)
            and bool((self.position >= 0).all())
            and len(np.unique(self.position)) == self.expanded
        )
        return "whole" if whole else "entries"


def flat_image(shape: Sequence[int], values: NDArray[Any]) -> NDArray[Any]:
    """A site's flat values as a plane: kernels side by side, (out·kh, in·kw) for four axes.

    >>> flat_image((2, 1, 2, 2), np.arange(8)).tolist()
    [[0, 1], [2, 3], [4, 5], [6, 7]]
    """
    n = len(shape)
    cube = values.reshape(tuple(shape))
    if n < 2:
        return cube.reshape(1, -1)
    if n == 2:
        return cube
    cube = cube.transpose(0, *range(2, n - 1), 1, n - 1)
    return cube.reshape(-1, shape[1] * shape[-1])


def _reduced(plane: Index, limit: int) -> Index:
    """At most `limit` a side: of each block of coordinates the first that is not constant."""
    step = [max(1, math.ceil(n / limit)) for n in plane.shape]
    if step == [1, 1]:
        return plane
    rows, columns = (math.ceil(n / s) for n, s in zip(plane.shape, step, strict=True))
    padded = np.full((rows * step[0], columns * step[1]), -1, np.int64)
    padded[: plane.shape[0], : plane.shape[1]] = plane
    blocks = padded.reshape(rows, step[0], columns, step[1]).transpose(0, 2, 1, 3)
    flat = blocks.reshape(rows, columns, -1)
    first = (flat >= 0).argmax(axis=-1)
    picked: Index = np.take_along_axis(flat, first[..., None], axis=-1)[..., 0]
    return picked


def _hue(site: SiteView) -> float:
    return HUES[(site.tie or 0) % len(HUES)]


def _own(site: SiteView) -> Bytes:
    plane = _reduced(flat_image(site.shape, np.arange(site.expanded)), 110)
    if site.kind == "own":
        return _solid(grain(plane), plane >= 0, 150)
    stripe = np.add.outer(np.arange(plane.shape[0]), np.arange(plane.shape[1])) // 3 % 2
    return _solid(oklch(0.56 + 0.12 * stripe, 0.11, _hue(site)), plane >= 0)


def _whole(site: SiteView, position: Index) -> Bytes:
    plane = _reduced(flat_image(site.shape, position - site.start), 160)
    place = flat_image(site.owner_shape, np.arange(site.expanded))
    rows, columns = place.shape
    where = np.empty(site.expanded, np.int64)
    where[place.reshape(-1)] = np.arange(site.expanded)
    at = where[np.maximum(plane, 0)]
    across, down = at % columns / max(columns - 1, 1), at // columns / max(rows - 1, 1)
    return _solid(slopes(down, across, _hue(site)), plane >= 0)


def _entries(site: SiteView, plane: Index) -> Bytes:
    first = np.maximum(plane - site.start, 0)
    return _solid(entries(first, _held(site), _hue(site)), plane >= 0)


def _held(site: SiteView) -> int:
    """How many values the owner holds."""
    return math.prod(site.owner_shape)


def _solid(rgb: Bytes, there: NDArray[np.bool_], alpha: int = 255) -> Bytes:
    rgba: Bytes = np.concatenate([rgb, (alpha * there)[..., None].astype(np.uint8)], axis=-1)
    rgba[~there] = 0
    return rgba


def _size(site: SiteView, largest: float) -> tuple[int, int]:
    """Width and height on the page: the area grows with the logarithm of the count."""
    rows, columns = flat_image(site.shape, np.empty(site.expanded, np.int8)).shape
    shape = max(columns / rows, 1 / 5)
    side = largest * (0.12 + 0.88 * min(math.log10(max(site.expanded, 1)) / 6.0, 1.0) ** 2)
    width = min(side * math.sqrt(shape), largest)
    return round(width), round(max(width / shape, 10.0))


def _detail(plane: Index, width: int) -> Index | None:
    """The corner of a plane that is drawn at less than a pixel a coordinate, else None."""
    rows, columns = plane.shape
    if columns <= width or rows == 1:
        return None
    corner = plane[:20, :100]
    return corner if (corner >= 0).any() else None


def _facts(site: SiteView) -> str:
    shape = " × ".join(str(n) for n in site.shape) or "scalar"
    if site.tie is None:
        return f"{site.name}\n{shape}\n{count(site.expanded)} values of its own"
    owner = "" if site.owner == site.name else f"\nvalues held by {site.owner}"
    return (
        f"{site.name}\n{shape} by {site.map}{owner}\n"
        f"{count(site.free)} free → {count(site.expanded)} expanded"
    )


def _explored(site: SiteView, plane: Index) -> str:
    """The attributes by which the page can say what each coordinate uses."""
    if site.kind not in ("entries", "whole") or not 0 < site.expanded <= _EXPLORED:
        return ""
    local = np.where(plane >= 0, plane - site.start, -1)
    if local.max() >= (1 << 24) - 1:
        return ""
    detail = {
        "name": site.name,
        "owner": site.owner,
        "shape": site.shape,
        "ownerShape": site.owner_shape,
        "hue": _hue(site),
        "hashed": _held(site) > SPREAD,
    }
    packed = escape(json.dumps(detail), quote=True)
    return f' data-index="{data_uri(encode_indices(local))}" data-site="{packed}"'


def tile(site: SiteView, largest: float = 320.0) -> str:
    """One site as HTML."""
    width, height = _size(site, largest)
    facts = escape(_facts(site), quote=True)
    explored = inset = ""
    if site.position is None or site.kind == "own":
        picture = _own(site)
    else:
        plane = flat_image(site.shape, site.position)
        explored = _explored(site, plane)
        if site.kind == "whole":
            picture = _whole(site, site.position)
        else:
            picture = _entries(site, _reduced(plane, round(1.25 * largest)))
            corner = _detail(plane, width)
            if corner is not None:
                shape = " × ".join(str(n) for n in corner.shape)
                inset = (
                    f'<img class="inset" src="{data_uri(encode(_entries(site, corner)))}" '
                    f'alt="its first {shape} coordinates" '
                    f'title="the first {shape} coordinates, enlarged">'
                )
    if site.tie is None:
        share = f"{count(site.expanded)} of its own"
    elif site.kind == "whole" and site.owner != site.name:
        share = f"{count(site.free)} of {site.owner}"
    else:
        share = f"{count(site.free)} free · {count(site.expanded)} expanded"
    ratio = site.free / max(site.expanded, 1) if site.tie is not None else 1.0
    bar = f'<i style="width:{max(100 * ratio, 1.0):.1f}%"></i>'
    return (
        f'<figure class="tile {site.kind}" style="--w:{width}px">'
        f'<div class="plane" tabindex="0" role="img" aria-label="{facts}" data-tip="{facts}"'
        f'{explored} style="aspect-ratio:{width}/{height}">'
        f'<img src="{data_uri(encode(picture))}" alt=""></div>{inset}'
        f'<figcaption><code>{escape(site.name)}</code><span class="bar">{bar}</span>'
        f"<small>{escape(share)}</small></figcaption></figure>"
    )


def mosaic(sites: Sequence[SiteView], largest: float = 320.0) -> str:
    """All sites of a model, in its own order, as HTML."""
    return f'<div class="mosaic">{"".join(tile(s, largest) for s in sites)}</div>'
