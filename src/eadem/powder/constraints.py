"""The symmetry of a phase as ties: what a cell, its positions and displacements may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import nn

from eadem.bind import plan, tie
from eadem.errors import Unsupported
from eadem.maps import Affine, Fixed, Map, Same, Scale
from eadem.maps.dense import Dense
from eadem.powder.symmetry import CELL, Affines, SpaceGroup, Special

__all__ = ["cell_relations", "constrain"]

#: Of a cell's number: the number that it follows and how, or what it is.
Relation = tuple[int, Map]


def constrain(
    phase: nn.Module,
    group: SpaceGroup,
    sites: Sequence[Special],
    anisotropic: Sequence[int] = (),
) -> None:
    """Declare the ties of a phase with parameters `cell`, `xyz` and `u_aniso`.

    `sites`: the positions in order; `anisotropic`: the atoms of the rows of `u_aniso`.
    """
    with plan(phase):
        _relate(phase, "cell", cell_relations(group))
        for i, site in enumerate(sites):
            _declare(phase, f"xyz[{i}]", [f"xyz[{i}, {j}]" for j in range(3)], site.space)
        for row, i in enumerate(anisotropic):
            names = [f"u_aniso[{row}, {j}]" for j in range(6)]
            _declare(phase, f"u_aniso[{row}]", names, sites[i].displacement())


def _relate(phase: nn.Module, site: str, relations: dict[int, Relation]) -> None:
    """Values of one site that are constants, or follow others."""
    followers: dict[int, dict[str, Map]] = {}
    for i, (source, phi) in relations.items():
        if source < 0:
            tie(phase, f"{site}[{i}]", via=phi)
        else:
            followers.setdefault(source, {})[f"{site}[{i}]"] = phi
    for source, maps in followers.items():
        tie(phase, {f"{site}[{source}]": Same(), **maps})


def _declare(phase: nn.Module, whole: str, names: Sequence[str], space: Affines) -> None:
    """The ties that keep a part of a site, its places called `names`, in an affine space."""
    if space.dimension == len(names):
        return
    if any(sum(map(bool, row)) > 1 for row in space.rows):
        offset = torch.tensor([float(b) for b in space.offset], dtype=torch.float64)
        tie(phase, whole, via=Dense(torch.from_numpy(space.basis()), offset))
        return
    followers: dict[int, dict[str, Map]] = {}
    for i, (row, offset_i) in enumerate(zip(space.rows, space.offset, strict=True)):
        if i in space.free:
            continue
        column = next((k for k, factor in enumerate(row) if factor), None)
        if column is None:
            tie(phase, names[i], via=Fixed(float(offset_i)))
            continue
        source = followers.setdefault(space.free[column], {})
        source[names[i]] = _linear(row[column], offset_i)
    for free, maps in followers.items():
        tie(phase, {names[free]: Same(), **maps})


def _linear(factor: Fraction, offset: Fraction) -> Map:
    if offset:
        return Affine(float(factor), float(offset))
    return Same() if factor == 1 else Scale(float(factor))


def cell_relations(group: SpaceGroup) -> dict[int, Relation]:
    """Which of a, b, c, α, β, γ follow others or are constants: by place, the source (−1 for a
    constant) and the map.

    From the invariant metric tensors: two lengths are proportional where their squares are,
    and an angle is constant where G12 is proportional to both G11 and G22. Raises Unsupported
    in a setting where this does not say all (a body-centred cell by its primitive vectors).

    >>> {CELL[i]: phi for i, (_, phi) in cell_relations(SpaceGroup.of("P 63/m m c")).items()}
    {'b': Same(), 'alpha': Fixed(90.0), 'beta': Fixed(90.0), 'gamma': Fixed(120.0)}
    """
    space = group.metrics()
    squares = space.rows[:3]
    products = {3: (space.rows[5], 1, 2), 4: (space.rows[4], 0, 2), 5: (space.rows[3], 0, 1)}
    found: dict[int, Relation] = {}
    for i in (1, 2):
        for j in range(i):
            ratio = _ratio(squares[i], squares[j])
            if j not in found and ratio is not None:
                found[i] = (j, Same() if ratio == 1 else Scale(math.sqrt(ratio)))
                break
    for k, (row, i, j) in products.items():
        cosine = _cosine(row, squares[i], squares[j])
        if cosine is not None:
            found[k] = (-1, Fixed(cosine))
            continue
        for other in range(3, k):
            before, p, q = products[other]
            rest = {i, j} ^ {p, q}
            same = all(squares[m] == squares[min(rest)] for m in rest)
            if other in found or not same:
                continue
            if row == before:
                found[k] = (other, Same())
            elif row == tuple(-v for v in before):
                found[k] = (other, Affine(-1.0, 180.0))
            if k in found:
                break
    if 6 - len(found) != space.dimension:
        raise Unsupported(
            f"in the setting {group.name!r} the cell's {', '.join(CELL)} are not simple "
            "relations of each other; use the conventional setting of this space group"
        )
    return found


def _ratio(a: Sequence[Fraction], b: Sequence[Fraction]) -> Fraction | None:
    """The factor k with a = k·b, or None."""
    lead = next((i for i, v in enumerate(b) if v), None)
    if lead is None or not a[lead]:
        return None
    k = a[lead] / b[lead]
    return k if all(x == k * y for x, y in zip(a, b, strict=True)) else None


def _cosine(
    row: Sequence[Fraction], first: Sequence[Fraction], second: Sequence[Fraction]
) -> float | None:
    """The angle in degrees where it is constant."""
    if not any(row):
        return 90.0
    k, m = _ratio(row, first), _ratio(second, first)
    if k is None or m is None:
        return None
    cosine = float(k) / math.sqrt(m)
    exact = {-0.5: 120.0, 0.5: 60.0}
    return exact.get(cosine, math.degrees(math.acos(cosine)))
