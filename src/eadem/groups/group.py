"""Finite groups by generators and relations; elements are listed only where they are needed.

A group is what its generators satisfy: `Cyclic(4)` is one generator r with r⁴ = 1. Elements
are numbered, the identity first, and element k is a word in the generators. A representation
is checked against the relations, an orbit needs the generators alone, and only a regular
representation, a character or an average runs over all elements.

>>> from eadem.groups import Dihedral
>>> D4 = Dihedral(4)
>>> D4.order, D4.generators
(8, ('r', 's'))
>>> D4.regular(2).size
16
"""

from __future__ import annotations

import math
import operator
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from eadem.errors import GroupError, TooLarge

if TYPE_CHECKING:
    from eadem.groups.families import Product
    from eadem.groups.representation import Representation

__all__ = ["ELEMENTS", "Group", "Relation", "Word", "rotation", "same", "snapped", "whole"]

#: A product of powers of generators, (generator, exponent) from left to right.
Word = tuple[tuple[int, int], ...]
Places = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Largest number of elements that are listed one by one.
ELEMENTS = 100_000


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
    #: Whether its elements are known only by listing them, its relations by its Cayley graph.
    listed = False

    @property
    def defining(self) -> list[Places] | None:
        """The permutations that the generators were given by, if they were."""
        return None

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
        return iter(self._all_words)

    @cached_property
    def _all_words(self) -> tuple[Word, ...]:
        found: list[Word] = [()] * self.order
        for k in self.nearest_first[1:]:
            s, j = self.parents[k]
            before = found[j]
            if before and before[0][0] == s:
                found[k] = ((s, before[0][1] + 1), *before[1:])
            else:
                found[k] = ((s, 1), *before)
        return tuple(found)

    def name(self, word: Word) -> str:
        """A word in the generators' names."""
        return _spelled(word, self.generators)

    @cached_property
    def chain(self) -> tuple[tuple[Word, ...], ...]:
        """Sets of words; each element is exactly one product of a word from each set.

        An average over the group is then one short average after another. Raises TooLarge.
        """
        return (tuple(self.words()),)

    @cached_property
    def classes(self) -> tuple[tuple[Word, ...], Places]:
        """A word from each conjugacy class, and how many elements the class has. Raises
        TooLarge.
        """
        from eadem.groups.orbits import components
        from eadem.groups.signed import Signed

        turned = []
        for row in self.table:
            back = np.empty(self.order, dtype=np.int64)  # k ↦ k·s⁻¹
            start = int(np.flatnonzero(row == 0)[0])
            for k in self.nearest_first:
                s, j = self.parents[k]
                back[k] = start if k == 0 else self.table[s][back[j]]
            turned.append(Signed(row[back]))
        label, _, _ = components(turned)
        _, first, sizes = np.unique(label, return_index=True, return_counts=True)
        words = self._all_words
        return tuple(words[k] for k in first.tolist()), sizes.astype(np.int64)

    # representations

    def _made(self, form: tuple[Any, ...]) -> Representation:
        from eadem.groups.representation import Representation

        return Representation(self, form)

    def trivial(self, m: int = 1) -> Representation:
        """m numbers that no element changes."""
        return self._made(("trivial", whole(m)))

    def regular(self, m: int = 1) -> Representation:
        """m copies of the group acting on its own elements: copy j, element g at j·|G| + g."""
        return self._made(("regular", whole(m)))

    def sign(self, m: int = 1, signs: Sequence[int] | None = None) -> Representation:
        """m numbers that a generator keeps or negates, as `signs` says for each (±1).

        By default every generator negates that can do so: the reflections of a dihedral
        group, the rotation of an even cyclic one, odd permutations. Raises NotARepresentation
        where the signs break a relation.
        """
        chosen = self._signs() if signs is None else list(signs)
        chosen = [int(s) if s in (1, -1) else s for s in chosen]
        made = self._made(("sign", whole(m), *chosen))
        _ = made.images
        return made

    def _signs(self) -> list[int]:
        return [-1] * len(self.generators)

    def points(self, m: int = 1) -> Representation:
        """m copies of the points that the group is defined to permute."""
        return self._made(("points", whole(m)))

    def _points(self) -> list[Places]:
        raise GroupError(f"{self} is not given as permutations of points; use .regular(m)")

    def _vector(self) -> list[Matrix]:
        raise GroupError(f"{self} is not given as a Lie algebra's matrices; use .space(ndim)")

    def quotient(self, *subgroup: Word | str, m: int = 1) -> Representation:
        """m copies of the cosets gH of the subgroup H that these words generate.

        A word is spelled in the generators' names: `Dihedral(4).quotient("s")`. Raises
        GroupError for an unknown name.
        """
        try:
            words = [self._read(w) if isinstance(w, str) else _word(w) for w in subgroup]
        except (TypeError, ValueError) as error:
            raise GroupError(
                f"a word is written as 'r^2 s' or ((generator, exponent), …): {error}"
            ) from error
        return self._made(("quotient", whole(m), *words))

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
        return self._made(("space", whole(ndim)))

    def grid(self, shape: Sequence[int], space: Representation | None = None) -> Representation:
        """The places of an image of `shape` (rows, columns, …), moved about its centre.

        `space` is the action on coordinates, by default `space(len(shape))`. Raises
        ShapeError where a place would not land on a place: a rotation of a grid that is not
        square, or one by 45°.
        """
        sizes = tuple(whole(n) for n in shape)
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
        from eadem.groups.families import Product

        return Product(self, other)

    def __repr__(self) -> str:
        return f"{self.spec[0]}({', '.join(repr(a) for a in self.spec[1:])})"


def whole(m: Any) -> int:
    """m as an int. Raises GroupError for anything but a whole number."""
    try:
        return operator.index(m)
    except TypeError:
        raise GroupError(f"a whole number is needed here, not {m!r:.60}") from None


def _word(letters: Any) -> Word:
    return tuple((operator.index(g), operator.index(e)) for g, e in letters)


def same(a: Any, b: Any) -> bool:
    """Whether two pieces of plain data, arrays among them, are equal."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "shape") or hasattr(b, "shape"):
        alike = hasattr(a, "shape") and hasattr(b, "shape") and a.shape == b.shape
        return alike and bool(a.dtype == b.dtype and (a == b).all())
    return bool(a == b)
