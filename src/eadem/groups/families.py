"""The groups that have names: cyclic, dihedral, symmetric, products, the cube, DNA."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from eadem.errors import GroupError
from eadem.groups.group import (
    ELEMENTS,
    Group,
    Matrix,
    Places,
    Relation,
    Word,
    rotation,
)

if TYPE_CHECKING:
    from eadem.groups.representation import Representation

__all__ = [
    "Cyclic",
    "Dihedral",
    "Octahedral",
    "Product",
    "ReverseComplement",
    "Symmetric",
    "cyclic_chain",
    "enumerate_by",
]

#: Largest degree of a group: what a file may ask for, too.
DEGREE = 1_000_000
#: Bytes that the elements of a group may take while they are listed.
MEMORY = 2**28


def _degree(n: int, what: str, most: int = DEGREE) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
        raise GroupError(f"{what} needs a whole number from 1 to {most}, not {n!r}")
    return n


def cyclic_chain(generator: int, n: int) -> tuple[tuple[Word, ...], ...]:
    """r^0 … r^(n−1) as products of p powers, for each prime factor p of n."""
    levels, stride, left = [], 1, n
    for p in range(2, math.isqrt(n) + 1):
        while left % p == 0:
            levels.append((p, stride))
            left, stride = left // p, stride * p
    if left > 1:
        levels.append((left, stride))
    return tuple(
        tuple(((generator, j * step),) if j else () for j in range(p)) for p, step in levels
    )


class Cyclic(Group):
    """The rotations by multiples of 360°/n: one generator r, r^n = 1.

    In two dimensions r turns (row, column) as `torch.rot90` does, by 360°/n; in three, about
    the first axis; in one, Cyclic(2) mirrors.

    >>> Cyclic(4).relations[0].text("r")
    'r^4 = 1'
    """

    generators = ("r",)

    def __init__(self, n: int) -> None:
        self.n = _degree(n, "Cyclic")

    @property
    def order(self) -> int:
        """The number of elements."""
        return self.n

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        return (Relation(((0, 1),), self.n),)

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Cyclic", self.n)

    def _rows(self) -> list[Places]:
        return self._points()

    def _points(self) -> list[Places]:
        return [np.roll(np.arange(self.n), -1)]

    def _signs(self) -> list[int]:
        return [-1 if self.n % 2 == 0 else 1]

    def _space(self, ndim: int) -> list[Matrix] | None:
        if ndim == 1 and self.n <= 2:
            return [np.array([[-1.0 if self.n == 2 else 1.0]])]
        return _about_first(ndim, [rotation(2 * math.pi / self.n)])

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """Sets of words whose products are the elements."""
        return cyclic_chain(0, self.n)


def _about_first(ndim: int, planar: list[Matrix]) -> list[Matrix] | None:
    """Matrices of the plane, or of space with the plane of its last two axes."""
    if ndim == 2:
        return planar
    if ndim != 3:
        return None
    spatial = [np.eye(3) for _ in planar]
    for whole, part in zip(spatial, planar, strict=True):
        whole[1:, 1:] = part
    return spatial


class Dihedral(Group):
    """Rotations by 360°/n and reflections: r^n = s² = (s r)² = 1, of order 2n.

    Element f·n + i is r^i s^f. In two dimensions s reverses the columns; in one, Dihedral(1)
    mirrors.
    """

    generators = ("r", "s")

    def __init__(self, n: int) -> None:
        self.n = _degree(n, "Dihedral")

    @property
    def order(self) -> int:
        """The number of elements."""
        return 2 * self.n

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        r, s = (0, 1), (1, 1)
        return (Relation((r,), self.n), Relation((s,), 2), Relation((s, r), 2))

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Dihedral", self.n)

    def _rows(self) -> list[Places]:
        i = np.arange(self.n)
        turned, back = np.roll(i, -1), -i % self.n
        return [
            np.concatenate([turned, turned + self.n]),
            np.concatenate([back + self.n, back]),
        ]

    def _points(self) -> list[Places]:
        if self.n < 3:
            raise GroupError(
                f"{self} does not act faithfully on {self.n} points; use .regular()"
            )
        i = np.arange(self.n)
        return [np.roll(i, -1), -i % self.n]

    def _signs(self) -> list[int]:
        return [1, -1]

    def _space(self, ndim: int) -> list[Matrix] | None:
        if ndim == 1 and self.n == 1:
            return [np.eye(1), -np.eye(1)]
        return _about_first(ndim, [rotation(2 * math.pi / self.n), np.diag([1.0, -1.0])])

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """Sets of words whose products are the elements."""
        return (*cyclic_chain(0, self.n), ((), ((1, 1),)))


class Symmetric(Group):
    """All permutations of n points: t exchanges the first two, c moves each to the next.

    The relations are those of Coxeter and Moser (Generators and Relations for Discrete
    Groups, 6.21).
    """

    generators = ("t", "c")

    def __init__(self, n: int) -> None:
        self.n = _degree(n, "Symmetric", 1000)

    @property
    def order(self) -> int:
        """The number of elements."""
        return math.factorial(self.n)

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        t, n = (0, 1), self.n
        if n < 3:
            found = (Relation((t,), n), Relation(((1, 1),), n))
            return (*found, Relation((t,), 1, ((1, 1),))) if n == 2 else found
        apart = [
            Relation((t, (1, n - j), t, (1, j)), 3 if j == 1 else 2)
            for j in range(1, n // 2 + 1)
        ]
        return (
            Relation((t,), 2),
            Relation(((1, 1),), n),
            Relation((t, (1, 1)), n - 1),
            *apart,
        )

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Symmetric", self.n)

    def _points(self) -> list[Places]:
        exchanged = np.arange(self.n)
        exchanged[:2] = exchanged[:2][::-1]
        return [exchanged, np.roll(np.arange(self.n), -1)]

    def _signs(self) -> list[int]:
        return [-1 if self.n > 1 else 1, -1 if self.n % 2 == 0 else 1]

    @cached_property
    def _all_rows(self) -> list[Places]:
        return enumerate_by(self._points(), compose_points, _key_of_points, self)

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """For each k from n − 1 down to 1, what takes k to each of 0 … k and leaves those
        above: the cosets of one symmetric group in the next. Raises TooLarge.
        """
        self.finite()
        return tuple(
            ((), *(self._cycle(j, k) for j in reversed(range(k))))
            for k in range(self.n - 1, 0, -1)
        ) or (((),),)

    def _cycle(self, j: int, k: int) -> Word:
        """The cycle j → j + 1 → … → k → j: cʲ t (c t)ᵏ⁻¹⁻ʲ c¹⁻ᵏ."""
        letters = [(1, j), (0, 1), *[(1, 1), (0, 1)] * (k - 1 - j), (1, (1 - k) % self.n)]
        return tuple(x for x in letters if x[1])

    @cached_property
    def classes(self) -> tuple[tuple[Word, ...], Places]:
        """A word for each partition of n, and n! / Π lᵐ m! for its m cycles of length l."""
        self.finite()
        words, sizes = [], []
        for lengths in _partitions(self.n, self.n):
            starts = np.cumsum([0, *lengths]).tolist()
            cycles = [
                self._cycle(a, a + n - 1)
                for a, n in zip(starts, lengths, strict=False)
                if n > 1
            ]
            words.append(tuple(x for cycle in cycles for x in cycle))
            fixed = math.prod(
                n ** lengths.count(n) * math.factorial(lengths.count(n)) for n in set(lengths)
            )
            sizes.append(self.order // fixed)
        return tuple(words), np.array(sizes, dtype=np.int64)

    def _rows(self) -> list[Places]:
        return self._all_rows


def _partitions(n: int, most: int) -> Iterator[tuple[int, ...]]:
    if n == 0:
        yield ()
    for first in range(min(n, most), 0, -1):
        yield from ((first, *rest) for rest in _partitions(n - first, first))


def compose_points(after: Places, before: Places) -> Places:
    """The permutation that does `before`, then `after`."""
    return after[before]


def _key_of_points(points: Places) -> bytes:
    return points.tobytes()


def enumerate_by(
    generators: Sequence[Any],
    compose: Callable[[Any, Any], Any],
    key: Callable[[Any], bytes],
    what: object,
    limit: int = ELEMENTS,
    alike: Callable[[Any, Any], bool] | None = None,
) -> list[Places]:
    """The rows of a group's table, found breadth first. Raises GroupError beyond `limit`, or
    beyond `MEMORY`, and where elements of one key are not `alike`.
    """
    identity = compose(generators[0], generators[0])
    identity = np.eye(len(identity)) if identity.ndim == 2 else np.arange(len(identity))
    limit = min(limit, MEMORY // (2 * identity.nbytes + 200))  # the key is as large again
    elements, number = [identity], {key(identity): 0}
    rows: list[list[int]] = [[] for _ in generators]
    for element in elements:
        for row, g in zip(rows, generators, strict=True):
            moved = compose(g, element)
            k = key(moved)
            if k not in number:
                if len(elements) >= limit:
                    raise GroupError(
                        f"the generators of {what} do not close within {limit} elements; "
                        "check them, or raise `limit` (up to 256 MB of elements)"
                    )
                number[k] = len(elements)
                elements.append(moved)
            elif alike is not None and not alike(moved, elements[number[k]]):
                raise GroupError(
                    f"two products of the generators of {what} nearly agree, and do not: no "
                    "finite group has these matrices; give them in full float64 precision"
                )
            row.append(number[k])
    found = [np.array(row, dtype=np.int64) for row in rows]
    if any(np.bincount(row, minlength=len(row)).max() > 1 for row in found):
        raise GroupError(f"a generator of {what} takes two elements to one: no group")
    return found


class Product(Group):
    """The direct product: element g·|H| + h; the generators of both, which commute.

    `Cyclic(2) * Cyclic(3)` is the same. In space, the factor acts that does so alone.
    """

    def __init__(self, first: Group, second: Group) -> None:
        for factor in (first, second):
            if not isinstance(factor, Group) or factor.algebra:
                raise GroupError(f"a product is of finite groups, and {factor!r:.60} is none")
        self.first, self.second = first, second
        clash = set(first.generators) & set(second.generators)
        names = [n + "1" if n in clash else n for n in first.generators]
        names += [n + "2" if n in clash else n for n in second.generators]
        self.generators = tuple(names)

    @property
    def order(self) -> int:
        """The number of elements."""
        return self.first.order * self.second.order

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        k = len(self.first.generators)
        moved = [
            Relation(_moved(r.word, k), r.power, _moved(r.other, k))
            for r in self.second.relations
        ]
        return (*self.first.relations, *moved, *self.crossings)

    @property
    def crossings(self) -> tuple[Relation, ...]:
        """That the generators of one factor commute with those of the other."""
        k = len(self.first.generators)
        return tuple(
            Relation(((a, 1), (k + b, 1)), 1, ((k + b, 1), (a, 1)))
            for a in range(k)
            for b in range(len(self.second.generators))
        )

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Product", self.first.spec, self.second.spec)

    def _rows(self) -> list[Places]:
        a, b = self.first.order, self.second.order
        g, h = np.arange(a)[:, None], np.arange(b)[None, :]
        rows = [(row[:, None] * b + h).reshape(-1) for row in self.first.table]
        return rows + [(g * b + row[None, :]).reshape(-1) for row in self.second.table]

    def _signs(self) -> list[int]:
        return [*self.first._signs(), *self.second._signs()]

    def _space(self, ndim: int) -> list[Matrix] | None:
        a, b = self.first._space(ndim), self.second._space(ndim)
        if (a is None) == (b is None):
            return None
        still = [np.eye(ndim)]
        first = still * len(self.first.generators) if a is None else a
        return first + (still * len(self.second.generators) if b is None else b)

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """Sets of words whose products are the elements."""
        k = len(self.first.generators)
        second = tuple(tuple(_moved(w, k) for w in level) for level in self.second.chain)
        return (*self.first.chain, *second)


def _moved(word: Word, by: int) -> Word:
    return tuple((g + by, e) for g, e in word)


class Octahedral(Group):
    """The rotations of the cube, 24, or with `mirrors` all its 48 symmetries.

    In three dimensions a turns about the first axis by 90°, b about the last, and i, the
    inversion, reverses all three.
    """

    def __init__(self, mirrors: bool = False) -> None:
        self.mirrors = bool(mirrors)
        self.generators = ("a", "b", "i") if mirrors else ("a", "b")

    @property
    def order(self) -> int:
        """The number of elements."""
        return 48 if self.mirrors else 24

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        a, b, i = (0, 1), (1, 1), (2, 1)
        found: tuple[Relation, ...] = (
            Relation((a,), 4),
            Relation((b,), 4),
            Relation((a, b), 3),
        )
        found = (*found, Relation(((0, 2), b), 2))
        if not self.mirrors:
            return found
        pairs = (Relation((a, i), 1, (i, a)), Relation((b, i), 1, (i, b)))
        return (*found, Relation((i,), 2), *pairs)

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("Octahedral", self.mirrors)

    def _space(self, ndim: int) -> list[Matrix] | None:
        if ndim != 3:
            return None
        quarter = rotation(math.pi / 2)
        a, b = np.eye(3), np.eye(3)
        a[1:, 1:], b[:2, :2] = quarter, quarter
        return [a, b, -np.eye(3)] if self.mirrors else [a, b]

    def _signs(self) -> list[int]:
        return [-1, -1, 1] if self.mirrors else [-1, -1]

    def _rows(self) -> list[Places]:
        matrices = self._space(3)
        assert matrices is not None
        return enumerate_by(matrices, np.matmul, lambda m: (m + 0.0).tobytes(), self)


class ReverseComplement(Group):
    """The two strands of DNA: c reverses positions and exchanges A with T, C with G.

    `bases(m)` are m one-hot channels of A, C, G, T; `regular(m)` are m features, each read on
    both strands.

    >>> both = ReverseComplement()
    >>> both.bases().images[0].place
    array([3, 2, 1, 0])
    """

    generators = ("c",)

    @property
    def order(self) -> int:
        """The number of elements."""
        return 2

    @property
    def relations(self) -> tuple[Relation, ...]:
        """The defining relations."""
        return (Relation(((0, 1),), 2),)

    @property
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data."""
        return ("ReverseComplement",)

    def _rows(self) -> list[Places]:
        return [np.array([1, 0])]

    def _points(self) -> list[Places]:
        return [np.array([3, 2, 1, 0])]

    def _space(self, ndim: int) -> list[Matrix] | None:
        return [-np.eye(1)] if ndim == 1 else None

    def bases(self, m: int = 1) -> Representation:
        """m times the channels A, C, G, T."""
        return self.points(m)
