"""Evaluation at the speed of the stock layers: every site computed once, for a while."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind.access import computed
from eadem.bind.forward import enter_forward, leave_forward
from eadem.bind.group import LINKS
from eadem.bind.names import Sites
from eadem.errors import TieBroken, Unsupported

__all__ = ["expanded"]


@contextmanager
def expanded(model: nn.Module) -> Iterator[None]:
    """While active, sites that are computed hold their values, and gradients are off.

    A tied model computes such a site in every forward, so that it is never stale. Between
    changes of the free values that is not needed: a loop over test data may run inside of
    `expanded`, where layers read plain tensors. Parameters, buffers and `state_dict` are what
    they were. Writing at a site, copying or pickling is refused meanwhile. Raises TieBroken
    at the end where a value was written in place or free values have changed since the start.

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
    held: list[tuple[nn.Module, Any, dict[str, Tensor]]] = []
    thetas = [p for group in sites.groups for _, p in group.owner_parameters()]
    modules = dict.fromkeys(p.module for g in sites.groups for p in g.places.values())
    hooked = dict.fromkeys(m for g in sites.groups for m in g.scope)
    hooks = [h for m in hooked for h in (m._forward_pre_hooks, m._forward_hooks)]
    before = [dict(h) for h in hooks]
    with torch.no_grad():
        for module in modules:
            links = module.__dict__.get(LINKS, {})
            values = {a: k.compute().contiguous() for a, k in links.items() if computed(k)}
            if values:
                held.append((module, type(module), values))
        versions = [p._version for p in thetas]
        written = [v._version for *_, values in held for v in values.values()]
        try:
            for module, kind, values in held:
                module.__dict__.update(values)
                object.__setattr__(module, "__class__", _holding(kind, tuple(values)))
            for h in hooks:
                for key in [k for k, f in h.items() if f in (enter_forward, leave_forward)]:
                    del h[key]
            yield
        finally:
            for module, kind, values in held:
                object.__setattr__(module, "__class__", kind)
                for attr in values:
                    module.__dict__.pop(attr, None)
            for h, had in zip(hooks, before, strict=True):
                _restore(h, had)
    now = [v._version for *_, values in held for v in values.values()]
    if written != now or versions != [p._version for p in thetas]:
        raise TieBroken(
            "a tied value was written while the model was expanded: what was computed in "
            "between used the values from before. Write outside of eadem.expanded"
        )


def _restore(hooks: dict[int, Any], had: dict[int, Any]) -> None:
    """Our hooks back in their places; others stay removed or added as they were."""
    ours = (enter_forward, leave_forward)
    back = {k: f for k, f in had.items() if k in hooks or f in ours}
    back |= {k: f for k, f in hooks.items() if k not in back}
    hooks.clear()
    hooks.update(back)


@functools.cache
def _holding(kind: Any, attrs: tuple[str, ...]) -> Any:
    """`kind` without the properties `attrs`: the module's own contents are found instead."""

    def set_(self: Any, name: str, value: Any) -> None:
        if name in attrs:
            raise TieBroken(
                f"{name!r} holds a value of eadem.expanded; assign it outside of that"
            )
        kind.__setattr__(self, name, value)

    def refuse(self: Any, *args: Any) -> None:
        raise Unsupported(
            "a model is not copied or pickled while it is expanded; do it outside of "
            "eadem.expanded, or take eadem.twin(model)"
        )

    contents: dict[str, Any] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__setattr__": set_,
        "__deepcopy__": refuse,
        "__reduce_ex__": refuse,
        **dict.fromkeys(attrs),
    }
    meta: Any = type(kind)
    return meta(kind.__name__, (kind,), contents)
