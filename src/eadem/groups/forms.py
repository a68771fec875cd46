"""Representations as plain data: how large a form is, and what the generators do by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eadem.errors import GroupError, NotARepresentation, ShapeError
from eadem.groups.group import Group, Matrix, Word
from eadem.groups.images import Image, broken, dense, distance, kron, power, product
from eadem.groups.orbits import components
from eadem.groups.signed import Signed
from eadem.maps.base import numel
from eadem.maps.constant import outside

__all__ = [
    "Image",
    "by_permutation",
    "dense",
    "distance",
    "images_of",
    "pair",
    "power",
    "product",
    "read",
    "shown",
    "size_of",
]


def by_permutation(image: torch.Tensor) -> bool:
    """Whether a matrix is a signed permutation to the bit, or an image is one as given."""
    if not image.is_floating_point():
        return True
    one = (image.abs() == 1).to(torch.int64)
    once = bool((one.sum(0) == 1).all() and (one.sum(1) == 1).all())
    return once and bool(((image == 0) | (one == 1)).all())


def pair(image: torch.Tensor) -> torch.Tensor:
    """A signed permutation (2, n) int64, from its matrix or as it is."""
    if not image.is_floating_point():
        return image
    place = image.abs().argmax(0)
    return torch.stack([place, image.sum(0).to(torch.int64)])


def read(image: Any) -> torch.Tensor:
    """A matrix (n, n) float64, or a signed permutation (2, n) int64."""
    if isinstance(image, Signed):
        image = (image.place, image.signs())
    pair = isinstance(image, tuple) and len(image) == 2
    value = torch.as_tensor(np.stack([np.asarray(p) for p in image]) if pair else image)
    value = value.detach().cpu()
    if value.is_complex() or (value.is_floating_point() and not bool(value.isfinite().all())):
        raise NotARepresentation("a generator's image must be of real, finite numbers")
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


def size_of(group: Group, form: tuple[Any, ...]) -> int:
    """How many numbers a form acts on, without listing elements. Raises GroupError."""
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
        return _count(args[0])
    if kind == "grid":
        return numel(tuple(_count(n) for n in args[0]))
    if kind == "given":
        return int(args[0].shape[-1])
    if kind == "sum":
        return size_of(group, args[0]) + size_of(group, args[1])
    if kind == "tensor":
        return size_of(group, args[0]) * size_of(group, args[1])
    if kind == "copies":
        return _count(args[0]) * size_of(group, args[1])
    if kind == "dual":
        return size_of(group, args[0])
    raise GroupError(f"no representation is made by {kind!r}; a newer Eadem may know it")


def _count(m: int) -> int:
    if isinstance(m, bool) or not isinstance(m, int):
        raise GroupError(f"a number of copies must be a whole number, not {m!r:.40}")
    if m < 0:
        raise GroupError(f"a representation has {m} copies; the least is 0")
    return int(m)


def images_of(group: Group, form: tuple[Any, ...]) -> list[Image]:
    """What each generator does by a form. Raises what its group or its kind raises."""
    kind, *args = form
    each = range(len(group.generators))
    if size_of(group, form) == 0:  # of which a part may be huge
        return [np.zeros((0, 0)) if group.algebra else Signed.identity(0) for _ in each]
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
        with outside():
            found = _given_images(args[0])
        return [dense(i) for i in found] if group.algebra else found
    parts = [images_of(group, f) for f in args if _is_form(f)]
    if kind == "sum":
        return [_beside(a, b) for a, b in zip(*parts, strict=True)]
    if kind == "tensor":
        if group.algebra:
            return [_leibniz(dense(a), dense(b)) for a, b in zip(*parts, strict=True)]
        return [_times(a, b) for a, b in zip(*parts, strict=True)]
    if kind == "copies":
        return [_copied(a, args[0]) for a in parts[0]]
    if group.algebra:
        return [-dense(a).T for a in parts[0]]
    return [a if isinstance(a, Signed) else _contragredient(a) for a in parts[0]]


def _sign_images(group: Group, m: int, signs: Sequence[int]) -> list[Image]:
    if group.algebra:
        raise NotARepresentation(
            f"a Lie algebra such as {group} has no signs; its generators act on single numbers "
            "as zero, which is .trivial(m)"
        )
    if len(signs) != len(group.generators) or any(s not in (1, -1) for s in signs):
        raise NotARepresentation(
            f"signs must be 1 or −1 for each of {', '.join(group.generators)}, not {signs}"
        )
    images: list[Image] = [
        Signed(np.arange(m), np.full(m, s, dtype=np.int8)) if s < 0 else Signed.identity(m)
        for s in signs
    ]
    ones = [Signed(np.arange(1), np.array([s], dtype=np.int8)) for s in signs]

    def image(word: Word) -> Image:
        sign = -1 if sum(e for g, e in word if signs[g] < 0) % 2 else 1
        return Signed(np.arange(1), np.array([sign], dtype=np.int8))

    fails = broken(group, ones, image)
    if fails is not None:
        raise NotARepresentation(
            f"the signs {tuple(signs)} break the relation "
            f"{fails[0].text(group.generators)} of {group}, by 2; choose others with signs="
        )
    return images


def _cosets(group: Group, subgroup: Sequence[Word]) -> NDArray[np.int64]:
    """The number of the coset gH of each element g; H itself is 0."""
    group.finite()
    joined: list[Signed] = []
    label = np.arange(group.order)
    for word in subgroup:
        h = _element(group, word)
        if label[h] == label[0]:
            continue
        # k·h for a word k = s·j is s·(j·h): right multiplication, built up along the tree
        moved = np.empty(group.order, dtype=np.int64)
        for k in group.nearest_first:
            s, j = group.parents[k]
            moved[k] = h if k == 0 else group.table[s][moved[j]]
        joined.append(Signed(moved))
        label, _, _ = components(joined)
    return label


def _element(group: Group, word: Word) -> int:
    """The number of the element that a word names; exponents may be negative."""
    at = 0
    for generator, exponent in reversed(word):
        if not 0 <= generator < len(group.generators):
            raise GroupError(f"{group} has no generator number {generator}")
        row = Signed(group.table[generator]).power(exponent % group.order)
        at = int(row.place[at])
    return at


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
        dense(i) for i in images_of(group, ("space", len(shape)) if space is None else space)
    ]
    if len(matrices[0]) != len(shape):
        raise ShapeError(
            f"an action on {len(matrices[0])} coordinates cannot move the {len(shape)} axes of "
            f"{tuple(shape)}; give space= a representation of size {len(shape)}"
        )
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
        image = read(one if one.is_floating_point() else (one[0], one[1]))
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
    a, b = dense(a), dense(b)
    found = np.zeros((len(a) + len(b), len(a) + len(b)))
    found[: len(a), : len(a)], found[len(a) :, len(a) :] = a, b
    return found


def _times(a: Image, b: Image) -> Image:
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.times(b)
    return kron(dense(a), dense(b))


def _leibniz(a: Matrix, b: Matrix) -> Matrix:
    """A generator on a product: X ⊗ 1 + 1 ⊗ X."""
    return kron(a, np.eye(len(b))) + kron(np.eye(len(a)), b)


def _copied(a: Image, m: int) -> Image:
    return a.copies(m) if isinstance(a, Signed) else kron(np.eye(m), a)


def shown(group: Group, form: tuple[Any, ...]) -> str:
    """A form as one writes it."""
    kind, *args = form
    if kind == "sum":
        return f"{shown(group, args[0])} + {shown(group, args[1])}"
    if kind == "tensor":
        return f"({shown(group, args[0])}) * ({shown(group, args[1])})"
    if kind == "copies":
        return f"({shown(group, args[1])}).copies({args[0]})"
    if kind == "dual":
        return f"({shown(group, args[0])}).dual()"
    if kind == "given":
        return f"{group}.representation(<{args[0].shape[-1]} numbers>)"
    if kind == "quotient":
        subgroup = ", ".join(repr(group.name(w)) for w in args[1:])
        return f"{group}.quotient({subgroup}, m={args[0]})"
    if kind == "grid":
        return f"{group}.grid({tuple(args[0])})"
    return f"{group}.{kind}({args[0]})"
