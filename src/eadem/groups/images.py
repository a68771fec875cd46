"""What single elements do: arithmetic of images, and which relation of a group they break."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eadem.errors import TooLarge
from eadem.groups.families import Product
from eadem.groups.group import Group, Matrix, Relation, Word
from eadem.groups.signed import Signed

__all__ = ["TOLERANCE", "Image", "broken", "dense", "distance", "kron", "power", "product"]

Image = Signed | Matrix

#: How far a relation may fail before matrices are refused, relative to the largest entry.
TOLERANCE = 1e-9
#: Numbers that following vectors through a group may take: 256 MB of float64.
FOLLOWED = 2**25


def kron(a: Matrix, b: Matrix) -> Matrix:
    """The tensor product of matrices."""
    return np.asarray(np.kron(a, b), dtype=np.float64)


def product(a: Image, b: Image) -> Image:
    """The image of a product: b acts first."""
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.after(b)
    return dense(a) @ dense(b)


def dense(image: Image) -> Matrix:
    """An image as a matrix."""
    return image.matrix() if isinstance(image, Signed) else image


def power(image: Image, n: int) -> Image:
    """The n-th power of an image."""
    if isinstance(image, Signed):
        return image.power(n)
    return np.linalg.matrix_power(image, n)


def distance(a: Image, b: Image) -> float:
    """The largest difference of two entries."""
    if isinstance(a, Signed) and isinstance(b, Signed):
        return a.distance(b)
    return float(np.abs(dense(a) - dense(b)).max(initial=0.0))


def broken(
    group: Group, images: Sequence[Image], image: Callable[[Word], Image]
) -> tuple[Relation, float] | None:
    """A relation that the generators' images break, and by how much, or None.

    `image` says what a word in the generators does. A group that is only given by generators
    is checked along its Cayley graph. Raises TooLarge.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for relation in _doubtful(group, images, 0):
            left = power(image(relation.word), relation.power)
            away = distance(left, image(relation.other))
            largest = 1.0 if isinstance(left, Signed) else float(np.abs(left).max(initial=1.0))
            if not (np.isfinite(away) and away <= TOLERANCE * largest):
                return relation, away
    return None


def _doubtful(group: Group, images: Sequence[Image], at: int) -> Iterable[Relation]:
    """The relations to look at, the generators numbered from `at`."""
    if isinstance(group, Product):
        k = len(group.first.generators)
        yield from _doubtful(group.first, images[:k], at)
        yield from _doubtful(group.second, images[k:], at + k)
        relations: Iterable[Relation] = group.crossings
    elif group.listed and len(group.generators) > 1:
        relations = _broken_edges(group, images)
    else:
        relations = group.relations
    for r in relations:
        yield Relation(_moved(r.word, at), r.power, _moved(r.other, at))


def _moved(word: Word, by: int) -> Word:
    return tuple((g + by, e) for g, e in word)


def _broken_edges(group: Group, images: Sequence[Image]) -> list[Relation]:
    """The relation of an edge s·j = k of the Cayley graph along which vectors disagree.

    A signed permutation is known by what it does to (1, 2, …, n), a matrix, up to chance, by
    what it does to two random vectors: each is followed to every element along the graph's
    tree, and compared along the other edges.
    """
    if _own_points(group, images):
        return []
    exact = all(isinstance(i, Signed) for i in images)
    size = len(images[0])
    if group.order * size * 2 > FOLLOWED:
        raise TooLarge(
            f"checking {size} × {size} matrices on the {group.order} elements of {group} "
            f"follows more than {FOLLOWED} numbers; name the group, such as Symmetric(n), "
            "whose relations are known"
        )
    acts = images if exact else [dense(i) for i in images]
    found: NDArray[np.float64] = np.empty((group.order, size, 1 if exact else 2))
    random = np.random.default_rng(3).standard_normal((size, 2))
    found[0] = np.arange(1.0, size + 1)[:, None] if exact else random
    generator, parent = np.array(group.parents).T
    for level in _levels(group):
        for s, act in enumerate(acts):
            at = level[generator[level] == s]
            found[at] = _followed(act, found[parent[at]])
    for s, (act, row) in enumerate(zip(acts, group.table, strict=True)):
        there = found[row]
        away = np.abs(_followed(act, found) - there).max(axis=(1, 2), initial=0.0)
        largest = np.abs(there).max(axis=(1, 2), initial=1.0)
        wrong = np.flatnonzero(~(away <= (0.0 if exact else TOLERANCE) * largest))
        if len(wrong):
            j = int(wrong[0])
            return [Relation(((s, 1), *group.word(j)), 1, group.word(int(row[j])))]
    return []


def _followed(act: Image, values: NDArray[np.float64]) -> NDArray[np.float64]:
    if not isinstance(act, Signed):
        return np.asarray(act @ values)
    return np.moveaxis(act.apply(np.moveaxis(values, 1, 0)), 0, 1)


def _levels(group: Group) -> list[NDArray[np.int64]]:
    """The elements, by their distance from the identity, which is left out."""
    depth = np.zeros(group.order, dtype=np.int64)
    for k in group.nearest_first[1:]:
        depth[k] = depth[group.parents[k][1]] + 1
    order = np.array(group.nearest_first)
    return np.split(order, np.flatnonzero(np.diff(depth[order])) + 1)[1:]


def _own_points(group: Group, images: Sequence[Image]) -> bool:
    """Whether the images are the permutations that the group was given by."""
    own = group.defining
    return own is not None and all(
        isinstance(i, Signed)
        and np.array_equal(i.place, p)
        and (i.sign is None or bool((i.sign > 0).all()))
        for i, p in zip(images, own, strict=True)
    )
