"""What a space group demands of a cell, a position and a displacement, in exact arithmetic.

Three invariance equations, all linear: of the metric tensor under the point group
(RᵀGR = G), of a position under its stabiliser (Rx + t = x mod lattice), of a displacement
tensor under the stabiliser's rotations (RURᵀ = U). Their solutions are an affine subspace,
found by elimination over the rationals, with the earliest coordinates free, as International
Tables write special positions (x, 2x, 1/4).

>>> from eadem.powder.symmetry import SpaceGroup
>>> pnma = SpaceGroup.of("P n m a")
>>> pnma.position((0.1882, 0.25, 0.167), (8.48, 5.398, 6.958, 90, 90, 90)).text
'x, 1/4, z'
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.errors import MissingPackage, Unsupported

__all__ = ["CELL", "Affines", "Operation", "SpaceGroup", "Special", "gemmi", "metric"]

#: What the six numbers of a cell are called.
CELL = ("a", "b", "c", "alpha", "beta", "gamma")
#: The entries of a symmetric tensor in the order of CIF: 11, 22, 33, 12, 13, 23.
PAIRS = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))

Floats = NDArray[np.float64]
Rotation = tuple[tuple[int, ...], ...]


def gemmi() -> Any:
    """The package gemmi. Raises MissingPackage, naming the extra."""
    try:
        import gemmi as found
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "eadem.powder needs the package 'gemmi', which is not installed: "
            'pip install "eadem[powder]"'
        ) from error
    return found


@dataclass(frozen=True)
class Affines:
    """{rows·θ + offset}, exact. θ are the coordinates `free`, so that the row of a free
    coordinate is a unit vector.
    """

    free: tuple[int, ...]
    rows: tuple[tuple[Fraction, ...], ...]
    offset: tuple[Fraction, ...]

    @property
    def dimension(self) -> int:
        """How many values are free."""
        return len(self.free)

    def basis(self) -> Floats:
        """(n, dimension), float64."""
        flat = [[float(v) for v in row] for row in self.rows]
        return np.array(flat, dtype=np.float64).reshape(len(self.rows), len(self.free))

    def written(self, names: Sequence[str]) -> str:
        """Every coordinate by the free ones, as International Tables write it.

        >>> one, zero = Fraction(1), Fraction(0)
        >>> Affines((0,), ((one,), (2 * one,), (zero,)), (zero, zero, one / 4)).written("xyz")
        'x, 2x, 1/4'
        """
        return ", ".join(
            _form(row, [names[f] for f in self.free], b)
            for row, b in zip(self.rows, self.offset, strict=True)
        )


def _form(row: Sequence[Fraction], names: Sequence[str], offset: Fraction) -> str:
    text = ""
    for factor, name in [*zip(row, names, strict=True), (offset, "")]:
        if not factor:
            continue
        size = "" if name and abs(factor) == 1 else str(abs(factor))
        sign = "-" if factor < 0 else "+" if text else ""
        text += f"{sign}{size}{name}"
    return text or "0"


def solve(
    equations: Sequence[Sequence[Fraction | int]], right: Sequence[Fraction | int], n: int
) -> Affines | None:
    """All x (n,) with equations·x = right; None where there is none."""
    table = [
        [Fraction(v) for v in reversed(list(row))] + [Fraction(b)]
        for row, b in zip(equations, right, strict=True)
    ]
    pivots: list[int] = []
    for column in range(n):
        at = len(pivots)
        lead = next((i for i in range(at, len(table)) if table[i][column]), None)
        if lead is None:
            continue
        table[at], table[lead] = table[lead], table[at]
        table[at] = [v / table[at][column] for v in table[at]]
        for i, row in enumerate(table):
            if i != at and row[column]:
                factor = row[column]
                table[i] = [v - factor * p for v, p in zip(row, table[at], strict=True)]
        pivots.append(column)
    if any(row[n] for row in table[len(pivots) :]):
        return None
    by_place = {n - 1 - column: table[i] for i, column in enumerate(pivots)}
    free = tuple(i for i in range(n) if i not in by_place)
    rows, offset = [], []
    for i in range(n):
        solved = by_place.get(i)
        if solved is None:
            rows.append(tuple(Fraction(int(f == i)) for f in free))
            offset.append(Fraction(0))
        else:
            rows.append(tuple(-solved[n - 1 - f] for f in free))
            offset.append(solved[n])
    return Affines(free, tuple(rows), tuple(offset))


@dataclass(frozen=True)
class Operation:
    """x → rotation·x + shift, in fractional coordinates."""

    rotation: Rotation
    shift: tuple[Fraction, ...]

    @property
    def is_inversion(self) -> bool:
        """Whether it is x → −x."""
        minus = tuple(tuple(-int(i == j) for j in range(3)) for i in range(3))
        return self.rotation == minus and not any(self.shift)


@dataclass(frozen=True)
class Special:
    """A position with its symmetry: the nearest point that has it, how far that is in Å, how
    many operations of the cell keep it in place, and the coordinates that it leaves free. Two
    are equal where their symmetry is.
    """

    point: tuple[float, float, float] = field(compare=False)
    moved: float = field(compare=False)
    order: int
    rotations: tuple[Rotation, ...]
    space: Affines

    @property
    def text(self) -> str:
        """As International Tables write it."""
        return self.space.written("xyz")

    def displacement(self) -> Affines:
        """The displacement tensors (U11, U22, U33, U12, U13, U23) that the site allows."""
        return _invariant(self.rotations, transposed=False)


def _invariant(rotations: Sequence[Rotation], *, transposed: bool) -> Affines:
    """Symmetric S with R S Rᵀ = S, or Rᵀ S R = S where `transposed`."""
    equations = []
    for rotation in rotations:
        r = list(zip(*rotation, strict=True)) if transposed else rotation
        for i, j in PAIRS:
            row = []
            for k, l in PAIRS:
                value = r[i][k] * r[j][l] + (r[i][l] * r[j][k] if k != l else 0)
                row.append(value - int((i, j) == (k, l)))
            if any(row):
                equations.append(row)
    found = solve(equations, [0] * len(equations), 6)
    assert found is not None
    return found


def metric(cell: Sequence[float]) -> Floats:
    """The metric tensor G (3, 3) in Å² of a, b, c in Å and α, β, γ in degrees."""
    a = np.asarray(cell[:3], dtype=np.float64)
    cosines = np.cos(np.radians(np.asarray(cell[3:], dtype=np.float64)))
    g = np.outer(a, a)
    for (i, j), c in zip(((1, 2), (0, 2), (0, 1)), cosines, strict=True):
        g[i, j] = g[j, i] = a[i] * a[j] * c
    return g


@dataclass(frozen=True)
class SpaceGroup:
    """A space group in one setting: its name, and its operations modulo the lattice.

    `operations` are those of a primitive cell, one for each rotation; `centring` the lattice
    points of the cell, zero first.
    """

    name: str
    operations: tuple[Operation, ...]
    centring: tuple[tuple[Fraction, ...], ...]

    def __deepcopy__(self, memo: object) -> SpaceGroup:
        return self  # nothing in it can change

    @classmethod
    def of(cls, name: Any) -> SpaceGroup:
        """From a Hermann–Mauguin or Hall name, a number, or gemmi's own object.

        Raises Unsupported for a name that gemmi does not know.
        """
        library = gemmi()
        found = name
        if isinstance(name, int):
            found = library.find_spacegroup_by_number(name)
        elif isinstance(name, str):
            found = library.find_spacegroup_by_name(name)
            if found is None:
                known = (s for s in library.spacegroup_table() if s.hall == name)
                found = next(known, None)
        if found is None:
            raise Unsupported(
                f"no space group is called {name!r}; give a Hermann–Mauguin name such as "
                "'P n m a' or 'R -3 m:H', a Hall name, or a number"
            )
        return cls.from_operations(found.xhm(), found.operations())

    @classmethod
    def from_operations(cls, name: str, operations: Any) -> SpaceGroup:
        """From gemmi's GroupOps."""
        one = operations.sym_ops[0].DEN
        each = tuple(
            Operation(
                tuple(tuple(int(v) // one for v in row) for row in op.rot),
                tuple(Fraction(int(v), one) % 1 for v in op.tran),
            )
            for op in operations.sym_ops
        )
        centring = tuple(
            tuple(Fraction(int(v), one) % 1 for v in shift) for shift in operations.cen_ops
        )
        return cls(name, each, tuple(sorted(centring)))

    @cached_property
    def _all(self) -> tuple[list[tuple[Operation, tuple[Fraction, ...]]], Floats, Floats]:
        """Every operation of the cell with its shift, and both as arrays."""
        each = [
            (op, _sum(op.shift, centre))
            for op, centre in product(self.operations, self.centring)
        ]
        rotations = np.array([op.rotation for op, _ in each], dtype=np.float64)
        shifts = np.array([[float(t) for t in shift] for _, shift in each])
        return each, rotations, shifts

    @property
    def order(self) -> int:
        """Operations in the cell: the multiplicity of the general position."""
        return len(self.operations) * len(self.centring)

    def triplets(self) -> list[str]:
        """All operations as x, y, z."""
        return [
            Affines((0, 1, 2), _fractions(op.rotation), _sum(op.shift, centre))
            .written("xyz")
            .replace(" ", "")
            for centre in self.centring
            for op in self.operations
        ]

    @cached_property
    def centric(self) -> bool:
        """Whether there is an inversion at the origin."""
        return any(op.is_inversion for op in self.operations)

    @cached_property
    def halved(self) -> tuple[Operation, ...]:
        """The operations, one of each pair that the inversion at the origin joins."""
        kept: dict[Rotation, Operation] = {}
        for op in self.operations:
            opposite = tuple(tuple(-v for v in row) for row in op.rotation)
            if opposite not in kept:
                kept[op.rotation] = op
        return tuple(kept.values())

    @cached_property
    def rotations(self) -> tuple[Rotation, ...]:
        """The point group."""
        return tuple(dict.fromkeys(op.rotation for op in self.operations))

    def metrics(self) -> Affines:
        """The metric tensors (G11, G22, G33, G12, G13, G23) that the group keeps."""
        return _invariant(self.rotations, transposed=True)

    def position(
        self, xyz: Sequence[float], cell: Sequence[float], tolerance: float = 0.05
    ) -> Special:
        """The special position within `tolerance` (Å) of a point, or the general one.

        The operations that bring the point back to within the tolerance are averaged, until
        those that keep the average in place are found. Raises Unsupported where the cell does
        not have the group's symmetry to 1 %.
        """
        g = metric(cell)
        self._fits(g)
        start = np.asarray(xyz, dtype=np.float64)
        point, reach = start, tolerance
        for attempt in range(12):
            kept = list(self._stabiliser(point, g, reach if attempt < 6 else 1e-4))
            mean = np.mean([_image(op, shift, point) for op, shift in kept], axis=0)
            away = mean - point
            point = mean
            if float(away @ g @ away) < 1e-20:
                break
        kept = list(self._stabiliser(point, g, 1e-4))
        equations, right = [], []
        for op, shift in kept:
            for i in range(3):
                equations.append([op.rotation[i][j] - int(i == j) for j in range(3)])
                right.append(-shift[i])
        space = solve(equations, right, 3)
        assert space is not None
        exact = space.basis() @ point[list(space.free)] + [float(b) for b in space.offset]
        away = exact - start
        return Special(
            (float(exact[0]), float(exact[1]), float(exact[2])),
            math.sqrt(max(0.0, float(away @ g @ away))),
            len(kept),
            tuple(dict.fromkeys(op.rotation for op, _ in kept)),
            space,
        )

    def _fits(self, g: Floats) -> None:
        size = float(np.sqrt(np.outer(g.diagonal(), g.diagonal())).max())
        for rotation in self.rotations:
            r = np.array(rotation, dtype=np.float64)
            if float(np.abs(r.T @ g @ r - g).max()) > 0.02 * size:
                raise Unsupported(
                    f"the cell does not have the symmetry of {self.name!r}; check its angles "
                    "and the setting of the space group (rhombohedral or hexagonal axes, "
                    "unique axis)"
                )

    def _stabiliser(self, point: Floats, g: Floats, tolerance: float) -> Any:
        """(operation, shift with its lattice point) that bring a point back."""
        every, rotations, shifts = self._all
        away = rotations @ point + shifts - point
        lattice = np.round(away)
        away = away - lattice
        near = np.einsum("oi,ij,oj->o", away, g, away) <= tolerance**2
        for i in near.nonzero()[0].tolist():
            op, shift = every[i]
            yield op, [t - int(n) for t, n in zip(shift, lattice[i], strict=True)]


def _fractions(rotation: Rotation) -> tuple[tuple[Fraction, ...], ...]:
    return tuple(tuple(Fraction(v) for v in row) for row in rotation)


def _sum(a: Sequence[Fraction], b: Sequence[Fraction]) -> tuple[Fraction, ...]:
    return tuple((x + y) % 1 for x, y in zip(a, b, strict=True))


def _image(op: Operation, shift: Sequence[Fraction], point: Floats) -> Floats:
    found: Floats = np.array(op.rotation) @ point + np.array([float(t) for t in shift])
    return found
