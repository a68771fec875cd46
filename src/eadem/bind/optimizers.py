"""Optimizers and ties: parameters that a tie made dead or resized, ties that are split, and
values read at a site that are no parameters.

What can be told from one optimizer alone is looked for at its next step after a tie; the
rest, and all of it at once, by `check_optimizers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eadem.bind.group import TieGroup, living
from eadem.bind.names import Sites
from eadem.bind.written import SiteValue, is_watched
from eadem.errors import TieBroken
from eadem.maps.base import Shape

__all__ = ["check_optimizers", "note_dead", "note_resized"]

DEAD = "_eadem_dead"
RESIZED = "_eadem_resized"
SEEN = "_eadem_seen"

#: Where a parameter is stepped: the numbers of an optimizer and of one of its groups.
Where = tuple[int, int]


class _Resized(NamedTuple):
    """A parameter's last change of size: its number among all changes, and what it was."""

    change: int
    shape: Shape
    why: str


class _Watch:
    """Counts the ties that changed a parameter, so that an optimizer is looked at once after
    each, not at every step.
    """

    changes = 0


def note_dead(p: nn.Parameter, why: str) -> None:
    """Mark a parameter that no longer belongs to its model."""
    _Watch.changes += 1
    setattr(p, DEAD, why)


def note_resized(p: nn.Parameter, why: str) -> None:
    """Mark a parameter whose size a tie is about to change."""
    _Watch.changes += 1
    setattr(p, RESIZED, _Resized(_Watch.changes, tuple(p.shape), why))


def revive(p: nn.Parameter) -> None:
    """Take the mark off a parameter that holds free values again."""
    if hasattr(p, DEAD):
        delattr(p, DEAD)


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    now = (_Watch.changes, len(optimizer.param_groups))
    if optimizer.__dict__.get(SEEN) == now:
        return
    _look(optimizer)
    where = _stepped([optimizer])
    for group in living():
        if len(group.resolved.owners) > 1:
            owners = _owners(group)
            if any(id(p) in where for _, p in owners):
                _unsplit(group, owners, [optimizer], where)
    optimizer.__dict__[SEEN] = now


register_optimizer_step_pre_hook(_before_step)


def _owners(group: TieGroup) -> list[tuple[str, nn.Parameter]]:
    """The parameters that hold a group's free values, those that are there."""
    held = [(k, group.places[k].parameter) for k in group.resolved.owners]
    return [(k, p) for k, p in held if p is not None]


def _stepped(optimizers: Iterable[torch.optim.Optimizer]) -> dict[int, Where]:
    """Where each parameter is stepped, by its id."""
    return {
        id(p): (i, j)
        for i, optimizer in enumerate(optimizers)
        for j, group in enumerate(optimizer.param_groups)
        for p in group["params"]
    }


def _look(optimizer: torch.optim.Optimizer) -> None:
    """Raise TieBroken for what a tie made of this optimizer's parameters."""
    kind = type(optimizer).__name__
    for group in optimizer.param_groups:
        for p in group["params"]:
            why = getattr(p, DEAD, None)
            if why is not None:
                raise TieBroken(
                    f"{kind} was built before a tie and steps a parameter that is no longer in "
                    f"the model: {why}. Build it again from model.parameters()"
                )
            stale = _stale(optimizer, p)
            if stale:
                raise TieBroken(
                    f"{kind} keeps state ({', '.join(stale)}) of the size that a parameter had "
                    f"before its tie: {getattr(p, RESIZED).why}. Build it again from "
                    "model.parameters()"
                )
            if not isinstance(p, nn.Parameter):
                _refuse_value(kind, p)


def _stale(optimizer: torch.optim.Optimizer, p: Tensor) -> list[str]:
    """The entries of an optimizer's state that are as large as `p` was before a tie.

    Some states are never shaped as their parameter (those of Adafactor and LBFGS), so what
    tells is whether the optimizer has stepped since. One that has not stepped under Eadem's
    eyes, such as one loaded from a file, is told by the shape alone.
    """
    resized: _Resized | None = getattr(p, RESIZED, None)
    if resized is None:
        return []
    state: Mapping[str, Any] = optimizer.state.get(p, {})
    if isinstance(optimizer, torch.optim.LBFGS):  # one state for all parameters
        state = next(iter(optimizer.state.values()), {})
    shapes = {k: tuple(v.shape) for k, v in state.items() if torch.is_tensor(v) and v.ndim}
    foreign = [k for k, shape in shapes.items() if shape != tuple(p.shape)]
    seen = optimizer.__dict__.get(SEEN)
    if seen is None:
        return [k for k in foreign if shapes[k] == resized.shape]
    return foreign if seen[0] < resized.change else []


def _refuse_value(kind: str, value: Tensor) -> None:
    """Raise TieBroken for a value that was read at a site: it has no step to take."""
    group: TieGroup | None
    if is_watched(value):
        assert isinstance(value, SiteValue)
        link = value._link
        group, reads, owners = link.group, [link.key], list(link.expression.owners)
    else:
        base = value._base
        group = next((g for g in living() for _, p in _owners(g) if p is base), None)
        if base is None or group is None:
            return
        owners = [n for n, p in _owners(group) if p is base]
        known = group.resolved.expressions.items()
        reads = [k for k, e in known if owners[0] in e.owners] or owners
    raise group.refuse(
        TieBroken(
            f"{kind} was given the value read at {' or '.join(repr(k) for k in reads)}, which "
            "is tied and no parameter: it would never change. Its free values are in "
            f"{', '.join(owners) or 'no parameter: it is constant'}; give the optimizer the "
            "tie's .thetas, or model.parameters()"
        )
    )


