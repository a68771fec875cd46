"""torchao: quantising a tied weight.

`quantize_` puts a quantised tensor in the place of a weight, module by module. The sites of an
equality then share one: it is quantised at the first of them, and every module that reads it
is shown to be able to. A quantised tensor cannot be seen through any other map, nor can a
module be replaced by another kind of module; that is refused before anything is changed.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import twin
from eadem.bind.group import Place, TieGroup, groups_at
from eadem.bind.settle import names_of
from eadem.errors import Unsupported

__all__ = ["follow"]

WAY_OUT = (
    "Nothing was changed. Leave it out of the filter, or take it out of its tie first with "
    "eadem.untie(model, site)"
)

Change = Callable[[nn.Module, str], Any]


class _Busy(threading.local):
    """Whether `quantize_` runs in this thread: it calls itself for every child module."""

    now = False


_busy = _Busy()


def follow() -> None:
    """Have `torchao.quantization.quantize_` keep ties. Raises AttributeError for a version of
    torchao that is built in another way.
    """
    api: Any = import_module("torchao.quantization.quant_api")
    if hasattr(api._replace_with_custom_fn_if_matches_filter, "_eadem"):
        return
    walk, quantize = api._replace_with_custom_fn_if_matches_filter, api.quantize_
    api._replace_with_custom_fn_if_matches_filter = _walk(walk)
    by_name = _by_name(api, quantize)
    for name in ("torchao.quantization.quant_api", "torchao.quantization", "torchao"):
        module: Any = sys.modules.get(name)
        if getattr(module, "quantize_", None) is quantize:
            module.quantize_ = by_name


def _walk(original: Callable[..., Any]) -> Callable[..., Any]:
    """The walk over a model that applies one configuration where a filter says so."""

    @functools.wraps(original)
    def run(
        model: nn.Module,
        replacement_fn: Callable[..., Any],
        filter_fn: Callable[[nn.Module, str], bool],
        cur_fqn: str = "",
        device: Any = None,
        extra_args: tuple[Any, ...] = (),
    ) -> Any:
        rest = (cur_fqn, device, extra_args)
        if _busy.now:
            return original(model, replacement_fn, filter_fn, *rest)
        chosen = dict(_chosen(model, filter_fn, cur_fqn))
        skip = _shared(chosen, lambda m, _: replacement_fn(m, *extra_args))
        _busy.now = True
        try:
            return original(
                model,
                replacement_fn,
                lambda m, name: m not in skip and filter_fn(m, name),
                *rest,
            )
        finally:
            _busy.now = False

    run._eadem = True  # type: ignore[attr-defined]
    return run


def _chosen(
    module: nn.Module, chooses: Callable[[nn.Module, str], bool], prefix: str
) -> Iterator[tuple[nn.Module, str]]:
    """The modules that the walk will change, with their names."""
    if chooses(module, prefix[:-1]):
        yield module, prefix[:-1]
    else:
        for name, child in module.named_children():
            yield from _chosen(child, chooses, f"{prefix}{name}.")


def _by_name(api: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    """`quantize_` with a configuration for each name."""

    @functools.wraps(original)
    def run(model: nn.Module, config: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(config, api.FqnToConfig):
            chosen = {
                m: name
                for name, m in model.named_modules()
                if api.fqn_matches_fqn_config(name, config)
                or api._module_param_matches_fqn_config(m, name, config)
                or ("_default" in config.fqn_to_config and api._is_linear(m))
            }
            many = _shared(chosen, lambda m, name: api._fqn_to_config_handler(m, name, config))
            if many:
                names = ", ".join(repr(chosen[m]) for m in many)
                raise Unsupported(
                    f"FqnToConfig would quantise a tied weight once more at {names}. Nothing "
                    "was changed. Name one of its sites; the others follow"
                )
        return original(model, config, *args, **kwargs)

    return run


def _shared(chosen: dict[nn.Module, str], change: Change) -> set[nn.Module]:
    """The chosen modules whose weight an earlier one has in common with them.

    Raises Unsupported where a tie cannot hold what `change` puts there.
    """
    skip: set[nn.Module] = set()
    for group in groups_at(chosen):
        hit = [m for m in chosen if any(p.module is m for p in group.places.values())]
        names = names_of(group)
        first: tuple[nn.Module, Tensor] | None = None
        for module in hit:
            made = _made(module, chosen[module], change, names)
            for place, value in made.items():
                if place not in group.keys:
                    continue
                if not group.equality:
                    raise group.refuse(
                        Unsupported(
                            f"quantising {names[group.keys[place]]!r} would leave its tie "
                            f"({_listed(names)}), which is no equality: a quantised weight "
                            f"cannot be seen through another map. {WAY_OUT}"
                        )
                    )
                if first is None:
                    first = (module, value)
                    _readable(group, place, value, names)
            if first is not None and module is not first[0]:
                skip.add(module)
    return skip


def _made(
    module: nn.Module, name: str, change: Change, names: dict[str, str]
) -> dict[Place, Tensor]:
    """The parameters that `change` replaces, as it does it to a copy without ties."""
    copied = twin(module)
    before = dict(copied._parameters)
    found = change(copied, name)
    if found is not copied:
        raise Unsupported(
            f"this configuration replaces the module {name!r} by a {type(found).__name__}, "
            f"and its tie ({_listed(names)}) would stay with the old one. Nothing was changed. "
            "Leave it out of the filter, or quantise eadem.twin(model)"
        )
    return {
        Place(module, a): p
        for a, p in copied._parameters.items()
        if p is not None and p is not before.get(a)
    }


def _readable(group: TieGroup, at: Place, value: Tensor, names: dict[str, str]) -> None:
    """Raise Unsupported unless every module of an equality can compute with `value`."""
    for place, key in group.keys.items():
        if place == at:
            continue
        copied: Any = twin(place.module)
        try:
            copied._parameters[place.attr] = value
            with torch.no_grad():
                copied(_sample(copied))
        except Exception as e:
            raise Unsupported(
                f"quantising {names[group.keys[at]]!r} would quantise {names[key]!r} too, "
                f"which is tied to it, and its {type(copied).__name__} cannot compute with a "
                f"{type(value).__name__} ({e}). {WAY_OUT}"
            ) from e


def _sample(module: nn.Module) -> Tensor:
    """An input that the simplest modules take."""
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return torch.zeros((1, 1), dtype=torch.int64, device=module.weight.device)
    if isinstance(module, nn.Linear):
        like = module.bias if module.bias is not None else module.weight
        return torch.zeros((1, module.in_features), dtype=like.dtype, device=like.device)
    raise TypeError("only linear layers and embeddings are known to")


def _listed(names: dict[str, str]) -> str:
    return ", ".join(list(names.values())[:4])
