"""transformers: ties of a `PreTrainedModel` that its class does not know.

`model.save_pretrained(folder)` writes each free value once, and the record of the ties in
config.json, as `quantization_config` of the method "eadem": transformers' own place for how
a folder's tensors become a model's. `from_pretrained` then ties the model while it is still
on meta and fills in its free values. Where Eadem is not imported, transformers says that it
does not know "eadem" and raises: a site whose values are elsewhere is in the file by name, as
an empty tensor, which fits no model.
`model.save_pretrained(folder, state_dict=eadem.materialize(model))` writes every site for the
stock class instead.

A later `tie_weights()`, `init_weights()` or `resize_token_embeddings()` of transformers keeps
the ties, or refuses.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eadem import bind, store
from eadem._plan.site import parse
from eadem.bind.group import TieGroup
from eadem.bind.load import ABSENT
from eadem.bind.names import Sites
from eadem.errors import EademError, RecordError, Unsupported
from eadem.integrations._pretrained import (
    METHOD,
    derived,
    linked,
    register,
    shareable,
    ungoverned,
)
from eadem.integrations.accelerate import offloading
from eadem.maps.view import Same

__all__ = ["follow"]


def follow() -> None:
    """Have transformers keep ties. It must be imported already; a second call does nothing."""
    base = import_module("transformers.modeling_utils").PreTrainedModel
    auto = import_module("transformers.quantizers.auto")
    if METHOD in auto.AUTO_QUANTIZER_MAPPING:
        return
    register(auto)
    for name, around in (
        ("save_pretrained", _save_pretrained),
        ("tie_weights", _tie_weights),
        ("get_expanded_tied_weights_keys", _expanded_keys),
        ("initialize_weights", _initialize_weights),
        ("resize_token_embeddings", _resize),
    ):
        setattr(base, name, _around(getattr(base, name), around))


def _around(method: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(method, self, *args, **kwargs)

    return wrapper


# saving


def _save_pretrained(method: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """`save_pretrained`, with the record in the config and its arrays beside θ."""
    given = inspect.signature(method).bind(model, *args, **kwargs).arguments
    rest = given.pop("kwargs", {})
    _whole(model)
    state = given.get("state_dict")
    plain = not Sites(model).groups or getattr(model, "_hf_peft_config_loaded", False)
    if plain or (state is not None and _is_full(model, state)):
        with _method(model.config, None):
            return method(**given, **rest)
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        kind = quantizer.quantization_config.quant_method
        raise Unsupported(
            f"the model is quantised ({getattr(kind, 'value', kind)}) and tied "
            f"({_some(Sites(model))}), and a folder describes one of both; load it "
            "dequantised, untie it with eadem.untie(model), or save it with "
            "eadem.save(model, path)"
        )
    found, arrays = store.record_and_arrays(model)
    given["state_dict"] = {
        **{name: torch.empty(ABSENT, dtype=model.dtype) for name, _ in derived(model)},
        **(_present(model) if state is None else state),
        **arrays,
    }
    # names as in the record, not as an older version of the class had them
    given["save_original_format"] = False
    with _method(model.config, {"quant_method": METHOD, "record": found}):
        return method(**given, **rest)


def _present(model: nn.Module) -> dict[str, Any]:
    """The state dict, with the values of ties whose parameters accelerate has offloaded."""
    state = dict(model.state_dict())
    sites = Sites(model)
    for group in sites.groups:
        for key, name in sites.named(group).items():
            value = state.get(name)
            if isinstance(value, Tensor) and value.is_meta:
                module, attr = group.places[key]
                hook = offloading(module)
                if hook is not None:
                    state[name] = hook.weights_map[attr]
    return state


@contextmanager
def _method(config: Any, wanted: dict[str, Any] | None) -> Iterator[None]:
    """The config with this record (None: without the one that it was read with) for a while."""
    held = config.__dict__.get("quantization_config")
    ours = isinstance(held, dict) and held.get("quant_method") == METHOD
    if wanted is None and not ours:
        yield
        return
    config.__dict__.pop("quantization_config", None)
    if wanted is not None:
        config.quantization_config = wanted
    try:
        yield
    finally:
        config.__dict__.pop("quantization_config", None)
        if held is not None:
            config.quantization_config = held


def _whole(model: nn.Module) -> None:
    """Raise Unsupported where a site of the model takes its value from outside of it."""
    inside = {id(g) for g in Sites(model).groups}
    for name, link in linked(model):
        group = link.group
        if id(group) not in inside:
            raise Unsupported(
                f"{name!r} is part of a tie ({', '.join(list(group.places)[:4])}) that reaches "
                f"outside this {type(model).__name__}; save the whole model, or copy.deepcopy "
                "this part, which makes it independent"
            )


def _is_full(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether a state dict holds every site in full, not θ. Raises RecordError for both."""
    sites = Sites(model)
    full: list[str] = []
    theta: list[str] = []
    for group in sites.groups:
        for key, name in sites.named(group).items():
            owner = group.resolved.owners.get(key)
            value = state.get(name)
            if owner is None:
                (theta if value is None else full).append(name)
            elif value is not None and owner.shape != group.shapes[key]:
                shape = tuple(value.shape)
                (full if shape == group.shapes[key] else theta).append(name)
    if full and theta:
        raise RecordError(
            f"the state dict holds {full[0]!r} in full, but of {theta[0]!r} the free values "
            "only; pass model.state_dict() (to be opened with Eadem) or "
            "eadem.materialize(model) (for the stock class)"
        )
    return bool(full)