def _unsplit(
    group: TieGroup,
    owners: Sequence[tuple[str, nn.Parameter]],
    optimizers: Sequence[torch.optim.Optimizer],
    where: Mapping[int, Where],
) -> None:
    """Raise TieBroken unless the parameters that hold one θ are stepped under one rule."""
    found: list[tuple[Where | None, list[str]]] = []
    for name, p in owners:
        at = where.get(id(p))
        if at is None and not p.requires_grad:
            continue
        same = next((names for a, names in found if _one_rule(optimizers, a, at)), None)
        if same is None:
            found.append((at, [name]))
        else:
            same.append(name)
    if len(found) > 1:
        parts = "; ".join(
            f"{', '.join(names)} in "
            + ("none" if at is None else f"optimizer {at[0]} group {at[1]}")
            for at, names in found
        )
        raise group.refuse(
            TieBroken(
                f"the free values of one tie are split over optimizers or groups: {parts}. "
                "One tie follows one rule; put them together"
            )
        )


def _one_rule(
    optimizers: Sequence[torch.optim.Optimizer], a: Where | None, b: Where | None
) -> bool:
    """Whether two parameters are stepped alike: in one group, or in two with equal options."""
    if a is None or b is None or a[0] != b[0]:
        return a is b
    groups = optimizers[a[0]].param_groups
    one, other = (_options(groups[j]) for j in (a[1], b[1]))
    return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)


def _equal(a: Any, b: Any) -> bool:
    same: Any = a is b or a == b
    return bool(same.all()) if hasattr(same, "all") else bool(same)


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("params", "param_names")}


def check_optimizers(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Raise TieBroken, with names, unless these optimizers step each free value once.

    Found are: parameters that a tie made dead or resized, values read at a site where a
    parameter is wanted, parameters of the model that two optimizers step, tied free values
    that are stepped under different rules (in two optimizers, or in groups with different
    options), tied free values that want gradients but are in none of them, and groups that
    are empty where a tie left a module without a parameter to give.

    >>> model = nn.Linear(2, 2)
    >>> check_optimizers(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """
    sites = Sites(model)
    names = {id(p.parameter): n for n, p in sites.places.items() if p.parameter is not None}
    where: dict[int, Where] = {}
    for i, optimizer in enumerate(optimizers):
        _look(optimizer)
        for p, (_, j) in _stepped([optimizer]).items():
            if p in where and p in names:
                k, at = where[p]
                raise TieBroken(
                    f"{names[p]!r} is stepped twice: by group {at} of optimizer {k} and group "
                    f"{j} of optimizer {i}. {_also(sites, names[p])}Leave it in one"
                )
            where[p] = (i, j)
    if not optimizers:
        return
    _refuse_empty(sites, optimizers)
    for group in sites.groups:
        owners = [(sites.name(group.places[k]), p) for k, p in group.owner_parameters()]
        wanted = [n for n, p in owners if p.requires_grad]
        if wanted and not any(id(p) in where for _, p in owners):
            raise TieBroken(
                f"no optimizer steps {', '.join(wanted)}, where a tie has its free values; "
                "add it, or freeze it with requires_grad_(False)"
            )
        _unsplit(group, owners, optimizers, where)


def _also(sites: Sites, name: str) -> str:
    """What else is the value that a parameter holds, as a sentence, or nothing."""
    for group in sites.groups:
        named = {sites.name(group.places[k]): k for k in group.resolved.owners}
        if name in named:
            known = group.resolved.expressions.items()
            read = [sites.name(group.places[k]) for k, e in known if named[name] in e.owners]
            others = [repr(n) for n in read if n != name]
            if others:
                shown = ", ".join(others[:4]) + (" …" if len(others) > 4 else "")
                return f"It is one value with {shown}, which a tie makes it, and has one rule. "
    return ""


def _refuse_empty(sites: Sites, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Raise TieBroken for a group without parameters where a tie took all that a module had."""
    where = [
        (i, j)
        for i, optimizer in enumerate(optimizers)
        for j, options in enumerate(optimizer.param_groups)
        if not options["params"]
    ]
    taken = [
        f"{sites.name(group.places[k])} is held by "
        + (
            ", ".join(sites.name(group.places[o]) for o in e.owners)
            or "nothing: it is constant"
        )
        for group in sites.groups
        for k, e in group.resolved.expressions.items()
        if next(group.places[k].module.parameters(), None) is None
    ]
    if where and taken:
        i, j = where[0]
        raise TieBroken(
            f"group {j} of optimizer {i} is empty, so its rule reaches nothing. A tie left "
            f"some modules no parameter to give: {'; '.join(taken[:4])}"
            f"{' …' if len(taken) > 4 else ''}. One value follows one rule; leave the group "
            "out"
        )
