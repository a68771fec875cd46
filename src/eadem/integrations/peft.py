"""peft: adapters on tied sites.

An adapter stands beside its site, so the tie holds while it is unmerged. Merging writes into
the weights, layer by layer, and knows nothing of ties: with both sites of an equality merged
the one weight would take two deltas; with one merged, the other would change too. Here the
layers of a tie are merged together, on copies that are tied to nothing; θ then takes the
result, once, or the merge is refused.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import twin, untie
from eadem.bind.group import Place, TieGroup, groups_at
from eadem.bind.names import Sites
from eadem.bind.settle import names_of, settle
from eadem.errors import Unsupported

__all__ = ["follow"]

WAY_OUT = (
    "Keep the adapter unmerged; or give every site of the tie the same change (for a tied "
    "embedding of transformers: ensure_weight_tying=True) and merge the whole model; or take "
    "the site out of its tie first, with eadem.untie(model, site)"
)

#: Initialisations of LoRA that take a part of the weight away.
_TAKES = ("pissa", "corda", "olora", "loftq", "lora_ga")


class _State(threading.local):
    """`working`: layers are merged on copies. `settled`: what has been merged already, while
    peft passes over the model again.
    """

    working = False
    settled: frozenset[int] = frozenset()


_state = _State()


def follow() -> None:
    """Have the merges of all of peft's tuners, those imported already and later ones, keep
    ties. Raises AttributeError for a version of peft that is built in another way.
    """
    utils = import_module("peft.tuners.tuners_utils")
    other = import_module("peft.utils.other")
    _guard(utils.BaseTunerLayer, {"merge": _of_layer, "unmerge": _of_layer})
    whole = ("merge_adapter", "unmerge_adapter", "_unload_and_optionally_merge")
    _guard(
        utils.BaseTuner,
        dict.fromkeys(whole, _of_model)
        | {"_check_tied_modules": _checked, "delete_adapter": _left},
    )
    _guard(other.AuxiliaryTrainingWrapper, {"unload_and_optionally_merge_module": _unloaded})


Method = Callable[..., Any]


def _guard(kind: Any, guards: Mapping[str, Callable[[Method], Method]]) -> None:
    """Wrap methods of a class and of its subclasses, present and future, each once."""
    for name in guards:
        getattr(kind, name)

    def guard(cls: Any) -> None:
        for name, wrap in guards.items():
            found = cls.__dict__.get(name)
            if inspect.isfunction(found) and not hasattr(found, "_eadem"):
                wrapped: Any = functools.wraps(found)(wrap(found))
                wrapped._eadem = True
                setattr(cls, name, wrapped)
        for below in cls.__subclasses__():
            guard(below)

    def subclassed(cls: Any, /, **options: Any) -> None:
        super(kind, cls).__init_subclass__(**options)
        guard(cls)

    guard(kind)
    if "__init_subclass__" not in kind.__dict__:
        kind.__init_subclass__ = classmethod(subclassed)


def _of_layer(original: Method) -> Method:
    """`merge` or `unmerge` of one layer, called by itself.

    Unmerging takes the other layers of the tie with it, since they were merged with it.
    """
    verb = original.__name__

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if id(self) in _state.settled:
            return None
        groups = [] if _state.working else groups_at(self.get_base_layer().modules())
        if not groups or (verb == "unmerge" and not self.merged):
            return original(self, *args, **kwargs)
        layers = [self]
        if verb == "unmerge":
            layers += [m for m in _partners(groups) if m.merged and m is not self]
        return _together(layers, [], lambda m: getattr(m, verb)(*args, **kwargs))

    return run


def _of_model(original: Method) -> Method:
    """`merge_adapter`, `unmerge_adapter` and `merge_and_unload` of a whole model."""
    unmerges = original.__name__ == "unmerge_adapter"
    unloads = original.__name__ == "_unload_and_optionally_merge"
    then = _left(original) if unloads else original

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _state.settled:
            return then(self, *args, **kwargs)
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        given |= given.pop("kwargs", {})
        layers, savers = _over_ties(self.model)
        if unmerges:
            layers = [m for m in layers if m.merged]
        elif not given.get("merge", True):
            layers = []

        def verb(m: Any) -> None:
            if unmerges:
                m.unmerge()
                return
            takes = inspect.signature(m.merge).parameters
            m.merge(**{k: v for k, v in given.items() if k in takes})

        savers = savers if unloads else []
        _together(layers, savers, verb)
        with _state_of(settled=frozenset(id(m) for m in (*layers, *savers))):
            return then(self, *args, **kwargs)

    return run


def _left(original: Method) -> Method:
    """Whatever takes adapters off a model: their own parameters leave their ties before."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(original).bind(self, *args, **kwargs).arguments
        only = given.get("adapter_name")
        inside = {
            below
            for m in _tuner_layers(self.model)
            for below in {*m.modules()} - {*m.get_base_layer().modules()}
        }
        sites = Sites(self.model)
        leaving = [
            name
            for g in sites.groups
            if inside.issuperset(p.module for p in g.places.values())
            for name in sites.named(g).values()
            if only is None or only in name.split(".")
        ]
        if leaving:
            untie(self.model, *leaving)
        return original(self, *args, **kwargs)

    return run


