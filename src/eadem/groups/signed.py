"""Signed permutations, on their own: what exact representations are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Signed"]


@dataclass(frozen=True, eq=False)
class Signed:
    """Entry i goes to `place[i]`, times `sign[i]` (±1, int8; None: all ones)."""

    place: NDArray[np.int64]
    sign: NDArray[np.int8] | None = None

    @staticmethod
    def identity(size: int) -> Signed:
        """The one that changes nothing."""
        return Signed(np.arange(size, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.place)

    def signs(self) -> NDArray[np.int8]:
        """`sign`, with ones written out."""
        return np.ones(len(self), dtype=np.int8) if self.sign is None else self.sign

    def after(self, before: Signed) -> Signed:
        """The product: `before` acts first."""
        place = self.place[before.place]
        if self.sign is None and before.sign is None:
            return Signed(place)
        return Signed(place, self.signs()[before.place] * before.signs())

    def inverse(self) -> Signed:
        """What undoes it."""
        place = np.empty_like(self.place)
        place[self.place] = np.arange(len(self))
        return Signed(place, None if self.sign is None else self.sign[place])

    def power(self, n: int) -> Signed:
        """n times after another, by squaring; the inverse for n < 0."""
        if n < 0:
            return self.inverse().power(-n)
        found, square = Signed.identity(len(self)), self
        while n:
            if n & 1:
                found = square.after(found)
            square, n = square.after(square), n >> 1
        return found

    def beside(self, other: Signed) -> Signed:
        """The direct sum."""
        place = np.concatenate([self.place, other.place + len(self)])
        if self.sign is None and other.sign is None:
            return Signed(place)
        return Signed(place, np.concatenate([self.signs(), other.signs()]))

    def copies(self, m: int) -> Signed:
        """m copies: place j·n + i."""
        n = len(self)
        place = (np.arange(m)[:, None] * n + self.place).reshape(-1)
        return Signed(place, None if self.sign is None else np.tile(self.sign, m))

    def times(self, other: Signed) -> Signed:
        """The tensor product: entry i·n + j for entries i and j."""
        n = len(other)
        place = (self.place[:, None] * n + other.place).reshape(-1)
        if self.sign is None and other.sign is None:
            return Signed(place)
        return Signed(place, np.multiply.outer(self.signs(), other.signs()).reshape(-1))

    def apply(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """The matrix times `values`, along the first axis."""
        moved = np.empty_like(values)
        signed = values
        if self.sign is not None:
            signed = values * self.sign.reshape(-1, *[1] * (values.ndim - 1))
        moved[self.place] = signed
        return moved

    def trace(self) -> float:
        """The trace of the matrix."""
        stays = self.place == np.arange(len(self))
        return float(self.signs()[stays].sum())

    def matrix(self) -> NDArray[np.float64]:
        """The matrix, float64."""
        return self.apply(np.eye(len(self)))

    def distance(self, other: Signed) -> float:
        """The largest difference of two matrix entries."""
        apart = self.place != other.place
        here, there = self.signs(), other.signs()
        if bool(((here != there) & ~apart).any()):
            return 2.0
        return 1.0 if bool(apart.any()) else 0.0

    @staticmethod
    def product(parts: Sequence[Signed]) -> Signed:
        """The tensor product of several."""
        found = parts[0]
        for part in parts[1:]:
            found = found.times(part)
        return found
