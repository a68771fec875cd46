"""What torch does to one module, where the module has a site of a tie: freezing reaches θ;
pruning, scripting and replicating are refused before they have changed anything.

The functions that take `self` are methods of the class that a module with a link is given
(bind/access.py). A module that owns all the values of its tie keeps its own class; what is
registered on it passes a hook of torch's.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from eadem.bind.group import LINKS, Link, Place, TieGroup, living
from eadem.bind.names import Sites
from eadem.errors import NotAParameter, TieBroken, Unsupported

__all__ = ["freeze", "known_as", "refuse_replicas", "refuse_script", "register"]


def known_as(link: Link, model: nn.Module | None = None) -> tuple[str, str]:
    """A site and the parameters that hold its free values, by the names that `model` has for
    them, or else by those that they had when they were tied.
    """
    places = link.group.places
    names = {} if model is None else Sites(model).names
    name = names.get(places[link.key], link.key)
    owners = [repr(names.get(places[o], o)) for o in link.expression.owners]
    if owners == [repr(name)]:
        return name, "its own free values"
    return name, ", ".join(owners) or "a constant"


def freeze(base: type[nn.Module], self: nn.Module, requires_grad: bool) -> None:
    """`requires_grad_` on a module that has sites: θ follows, wherever it is, with a warning
    where that is outside the module.
    """
    groups: dict[TieGroup, list[str]] = {}
    for link in self.__dict__[LINKS].values():
        groups.setdefault(link.group, []).append(link.key)
    owners = {group: dict(group.owner_parameters()) for group in groups}
    base.requires_grad_(self, requires_grad)
    for group, keys in groups.items():
        also = {k: p for k, p in owners[group].items() if p.requires_grad is not requires_grad}
        for p in also.values():
            p.requires_grad_(requires_grad)
        if also:
            warnings.warn(
                f"requires_grad_({requires_grad}) at {', '.join(keys)} "
                f"{'thaws' if requires_grad else 'freezes'} {', '.join(also)} too, for "
                f"{_some(list(group.places))} are tied: one θ is learned or frozen as a whole. "
                "To change one site alone, untie it first",
                UserWarning,
                stacklevel=3,
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f", … ({len(names)} sites)" if len(names) > 4 else "")


def register(base: type[nn.Module], self: nn.Module, name: str, param: Any) -> None:
    """`register_parameter` on a module that has sites: what is read at one of them cannot go
    on under another name, as `torch.nn.utils.prune` would have it.
    """
    link = self.__dict__[LINKS].get(name.rpartition("_")[0])
    if link is not None and isinstance(param, Tensor):
        is_theta = any(p is param for p in link.parameters())
        if is_theta or not isinstance(param, nn.Parameter):
            raise _moved(link.group, link.key, name)
    base.register_parameter(self, name, param)


def _refuse_to_move(module: nn.Module, name: str, param: nn.Parameter) -> None:
    """Registration hook: a parameter that holds free values is not renamed on its module."""
    attr = name.rpartition("_")[0]
    if not attr or module._parameters.get(attr) is not param:
        return
    for group in living():
        key = group.keys.get(Place(module, attr))
        if key is not None:
            raise _moved(group, key, name)


register_module_parameter_registration_hook(_refuse_to_move)


def _refuse_to_resize(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
    """Registration hook: an owner of a tie is not replaced by a parameter of another shape,
    which no site could be computed from.
    """
    held = module._parameters.get(name)
    if torch.compiler.is_compiling() or held is None or param is None or param is held:
        return
    if isinstance(param, UninitializedParameter) or param.shape == held.shape:
        return
    for group in living():
        key = group.keys.get(Place(module, name))
        if key in group.resolved.owners:
            raise group.refuse(
                TieBroken(
                    f"{key!r} holds free values of shape {tuple(held.shape)} for the tied "
                    f"sites {_some(list(group.places))}, and was given a parameter of shape "
                    f"{tuple(param.shape)}. eadem.untie them, put the new parameters in place, "
                    "and tie again"
                )
            )


register_module_parameter_registration_hook(_refuse_to_resize)


def _refuse_to_leave(module: nn.Module, name: str, new: nn.Module | None) -> None:
    """Registration hook: a module is not replaced where sites of a tie would leave with it the
    model on which they were tied. One that wraps the old module may come in its place.
    """
    old = module._modules.get(name) if module.__dict__.get("_modules") else None
    if torch.compiler.is_compiling() or old is None or old is new:
        return
    groups = living()
    if not groups:
        return
    leaving = set(old.modules()).difference(() if new is None else new.modules())
    for group in groups:
        keys = [key for key, place in group.places.items() if place.module in leaving]
        if not keys:
            continue
        left = _reached((m for m in group.scope if m not in leaving), (module, name))
        gone = [key for key in keys if group.places[key].module not in left]
        if module in left and gone:
            stay = [k for k in group.places if k not in gone]
            tied = f", tied to {_some(stay)}, which would stay" if stay else " with a tie"
            raise group.refuse(
                TieBroken(
                    f"{name!r} of {type(module).__name__} cannot be replaced: "
                    f"{_some(gone)} would leave the model{tied}. eadem.untie "
                    f"{'it' if len(gone) == 1 else 'them'} first, put the new module in "
                    "place, and tie again"
                )
            )


register_module_module_registration_hook(_refuse_to_leave)


def _reached(roots: Iterable[nn.Module], but: tuple[nn.Module, str]) -> set[nn.Module]:
    """The modules below some, not going by one name of one module."""
    found: set[nn.Module] = set()
    todo = list(roots)
    while todo:
        module = todo.pop()
        if module not in found:
            found.add(module)
            todo += [
                m
                for name, m in module._modules.items()
                if m is not None and not (module is but[0] and name == but[1])
            ]
    return found


def _moved(group: TieGroup, key: str, name: str) -> Unsupported:
    return group.refuse(
        Unsupported(
            f"{key!r} is tied ({_some(list(group.places))}) and cannot be moved to {name!r}: "
            "pruning or re-parametrising this one site would undo the tie. Prune first and tie "
            f"what is left ({name!r} at every site), prune eadem.twin(model), or untie the site"
        )
    )


def refuse_script(self: nn.Module) -> nn.Module:
    """`torch.jit.script` copies modules attribute by attribute, generated ones not at all."""
    link = next(iter(self.__dict__[LINKS].values()))
    name, owners = known_as(link)
    raise link.group.refuse(
        Unsupported(
            f"torch.jit.script cannot follow the tie of {name!r} (its values come from "
            f"{owners}); use torch.compile, torch.export or torch.jit.trace, which keep it, or "
            "script eadem.twin(model), which has no ties and the same function"
        )
    )


def refuse_replicas(self: nn.Module) -> nn.Module:
    """`DataParallel` copies modules one by one."""
    link = next(iter(self.__dict__[LINKS].values()))
    name, owners = known_as(link)
    raise link.group.refuse(
        Unsupported(
            f"DataParallel copies modules one by one, and {name!r} would lose its tie to "
            f"{owners}; use DistributedDataParallel"
        )
    )


_register_parametrization = parametrize.register_parametrization


@functools.wraps(_register_parametrization)
def _parametrize_or_refuse(
    module: nn.Module, tensor_name: str, *args: Any, **kwargs: Any
) -> nn.Module:
    """torch's `register_parametrization`, which takes a parameter away from its module."""
    for group in living():
        key = group.keys.get(Place(module, tensor_name))
        if key is not None:
            raise group.refuse(
                Unsupported(
                    f"{key!r} is tied ({_some(list(group.places))}) and cannot be given a "
                    "parametrization of torch's; tie it through a map that says the same, "
                    "parametrize eadem.twin(model), or untie the site"
                )
            )
    return _register_parametrization(module, tensor_name, *args, **kwargs)


parametrize.register_parametrization = _parametrize_or_refuse


_get_parameter = nn.Module.get_parameter


@functools.wraps(_get_parameter)
def _get_parameter_or_say(self: nn.Module, target: str) -> nn.Parameter:
    """torch's `get_parameter`, which says nothing of a tie where a site is no parameter. One
    that holds free values under its own name is found, as in `named_parameters()`.
    """
    try:
        return _get_parameter(self, target)
    except AttributeError:
        path, _, attr = target.rpartition(".")
        module = self.get_submodule(path)
        link = module.__dict__.get(LINKS, {}).get(attr)
        if link is None:
            raise
        own = module._parameters.get(attr)
        if own is not None:
            return own
        _, owners = known_as(link, self)
        raise NotAParameter(
            f"{target!r} has no parameter of its own: it is tied, and its value comes from "
            f"{owners}. Ask for that by its name, read the value as an attribute, or see "
            "eadem.explain(model, site)"
        ) from None


nn.Module.get_parameter = _get_parameter_or_say  # type: ignore[method-assign]
