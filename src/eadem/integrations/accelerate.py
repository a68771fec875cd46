"""accelerate: tied models loaded tensor by tensor, dispatched and offloaded.

accelerate puts tensors into modules one at a time. Where θ has another shape than its site it
goes in as θ; a checkpoint that holds the sites in full is lifted first; a module that reads a
parameter which is offloaded has it brought in for its own forward, like its own parameters.
A device map that puts the sites of one tie on several devices is refused.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from importlib import import_module
from typing import Any

from torch import nn

from eadem.bind.group import LINKS, Link
from eadem.bind.load import load_hook
from eadem.bind.names import Sites
from eadem.errors import Unsupported

__all__ = ["follow", "offloading"]

#: The model whose checkpoint is being read file by file.
_loading: ContextVar[nn.Module | None] = ContextVar("eadem_loading", default=None)

#: Key in a module's `__dict__` for the parameters elsewhere that its forward brought in.
_BROUGHT = "_eadem_brought"


def follow() -> None:
    """Have accelerate keep ties. It must be imported already; a second call does nothing."""
    modeling = import_module("accelerate.utils.modeling")
    big_modeling = import_module("accelerate.big_modeling")
    homes: tuple[tuple[Any, str, Callable[..., Any]], ...] = (
        (modeling, "set_module_tensor_to_device", _set_tensor),
        (modeling, "load_checkpoint_in_model", _load_checkpoint),
        (modeling, "load_state_dict", _read_file),
        (big_modeling, "dispatch_model", _dispatch),
        (big_modeling, "cpu_offload", _offload),
        (big_modeling, "disk_offload", _offload),
    )
    if hasattr(big_modeling.dispatch_model, "_eadem"):
        return
    for home, name, around in homes:
        _replace(getattr(home, name), around)


def _replace(function: Callable[..., Any], around: Callable[..., Any]) -> None:
    """Put a wrapped function wherever it has been imported by name."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(function, *args, **kwargs)

    wrapper._eadem = True  # type: ignore[attr-defined]
    name = function.__name__
    for where, module in list(sys.modules.items()):
        known = where.partition(".")[0] in ("accelerate", "transformers", "peft")
        if known and vars(module).get(name) is function:
            setattr(module, name, wrapper)


def _set_tensor(
    function: Callable[..., Any],
    module: nn.Module,
    tensor_name: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`set_module_tensor_to_device`, which looks at the site where θ is meant."""
    path, _, attr = tensor_name.rpartition(".")
    at = module.get_submodule(path)
    if attr not in at.__dict__.get(LINKS, ()) or at._parameters.get(attr) is None:
        return function(module, tensor_name, *args, **kwargs)
    alone = nn.Module()
    alone._parameters[attr] = at._parameters[attr]
    function(alone, attr, *args, **kwargs)
    at._parameters[attr] = alone._parameters[attr]
    return None


def _load_checkpoint(
    function: Callable[..., Any], model: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    token = _loading.set(model if Sites(model).groups else None)
    try:
        return function(model, *args, **kwargs)
    finally:
        _loading.reset(token)


def _read_file(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """One file's tensors, as a tied model holds them."""
    state = function(*args, **kwargs)
    model = _loading.get()
    if model is not None:
        load_hook(model, state, "", None, False, [], [], [])
    return state


def _dispatch(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    _on_one_device(given["model"], given["device_map"])
    return _offload(function, *args, **kwargs)


def _on_one_device(model: nn.Module, device_map: dict[str, Any]) -> None:
    """Raise Unsupported where the sites of one tie would be on several devices."""
    sites = Sites(model)
    used = [d for d in dict.fromkeys(device_map.values()) if d not in ("cpu", "disk")]
    main = used[0] if used else "cpu"
    for group in sites.groups:
        devices: dict[str, str] = {}
        for name in sites.named(group).values():
            at = name
            while at and at not in device_map:
                at = at.rpartition(".")[0]
            device = device_map.get(at, main)
            devices.setdefault(str(main if device in ("cpu", "disk") else device), name)
        if len(devices) > 1:
            where = ", ".join(f"{name!r} on {device}" for device, name in devices.items())
            raise Unsupported(
                f"the device map puts the sites of one tie on several devices ({where}); a "
                "tie has its values on one. Put them together in device_map"
            )


def _offload(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`dispatch_model`, `cpu_offload` or `disk_offload`, then a hook on every derived site."""
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    model = given["model"]
    _loaded_alone(model, given.get("preload_module_classes") or ())
    found = function(*args, **kwargs)
    for module in model.modules():
        reads = any(_offloaded(link) for link in module.__dict__.get(LINKS, {}).values())
        # not one of accelerate's hooks: others look for the weights on those
        if reads and _bring not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_bring)
            module.register_forward_hook(_put_back, always_call=True)
    return found


def _loaded_alone(model: nn.Module, classes: Any) -> None:
    """Raise Unsupported where free values would be loaded with a module around them."""
    for name, module in model.named_modules():
        if type(module).__name__ in classes:
            inside = set(module.modules())
            for group in Sites(model).groups:
                if not inside.isdisjoint(p.module for p in group.places.values()):
                    raise Unsupported(
                        f"{name!r} is to be loaded whole (preload_module_classes), and holds "
                        f"sites of the tie of {', '.join(list(group.places)[:4])}; leave "
                        f"{type(module).__name__} out of preload_module_classes"
                    )


def offloading(module: nn.Module) -> Any:
    """The hook that keeps a module's own parameters elsewhere (`hook.weights_map`), or None."""
    hook = getattr(module, "_hf_hook", None)
    found = (h for h in getattr(hook, "hooks", (hook,)) if getattr(h, "offload", False))
    return next(found, None)


def _offloaded(link: Link) -> list[tuple[nn.Module, str, Any]]:
    """The parameters elsewhere that a site reads and that are offloaded, with their hooks."""
    return [
        (module, attr, hook)
        for module, attr, _ in link.sources
        if (held := module._parameters[attr]) is not None and held.is_meta
        if (hook := offloading(module)) is not None
    ]


def _bring(module: nn.Module, args: Any) -> None:
    """Forward pre-hook: what the module's sites read elsewhere is there for its forward."""
    set_tensor = import_module("accelerate.utils.modeling").set_module_tensor_to_device
    links = module.__dict__.get(LINKS, {}).values()
    brought = [found for link in links for found in _offloaded(link)]
    module.__dict__[_BROUGHT] = brought
    for at, attr, hook in brought:
        set_tensor(at, attr, hook.execution_device, value=hook.weights_map[attr])


def _put_back(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, also after an error."""
    set_tensor = import_module("accelerate.utils.modeling").set_module_tensor_to_device
    for at, attr, _ in module.__dict__.pop(_BROUGHT, ()):
        set_tensor(at, attr, "meta")
