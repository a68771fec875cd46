"""transformers: reading a folder that `save_pretrained` wrote of a tied model.

"eadem" is registered as a method of quantization, which is transformers' own way for a folder
to say how its tensors become a model's. The model is tied while it is on meta, and its free
values are then filled in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from eadem import bind, store
from eadem._plan.site import parse
from eadem.bind.group import LINKS, Link, TieGroup
from eadem.bind.load import ABSENT
from eadem.bind.names import Sites
from eadem.errors import RecordError, Unsupported

__all__ = ["METHOD", "derived", "linked", "register", "shareable", "ungoverned"]

METHOD = "eadem"
_SAME = {"kind": "Same", "args": {}}


def register(auto: Any) -> None:
    """Make "eadem" a method that `from_pretrained` knows."""
    mixin: Any = auto.QuantizationConfigMixin
    quantizer: Any = auto.HfQuantizer

    class Ties(mixin):  # type: ignore[misc]
        """What config.json says of the ties."""

        #: the loaded model is a plain one: transformers is to forget how it was stored
        dequantize = True

        def __init__(self, record: Any = None, **_: Any) -> None:
            self.quant_method = METHOD
            self.record = record

    class TieQuantizer(quantizer):  # type: ignore[misc]
        """Ties a model on meta, before its tensors are read."""

        is_trainable = True

        def is_serializable(self) -> bool:
            return False

        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            # θ of a site may have another shape than the site; the setter checks it
            module, _, attr = param_name.rpartition(".")
            return attr in model.get_submodule(module).__dict__.get(LINKS, {})

        def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            self.native: dict[str, str] = dict(model.all_tied_weights_keys)
            _tie_on_meta(model, self.quantization_config.record, kwargs.get("checkpoint_files"))
            model.all_tied_weights_keys = shareable(model, self.native)
            return model

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            left = model.all_tied_weights_keys
            native = shareable(model, self.native)
            model.all_tied_weights_keys = {
                k: v for k, v in self.native.items() if k in left or k not in native
            }
            device = "cpu" if model.device.type == "meta" else model.device
            for module in model.modules():
                for link in module.__dict__.get(LINKS, {}).values():
                    if link.like is not None and link.like.is_meta:  # no parameter says where
                        link.like = torch.zeros_like(link.like, device=device)
            bind.check(model)
            return model

    auto.register_quantization_config(METHOD)(Ties)
    auto.register_quantizer(METHOD)(TieQuantizer)


def _tie_on_meta(model: Any, found: Any, files: Sequence[str] | None) -> None:
    """Tie a model without values as a folder says. Raises RecordError."""
    if not all(p.is_meta for p in model.parameters()):
        raise Unsupported(
            "the folder holds the free values of a tied model, and the model was not built on "
            "meta (DeepSpeed ZeRO-3); load it in one process, eadem.materialize it, and save "
            "that"
        )
    shapes, arrays = _contents(files or ())
    checked = store.checked(found, "the record in config.json")
    record, names = _for_class(model, checked, shapes)
    store.apply(model, record, arrays)
    absent = [name for name, shape in shapes.items() if shape == ABSENT]
    model._keys_to_ignore_on_load_unexpected = {
        *(model._keys_to_ignore_on_load_unexpected or ()),
        rf"(^|\.){re.escape(store.PREFIX)}",
        *(rf"(^|\.){re.escape(name)}$" for name in absent),
    }
    if files:
        _fits(model, shapes, names)


def _contents(files: Iterable[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, Tensor]]:
    """The shapes in safetensors files by key, and a record's arrays by hash."""
    shapes, arrays = {}, {}
    for file in files:
        if not file.endswith(".safetensors"):
            raise RecordError(f"{file} is no safetensors file, and free values are in those")
        with safe_open(file, "pt") as f:
            for key in list(f.keys()):
                if key.startswith(store.PREFIX):
                    arrays[key.removeprefix(store.PREFIX)] = f.get_tensor(key)
                else:
                    shapes[key] = tuple(f.get_slice(key).get_shape())
    return shapes, arrays


def _fits(model: Any, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str]) -> None:
    """Raise RecordError unless the files hold the free values of every tie."""
    sites = Sites(model)
    recorded = {here: there for there, here in names.items()}
    for group in sites.groups:
        here = sites.named(group)
        for key, owner in group.resolved.owners.items():
            keys = {here[key], recorded.get(here[key], here[key])}
            found = next((shapes[k] for k in keys if k in shapes), None)
            if found != owner.shape:
                raise RecordError(
                    f"the tie of {', '.join(list(here.values())[:4])} has its free values at "
                    f"{here[key]!r}, of shape {owner.shape}; the folder "
                    + (f"holds shape {found} there" if found else "does not hold them")
                    + f". Load it with the class that was saved, not {type(model).__name__}"
                )


