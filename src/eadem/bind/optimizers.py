"""Optimizers and ties: parameters that a tie made dead or resized, and ties that are split."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eadem.bind.names import Sites
from eadem.errors import TieBroken

__all__ = ["check_optimizers", "note_dead", "note_resized"]

DEAD = "_eadem_dead"
RESIZED = "_eadem_resized"


class _Watch:
    """Counts the ties that changed a parameter, so that an optimizer is looked at once after
    each, not at every step.
    """

    changes = 0
    hooked = False


def _changed() -> None:
    _Watch.changes += 1
    if not _Watch.hooked:
        _Watch.hooked = True
        register_optimizer_step_pre_hook(_before_step)


def note_dead(p: nn.Parameter, why: str) -> None:
    """Mark a parameter that no longer belongs to its model."""
    setattr(p, DEAD, why)
    _changed()


def note_resized(p: nn.Parameter, why: str) -> None:
    """Mark a parameter whose size a tie changed."""
    setattr(p, RESIZED, why)
    _changed()


def revive(p: nn.Parameter) -> None:
    """Take a mark off a parameter that holds free values again."""
    for mark in (DEAD, RESIZED):
        if hasattr(p, mark):
            delattr(p, mark)


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    if optimizer.__dict__.get("_eadem_seen") == _Watch.changes:
        return
    _look(optimizer)
    optimizer.__dict__["_eadem_seen"] = _Watch.changes


def _look(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            why = getattr(p, DEAD, None)
            if why is not None:
                raise TieBroken(
                    f"{type(optimizer).__name__} was built before a tie and steps a parameter "
                    f"that is no longer in the model: {why}. Build it again from "
                    "model.parameters()"
                )
            state = optimizer.state.get(p, {})
            stale = [
                k
                for k, v in state.items()
                if torch.is_tensor(v) and v.ndim and v.shape != p.shape
            ]
            if stale:
                raise TieBroken(
                    f"{type(optimizer).__name__} keeps state ({', '.join(stale)}) of the size "
                    f"that a parameter had before its tie: {getattr(p, RESIZED, '')}. "
                    "Build it again from model.parameters()"
                )


def check_optimizers(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    """Raise TieBroken, with names, unless these optimizers step each free value once.

    Found are: parameters that a tie made dead or resized, parameters of the model that two
    optimizers or two groups step, and sites of one tie whose parameters are stepped under
    different rules, and tied free values that want gradients but are in none of them.

    >>> model = nn.Linear(2, 2)
    >>> check_optimizers(model, torch.optim.SGD(model.parameters(), lr=0.1))
    """
    sites = Sites(model)
    names = {id(p.parameter): n for n, p in sites.places.items() if p.parameter is not None}
    seen: dict[int, tuple[int, int]] = {}
    for i, optimizer in enumerate(optimizers):
        _look(optimizer)
        for j, group in enumerate(optimizer.param_groups):
            for p in group["params"]:
                name = names.get(id(p))
                if name is None:
                    continue
                if id(p) in seen:
                    k, at = seen[id(p)]
                    raise TieBroken(
                        f"{name!r} is stepped twice: by group {at} of optimizer {k} and group "
                        f"{j} of optimizer {i}. Leave it in one"
                    )
                seen[id(p)] = (i, j)
    for tied in sites.groups:
        stepped: dict[tuple[int, int] | None, list[str]] = {}
        for key, p in tied.owner_parameters():
            stepped.setdefault(seen.get(id(p)), []).append(sites.name(tied.places[key]))
        wants = any(p.requires_grad for _, p in tied.owner_parameters())
        if list(stepped) == [None] and optimizers and wants:
            raise TieBroken(
                f"no optimizer steps {', '.join(stepped[None])}, where a tie has its free "
                "values; add it, or freeze it with requires_grad_(False)"
            )
        if len(stepped) > 1 and optimizers:
            parts = "; ".join(
                f"{', '.join(n)} in "
                + ("none" if at is None else f"optimizer {at[0]} group {at[1]}")
                for at, n in stepped.items()
            )
            raise TieBroken(
                f"the free values of one tie are split over optimizers or groups: {parts}. "
                "One tie follows one rule; put them together"
            )
