"""Finite groups by generators and relations; elements are listed only where they are needed.

A group is what its generators satisfy: `Cyclic(4)` is one generator r with r⁴ = 1. Elements
are numbered, the identity first, and element k is a word in the generators. A representation
is checked against the relations, an orbit needs the generators alone, and only a regular
representation, a character or an average runs over all elements.

>>> D4 = Dihedral(4)
>>> D4.order, D4.generators
(8, ('r', 's'))
>>> D4.regular(2).size
16
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eadem.errors import GroupError, TooLarge

if TYPE_CHECKING:
    from eadem.groups.representation import Representation

__all__ = [
    "ELEMENTS",
    "Cyclic",
    "Dihedral",
    "Group",
    "Octahedral",
    "Product",
    "Relation",
    "ReverseComplement",
    "Symmetric",
    "Word",
    "rotation",
]

#: A product of powers of generators, (generator, exponent) from left to right.
Word = tuple[tuple[int, int], ...]
Places = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Largest number of elements that are listed one by one.
ELEMENTS = 100_000
#: Largest degree of a group: what a file may ask for, too.
DEGREE = 1_000_000


@dataclass(frozen=True)
class Relation:
    """word^power = other: what the generators satisfy."""

    word: Word
    power: int = 1
    other: Word = ()

    def text(self, names: Sequence[str]) -> str:
        """The relation in the generators' names, such as "(s r)^2 = 1"."""
        left = _spelled(self.word, names)
        if self.power > 1:
            left = f"({left})^{self.power}" if len(self.word) > 1 else f"{left}^{self.power}"
        return f"{left} = {_spelled(self.other, names)}"


def _spelled(word: Word, names: Sequence[str]) -> str:
    parts = [names[g] if e == 1 else f"{names[g]}^{e}" for g, e in word]
    return " ".join(parts) or "1"


def rotation(angle: float) -> Matrix:
    """The rotation of (row, column) coordinates by `angle`: at 90° it is `torch.rot90`."""
    c, s = math.cos(angle), math.sin(angle)
    return snapped(np.array([[c, -s], [s, c]]))


def snapped(matrix: Matrix) -> Matrix:
    """`matrix`, with entries within rounding of −1, 0 or 1 made exact."""
    near = np.round(matrix)
    return np.where(np.abs(matrix - near) < 1e-12, near, matrix) + 0.0


