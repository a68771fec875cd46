"""Evaluation at the speed of the stock layers: every site computed once, for a while."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from eadem.bind.access import begin_at, begins_at, computed, end_at
from eadem.bind.forward import version_of
from eadem.bind.group import LINKS, Link
from eadem.bind.names import Sites
from eadem.errors import TieBroken, Unsupported

__all__ = ["expanded"]


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """While active, sites that are computed hold their values, and gradients are off.

    A tied model computes such a site in every forward, so that it is never stale. Between
    changes of the free values that is not needed: a loop over test data may run inside of
    `expanded`, where layers read plain tensors. Parameters, buffers and `state_dict` are what
    they were. Writing at a site, replacing a parameter that holds free values (as
    `functional_call` does), copying and pickling are refused meanwhile.

    Gradients are off in the thread that entered. A forward that has them on all the same, as
    in another thread, gives the same values, and its backward pass raises TieBroken instead
    of leaving out the free values; gradients of inputs alone may be taken.

    Raises Unsupported, before anything changes, where the model, a part of it or a model that
    contains it is expanded already, in whatever thread. Raises TieBroken at the end where
    free values have changed since the start, in whatever way, or a held value was written.

    >>> from eadem.bind import tie
    >>> from eadem.maps import Palindrome
    >>> conv = nn.Conv1d(1, 1, 5)
    >>> t = tie(conv, "weight", via=Palindrome())
    >>> with expanded(conv):
    ...     y = conv(torch.zeros(1, 1, 8))
    ...     conv.weight is conv.weight
    True
    """
    sites = Sites(model)
    with _alone(model), _gradients_off():
        held = _Held(model, sites)
        try:
            held.enter()
            yield
        finally:
            held.leave()
        held.check()


_taken: WeakSet[nn.Module] = WeakSet()
_taking = threading.Lock()


@contextmanager
def _alone(model: nn.Module) -> Iterator[None]:
    """Raise Unsupported where a module of the model is expanded already."""
    modules = list(model.modules())
    with _taking:
        if any(m in _taken for m in modules):
            raise Unsupported(
                f"this {type(model).__name__}, a part of it or a model around it is in "
                "eadem.expanded already, here or in another thread; enter it once, around all "
                "that reads the model, and evaluate inside (threads may share one), or give "
                "every thread its own eadem.twin(model)"
            )
        _taken.update(modules)
    try:
        yield
    finally:
        with _taking:
            _taken.difference_update(modules)


class _Modes(threading.local):
    """The gradient modes that this thread's active `expanded` have found, outermost first."""

    def __init__(self) -> None:
        self.found: list[list[bool]] = []


_modes = _Modes()


@contextmanager
def _gradients_off() -> Iterator[None]:
    """Gradients off until the last one that is active in this thread ends, in any order."""
    found = _modes.found
    mine = [torch.is_grad_enabled()]
    found.append(mine)
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        at = next(i for i, m in enumerate(found) if m is mine)
        del found[at]
        if at < len(found):
            found[at][:] = mine  # the next one restores what this one found
        elif found is _modes.found:
            torch.set_grad_enabled(mine[0])
        else:
            raise Unsupported(
                "eadem.expanded was left in another thread than it was entered in, where "
                "gradients stay off; leave it in the same thread"
            )


