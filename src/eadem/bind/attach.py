"""Putting a resolved group onto its modules, and taking it off again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from eadem.bind.access import begin_at, class_for, computed, dress, end_at
from eadem.bind.group import (
    LINKS,
    ORDER,
    Link,
    Place,
    TieGroup,
    marks,
    note_living,
    set_marks,
)
from eadem.bind.load import load_hook
from eadem.bind.names import Sites
from eadem.bind.optimizers import note_dead, note_resized, revive
from eadem.bind.split import full

__all__ = ["attach", "values_of"]


def values_of(sites: Sites, names: Iterable[str]) -> dict[str, Tensor]:
    """The present values of some sites, detached. Parameters are not copied."""
    found = {}
    for name in names:
        module, attr = sites[name]
        links = module.__dict__.get(LINKS)
        link = links.get(attr) if links else None
        with torch.no_grad():
            value = module._parameters[attr] if link is None else link.compute()
        assert value is not None
        found[name] = full(value.detach())
    return found


@torch.inference_mode(False)
@torch.no_grad()
def attach(
    sites: Sites,
    old: list[TieGroup],
    new: list[TieGroup],
    thetas: Mapping[str, Tensor],
    freed: Mapping[str, Tensor],
    seats: Mapping[str, nn.Parameter | None] | None = None,
) -> None:
    """Replace some groups by others, which together hold the same places.

    `thetas`: free values by owner name; `freed`: values by name of the sites that are tied
    no more; `seats`: parameters that are to be held by other owners than now, None for an
    owner that gives its own away. Names are those of `sites`.
    """
    links: dict[nn.Module, dict[str, Link]] = {}
    touched: dict[nn.Module, set[str]] = {}
    for group in [*old, *new]:
        for module, attr in group.places.values():
            touched.setdefault(module, set()).add(attr)
    for module, attrs in touched.items():
        kept = {a: k for a, k in module.__dict__.get(LINKS, {}).items() if a not in attrs}
        links[module] = kept
    for group in new:
        for key in group.bound:
            module, attr = group.places[key]
            links[module][attr] = group.link(key)
    # whatever cannot be given a class says so here, while nothing has changed
    kinds = [class_for(module, found) for module, found in links.items()]
    for module in touched:
        module.__dict__.setdefault(ORDER, _order(module))
    learned = {place: _requires_grad(g) for g in old for place in g.places.values()}
    _seat(sites, seats or {})
    for name, value in freed.items():
        place = sites[name]
        p = place.parameter
        if p is None or p.shape != value.shape:
            requires = learned.get(place, True)
            _store(place.module, place.attr, value, requires, name)
    for group in new:
        requires = _requires_grad_before(group, learned)
        for key, e in group.resolved.expressions.items():
            if key in group.resolved.owners:
                continue  # it holds some of its values, and keeps its parameter for them
            module, attr = group.places[key]
            dead = module._parameters.pop(attr, None)
            if dead is not None:
                note_dead(dead, f"{key!r} now takes its value from {list(e.owners)}")
        # owners last: an alias's parameter, taken away above, is held by its owner still
        for key, owner in group.resolved.owners.items():
            module, attr = group.places[key]
            _store(module, attr, thetas[key].reshape(owner.shape), requires, key)
    for group in new:
        for key in group.bound:
            module, attr = group.places[key]
            link = links[module][attr]
            if not link.sources:
                link.like = thetas["\0like:" + key]
            link.warm()
    for module, found in links.items():
        _reorder(module)
        dress(module, found)
        if not found:
            module.__dict__.pop(ORDER, None)
    del kinds  # held, until each module is of its class
    _mark(sites, old, new)
    sites.keep(old, new)


def _seat(sites: Sites, seats: Mapping[str, nn.Parameter | None]) -> None:
    """Put parameters where they are to be, and take away those that were there."""
    kept = {id(p) for p in seats.values() if p is not None}
    for name, p in seats.items():
        module, attr = sites[name]
        was = module._parameters.pop(attr, None)
        if was is not None and id(was) not in kept:
            note_dead(was, f"{name!r} holds other values since its tie was changed")
        if p is not None:
            module._parameters[attr] = p


def add_site(link: Link) -> None:
    """Bind one more derived site of a group that is bound already."""
    module, attr = link.group.places[link.key]
    contents = module.__dict__
    contents.setdefault(ORDER, _order(module))
    dead = module._parameters.pop(attr)
    if dead is not None:
        owners = list(link.expression.owners)
        note_dead(dead, f"{link.key!r} now takes its value from {owners}")
    dress(module, {**contents.get(LINKS, {}), attr: link})


def shrink_scope(sites: Sites, group: TieGroup, names: list[str]) -> None:
    """Take the marks off modules that do not contain all of a group that has grown."""
    above = set(sites.ancestors({n: group.places[n] for n in names}))
    for module in [m for m in group.scope if m not in above]:
        rest = [g for g in marks(module) if g is not group]
        set_marks(module, rest)
        if not rest:
            _unhook(module)
    group.scope = [m for m in group.scope if m in above]


def _order(module: nn.Module) -> list[str]:
    return list(module._parameters)


def _reorder(module: nn.Module) -> None:
    """The parameters of a module in the order they had before any tie."""
    order = module.__dict__.get(ORDER)
    if order is None:
        return
    held = module._parameters
    wanted = [a for a in order if a in held] + [a for a in held if a not in order]
    if list(held) != wanted:
        items = {a: held[a] for a in wanted}
        held.clear()
        held.update(items)


def _requires_grad(group: TieGroup) -> bool:
    return any(p.requires_grad for _, p in group.owner_parameters())


def _requires_grad_before(group: TieGroup, learned: Mapping[Place, bool]) -> bool:
    found = [
        learned.get(place, p is None or p.requires_grad)
        for place in group.places.values()
        for p in [place.parameter]
    ]
    return all(found)


def _store(module: nn.Module, attr: str, value: Tensor, requires_grad: bool, name: str) -> None:
    """Put a value into a module's parameter, keeping the parameter's identity."""
    p = module._parameters.get(attr)
    if p is None:
        # straight into the dict: the attribute may still be a property of a generated class
        module._parameters[attr] = nn.Parameter(_copied(value), requires_grad=requires_grad)
        return
    revive(p)
    if p.shape == value.shape:
        if not p.is_meta and not _same_memory(p, value):
            p.copy_(value)
        return
    note_resized(p, f"{name!r} had shape {tuple(p.shape)} and holds {tuple(value.shape)} now")
    p.grad = None
    p.data = _copied(value.detach()).to(p.dtype)


def _copied(value: Tensor) -> Tensor:
    """A copy in the layout that torch's own parameters have, whatever view `value` is."""
    return value.clone(memory_format=torch.contiguous_format)


