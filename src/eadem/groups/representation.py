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

from eadem.errors import GroupError, NotARepresentation, ShapeError, TooLarge
from eadem.groups.group import Group, Matrix, Word, same
from eadem.groups.orbits import components
from eadem.groups.signed import Signed
from eadem.maps.base import numel, outside

__all__ = ["Image", "Representation", "given"]

Image = Signed | Matrix

#: How far a relation may fail before matrices are refused, relative to the largest entry.
TOLERANCE = 1e-9
#: Entries of all matrices of a group that are kept at a time: 1 GB of float64.
MATRICES = 2**27


def kron(a: Matrix, b: Matrix) -> Matrix:
    """The tensor product of matrices."""
    return np.asarray(np.kron(a, b), dtype=np.float64)


def _product(a: Image, b: Image) -> Image:
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.after(b)
    return _dense(a) @ _dense(b)


def _dense(image: Image) -> Matrix:
    return image.matrix() if isinstance(image, Signed) else image


def _power(image: Image, n: int) -> Image:
    if isinstance(image, Signed):
        return image.power(n)
    return np.linalg.matrix_power(image, n)


def _distance(a: Image, b: Image) -> float:
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.distance(b)
    return float(np.abs(_dense(a) - _dense(b)).max(initial=0.0))


class Representation:
    """How `group` acts on vectors of `size` numbers.

    Made by a group (`group.regular(m)`, `group.representation(*matrices)`), and from others by
    `+` (direct sum), `*` (tensor product), `.copies(m)` and `.dual()`.
    """

    def __init__(self, group: Group, form: tuple[Any, ...]) -> None:
        self.group, self.form = group, form
        self.size = _size(group, form)

    @cached_property
    def images(self) -> tuple[Image, ...]:
        """What each generator does: a `Signed` permutation, or a float64 matrix."""
        return tuple(_images(self.group, self.form))

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
            found = factor if found is None else _product(found, factor)
        return Signed.identity(self.size) if found is None else found

    def _generator(self, generator: int, exponent: int) -> Image:
        """A power of a generator's image; those of matrices are kept, they build on others."""
        image = self.images[generator]
        if isinstance(image, Signed) or exponent < 2:
            return _power(image, exponent)
        kept: dict[tuple[int, int], Image] = self.__dict__.setdefault("_powers", {})
        if (generator, exponent) not in kept:
            half = self._generator(generator, exponent // 2)
            square = _product(half, half)
            kept[generator, exponent] = _product(square, image) if exponent % 2 else square
        return kept[generator, exponent]

    def matrix(self, word: Word) -> Matrix:
        """The same as a matrix, float64."""
        return _dense(self.image(word))

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
                else _product(self.images[s], before)
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

    def check(self) -> None:
        """Raise NotARepresentation where a relation of the group, or a bracket, fails."""
        names = self.group.generators
        if self.group.algebra:
            self._check_brackets()
        for relation in self.group.relations:
            left = _power(self.image(relation.word), relation.power)
            away = _distance(left, self.image(relation.other))
            largest = max(1.0, _largest(left))
            if not away <= TOLERANCE * largest:
                raise NotARepresentation(
                    f"these matrices are no representation of {self.group}: the relation "
                    f"{relation.text(names)} fails by {away:.3g}; give one for each of "
                    f"the generators {', '.join(names)}"
                )

    def _check_brackets(self) -> None:
        x = [_dense(i) for i in self.images]
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
        return Representation(self.group, ("copies", int(m), self.form))

    def dual(self) -> Representation:
        """The contragredient representation, g ↦ ρ(g⁻¹)ᵀ; an orthogonal one is its own."""
        return Representation(self.group, ("dual", self.form))

    def _with(self, other: Representation) -> Group:
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
        return _shown(self.group, self.form)


def _largest(image: Image) -> float:
    return 1.0 if isinstance(image, Signed) else float(np.abs(image).max(initial=0.0))


def given(group: Group, images: Sequence[Any]) -> Representation:
    """See `Group.representation`."""
    with outside():
        parts = [_read(i) for i in images]
    if not group.algebra and all(_by_permutation(p) for p in parts):
        parts = [_pair(p) for p in parts]
    if len(parts) != len(group.generators):
        raise NotARepresentation(
            f"{group} has the generators {', '.join(group.generators)}; {len(parts)} images "
            "are given, not one for each"
        )
    if len({(p.shape, p.dtype) for p in parts}) > 1:
        raise NotARepresentation("the images differ in size or kind")
    found = Representation(group, ("given", torch.stack(parts)))
    found.check()
    return found


def _by_permutation(image: torch.Tensor) -> bool:
    """Whether a matrix is a signed permutation to the bit, or an image is one as given."""
    if not image.is_floating_point():
        return True
    one = (image.abs() == 1).to(torch.int64)
    once = bool((one.sum(0) == 1).all() and (one.sum(1) == 1).all())
    return once and bool(((image == 0) | (one == 1)).all())


def _pair(image: torch.Tensor) -> torch.Tensor:
    """A signed permutation (2, n) int64, from its matrix or as it is."""
    if not image.is_floating_point():
        return image
    place = image.abs().argmax(0)
    return torch.stack([place, image.sum(0).to(torch.int64)])


def _read(image: Any) -> torch.Tensor:
    """A matrix (n, n) float64, or a signed permutation (2, n) int64."""
    if isinstance(image, Signed):
        image = (image.place, image.signs())
    pair = isinstance(image, tuple) and len(image) == 2
    value = torch.as_tensor(np.stack([np.asarray(p) for p in image]) if pair else image)
    value = value.detach().cpu()
    if value.ndim == 1:
        value = torch.stack([value, torch.ones_like(value)])
        pair = True
    if not pair:
        if value.ndim != 2 or value.shape[0] != value.shape[1]:
            raise NotARepresentation(
                "a generator's image must be a square matrix, not of shape "
                f"{tuple(value.shape)}"
            )
        return value.to(torch.float64)
    place, sign = value.to(torch.int64)
    whole = value.dtype != torch.bool and bool((value == value.round()).all())
    if not whole or not torch.equal(place.sort()[0], torch.arange(len(place))):
        raise NotARepresentation(
            f"a generator's image is no permutation of 0 … {len(place) - 1}: every place must "
            "be named once"
        )
    if bool((sign.abs() != 1).any()):
        raise NotARepresentation("the signs of a signed permutation must be 1 or −1")
    return torch.stack([place, sign])


# sizes and images of forms


def _size(group: Group, form: tuple[Any, ...]) -> int:
    kind, *args = form
    if kind in ("trivial", "sign"):
        return _count(args[0])
    if kind == "regular":
        return _count(args[0]) * group.order
    if kind == "points":
        return _count(args[0]) * len(group._points()[0])
    if kind == "vector":
        return _count(args[0]) * len(group._vector()[0])
    if kind == "quotient":
        return _count(args[0]) * (int(_cosets(group, args[1:]).max()) + 1)
    if kind == "space":
        return int(args[0])
    if kind == "grid":
        return numel(args[0])
    if kind == "given":
        return int(args[0].shape[-1])
    if kind == "sum":
        return _size(group, args[0]) + _size(group, args[1])
    if kind == "tensor":
        return _size(group, args[0]) * _size(group, args[1])
    if kind == "copies":
        return _count(args[0]) * _size(group, args[1])
    if kind == "dual":
        return _size(group, args[0])
    raise GroupError(f"no representation is made by {kind!r}; a newer Eadem may know it")


def _count(m: int) -> int:
    if m < 0:
        raise GroupError(f"a representation has {m} copies; the least is 0")
    return int(m)


def _images(group: Group, form: tuple[Any, ...]) -> list[Image]:
    kind, *args = form
    each = range(len(group.generators))
    if kind == "trivial":
        if group.algebra:
            return [np.zeros((args[0], args[0])) for _ in each]
        return [Signed.identity(args[0]) for _ in each]
    if kind == "vector":
        return [kron(np.eye(args[0]), m) for m in group._vector()]
    if kind == "regular":
        return [Signed(row).copies(args[0]) for row in group.table]
    if kind == "points":
        return [Signed(p).copies(args[0]) for p in group._points()]
    if kind == "sign":
        return _sign_images(group, args[0], args[1:])
    if kind == "quotient":
        coset = _cosets(group, args[1:])
        _, first = np.unique(coset, return_index=True)
        return [Signed(coset[row[first]]).copies(args[0]) for row in group.table]
    if kind == "space":
        return list(_space(group, args[0]))
    if kind == "grid":
        return list(_grid(group, *args))
    if kind == "given":
        return _given_images(args[0])
    parts = [_images(group, f) for f in args if _is_form(f)]
    if kind == "sum":
        return [_beside(a, b) for a, b in zip(*parts, strict=True)]
    if kind == "tensor":
        if group.algebra:
            return [_leibniz(_dense(a), _dense(b)) for a, b in zip(*parts, strict=True)]
        return [_times(a, b) for a, b in zip(*parts, strict=True)]
    if kind == "copies":
        return [_copied(a, args[0]) for a in parts[0]]
    if group.algebra:
        return [-_dense(a).T for a in parts[0]]
    return [a if isinstance(a, Signed) else _contragredient(a) for a in parts[0]]


def _sign_images(group: Group, m: int, signs: Sequence[int]) -> list[Image]:
    if len(signs) != len(group.generators) or any(s not in (1, -1) for s in signs):
        raise NotARepresentation(
            f"signs must be 1 or −1 for each of {', '.join(group.generators)}, not {signs}"
        )
    images: list[Image] = [
        Signed(np.arange(m), np.full(m, s, dtype=np.int8)) if s < 0 else Signed.identity(m)
        for s in signs
    ]
    for relation in group.relations:
        sides = [
            math.prod(signs[g] ** e for g, e in w) for w in (relation.word, relation.other)
        ]
        if sides[0] ** relation.power != sides[1]:
            raise NotARepresentation(
                f"the signs {tuple(signs)} break the relation "
                f"{relation.text(group.generators)} of {group}, by 2; choose others with signs="
            )
    return images


def _cosets(group: Group, subgroup: Sequence[Word]) -> NDArray[np.int64]:
    """The number of the coset gH of each element g; H itself is 0."""
    group.finite()
    start = []
    for word in subgroup:
        at = 0
        for generator, exponent in reversed(word):
            if not 0 <= generator < len(group.generators):
                raise GroupError(f"{group} has no generator number {generator}")
            for _ in range(exponent):
                at = int(group.table[generator][at])
        start.append(at)
    if not start:
        return np.arange(group.order)
    # k·h for a word k = s·j is s·(j·h): right multiplication, built up along the tree
    right = []
    for h in start:
        moved = np.empty(group.order, dtype=np.int64)
        for k in group.nearest_first:
            s, j = group.parents[k]
            moved[k] = h if k == 0 else group.table[s][moved[j]]
        right.append(Signed(moved))
    label, _, _ = components(right)
    return label


def _space(group: Group, ndim: int) -> list[Matrix]:
    matrices = group._space(ndim)
    if matrices is None:
        raise GroupError(
            f"{group} does not say how it moves {ndim} axes; give the matrices with "
            f"Equivariant(…, space=group.representation(…)), or space=group.trivial({ndim}) "
            "where it acts on channels alone"
        )
    return matrices


def _grid(group: Group, shape: Sequence[int], space: tuple[Any, ...] | None) -> list[Signed]:
    matrices = [
        _dense(i) for i in _images(group, ("space", len(shape)) if space is None else space)
    ]
    sides = np.array(shape, dtype=np.int64)
    place = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij")).reshape(
        len(shape), -1
    )
    twice = 2 * place - (sides - 1)[:, None]  # coordinates about the centre, doubled
    found = []
    for name, matrix in zip(group.generators, matrices, strict=True):
        moved = matrix @ twice
        back = (np.round(moved).astype(np.int64) + (sides - 1)[:, None]) // 2
        lands = np.abs(moved - np.round(moved)).max(initial=0.0) < 1e-9
        if not lands or (back < 0).any() or (back >= sides[:, None]).any():
            raise ShapeError(
                f"{name} of {group} does not take a grid of shape {tuple(shape)} to itself: "
                + (
                    "the sides it exchanges must be equal"
                    if lands
                    else "it turns pixels by an angle that is no multiple of 90°"
                )
            )
        found.append(Signed(np.ravel_multi_index(tuple(back), tuple(shape)).astype(np.int64)))
    return found


