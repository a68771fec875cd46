"""Checkpoints: θ alone, or every site in full; settled before anything is written."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eadem._plan import first, mean, plan_of
from eadem.bind.group import TieGroup, marks
from eadem.bind.names import Sites
from eadem.bind.split import refuse_full
from eadem.bind.written import agree
from eadem.errors import RecordError, TieConflict
from eadem.maps.base import numel
from eadem.maps.constant import on_cpu

__all__ = ["ABSENT", "ARRAYS", "lifted", "load_hook"]

#: The shape of what may stand in a checkpoint for a site that holds no parameter.
ABSENT = (0,)

#: What the keys of a record's arrays begin with, where they are stored beside θ.
ARRAYS = "eadem/"


@on_cpu()
def load_hook(
    module: nn.Module,
    state: dict[str, Any],
    prefix: str,
    metadata: Any,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """State-dict pre-hook of a module that contains whole groups.

    For each tie a checkpoint may hold θ (as this model writes it) or the sites in full (as
    the untied model does); in full, they are lifted. An empty tensor may stand for a site
    without a parameter, so that a program which knows nothing of the tie cannot load it. A
    record's arrays are passed over: a model that is tied has them. Raises TieConflict where
    the sites disagree, RecordError where one tie mixes both forms.
    """
    groups = marks(module)
    if groups:
        _settle_all(groups, state, Sites(module), prefix)


def _settle_all(
    groups: list[TieGroup], state: dict[str, Any], sites: Sites, prefix: str = ""
) -> None:
    names = sites.names
    changes = []
    for group in groups:
        keys = {k: prefix + names[p] for k, p in group.places.items() if p in names}
        if len(keys) == len(group.places):
            changes.append(_settle(group, state, keys))
    for key in [k for k in state if k.startswith(ARRAYS)]:
        del state[key]
    for drop, thetas in changes:
        for key in drop:
            state.pop(key, None)
        state.update(thetas)


_load_state_dict = nn.Module.load_state_dict


@functools.wraps(_load_state_dict)
def _load_settled(
    self: nn.Module, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any
) -> Any:
    """torch's `load_state_dict`, which writes module by module. The hook above sees a tie
    when its turn comes; here every tie of which something is below is settled before
    anything is written: those of a model inside, those of modules that this one was given
    after they were tied, and those that reach outside of it.
    """
    sites = Sites(self)
    if (sites.groups or sites.parts) and isinstance(state_dict, Mapping):
        metadata = getattr(state_dict, "_metadata", None)
        state_dict = OrderedDict(state_dict)
        if metadata is not None:
            state_dict._metadata = metadata  # type: ignore[attr-defined]
        _settled_elsewhere(sites, state_dict)
    return _load_state_dict(self, state_dict, *args, **kwargs)


nn.Module.load_state_dict = _load_settled  # type: ignore[method-assign]


@on_cpu()
def _settled_elsewhere(sites: Sites, state: Any) -> None:
    known = marks(sites.model)
    found = [g for g in sites.groups if g not in known]
    if found:
        _settle_all(found, state, sites)
    for group in sites.parts:
        names = sites.names
        keys = {k: names[p] for k, p in group.places.items() if p in names}
        given = {
            k: state[n]
            for k, n in keys.items()
            if isinstance(state.get(n), Tensor) and tuple(state[n].shape) == group.shapes[k]
        }
        if len(given) > 1:
            _, worst = lifted(group, given)
            if worst is not None:
                raise group.refuse(_conflict(keys, worst))


def _conflict(keys: Mapping[str, str], worst: tuple[float, str]) -> TieConflict:
    sites = ", ".join(list(keys.values())[:4])
    return TieConflict(
        f"the checkpoint's values for the tied sites {sites} disagree: the largest "
        f"difference is {worst[0]:.6g}, at {keys[worst[1]]!r}. Nothing was loaded; "
        "load them into an untied model and tie it with start='mean', or untie this "
        "one first"
    )


def _settle(
    group: TieGroup, state: dict[str, Any], keys: dict[str, str]
) -> tuple[list[str], dict[str, Tensor]]:
    """What to remove from a checkpoint and what to put there, for one group."""
    owners = group.resolved.owners
    given: dict[str, Tensor] = {}
    theta_form, full_form, absent = [], [], []
    for key, name in keys.items():
        value = state.get(name)
        if not isinstance(value, Tensor):
            continue
        shape = tuple(value.shape)
        owner = owners.get(key)
        if owner is None and shape == ABSENT != group.shapes[key]:
            absent.append(name)
            continue
        plain = owner is not None and owner.whole and owner.source is None
        if shape == group.shapes[key]:
            given[key] = value
            if not plain:
                full_form.append(name)
        elif owner is not None and shape == owner.shape:
            theta_form.append(name)
        else:
            wanted = f"{group.shapes[key]}"
            if owner is not None and owner.shape != group.shapes[key]:
                wanted += f" (the site) or {owner.shape} (its free values)"
            raise group.refuse(
                RecordError(
                    f"the checkpoint holds {name!r} with shape {shape}; its tie wants "
                    f"{wanted}. Nothing was loaded"
                )
            )
    if not full_form:
        return absent, {}
    if theta_form:
        raise group.refuse(
            RecordError(
                f"the checkpoint mixes free values ({', '.join(theta_form[:3])}) and full "
                f"sites ({', '.join(full_form[:3])}) of one tie; save it whole in one form. "
                "Nothing was loaded"
            )
        )
    refuse_full(full_form, [p for _, p in group.owner_parameters()])
    thetas, worst = lifted(group, given)
    if worst is not None:
        raise group.refuse(_conflict(keys, worst))
    return absent + [keys[k] for k in given], {keys[o]: t for o, t in thetas.items()}


def lifted(
    group: TieGroup, given: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[float, str] | None]:
    """θ by owner from values given at some sites, and where these do not agree with it: the
    largest difference and the site's key.
    """
    known = first(group.resolved, given)
    thetas = {o: t for o, t in known.thetas.items() if o not in known.missing}
    if known.missing and len(given) > 1:
        means = mean(group.resolved, group.shapes, given)
        like = next(iter(given.values()))
        determined = _determined(group, given)
        for o in known.missing:
            if o in determined:
                thetas[o] = means[o].to(like)
    roots = {o: group.resolved.owners[o].values(t) for o, t in thetas.items()}
    worst: tuple[float, str] | None = None
    for key, value in given.items():
        e = group.resolved.expressions.get(key)
        if e is None:
            held = roots[key].reshape(group.shapes[key])
        elif all(o in roots for o in e.owners):
            flat = [roots[o].reshape(-1) for o in e.owners]
            joined = torch.cat(flat) if flat else value.new_zeros(0)
            held = e.outer.expand(joined.reshape(e.outer.in_shape))
        else:
            continue
        ok, away = agree(value, held)
        if not ok and (worst is None or away > worst[0]):
            worst = (away, key)
    return thetas, worst


def _determined(group: TieGroup, given: dict[str, Tensor]) -> set[str]:
    """The owners whose every free value some given site uses."""
    if any(o.own is not None for o in group.resolved.owners.values()):
        return set()  # a remainder is only told by its site and all that is shared
    plan = plan_of(group.resolved, group.shapes)
    used = {o: torch.zeros(numel(w.roots), dtype=torch.bool) for o, w in plan.owners.items()}
    for key in given:
        e = plan.expressions.get(key)
        if e is None:
            used[key][:] = True
            continue
        diagonal = e.outer.gram_diagonal() if hasattr(e.outer, "gram_diagonal") else None
        start = 0
        for o in e.owners:
            size = numel(plan.owners[o].roots)
            piece = True if diagonal is None else diagonal[start : start + size] > 0
            used[o] |= torch.as_tensor(piece)
            start += size
    return {o for o, mask in used.items() if bool(mask.all())}