def _unloaded(original: Method) -> Method:
    """A module that `modules_to_save` trained a copy of: it has the copy's values already."""

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        return self.original_module if id(self) in _state.settled else found

    return run


@contextmanager
def _state_of(**values: Any) -> Iterator[None]:
    before = {k: getattr(_state, k) for k in values}
    _state.__dict__.update(values)
    try:
        yield
    finally:
        _state.__dict__.update(before)


def _together(layers: Sequence[Any], savers: Sequence[Any], verb: Callable[[Any], Any]) -> None:
    """Run `verb` on layers whose bases are copies, tied to nothing, then take over what came
    of them, and of the modules that `savers` trained. A refusal leaves all as it was.
    """
    copies: dict[nn.Module, nn.Module] = {}
    merged = [(m, list(m.merged_adapters)) for m in layers]
    try:
        with _on_copies(layers, copies):
            for m in layers:
                verb(m)
        for s in savers:
            copies[s.original_module] = _untied(s.modules_to_save[s.active_adapter])
        changed = {a for m, old in merged for a in {*m.merged_adapters} ^ {*old}}
        changed |= {s.active_adapter for s in savers}
        values = _values(copies)
        groups = groups_at({p.module for p in values})
        settle(groups, values, f"adapter {', '.join(sorted(changed))!r}: merging it", WAY_OUT)
    except BaseException:
        for m, old in merged:
            m.merged_adapters[:] = old
        raise
    tied = {p for g in groups for p in g.places.values()}
    with torch.no_grad():
        for place, value in values.items():
            if place not in tied and place.parameter is not None:
                place.parameter.copy_(value)


@contextmanager
def _on_copies(layers: Sequence[Any], copies: dict[nn.Module, nn.Module]) -> Iterator[None]:
    """While this is open, the layers stand around copies of their bases, put into `copies`."""
    holders = [(h, h.base_layer) for h in map(_holder, layers)]
    for _, base in holders:
        if base not in copies:
            copies[base] = _untied(base)
    try:
        for holder, base in holders:
            holder._modules["base_layer"] = copies[base]
        with _state_of(working=True):
            yield
    finally:
        for holder, base in holders:
            holder._modules["base_layer"] = base


def _holder(layer: Any) -> Any:
    """The innermost of the layers that stand around one base."""
    while hasattr(layer.base_layer, "base_layer"):
        layer = layer.base_layer
    return layer


def _untied(module: nn.Module) -> nn.Module:
    """A copy that is tied to nothing, precise enough to compare sums of weights and deltas."""
    found: nn.Module = twin(module)
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in found.parameters()):
        found.float()
    return found


def _values(copies: dict[nn.Module, nn.Module]) -> dict[Place, Tensor]:
    """What the copies hold, by the places that they are copies of."""
    found = {}
    for base, made in copies.items():
        for name, module in made.named_modules():
            for attr, p in module._parameters.items():
                if p is not None:
                    _plain(p, f"{type(base).__name__}.{attr}")
                    found[Place(base.get_submodule(name), attr)] = p.detach()
    return found


def _plain(value: Tensor, name: str) -> None:
    if type(value.data) is not Tensor:
        raise Unsupported(
            f"{name} is tied and holds {type(value.data).__name__}, which takes no merged "
            "values; keep the adapter unmerged, or merge it before quantising"
        )


def _tuner_layers(model: nn.Module) -> list[Any]:
    kind: type = import_module("peft.tuners.tuners_utils").BaseTunerLayer
    return [m for m in model.modules() if isinstance(m, kind)]


