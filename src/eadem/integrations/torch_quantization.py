"""torch.ao.quantization on a tied model: refused before anything is changed.

It replaces modules one by one, by the exact class of each, and packs a weight with its bias:
two sites would hold two weights, and a site whose class Eadem generated would be passed over.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["follow"]


def follow() -> None:
    """Have the eager and the graph workflow refuse modules of tied sites."""
    eager = sys.modules["torch.ao.quantization.quantize"]
    _replace(eager, "propagate_qconfig_", _refuse_some)
    graph = sys.modules.get("torch.ao.quantization.quantize_fx")
    if graph is not None:
        _replace(graph, "_prepare_fx", _refuse_all)


def _replace(module: Any, name: str, guard: Callable[[Any], Any]) -> None:
    found = getattr(module, name)
    if not hasattr(found, "_eadem"):
        guarded: Any = functools.wraps(found)(guard(found))
        guarded._eadem = True
        setattr(module, name, guarded)


def _refuse_some(original: Any) -> Any:
    """`propagate_qconfig_`, with which `quantize_dynamic`, `prepare` and the others begin."""

    def run(module: Any, qconfig_dict: Any = None, *args: Any, **kwargs: Any) -> Any:
        from eadem.bind.group import groups_at

        for found in _quantised(module, qconfig_dict or {}, None, ""):
            for group in groups_at([found]):
                _refuse(group, found)
        return original(module, qconfig_dict, *args, **kwargs)

    return run


def _quantised(module: Any, table: Any, above: Any, name: str) -> Iterator[Any]:
    """The modules that have a configuration, and a kind that it applies to."""
    from torch.ao.quantization import quantization_mappings as known

    from eadem.bind.access import base_class

    kind = base_class(module)
    config = table.get(name, table.get(kind, above))
    config = getattr(module, "qconfig", config)
    kinds = {
        *known.get_default_static_quant_module_mappings(),
        *known.get_default_dynamic_quant_module_mappings(),
        *known.get_default_qat_module_mappings(),
    }
    if config is not None and kind in kinds:
        yield module
    for child_name, child in module.named_children():
        yield from _quantised(
            child, table, config, f"{name}.{child_name}" if name else child_name
        )


def _refuse_all(original: Any) -> Any:
    """Graph mode, which traces a model into another one."""

    def run(model: Any, *args: Any, **kwargs: Any) -> Any:
        from eadem.bind.group import groups_at

        for group in groups_at(model.modules()):
            _refuse(group, next(iter(group.places.values())).module)
        return original(model, *args, **kwargs)

    return run


def _refuse(group: Any, module: Any) -> None:
    from eadem.bind.settle import names_of
    from eadem.errors import Unsupported

    names = names_of(group)
    at = next(names[k] for k, p in group.places.items() if p.module is module)
    raise group.refuse(
        Unsupported(
            f"torch.ao.quantization would replace the module of {at!r}, which is tied "
            f"({', '.join(list(names.values())[:4])}): every site would hold its own quantised "
            "weight, or be passed over. Nothing was changed. Quantise an equality with "
            "torchao.quantization.quantize_, which keeps one weight, or quantise "
            "eadem.twin(model)"
        )
    )
