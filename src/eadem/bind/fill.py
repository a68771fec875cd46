"""Values from a file into a model, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind.access import base_class
from eadem.bind.group import MARK, Mark
from eadem.bind.load import load_hook
from eadem.bind.names import forget
from eadem.bind.optimizers import DEAD, RESIZED

__all__ = ["fill", "loads_by_itself", "undone_on_error"]

_HOOKS = ("_load_state_dict_post_hooks", "_state_dict_hooks", "_state_dict_pre_hooks")
_METHODS = ("state_dict", "_save_to_state_dict", "load_state_dict", "_load_from_state_dict")


def loads_by_itself(model: nn.Module) -> bool:
    """Whether code of its own takes part when the model's state dict is read or written, or
    its values are not plain tensors; only `load_state_dict` then knows how to load it.
    """
    for module in model.modules():
        if any(module.__dict__[hooks] for hooks in _HOOKS):
            return True
        before = module._load_state_dict_pre_hooks.values()
        if any(getattr(h, "hook", h) is not load_hook for h in before):
            return True
        methods = (getattr(base_class(module), name) for name in _METHODS)
        if any(not (m.__module__ + ".").startswith("torch.nn.") for m in methods):
            return True
    return any(type(value.detach()) is not Tensor for value in _values(model))


def _values(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


@torch.no_grad()
def fill(
    model: nn.Module, names: Sequence[str], into: Callable[[Mapping[str, Tensor]], None]
) -> None:
    """Have `into` fill in tensors, by name, of a model that does not load by itself.

    An interrupt comes when all is filled in: half of a model's values would be worse than a
    late answer.
    """
    held = model.state_dict()
    targets = {name: held[name] for name in names}
    try:
        into(targets)
    except BaseException:
        into(targets)
        raise


@contextmanager
def undone_on_error(model: nn.Module, values: bool = False) -> Iterator[None]:
    """Whatever is raised inside, the model comes out as it went in: its modules' classes and
    contents, its parameters and what they hold; with `values`, also numbers overwritten in
    place, for which copies are kept meanwhile.
    """
    before = _Before(model, values)
    try:
        yield
    except BaseException:
        before.restore()
        raise


class _Before:
    """A model as it was."""

    def __init__(self, model: nn.Module, values: bool) -> None:
        self.model = model
        self.modules = [
            (m, type(m), dict(m.__dict__), [(v, dict(v)) for v in _dicts(m)])
            for m in model.modules()
        ]
        self.groups = [
            (mark, mark.groups)
            for m in model.modules()
            if isinstance(mark := m.__dict__.get(MARK), Mark)
        ]
        self.parameters = [
            (p, p.data, p.grad, {k: p.__dict__[k] for k in (DEAD, RESIZED) if k in p.__dict__})
            for p in model.parameters()
        ]
        self.values = [(v, v.detach().clone()) for v in _values(model)] if values else []

    @torch.no_grad()
    def restore(self) -> None:
        for module, kind, contents, inner in self.modules:
            module.__class__ = kind
            module.__dict__.clear()
            module.__dict__.update(contents)
            for held, was in inner:
                held.clear()
                held.update(was)
        for mark, groups in self.groups:
            mark.groups = groups
        for p, data, grad, notes in self.parameters:
            if p.shape != data.shape or not _same_storage(p, data):
                p.data = data
            p.grad = grad
            for key in (DEAD, RESIZED):
                p.__dict__.pop(key, None)
            p.__dict__.update(notes)
        for value, copy in self.values:
            value.copy_(copy)
        forget(self.model)


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)


def _dicts(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """What a module keeps by name: parameters, buffers, children, hooks, sites."""
    return (v for v in module.__dict__.values() if isinstance(v, dict))
