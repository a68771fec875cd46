"""Tensors of equal content, found by reading as little as decides it.

Tensors of one type and size are told apart by their bytes, a growing piece of each at a time:
those that differ part early, so unequal tensors cost a few kilobytes, and equal ones are read
once, in bounded memory, and compared byte by byte. No hash stands in for equality.

>>> data = {"a": b"xyz", "b": b"xyz", "c": b"xyw"}
>>> def read(name, at, into):
...     into[:] = data[name][at : at + len(into)]
>>> list(equal_sets(["a", "b", "c"], 3, read))
[['a', 'b']]
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TypeVar

import numpy as np

__all__ = ["Read", "constant", "equal_sets", "is_transpose", "sampled"]

#: The first piece of each tensor, the largest, and all pieces in memory together.
FIRST, PIECE, BUDGET = 4 << 10, 1 << 20, 64 << 20
#: Places, as fractions of both sides, where a matrix and a transpose are compared first.
_SAMPLES = ((0.0, 0.999), (0.83, 0.29), (0.37, 0.71), (0.53, 0.11))

T = TypeVar("T", bound=Hashable)


#: Fills a buffer with the bytes of an item from a place on.
Read = Callable[[T, int, memoryview], None]


def equal_sets(
    items: Sequence[T],
    size: int,
    read: Read[T],
    done: Callable[[int], None] = lambda n: None,
) -> Iterator[list[T]]:
    """The sets of two and more `items`, each of `size` bytes, that are equal byte by byte.

    `done` is told how many bytes are settled, be it without reading them.
    """
    work = [(list(items), 0, FIRST)]
    while work:
        group, at, piece = work.pop()
        if len(group) < 2:
            done(len(group) * (size - at))
        elif at == size:
            yield group
        else:
            length = max(1, min(piece, size - at, BUDGET // len(group)))
            parts = _parted(group, at, length, read)
            done(len(group) * length)
            work += [(p, at + length, min(2 * piece, PIECE)) for p in reversed(parts)]


def _parted(group: Sequence[T], at: int, length: int, read: Read[T]) -> list[list[T]]:
    """A group, parted by the bytes of one piece."""
    first, other = bytearray(length), bytearray(length)
    read(group[0], at, memoryview(first))
    same = [group[0]]
    apart: dict[bytes, list[T]] = {}
    for item in group[1:]:
        read(item, at, memoryview(other))
        if other == first:
            same.append(item)
        else:
            apart.setdefault(bytes(other), []).append(item)
    return [same, *apart.values()]


def constant(item: T, size: int, width: int, read: Read[T]) -> bool:
    """Whether all values of an item, of `width` bytes each, are the same."""
    at, piece = 0, FIRST
    value = bytearray(width)
    read(item, 0, memoryview(value))
    while at < size:
        length = min(piece, size - at)
        held = bytearray(length)
        read(item, at, memoryview(held))
        if held != value * (length // width):
            return False
        at, piece = at + length, PIECE
    return True


def sampled(
    item: T,
    shape: tuple[int, int],
    width: int,
    read: Read[T],
    turned: bool,
) -> bytes:
    """A few values of a matrix; `turned`: those where its transpose has these."""
    rows, columns = shape
    found = bytearray(width * len(_SAMPLES))
    for i, (u, v) in enumerate(_SAMPLES):
        u, v = (v, u) if turned else (u, v)
        at = (int(u * rows) * columns + int(v * columns)) * width
        read(item, at, memoryview(found)[i * width : (i + 1) * width])
    return bytes(found)


def is_transpose(
    a: T,
    b: T,
    shape: tuple[int, int],
    width: int,
    read: Read[T],
) -> bool:
    """Whether the matrix `b` is the transpose of `a`, of `shape`, byte by byte; `width` is
    1, 2, 4 or 8.
    """
    rows, columns = shape
    # rows of a as they lie; the same columns of b, row by row: neither in pieces too small
    high = max(1, min(rows, BUDGET // (4 * columns * width)))
    for top in range(0, rows, high):
        deep = min(high, rows - top)
        mine = np.empty((deep, columns), f"u{width}")
        read(a, top * columns * width, mine.view(np.uint8).reshape(-1).data)
        theirs = np.empty((columns, deep), f"u{width}")
        for i in range(columns):
            read(b, (i * rows + top) * width, theirs[i].view(np.uint8).data)
        if not np.array_equal(mine, theirs.T):
            return False
    return True