def _given_images(stacked: torch.Tensor) -> list[Image]:
    images: list[Image] = []
    for one in stacked:
        image = _read(one if one.is_floating_point() else (one[0], one[1]))
        if image.is_floating_point():
            images.append(image.numpy())
            continue
        place, sign = image
        plain = bool((sign > 0).all())
        images.append(
            Signed(place.numpy().copy(), None if plain else sign.to(torch.int8).numpy())
        )
    return images


def _is_form(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and isinstance(value[0], str)


def _contragredient(a: Matrix) -> Matrix:
    return np.asarray(np.linalg.inv(a).T, dtype=np.float64)


def _beside(a: Image, b: Image) -> Image:
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.beside(b)
    a, b = _dense(a), _dense(b)
    found = np.zeros((len(a) + len(b), len(a) + len(b)))
    found[: len(a), : len(a)], found[len(a) :, len(a) :] = a, b
    return found


def _times(a: Image, b: Image) -> Image:
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.times(b)
    return kron(_dense(a), _dense(b))


def _leibniz(a: Matrix, b: Matrix) -> Matrix:
    """A generator on a product: X ⊗ 1 + 1 ⊗ X."""
    return kron(a, np.eye(len(b))) + kron(np.eye(len(a)), b)


def _copied(a: Image, m: int) -> Image:
    return a.copies(m) if isinstance(a, Signed) else kron(np.eye(m), a)


def _shown(group: Group, form: tuple[Any, ...]) -> str:
    kind, *args = form
    if kind == "sum":
        return f"{_shown(group, args[0])} + {_shown(group, args[1])}"
    if kind == "tensor":
        return f"({_shown(group, args[0])}) * ({_shown(group, args[1])})"
    if kind == "copies":
        return f"({_shown(group, args[1])}).copies({args[0]})"
    if kind == "dual":
        return f"({_shown(group, args[0])}).dual()"
    if kind == "given":
        return f"{group}.representation(<{args[0].shape[-1]} numbers>)"
    if kind == "quotient":
        subgroup = ", ".join(repr(group.name(w)) for w in args[1:])
        return f"{group}.quotient({subgroup}, m={args[0]})"
    if kind == "grid":
        return f"{group}.grid({tuple(args[0])})"
    return f"{group}.{kind}({args[0]})"
