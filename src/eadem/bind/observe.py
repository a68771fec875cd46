"""Watching every read of a tied site, for traces; costs nothing when it is not used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from eadem.bind.access import flat_weights, ignore
from eadem.bind.names import Sites

__all__ = ["observe"]


@contextmanager
def observe(
    model: nn.Module, callback: Callable[[str, Tensor], Tensor], also: Iterable[str] = ()
) -> Iterator[None]:
    """While active, each read of a tied site goes through `callback(name, value)`.

    The callback returns the tensor that the model then uses. Sites are those of every tie,
    owners included, by the names that `model` gives them, and the parameters named in `also`,
    which no tie need have a say in. A site that is computed once per
    forward and read several times gives one callback for each read.
    """
    sites = Sites(model)
    watched: dict[nn.Module, dict[str, str]] = {}
    for group in sites.groups:
        for place in group.places.values():
            watched.setdefault(place.module, {})[place.attr] = sites.name(place)
    for alias, name in sites.aliases.items():
        for n in (alias, name):
            place = sites.places[n]
            watched.setdefault(place.module, {})[place.attr] = n
    for n in also:
        place = sites.places[n]
        watched.setdefault(place.module, {}).setdefault(place.attr, n)
    before = {m: type(m) for m in watched}
    try:
        for module, names in watched.items():
            module.__class__ = _watching(type(module), names, callback)
        yield
    finally:
        for module, kind in before.items():
            module.__class__ = kind


def _watching(
    kind: Any, names: dict[str, str], callback: Callable[[str, Tensor], Tensor]
) -> Any:
    contents: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
    }
    for attr, name in names.items():
        contents[attr] = property(_reader(kind, attr, name, callback))
    if issubclass(kind, nn.RNNBase):
        contents["_flat_weights"] = property(flat_weights, ignore)
    meta: Any = type(kind)
    return meta(kind.__name__, (kind,), contents)


def _reader(
    kind: type[nn.Module], attr: str, name: str, callback: Callable[[str, Tensor], Tensor]
) -> Callable[[nn.Module], Tensor]:
    derived = getattr(kind, attr, None)

    def get(self: nn.Module) -> Tensor:
        if isinstance(derived, property):
            assert derived.fget is not None
            return callback(name, derived.fget(self))
        value = self._parameters[attr]
        assert value is not None
        return callback(name, value)

    return get
