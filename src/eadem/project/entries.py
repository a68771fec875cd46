"""The single numbers of a model's sites: their names, and what each depends on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eadem._plan import PlanArrays
from eadem.bind import free_vector, resolved
from eadem.joint import Joint

__all__ = ["Entry", "entries", "named", "part"]


@dataclass(frozen=True)
class Entry:
    """One number: entry `place` of the flattened `site`, which Eadem knows as `part`.

    `columns` are the free values that it depends on, held by the parameters `owners`. It
    `leads` where it is the first to show a free value; `follows`: a number before it in the
    same site has all its free values.
    """

    name: str
    site: str
    place: int
    part: str
    columns: tuple[int, ...]
    owners: frozenset[str]
    leads: bool
    follows: bool

    @property
    def constant(self) -> bool:
        """Whether it depends on nothing."""
        return not self.columns


def entries(joint: Joint) -> dict[str, Entry]:
    """Every number of a joint model by name, in the order of its sites.

    A site of one number is called by its own name; a block may name those of others in
    `labels`, a mapping from its sites to the names of their entries.
    """
    plan = resolved(joint)
    held = [name for name, owner in plan.owners.items() for _ in range(math.prod(owner.shape))]
    every: dict[int, set[str]] = {}
    slopes: dict[int, dict[int, float]] = {}
    triples = (t.tolist() for t in PlanArrays(plan).entries(free_vector(joint)))
    for row, column, slope in zip(*triples, strict=True):
        every.setdefault(row, set()).add(held[column])
        if slope:
            slopes.setdefault(row, {})[column] = slope
    site_of = {row: site for site, s in plan.slices.items() for row in range(s.start, s.stop)}
    leading: dict[int, tuple[bool, bool, int]] = {}
    for row, mine in sorted(slopes.items()):
        if len(mine) == 1:
            ((column, slope),) = mine.items()
            rank = (abs(slope - 1) > 1e-12, site_of[row] != held[column], row)
            leading[column] = min(rank, leading.get(column, rank))
    first = {rank[2] for rank in leading.values()}
    found: dict[str, Entry] = {}
    for site, where in plan.slices.items():
        shape = tuple(plan.shapes[site])
        block, _, inner = site.partition(".")
        names = named(site, shape, getattr(joint[block], "labels", {}).get(inner, ()))
        seen: set[int] = set()
        for place, row in enumerate(range(where.start, where.stop)):
            columns = tuple(slopes.get(row, ()))
            found[names[place]] = Entry(
                name=names[place],
                site=site,
                place=place,
                part=part(site, place, shape),
                columns=columns,
                owners=frozenset(every.get(row, ())),
                leads=row in first,
                follows=bool(columns) and seen.issuperset(columns),
            )
            seen.update(columns)
    return found


def named(site: str, shape: tuple[int, ...], labels: Sequence[str] = ()) -> list[str]:
    """What a site's numbers are called.

    >>> named("a.cell", (2,), ("a", "b")), named("a.scale", (1,)), named("a.w", (2,))
    (['a.cell.a', 'a.cell.b'], ['a.scale'], ['a.w[0]', 'a.w[1]'])
    """
    size = math.prod(shape)
    if size > 1 and labels:
        return [f"{site}.{label}" for label in labels]
    return [part(site, i, shape) for i in range(size)]


def part(site: str, place: int, shape: tuple[int, ...]) -> str:
    """A number of a site as `eadem.tie` knows it.

    >>> part("a.xyz", 4, (2, 3)), part("a.scale", 0, (1,))
    ('a.xyz[1, 1]', 'a.scale')
    """
    if math.prod(shape) == 1:
        return site
    at = torch.unravel_index(torch.tensor(place), shape)
    return f"{site}[{', '.join(str(int(i)) for i in at)}]"
