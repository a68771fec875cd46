"""Modules that differ in their numbers alone, as one function of those numbers.

Two modules are alike when their trees of modules have the same classes, the same sites,
buffers and tensors of the same shapes, and otherwise equal attributes. One of them, copied and
untied, then stands for all: called with the values at the sites of each, and with the tensors
that each holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind.access import base_class
from eadem.bind.function import _Call
from eadem.bind.names import Sites
from eadem.bind.untie import untie

__all__ = ["Alike", "alike"]

_OWN = frozenset(nn.Module().__dict__) - {"training"}
_PLAIN = (str, int, float, bool, complex, bytes, type(None), torch.dtype, torch.device)


@dataclass(frozen=True, eq=False)
class Alike:
    """Modules called `names`, N of them. `sites` (N, k): where the values of each are in the
    flat vector of all sites; `data`: the tensors that each holds, one row a module (empty for
    a module alone, whose copy holds them). `function(values, *data)` calls the function for
    one of them; `along(values, directions, *data)`, with directions (t, k), calls it as
    `function(part, {site: (t, *shape)})`.
    """

    names: tuple[str, ...]
    sites: Tensor
    data: tuple[Tensor, ...]
    function: Callable[..., Any]
    along: Callable[..., Any]


def alike(
    model: nn.Module,
    parts: Mapping[str, nn.Module],
    slices: Mapping[str, slice],
    function: Callable[..., Any],
) -> list[Alike]:
    """`function(part)` for parts of a model, those that are alike together.

    `slices`: where each site of the model is in the flat vector, as `resolved(model).slices`.

    >>> model = nn.ModuleList([nn.Linear(2, 1), nn.Linear(2, 1), nn.Linear(3, 1)])
    >>> from eadem.bind import resolved
    >>> each = {str(i): m for i, m in enumerate(model)}
    >>> found = alike(model, each, resolved(model).slices, lambda m: m.weight)
    >>> [a.names for a in found], found[0].sites.tolist()
    ([('0', '1'), ('2',)], [[0, 1, 2], [3, 4, 5]])
    >>> found[0].function(torch.tensor([1.0, 2.0, 4.0]))
    tensor([[1., 2.]])
    """
    whole = Sites(model)
    groups: list[list[tuple[str, _Looked]]] = []
    by_key: dict[Any, list[list[tuple[str, _Looked]]]] = {}
    for name, part in parts.items():
        looked = _look(part, whole, slices)
        known = by_key.setdefault(looked.key, [])
        same = (g for g in known if _equal(g[0][1].other, looked.other))
        group = next(same, None)
        if group is None:
            group = []
            known.append(group)
            groups.append(group)
        group.append((name, looked))
    return [_together(members, parts, function) for members in groups]


@dataclass(frozen=True, eq=False)
class _Looked:
    """What a module is made of: `key` must be equal, and `other` attributes too; `sites` and
    `tensors` are its numbers.
    """

    key: Any
    other: list[Any]
    sites: Tensor
    tensors: list[Tensor]


def _look(part: nn.Module, whole: Sites, slices: Mapping[str, slice]) -> _Looked:
    key: list[Any] = []
    other: list[Any] = []
    tensors: list[Tensor] = []
    at: list[Tensor] = []
    own = Sites(part)
    for name, place in own.places.items():
        found = slices[whole.names[place]]
        key.append((name, own.shape(name), found.stop - found.start))
        at.append(torch.arange(found.start, found.stop))
    for path, module in part.named_modules():
        key.append((path, base_class(module), module.training, tuple(module._modules)))
        for kind, name, value in _held(module):
            if isinstance(value, Tensor):
                key.append((kind, name, tuple(value.shape), value.dtype, value.device))
                tensors.append(value)
            elif isinstance(value, _PLAIN):
                key.append((kind, name, type(value), value))
            else:
                key.append((kind, name, type(value)))
                other.append(value)
    sites = torch.cat(at) if at else torch.zeros(0, dtype=torch.int64)
    return _Looked(tuple(key), other, sites, tensors)


def _held(module: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Buffers and plain attributes of one module, without what nn.Module and ties keep."""
    for name, value in module._buffers.items():
        yield "buffer", name, value
    for name, value in module.__dict__.items():
        if name not in _OWN and not name.startswith("_eadem_"):
            yield "attribute", name, value


def _equal(a: list[Any], b: list[Any]) -> bool:
    for x, y in zip(a, b, strict=True):
        if x is y:
            continue
        try:
            if not bool(x == y):
                return False
        except (RuntimeError, ValueError, TypeError):  # arrays, and what does not compare
            return False
    return True


def _together(
    members: list[tuple[str, _Looked]],
    parts: Mapping[str, nn.Module],
    function: Callable[..., Any],
) -> Alike:
    first = members[0][0]
    apart = untie(copy.deepcopy(parts[first]))
    names = tuple(name for name, _ in members)
    sites = torch.stack([each.sites for _, each in members])
    data: tuple[Tensor, ...] = ()
    if len(members) > 1:
        columns = zip(*(each.tensors for _, each in members), strict=True)
        data = tuple(torch.stack([t.detach() for t in column]) for column in columns)
    stand = _Stand(apart, function)
    return Alike(names, sites, data, stand, stand.along)


class _Stand:
    """One module that stands for those alike: a function of sites' values and tensors."""

    def __init__(self, part: nn.Module, function: Callable[..., Any]) -> None:
        self.call = _Call(part, function)
        sites = Sites(part)
        self.shapes = [(n, sites.shape(n)) for n in sites.places]
        self.sizes = [torch.Size(s).numel() for _, s in self.shapes]
        self.seats = [
            (kind, path, module, name)
            for path, module in part.named_modules()
            for kind, name, value in _held(module)
            if isinstance(value, Tensor)
        ]

    def __call__(self, values: Tensor, *data: Tensor) -> Any:
        return self._called(values, data, ())

    def along(self, values: Tensor, directions: Tensor, *data: Tensor) -> Any:
        """The same with the directions (t, k) by site."""
        return self._called(values, data, (self._split(directions),))

    def _split(self, values: Tensor) -> dict[str, Tensor]:
        pieces = zip(self.shapes, torch.split(values, self.sizes, -1), strict=True)
        return {n: v.reshape((*values.shape[:-1], *shape)) for (n, shape), v in pieces}

    def _called(self, values: Tensor, data: tuple[Tensor, ...], given: tuple[Any, ...]) -> Any:
        swapped = {f"model.{name}": v for name, v in self._split(values).items()}
        plain: list[tuple[nn.Module, str, Tensor]] = []
        for (kind, path, module, name), tensor in zip(self.seats, data, strict=False):
            if kind == "buffer":
                swapped[f"model.{path}.{name}" if path else f"model.{name}"] = tensor
            else:
                plain.append((module, name, tensor))
        with _attributes(plain):
            # nothing in an untied copy is one tensor under two names
            return torch.func.functional_call(self.call, swapped, given, tie_weights=False)


@contextmanager
def _attributes(plain: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    """While active, modules hold other tensors as plain attributes."""
    before = [(module, name, module.__dict__[name]) for module, name, _ in plain]
    try:
        for module, name, tensor in plain:
            module.__dict__[name] = tensor
        yield
    finally:
        for module, name, value in before:
            module.__dict__[name] = value