def _same_memory(p: Tensor, value: Tensor) -> bool:
    return (
        type(p.data) is Tensor
        and p.data_ptr() == value.data_ptr()
        and p.shape == value.shape
        and p.stride() == value.stride()
        and p.dtype == value.dtype
    )


def _mark(sites: Sites, old: list[TieGroup], new: list[TieGroup]) -> None:
    """Write the groups on every module that contains them, with the hooks they need."""
    note_living(old, new)
    gone = {id(g) for g in old}
    for group in old:
        for module in group.scope:
            rest = [g for g in marks(module) if id(g) not in gone]
            set_marks(module, rest)
            if not rest:
                _unhook(module)
    for group in new:
        group.scope = sites.ancestors(group.places)
        for module in group.scope:
            set_marks(module, [*marks(module), group])
            _hook(module)
        derived = (group.places[k] for k in group.resolved.expressions)
        if any(computed(place.module.__dict__[LINKS][place.attr]) for place in derived):
            begin_at(group.scope[0])


def _hook(module: nn.Module) -> None:
    held = module._load_state_dict_pre_hooks
    if not any(getattr(h, "hook", h) is load_hook for h in held.values()):
        module.register_load_state_dict_pre_hook(load_hook)


def _unhook(module: nn.Module) -> None:
    hooks = module._load_state_dict_pre_hooks
    for key in [k for k, h in hooks.items() if getattr(h, "hook", h) is load_hook]:
        del hooks[key]
    end_at(module)