def _over_ties(model: nn.Module) -> tuple[list[Any], list[Any]]:
    """The tuner layers over tied sites, and the modules with a trained copy of a tied one."""
    tied = {p.module for g in groups_at(model.modules()) for p in g.places.values()}
    kind: type = import_module("peft.utils.other").ModulesToSaveWrapper
    savers: list[Any] = [m for m in model.modules() if isinstance(m, kind)]
    return _around(tied, _tuner_layers(model)), [
        s
        for s in savers
        if s.active_adapters and not tied.isdisjoint(s.original_module.modules())
    ]


def _around(modules: set[nn.Module], layers: Iterable[Any]) -> list[Any]:
    """The layers whose base is, or contains, one of `modules`."""
    return [m for m in layers if not modules.isdisjoint(m.get_base_layer().modules())]


def _partners(groups: Sequence[TieGroup]) -> list[Any]:
    """The layers around the sites of some groups."""
    tied = {p.module for g in groups for p in g.places.values()}
    return _around(tied, dict.fromkeys(m for g in groups for m in _tuner_layers(g.scope[0])))


def _checked(original: Method) -> Method:
    """peft's own check of ties, which it makes before it changes the model, and ours."""

    def run(self: Any, model: nn.Module, config: Any) -> Any:
        found = original(self, model, config)
        groups = groups_at(model.modules())
        if groups:
            _check_saved(model, config, groups)
            _check_targets(self, model, config, groups)
        return found

    return run


def _check_saved(model: nn.Module, config: Any, groups: Sequence[TieGroup]) -> None:
    """Refuse a copy of a tied module, which would be trained apart from its tie."""
    tied_by_peft = set(getattr(config, "modules_to_tie", None) or ())
    wanted = {*(getattr(config, "modules_to_save", None) or ()), *tied_by_peft}
    saved = {n: m for n, m in model.named_modules() if n and n.endswith(tuple(wanted))}
    inside = {n: set(m.modules()) for n, m in saved.items()} if wanted else {}
    for group in groups:
        modules = {p.module for p in group.places.values()}
        hit = [n for n, below in inside.items() if not modules.isdisjoint(below)]
        if not hit or any(modules <= inside[n] for n in hit):
            continue
        if (
            tied_by_peft
            and group.equality
            and all(any(m in inside[n] for n in hit) for m in modules)
        ):
            continue
        names = ", ".join(list(names_of(group).values())[:4])
        raise group.refuse(
            Unsupported(
                f"modules_to_save would train a copy of {hit[0]!r}, whose parameters are tied "
                f"({names}), and the copy would leave the tie. Give it an adapter instead, "
                "train the tied parameters themselves, save the whole module that contains "
                "the tie, or untie it first with eadem.untie(model, site)"
            )
        )


def _check_targets(
    tuner: Any, model: nn.Module, config: Any, groups: Sequence[TieGroup]
) -> None:
    """Refuse an adapter that writes into, or takes apart, a tied weight as it is made."""
    init = getattr(config, "init_lora_weights", None)
    takes = isinstance(init, str) and init.lower().startswith(_TAKES)
    takes = takes or getattr(config, "kasa_config", None) is not None
    modules = {m: n for n, m in model.named_modules()}
    places = {p: g for g in groups for p in g.places.values() if p.module in modules}
    names = {p: f"{modules[p.module]}.{p.attr}".lstrip(".") for p in places}
    parameters = tuple(getattr(config, "target_parameters", None) or ())
    for place, name in names.items():
        if any(name == t or name.endswith("." + t) for t in parameters):
            raise places[place].refuse(
                Unsupported(
                    f"target_parameters names {name!r}, which is tied; peft would parametrize "
                    "it. Target its module with target_modules, or untie it first with "
                    "eadem.untie(model, site)"
                )
            )
    written = [p for p in places if takes or isinstance(p.module, nn.MultiheadAttention)]
    if not written:
        return
    utils = import_module("peft.tuners.tuners_utils")
    config = tuner._prepare_adapter_config(copy.deepcopy(config), tuner.get_model_config(model))
    config = utils._maybe_include_all_linear_layers(config, model)
    for place in written:
        if bool(tuner._check_target_module_exists(config, modules[place.module])):
            what = f"init_lora_weights={init!r} changes" if takes else "LoRA takes apart"
            raise places[place].refuse(
                Unsupported(
                    f"{what} the weight {names[place]!r}, which is tied: its other sites would "
                    "change with it. Use another initialisation or target, or untie it first "
                    "with eadem.untie(model, site)"
                )
            )
