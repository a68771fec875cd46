"""Arrays as PNG files and data URIs, with the standard library alone."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.report.colour import Bytes

__all__ = ["data_uri", "encode", "encode_indices"]


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)


def _assemble(
    width: int, height: int, depth: tuple[int, int], rows: bytes, extra: bytes = b""
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, *depth, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + extra
        + _chunk(b"IDAT", zlib.compress(rows, 9))
        + _chunk(b"IEND", b"")
    )


def _filtered(pixels: NDArray[Any], mode: int) -> bytes:
    """Scanlines with PNG filter 0 (none) or 1 (difference from the pixel to the left)."""
    rows = pixels.astype(np.uint8)
    if mode == 1:
        rows = rows.copy()
        rows[:, 1:] -= pixels[:, :-1].astype(np.uint8)
    flat = rows.reshape(len(rows), -1)
    return np.insert(flat, 0, mode, axis=1).astype(np.uint8).tobytes()


def encode(pixels: Bytes) -> bytes:
    """(h, w, 3) RGB or (h, w, 4) RGBA bytes as a PNG file.

    Up to 256 different colours are stored as a palette, which is far smaller.
    """
    height, width, channels = pixels.shape
    packed = np.zeros((height, width), np.int64)
    for i in range(channels):
        packed = packed << 8 | pixels[..., i].astype(np.int64)
    colours, index = np.unique(packed.reshape(-1), return_inverse=True)
    if len(colours) > 256:
        kind = {3: 2, 4: 6}[channels]
        return _assemble(width, height, (8, kind), _filtered(pixels, 1))
    parts = [colours >> (8 * (channels - 1 - i)) & 255 for i in range(channels)]
    extra = _chunk(b"PLTE", np.stack(parts[:3], axis=1).astype(np.uint8).tobytes())
    if channels == 4:
        extra += _chunk(b"tRNS", parts[3].astype(np.uint8).tobytes())
    rows = _filtered(index.reshape(height, width), 0)
    return _assemble(width, height, (8, 3), rows, extra)


def encode_indices(index: NDArray[np.int64]) -> bytes:
    """(h, w) whole numbers from −1 to 2²⁴ − 2 as an opaque RGB PNG holding index + 1.

    A page reads them back, exactly, from a canvas.
    """
    shifted = index + 1
    if shifted.size and not (shifted.min() >= 0 and shifted.max() < 1 << 24):
        raise ValueError("an index image holds whole numbers from −1 to 2²⁴ − 2")
    pixels = np.stack([shifted >> 16 & 255, shifted >> 8 & 255, shifted & 255], axis=-1)
    height, width = index.shape
    return _assemble(width, height, (8, 2), _filtered(pixels, 1))


def data_uri(png: bytes) -> str:
    """The file as a `data:` URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