def _for_class(
    model: Any, record: dict[str, Any], keys: Iterable[str]
) -> tuple[dict[str, Any], dict[str, str]]:
    """A record as a class with more or fewer heads reads it; names here by recorded name.

    Sites of a head that this class has not are left out, where that leaves the others' ties
    as they are. A head that the class itself ties to a recorded site, and of which the folder
    has nothing under `keys`, is tied too. Raises RecordError where the ties cannot be kept.
    """
    here = Sites(model)
    names = {n: found for n in record["sites"] if (found := _name_here(model, here, n))}
    ties = _joined([_pairs(tie) for tie in record["ties"]], set(record["sites"]) - set(names))
    sites = {names[n]: shape for n, shape in record["sites"].items() if n in names}
    renamed = [
        [{"sites": [_renamed(site, names)], "map": spec} for site, spec in tie] for tie in ties
    ]
    held = {_name_here(model, here, key) for key in keys}
    for target, source in model.all_tied_weights_keys.items():
        if source in sites and target not in sites and target not in held:
            sites[target] = list(here.shape(target))
            renamed.append([{"sites": [target, source], "map": _SAME}])
    return {**record, "sites": sites, "ties": renamed}, names


def _name_here(model: Any, here: Sites, name: str) -> str | None:
    prefix = f"{model.base_model_prefix}."
    for known in (name, prefix + name, name.removeprefix(prefix)):
        if here.place(known) is not None:
            return known
    return None


Pairs = list[tuple[str, Any]]


def _pairs(tie: Any) -> Pairs:
    return [(str(site), run["map"]) for run in tie for site in run["sites"]]


def _renamed(site: str, names: Mapping[str, str]) -> str:
    name = parse(site)[0]
    return names[name] + site[len(name) :]


def _joined(ties: list[Pairs], absent: set[str]) -> list[Pairs]:
    """Ties without the sites of some names. A tie is the set {W : W_i = φ_i θ}: what occurs
    once is left out; where W_s = θ in one tie and W_s = φ θ' in another, they are one.
    """
    for name in sorted(absent):
        using = [t for t in ties if any(parse(s)[0] == name for s, _ in t)]
        rest = [t for t in ties if t not in using]
        inside = [[(s, m) for s, m in t if parse(s)[0] == name] for t in using]
        outside = [[(s, m) for s, m in t if parse(s)[0] != name] for t in using]
        if any(outside) and max(map(len, inside)) > 1:
            raise _refusal(name, using)
        while any(outside) and len(outside) > 1:
            same = next(
                (
                    i
                    for i, own in enumerate(inside)
                    if own[0] == (name, _SAME) and all(m == _SAME for _, m in outside[i])
                ),
                None,
            )
            if same is None or any(site != name for own in inside for site, _ in own):
                raise _refusal(name, using)
            into = 0 if same else 1
            spec, known = inside[into][0][1], dict(outside[into])
            outside[into] += [(s, spec) for s, _ in outside[same] if s not in known]
            del inside[same], outside[same]
        ties = rest + outside
    return [t for t in ties if t and not (len(t) == 1 and t[0][1] == _SAME)]


def _refusal(name: str, using: list[Pairs]) -> RecordError:
    others = [s for t in using for s, _ in t if parse(s)[0] != name]
    return RecordError(
        f"the folder ties {', '.join(others[:4])} through {name!r}, which this class does not "
        "have; load it with the class that was saved"
    )


def ungoverned(model: Any, native: Mapping[str, str]) -> dict[str, str]:
    """The pairs {target: source} of which not both are sites of ties."""
    governed: set[str] = set()
    if native:
        sites = Sites(model)
        governed = {n for g in sites.groups for n in sites.named(g).values()}
    return {t: s for t, s in native.items() if not (t in governed and s in governed)}


def shareable(model: Any, native: Mapping[str, str]) -> dict[str, str]:
    """Of those, the pairs of which both hold a parameter in full."""
    dressed = {name for name, _ in linked(model)} if native else set()
    found = ungoverned(model, native)
    return {t: s for t, s in found.items() if t not in dressed and s not in dressed}


def derived(model: nn.Module) -> list[tuple[str, TieGroup]]:
    """The sites without a parameter of their own, each with its group."""
    return [(n, link.group) for n, link in linked(model) if link.key not in owners(link)]


def owners(link: Link) -> Mapping[str, Any]:
    return link.group.resolved.owners


def linked(model: nn.Module) -> list[tuple[str, Link]]:
    """The sites that are computed, by name."""
    return [
        (f"{name}.{attr}" if name else attr, link)
        for name, module in model.named_modules()
        for attr, link in module.__dict__.get(LINKS, {}).items()
    ]