class Group:
    """A finite group. Subclasses say `order`, `relations`, `_rows` and `spec`.

    `generators`: their names. Groups are equal when they are given alike.
    """

    generators: tuple[str, ...]
    #: Whether the generators are those of a Lie algebra: then matrices are to commute with.
    algebra = False

    @property
    @abstractmethod
    def order(self) -> int:
        """The number of elements."""

    @property
    @abstractmethod
    def relations(self) -> tuple[Relation, ...]:
        """A presentation: relations that define the group."""

    @property
    @abstractmethod
    def spec(self) -> tuple[Any, ...]:
        """The group as plain data, from which `from_spec` makes it again."""

    @abstractmethod
    def _rows(self) -> list[Places]:
        """For each generator s and each element k, the number of s·k."""

    def _space(self, ndim: int) -> list[Matrix] | None:
        """How the generators act on `ndim` coordinates, or None where they do not."""
        return None

    def finite(self) -> None:
        """Raise TooLarge where there are too many elements to list."""
        if self.order > ELEMENTS:
            raise TooLarge(
                f"{self} has {self.order} elements; Eadem lists at most {ELEMENTS}. Orbits of "
                "permutation representations need its generators alone"
            )

    @cached_property
    def table(self) -> tuple[Places, ...]:
        """For each generator s, element k ↦ element s·k. Raises TooLarge."""
        self.finite()
        return tuple(self._rows())

    @cached_property
    def parents(self) -> tuple[tuple[int, int], ...]:
        """Each element k > 0 as (s, j): k = s·j, with j nearer to the identity. Raises
        TooLarge, and GroupError where the generators do not reach every element.
        """
        found: dict[int, tuple[int, int]] = {0: (-1, 0)}
        queue = [0]
        for j in queue:
            for s, row in enumerate(self.table):
                k = int(row[j])
                if k not in found:
                    found[k] = (s, j)
                    queue.append(k)
        if len(found) != self.order:
            raise GroupError(f"the generators of {self} reach {len(found)} of its elements")
        self.__dict__["nearest_first"] = tuple(queue)
        return tuple(found[k] for k in range(self.order))

    @cached_property
    def nearest_first(self) -> tuple[int, ...]:
        """The elements, each after its parent."""
        _ = self.parents
        found: tuple[int, ...] = self.__dict__["nearest_first"]
        return found

    def word(self, element: int) -> Word:
        """Element number `element` as a word in the generators."""
        parents = self.parents
        letters: list[list[int]] = []
        while element:
            s, element = parents[element]
            if letters and letters[-1][0] == s:
                letters[-1][1] += 1
            else:
                letters.append([s, 1])
        return tuple((s, e) for s, e in letters)

    def words(self) -> Iterator[Word]:
        """Every element, as a word; the identity comes first. Raises TooLarge."""
        self.finite()
        return (self.word(k) for k in range(self.order))

    def name(self, word: Word) -> str:
        """A word in the generators' names."""
        return _spelled(word, self.generators)

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """Sets of words; each element is exactly one product of a word from each set.

        An average over the group is then one short average after another. Raises TooLarge.
        """
        return (tuple(self.words()),)

    # representations

    def _made(self, form: tuple[Any, ...]) -> Representation:
        from eadem.groups.representation import Representation

        return Representation(self, form)

    def trivial(self, m: int = 1) -> Representation:
        """m numbers that no element changes."""
        return self._made(("trivial", int(m)))

    def regular(self, m: int = 1) -> Representation:
        """m copies of the group acting on its own elements: copy j, element g at j·|G| + g."""
        return self._made(("regular", int(m)))

    def sign(self, m: int = 1, signs: Sequence[int] | None = None) -> Representation:
        """m numbers that a generator keeps or negates, as `signs` says for each (±1).

        By default every generator negates that can do so: the reflections of a dihedral
        group, the rotation of an even cyclic one, odd permutations. Raises NotARepresentation
        where the signs break a relation.
        """
        chosen = self._signs() if signs is None else [int(s) for s in signs]
        made = self._made(("sign", int(m), *chosen))
        _ = made.images
        return made

    def _signs(self) -> list[int]:
        return [-1] * len(self.generators)

    def points(self, m: int = 1) -> Representation:
        """m copies of the points that the group is defined to permute."""
        return self._made(("points", int(m)))

    def _points(self) -> list[Places]:
        raise GroupError(f"{self} is not given as permutations of points; use .regular(m)")

    def _vector(self) -> list[Matrix]:
        raise GroupError(f"{self} is not given as a Lie algebra's matrices; use .space(ndim)")

    def quotient(self, *subgroup: Word | str, m: int = 1) -> Representation:
        """m copies of the cosets gH of the subgroup H that these words generate.

        A word is spelled in the generators' names: `Dihedral(4).quotient("s")`. Raises
        GroupError for an unknown name.
        """
        words = [self._read(w) if isinstance(w, str) else w for w in subgroup]
        return self._made(("quotient", int(m), *(tuple(map(tuple, w)) for w in words)))

    def _read(self, text: str) -> Word:
        letters = []
        for part in text.split():
            name, _, exponent = part.partition("^")
            if name not in self.generators or not (exponent or "1").isdigit():
                raise GroupError(
                    f"{part!r} is no power of a generator of {self}, which are "
                    f"{', '.join(self.generators)}"
                )
            letters.append((self.generators.index(name), int(exponent or 1)))
        return tuple(letters)

    def space(self, ndim: int) -> Representation:
        """How the group moves the axes of a filter or an image with `ndim` axes.

        Raises GroupError where it does not say; give Equivariant a `space=` then.
        """
        return self._made(("space", int(ndim)))

    def grid(self, shape: Sequence[int], space: Representation | None = None) -> Representation:
        """The places of an image of `shape` (rows, columns, …), moved about its centre.

        `space` is the action on coordinates, by default `space(len(shape))`. Raises
        ShapeError where a place would not land on a place: a rotation of a grid that is not
        square, or one by 45°.
        """
        sizes = tuple(int(n) for n in shape)
        return self._made(("grid", sizes, None if space is None else space.form))

    def representation(self, *images: Any) -> Representation:
        """Given matrices (n, n), or signed permutations (place, sign), one for each generator.

        A one-dimensional integer sequence is a permutation: entry i moves to images[i]; a pair
        of such sequences also has the sign, ±1. Raises NotARepresentation naming the relation
        that fails, and by how much.
        """
        from eadem.groups.representation import given

        return given(self, images)

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Group) and same(self.spec, other.spec))

    def __hash__(self) -> int:
        return hash((type(self).__name__, len(self.generators)))

    def __mul__(self, other: Group) -> Product:
        return Product(self, other)

    def __repr__(self) -> str:
        return f"{self.spec[0]}({', '.join(repr(a) for a in self.spec[1:])})"


def same(a: Any, b: Any) -> bool:
    """Whether two pieces of plain data, arrays among them, are equal."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "shape") or hasattr(b, "shape"):
        alike = hasattr(a, "shape") and hasattr(b, "shape") and a.shape == b.shape
        return alike and bool((a == b).all())
    return bool(a == b)


def _degree(n: int, what: str, most: int = DEGREE) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= most:
        raise GroupError(f"{what} needs a whole number from 1 to {most}, not {n!r}")
    return n


def _cyclic_chain(generator: int, n: int) -> tuple[tuple[Word, ...], ...]:
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
        return _cyclic_chain(0, self.n)


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
        return (*_cyclic_chain(0, self.n), ((), ((1, 1),)))


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
    def _listed(self) -> list[Places]:
        return enumerate_by(self._points(), compose_points, _key_of_points, self)

    def _rows(self) -> list[Places]:
        return self._listed


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
) -> list[Places]:
    """The rows of a group's table, found breadth first. Raises GroupError beyond `limit`."""
    identity = compose(generators[0], generators[0])
    identity = np.eye(len(identity)) if identity.ndim == 2 else np.arange(len(identity))
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
                        "check them, or raise `limit`"
                    )
                number[k] = len(elements)
                elements.append(moved)
            row.append(number[k])
    return [np.array(row, dtype=np.int64) for row in rows]


class Product(Group):
    """The direct product: element g·|H| + h; the generators of both, which commute.

    `Cyclic(2) * Cyclic(3)` is the same. In space, the factor acts that does so alone.
    """

    def __init__(self, first: Group, second: Group) -> None:
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
        pairs = [
            Relation(((a, 1), (k + b, 1)), 1, ((k + b, 1), (a, 1)))
            for a in range(k)
            for b in range(len(self.second.generators))
        ]
        return (*self.first.relations, *moved, *pairs)

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