class _Held:
    """The values that a model's computed sites hold, and what is changed to hold them."""

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        inside = set(model.modules())
        self.thetas = {id(p): p for g in sites.groups for _, p in g.owner_parameters()}
        self.versions = {k: version_of(p) for k, p in self.thetas.items()}
        self.copies = {k: p.detach().clone() for k, p in self.thetas.items()}
        places = dict.fromkeys(p.module for g in sites.groups for p in g.places.values())
        self.links: list[tuple[nn.Module, dict[str, Link]]] = []
        for module in places:
            links = {a: k for a, k in module.__dict__.get(LINKS, {}).items() if computed(k)}
            if links:
                self.links.append((module, links))
        self.values = [{a: _value(k) for a, k in links.items()} for _, links in self.links]
        self.written = [version_of(v) for values in self.values for v in values.values()]
        self.owners = [(m, m._parameters) for m in self._owners()]
        self.kinds = [type(module) for module, _ in self.links]
        scopes = dict.fromkeys(m for g in sites.groups for m in g.scope if m in inside)
        self.begun = [m for m in scopes if begins_at(m)]

    def _owners(self) -> dict[nn.Module, None]:
        """The modules whose parameters the held values come from."""
        sources = (s for _, links in self.links for k in links.values() for s in k.sources)
        return dict.fromkeys(module for module, _, _ in sources)

    def enter(self) -> None:
        """Hold the values."""
        for module in self.begun:
            end_at(module)
        for module, had in self.owners:
            module.__dict__["_parameters"] = _Kept(had, self.thetas)
        for (module, _), values in zip(self.links, self.values, strict=True):
            module.__dict__.update(values)
            held = _holding(type(module), tuple(values))  # type: ignore[arg-type]
            object.__setattr__(module, "__class__", held)

    def leave(self) -> None:
        """Compute again from now on."""
        for (module, _), kind, values in zip(self.links, self.kinds, self.values, strict=True):
            object.__setattr__(module, "__class__", kind)
            for attr in values:
                module.__dict__.pop(attr, None)
        for module, had in self.owners:
            now = module._parameters
            if now is not had:
                left = dict(now)
                had.clear()
                had.update(left)
                module.__dict__["_parameters"] = had
        for module in self.begun:
            begin_at(module)

    def check(self) -> None:
        """Raise TieBroken where the held values were not those of the free values all along."""
        same = (
            all(self.versions[k] == version_of(p) for k, p in self.thetas.items())
            and self.written == [version_of(v) for vs in self.values for v in vs.values()]
            and all(_equal(p.detach(), self.copies[k]) for k, p in self.thetas.items())
            and all(
                _close(links[a].compute(), v.detach())
                for (_, links), values in zip(self.links, self.values, strict=True)
                for a, v in values.items()
            )
        )
        if not same:
            raise TieBroken(
                "a tied value was written while the model was expanded: what was computed in "
                "between used the values from before. Write outside of eadem.expanded"
            )


def _equal(now: Tensor, before: Tensor) -> bool:
    """Whether two tensors agree to the bit, or in being no number."""
    if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
        return False
    return now.is_meta or bool(((now == before) | ((now != now) & (before != before))).all())


def _close(now: Tensor, before: Tensor) -> bool:
    """Whether two computations of the same site agree: sums may be taken in another order."""
    if (now.shape, now.dtype, now.device) != (before.shape, before.dtype, before.device):
        return False
    if now.is_meta or _equal(now, before):
        return True
    small = torch.finfo(now.dtype).eps ** 0.5
    size = float(before.abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(now, before, rtol=small, atol=small * size, equal_nan=True)


def _value(link: Link) -> Tensor:
    """A site's value, at which a backward pass raises."""

    def refuse(grad: Tensor) -> None:
        raise TieBroken(
            f"a backward pass has come to {link.key!r}, which eadem.expanded held fixed in the "
            "forward: the free values would get no gradient. Train outside of eadem.expanded, "
            "and in no other thread meanwhile"
        )

    thetas = link.parameters()
    with torch.inference_mode(False), torch.no_grad():
        value = link.of(thetas).clone(memory_format=torch.contiguous_format)
    if any(p.requires_grad for p in thetas):
        value.requires_grad_().register_hook(refuse)
    return value


class _Kept(dict[str, Any]):
    """A module's parameters, of which those that held values come from stay."""

    def __init__(self, had: dict[str, Any], thetas: dict[int, Any]) -> None:
        super().__init__(had)
        self.fixed = {k: p for k, p in had.items() if id(p) in thetas}

    def _refuse(self, name: str) -> TieBroken:
        return TieBroken(
            f"the parameter {name!r} holds free values of a model in eadem.expanded, which "
            "does not see another in its place; call functional_call, and replace or remove "
            "parameters, outside of that"
        )

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.fixed and value is not self.fixed[name]:
            raise self._refuse(name)
        super().__setitem__(name, value)

    def __delitem__(self, name: str) -> None:
        if name in self.fixed:
            raise self._refuse(name)
        super().__delitem__(name)

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dict."""
        if name in self.fixed:
            raise self._refuse(name)
        return super().pop(name, *default)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return dict, (dict(self),)


@functools.cache
def _holding(kind: Any, attrs: tuple[str, ...]) -> Any:
    """`kind` without the properties `attrs`: the module's own contents are found instead."""

    def set_(self: Any, name: str, value: Any) -> None:
        if name in attrs or name == "__class__":
            raise TieBroken(
                f"{name!r} holds a value of eadem.expanded; assign it outside of that"
            )
        kind.__setattr__(self, name, value)

    def refuse(self: Any, *args: Any) -> None:
        raise Unsupported(
            "a model is not copied or pickled while it is expanded; do it outside of "
            "eadem.expanded, or take eadem.twin(model) there"
        )

    contents: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__setattr__": set_,
        "__copy__": refuse,
        "__deepcopy__": refuse,
        "__reduce_ex__": refuse,
        "_eadem_held": True,
        **dict.fromkeys(attrs),
    }
    meta: Any = type(kind)
    return meta(kind.__name__, (kind,), contents)
