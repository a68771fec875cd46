"""Sites and declarations: what a tie says, before anything is resolved."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eadem.errors import NoSuchSite, ShapeError, nearest
from eadem.maps.base import Map, Shape, numel

__all__ = ["Coordinates", "Declaration", "Entry", "Site", "parse"]

Coordinates = NDArray[np.int64]
#: One axis of an index: an integer, or start, stop and step.
Item = int | tuple[int, int, int]


@dataclass(frozen=True)
class Site:
    """A parameter by name, or a part of it by a canonical basic index.

    `index` holds non-negative integers and (start, stop, step) triples, trailing full axes
    left out; None is the whole parameter. `str(site)` is what a user would write.

    >>> str(Site.at("w[-1, ::2]", {"w": (3, 4)}))
    'w[2, 0:3:2]'
    >>> Site.at("w[...]", {"w": (3, 4)}).index is None
    True
    """

    name: str
    index: tuple[Item, ...] | None = None

    @classmethod
    def at(cls, text: str, shapes: Mapping[str, Shape]) -> Site:
        """The site that `text` names, canonical for the shape it has.

        Raises NoSuchSite for an unknown name, ShapeError for an index outside the shape.
        """
        name, index = parse(text)
        if name not in shapes:
            raise NoSuchSite(f"no site {name!r} here; {nearest(name, shapes)}")
        return cls(name, canonical(index, shapes[name], text))

    def __str__(self) -> str:
        if self.index is None:
            return self.name
        parts = [str(i) if isinstance(i, int) else _slice_text(*i) for i in self.index]
        return f"{self.name}[{', '.join(parts)}]"

    def shape(self, whole: Shape) -> Shape:
        """The shape of this part of a parameter of shape `whole`."""
        if self.index is None:
            return whole
        lengths = [len(range(*i)) for i in self.index if not isinstance(i, int)]
        return (*lengths, *whole[len(self.index) :])

    def coordinates(self, whole: Shape) -> Coordinates:
        """The flat coordinates of this part, flat."""
        grid = np.arange(numel(whole), dtype=np.int64).reshape(whole)
        if self.index is None:
            return grid.reshape(-1)
        picked = grid[tuple(i if isinstance(i, int) else _as_slice(i) for i in self.index)]
        return np.ascontiguousarray(picked).reshape(-1)


def _as_slice(item: tuple[int, int, int]) -> slice:
    start, stop, step = item
    return slice(start, None if stop < 0 else stop, step)


def _slice_text(start: int, stop: int, step: int) -> str:
    end = "" if stop < 0 else str(stop)
    return f"{start}:{end}" if step == 1 else f"{start}:{end}:{step}"


def parse(text: str) -> tuple[str, Any]:
    """A name and the index behind it (None without one): "w[1, :2]" → ("w", (1, slice)).

    Raises NoSuchSite where the brackets hold anything but Python's basic indexing.
    """
    name, bracket, body = text.partition("[")
    if not bracket:
        return text, None
    try:
        tree = ast.parse(f"_[{body}", mode="eval").body
        if not isinstance(tree, ast.Subscript) or not isinstance(tree.value, ast.Name):
            raise ValueError
        return name, _index(tree.slice)
    except (SyntaxError, ValueError):
        raise NoSuchSite(
            f"{text!r} is not a site: the brackets take integers, slices and '...', as in "
            "'w[1]' or 'w[:, 2]'"
        ) from None


def _index(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_index(e) for e in node.elts)
    if isinstance(node, ast.Slice):
        return slice(
            *(None if n is None else _index(n) for n in (node.lower, node.upper, node.step))
        )
    value = ast.literal_eval(node)
    if value is not Ellipsis and type(value) is not int:
        raise ValueError
    return value


def canonical(index: Any, shape: Shape, text: str = "") -> tuple[Item, ...] | None:
    """A basic index made canonical for `shape`, None for the whole. Raises ShapeError."""
    if index is None:
        return None
    items = list(index) if isinstance(index, tuple) else [index]
    given = sum(i is not Ellipsis for i in items)
    if given > len(shape) or items.count(Ellipsis) > 1:
        raise ShapeError(f"{text!r} has too many indices: the parameter has shape {shape}")
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape) - given)
    found: list[Item] = []
    for axis, (item, size) in enumerate(zip(items, shape, strict=False)):
        if isinstance(item, slice):
            if item.step == 0:
                raise ShapeError(f"{text!r}: a slice needs a step other than 0")
            start, stop, step = item.indices(size)
            length = len(range(start, stop, step))
            if length == 0:
                raise ShapeError(
                    f"{text!r} is empty: axis {axis} of shape {shape} gives nothing"
                )
            last = start + (length - 1) * step
            found.append((start, last + (1 if step > 0 else -1), step if length > 1 else 1))
            if length == 1:
                found[-1] = (start, start + 1, 1)
        elif not -size <= item < size:
            raise ShapeError(f"{text!r}: index {item} is outside axis {axis} of shape {shape}")
        else:
            found.append(item % size)
    while found and found[-1] == (0, shape[len(found) - 1], 1):
        found.pop()
    return tuple(found) or None


@dataclass(frozen=True, eq=False)
class Entry:
    """One site of a tie and the (unbound) map that takes θ there."""

    site: Site
    map: Map

    def __str__(self) -> str:
        return f"{self.site} = {self.map!r}(θ)"


@dataclass(frozen=True, eq=False)
class Declaration:
    """One tie as declared: there is a θ with `entry.map(θ)` at every `entry.site`."""

    entries: tuple[Entry, ...]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters that the sites belong to, each once."""
        return tuple(dict.fromkeys(e.site.name for e in self.entries))

    def __str__(self) -> str:
        shown = [str(e) for e in self.entries[:4]]
        if len(self.entries) > 4:
            shown.append(f"… {len(self.entries)} sites")
        return "tie(" + ", ".join(shown) + ")"
