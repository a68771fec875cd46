"""Groups and representations from the plain data that a record keeps of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from eadem.errors import GroupError, NotARepresentation
from eadem.groups.families import (
    Cyclic,
    Dihedral,
    Octahedral,
    Product,
    ReverseComplement,
    Symmetric,
)
from eadem.groups.generated import Generated
from eadem.groups.group import Group
from eadem.groups.lie import Lie
from eadem.groups.representation import Representation

__all__ = ["group_from", "representation_from"]


def group_from(spec: tuple[Any, ...]) -> Group:
    """The group that has this `spec`. Raises GroupError where no kind is known by its name."""
    kind, *args = spec
    if kind in ("Cyclic", "Dihedral", "Symmetric"):
        known: dict[str, Any] = {"Cyclic": Cyclic, "Dihedral": Dihedral, "Symmetric": Symmetric}
        made: Group = known[kind](*args)
        return made
    if kind == "Octahedral":
        return Octahedral(*args)
    if kind == "ReverseComplement":
        return ReverseComplement()
    if kind == "Product":
        return Product(*(group_from(a) for a in args))
    if kind == "Generated" and isinstance(args[0], Tensor):
        return Generated(list(args[0]), *args[1:])
    if kind == "Lie" and isinstance(args[0], Tensor):
        return Lie.of(args[0], args[1:])
    raise GroupError(f"no group is called {kind!r}; a newer Eadem may know it")


def representation_from(group: Group, form: tuple[Any, ...]) -> Representation:
    """A representation from its `form`. Raises NotARepresentation where it is none."""
    for given in _given(form):
        (stacked,) = given[1:]
        if not isinstance(stacked, Tensor) or stacked.shape[:1] != (len(group.generators),):
            raise NotARepresentation(
                f"{group} has {len(group.generators)} generators; the file holds no image for "
                "each"
            )
        Representation(group, given).check()
    return Representation(group, form)


def _given(form: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """The given matrices of which a form is made: each is checked, however large the whole."""
    if not isinstance(form, tuple) or not form or not isinstance(form[0], str):
        return
    if form[0] == "given":
        yield form
    for part in form[1:]:
        yield from _given(part)
