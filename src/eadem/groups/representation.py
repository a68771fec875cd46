"""Representations: how a group acts on numbers, as signed permutations wherever it can be.

A representation is plain data, `form`, until its `images` are asked for: one signed
permutation or matrix for each generator. Sums, products and duals of exact ones stay exact.

>>> from eadem.groups import Cyclic
>>> C4 = Cyclic(4)
>>> rep = C4.trivial(2) + C4.regular(3)
>>> rep.size, rep.exact
(14, True)
>>> C4.regular().characters()
array([4., 0., 0., 0.])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eadem.errors import GroupError, NotARepresentation, TooLarge
from eadem.groups.forms import (
    Image,
    by_permutation,
    dense,
    images_of,
    pair,
    power,
    product,
    read,
    shown,
    size_of,
)
from eadem.groups.group import Group, Matrix, Word, same, whole
from eadem.groups.images import TOLERANCE, broken
from eadem.groups.signed import Signed
from eadem.maps.constant import outside

__all__ = ["Image", "Representation", "given"]

#: Entries of all matrices of a group that are kept at a time: 1 GB of float64.
MATRICES = 2**27


class Representation:
    """How `group` acts on vectors of `size` numbers.

    Made by a group (`group.regular(m)`, `group.representation(*matrices)`), and from others by
    `+` (direct sum), `*` (tensor product), `.copies(m)` and `.dual()`.
    """

    def __init__(self, group: Group, form: tuple[Any, ...]) -> None:
        self.group, self.form = group, form
        self.size = size_of(group, form)

    @cached_property
    def images(self) -> tuple[Image, ...]:
        """What each generator does: a `Signed` permutation, or a float64 matrix."""
        return tuple(images_of(self.group, self.form))

    @property
    def exact(self) -> bool:
        """Whether every element is a signed permutation."""
        return all(isinstance(i, Signed) for i in self.images)

    @property
    def permutes(self) -> bool:
        """Whether every element is a permutation, without signs."""
        signs = [i.sign if isinstance(i, Signed) else None for i in self.images]
        return self.exact and all(s is None or bool((s > 0).all()) for s in signs)

    @property
    def orthogonal(self) -> bool:
        """Whether every matrix is orthogonal, to 1e-9."""
        return all(
            isinstance(i, Signed) or bool(np.abs(i @ i.T - np.eye(self.size)).max() < TOLERANCE)
            for i in self.images
        )

    def image(self, word: Word) -> Image:
        """What a word in the generators does."""
        found: Image | None = None
        for generator, exponent in word:
            factor = self._generator(generator, exponent)
            found = factor if found is None else product(found, factor)
        return Signed.identity(self.size) if found is None else found

    def _generator(self, generator: int, exponent: int) -> Image:
        """A power of a generator's image; those of matrices are kept, they build on others."""
        image = self.images[generator]
        if isinstance(image, Signed) or exponent < 2:
            return power(image, exponent)
        kept: dict[tuple[int, int], Image] = self.__dict__.setdefault("_powers", {})
        if (generator, exponent) not in kept:
            half = self._generator(generator, exponent // 2)
            square = product(half, half)
            kept[generator, exponent] = product(square, image) if exponent % 2 else square
        return kept[generator, exponent]

    def matrix(self, word: Word) -> Matrix:
        """The same as a matrix, float64."""
        return dense(self.image(word))

    @cached_property
    def elements(self) -> tuple[Image, ...]:
        """The image of every element, in the group's order. Raises TooLarge."""
        self.group.finite()
        if not self.exact and self.group.order * self.size**2 > MATRICES:
            raise TooLarge(
                f"{self} has {self.group.order} matrices of side {self.size}; Eadem keeps at "
                f"most {MATRICES} numbers of them"
            )
        found: list[Image | None] = [None] * self.group.order
        for k in self.group.nearest_first:
            s, j = self.group.parents[k]
            before = found[j]
            found[k] = (
                Signed.identity(self.size)
                if k == 0 or before is None
                else product(self.images[s], before)
            )
        return tuple(i for i in found if i is not None)

    def characters(self) -> NDArray[np.float64]:
        """The trace of every element, in the group's order. Raises TooLarge.

        For one orthogonal generator r they are Σ cos(kα) over the angles α of r's eigenvalues.
        """
        (first, *more) = self.images
        if isinstance(first, Signed) or more or not self.orthogonal:
            images = self.elements
            return np.array(
                [i.trace() if isinstance(i, Signed) else np.trace(i) for i in images]
            )
        n = self.group.order
        cosines = np.linalg.eigvalsh((first + first.T) / 2).clip(-1, 1)
        turns = np.round(np.arccos(cosines) * n / (2 * math.pi)).astype(np.int64)
        count = np.bincount(turns, minlength=n // 2 + 1)
        angles = 2 * math.pi * np.outer(np.arange(n), np.arange(len(count))) / n
        return np.asarray(np.cos(angles) @ count)

    def class_characters(self) -> NDArray[np.float64]:
        """The trace of one element of each of the group's `classes`."""
        images = [self.image(word) for word in self.group.classes[0]]
        return np.array([i.trace() if isinstance(i, Signed) else np.trace(i) for i in images])

    def check(self) -> None:
        """Raise NotARepresentation where a relation of the group, or a bracket, fails."""
        names = self.group.generators
        if self.group.algebra:
            self._check_brackets()
            return
        fails = broken(self.group, self.images, self.image)
        if fails is not None:
            relation, away = fails
            raise NotARepresentation(
                f"these matrices are no representation of {self.group}: the relation "
                f"{relation.text(names)} fails by {away:.3g}; give one for each of "
                f"the generators {', '.join(names)}"
            )

    def _check_brackets(self) -> None:
        x = [dense(i) for i in self.images]
        constants: NDArray[np.float64] = self.group.constants  # type: ignore[attr-defined]
        names = self.group.generators
        for i, j in itertools.combinations(range(len(x)), 2):
            bracket = x[i] @ x[j] - x[j] @ x[i]
            meant = sum(c * m for c, m in zip(constants[i, j], x, strict=True))
            away = float(np.abs(bracket - meant).max(initial=0.0))
            if not away <= TOLERANCE * max(1.0, _largest(bracket)):
                terms = [
                    f"{c:+.3g} {n}" for c, n in zip(constants[i, j], names, strict=True) if c
                ]
                raise NotARepresentation(
                    f"these matrices are no representation of {self.group}: the relation "
                    f"[{names[i]}, {names[j]}] = {' '.join(terms) or '0'} fails by {away:.3g}"
                )

    def __add__(self, other: Representation) -> Representation:
        return Representation(self._with(other), ("sum", self.form, other.form))

    def __mul__(self, other: Representation) -> Representation:
        return Representation(self._with(other), ("tensor", self.form, other.form))

    def copies(self, m: int) -> Representation:
        """m copies: place j·size + i."""
        return Representation(self.group, ("copies", whole(m), self.form))

    def dual(self) -> Representation:
        """The contragredient representation, g ↦ ρ(g⁻¹)ᵀ; an orthogonal one is its own."""
        return Representation(self.group, ("dual", self.form))

    def _with(self, other: Representation) -> Group:
        if not isinstance(other, Representation):
            raise GroupError(f"{self} is added to representations, not to {other!r:.60}")
        if self.group != other.group:
            raise GroupError(
                f"{self} and {other} are of different groups; take both from one, or from "
                "their product"
            )
        return self.group

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Representation):
            return False
        return self.group == other.group and same(self.form, other.form)

    def __hash__(self) -> int:
        return hash((self.group, self.size, self.form[0]))

    def __repr__(self) -> str:
        return shown(self.group, self.form)


def _largest(image: Image) -> float:
    return 1.0 if isinstance(image, Signed) else float(np.abs(image).max(initial=0.0))


def given(group: Group, images: Sequence[Any]) -> Representation:
    """See `Group.representation`."""
    with outside():
        parts = [_read(i) for i in images]
        if not group.algebra and all(by_permutation(p) for p in parts):
            parts = [pair(p) for p in parts]
    if len(parts) != len(group.generators):
        raise NotARepresentation(
            f"{group} has the generators {', '.join(group.generators)}; {len(parts)} images "
            "are given, not one for each"
        )
    if len({(p.shape, p.dtype) for p in parts}) > 1:
        raise NotARepresentation("the images differ in size or kind")
    with outside():
        found = Representation(group, ("given", torch.stack(parts)))
    found.check()
    return found


def _read(image: Any) -> torch.Tensor:
    try:
        return read(image)
    except NotARepresentation:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        raise NotARepresentation(
            f"a generator's image must be a matrix or a permutation, not {image!r:.60}: {error}"
        ) from error