# what transformers does to a model later


#: Set while all pairs of the class are asked for.
_all_pairs: ContextVar[bool] = ContextVar("eadem_all_pairs", default=False)


def _tie_weights(
    method: Callable[..., Any],
    model: Any,
    missing_keys: set[str] | None = None,
    recompute_mapping: bool = True,
) -> None:
    """`tie_weights`, for the pairs of which no tie of Eadem's knows.

    A pair that the ties hold already stays as it is; one with a site that holds no parameter
    to share becomes a tie of Eadem's.
    """
    native = getattr(model, "all_tied_weights_keys", None) or {}
    token = _all_pairs.set(True)
    try:
        pairs = model.get_expanded_tied_weights_keys(True) if recompute_mapping else native
    finally:
        _all_pairs.reset(token)
    left = shareable(model, native)
    model.all_tied_weights_keys = dict(left)
    try:
        method(model, missing_keys, recompute_mapping)
    finally:
        given_up = left.keys() - model.all_tied_weights_keys.keys()
        model.all_tied_weights_keys = {k: v for k, v in native.items() if k not in given_up}
    if missing_keys is not None:  # from_pretrained: what the folder says has been settled
        return
    shared = shareable(model, pairs)
    for target, source in ungoverned(model, pairs).items():
        if target not in shared:
            bind.tie(model, target, to=source)


def _expanded_keys(
    method: Callable[..., Any], model: Any, all_submodels: bool = False
) -> dict[str, str]:
    """`get_expanded_tied_weights_keys`, which looks for the names of parameters."""
    absent = [] if all_submodels else derived(model)
    listed = model.named_parameters
    if absent:
        model.__dict__["named_parameters"] = lambda *a, **k: [*listed(*a, **k), *absent]
    try:
        found = method(model, all_submodels)
    finally:
        if absent:
            del model.__dict__["named_parameters"]
    return found if _all_pairs.get() else shareable(model, found)


class _Loaded(TorchFunctionMode):
    """Writes nothing in place to free values that a checkpoint has filled.

    transformers marks a parameter that it has loaded and leaves it out when it initialises;
    what is read at another site of the same θ does not carry that mark.
    """

    def __init__(self, groups: Iterable[TieGroup]) -> None:
        super().__init__()
        self.parameters = {
            id(p): p
            for g in groups
            for _, p in g.owner_parameters()
            if getattr(p, "_is_hf_initialized", False)
        }
        self.storages = {p.untyped_storage()._cdata for p in self.parameters.values()}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
            target = next(iter([*args, *kwargs.values()]), None)
            if isinstance(target, Tensor) and self._holds(target):
                return target
        return func(*args, **kwargs)

    def _holds(self, target: Tensor) -> bool:
        link = target.__dict__.get("_link")
        if link is not None:
            held = link.parameters()
            return not held or any(id(p) in self.parameters for p in held)
        return target.untyped_storage()._cdata in self.storages


def _initialize_weights(
    method: Callable[..., Any], model: Any, *args: Any, **kwargs: Any
) -> Any:
    groups = Sites(model).groups
    if not groups:
        return method(model, *args, **kwargs)
    with _Loaded(groups):
        return method(model, *args, **kwargs)


def _resize(method: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
    """`resize_token_embeddings`: the ties of the resized sites are declared anew.

    It is tried first on a copy without values, so that a refusal changes nothing.
    """
    given = inspect.signature(method).bind(model, *args, **kwargs).arguments
    names = _resized_sites(model)
    if not names:
        return method(**given)
    if (given.get("new_num_tokens"), given.get("pad_to_multiple_of")) == (None, None):
        return model.get_input_embeddings()  # T5 would put modules in other modules' places
    try:
        _resize_tied(method, {**given, "self": _skeleton(model), "mean_resizing": False}, names)
    except EademError as error:
        raise Unsupported(
            f"resize_token_embeddings would give {', '.join(names[:4])} another shape, which "
            f"their ties do not allow ({error}); eadem.untie them, resize, and tie again"
        ) from error
    return _resize_tied(method, given, names)


def _resized_sites(model: Any) -> list[str]:
    """The sites that are tied to, or are, those of the input and output embeddings."""
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    sites = Sites(model)
    return [
        name
        for g in sites.groups
        if any(place.module is end for place in g.places.values() for end in ends)
        for name in sites.named(g).values()
    ]


def _resize_tied(method: Callable[..., Any], given: dict[str, Any], names: list[str]) -> Any:
    model = given["self"]
    held = [
        dict(zip(t.sites, t.maps, strict=True))
        for t in bind.ties(model)
        if not {parse(s)[0] for s in t.sites}.isdisjoint(names)
    ]
    bind.untie(model, *names)
    resized = method(**given)
    with bind.plan(model):
        for maps in held:
            if not _is_alias(model, maps):  # the class has tied them again
                bind.tie(model, maps)
    return resized


def _is_alias(model: Any, maps: Mapping[str, Any]) -> bool:
    """Whether the sites of a tie hold one parameter already."""
    same = all(type(m) is Same for m in maps.values())
    if not same or any("[" in site for site in maps):
        return False
    return len({id(model.get_parameter_or_buffer(site)) for site in maps}) == 1


def _skeleton(model: nn.Module) -> Any:
    """A copy of a tied model, on meta."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo[id(b)] = b.to("meta")
    return copy.deepcopy(model, memo)


def _some(sites: Sites) -> str:
    names = [n for g in sites.groups for n in list(sites.named(g).values())[:2]]
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
