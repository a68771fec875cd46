"""An optimizer's state through a change of what parameters hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from eadem._plan import Plain
from eadem.errors import Unsupported
from eadem.maps.base import numel

__all__ = ["Change", "carried", "hand_over"]


class _Route(Protocol):
    @property
    def to(self) -> Tensor | None: ...
    @property
    def same(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Change:
    """What a group's parameters held and will hold, by name. `before`, `after`: the owners of
    what is shared and the sites with a remainder; `route`: where each shared value goes;
    `follow`: whether parameters go where their values go.
    """

    parameters: dict[str, nn.Parameter]
    before: Plain
    after: Plain
    route: _Route
    thetas: dict[str, Tensor]
    follow: bool

    def shared(self, plain: Plain, name: str) -> int:
        """How many shared values a parameter holds; they come first in it."""
        return numel(plain.owners[name].shape) if name in plain.owners else 0

    def part(self, value: Tensor, name: str, plain: Plain) -> tuple[Tensor, Tensor]:
        """What is like a parameter, as what is shared and what is the site's own, flat."""
        size = self.shared(plain, name)
        flat = value.detach().reshape(-1)
        return flat[:size], flat[size:]

    def moved(self) -> dict[str, str]:
        """New owners of shared values with the old ones whose parameters they take over."""
        came = [n for n in self.after.owners if n not in self.before.owners]
        left = [n for n in self.before.owners if n not in self.after.owners]
        if len(came) != len(left) or not self.follow:
            return {}
        return dict(zip(came, left, strict=True))

    def seats(self) -> dict[str, nn.Parameter | None]:
        """Which owners are to hold which parameter, where that is not the one they hold."""
        gone = [n for n in self.before.owners if n not in self.after.owners]
        found: dict[str, nn.Parameter | None] = dict.fromkeys(gone)
        found.update({new: self.parameters[old] for new, old in self.moved().items()})
        return found


State = dict[str, dict[str, Any]]


def carried(optimizer: torch.optim.Optimizer, change: Change) -> State:
    """The state by parameter name after a change. Raises Unsupported where it cannot go on."""
    kind = type(optimizer).__name__
    steps = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in steps for p in change.parameters.values()):
        return {}
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise Unsupported(
            "LBFGS keeps one history for all parameters, which does not fit once there are "
            "others; relax without optimizer= and build it again"
        )
    old = {n: dict(optimizer.state.get(p, {})) for n, p in change.parameters.items()}
    keys = dict.fromkeys(k for state in old.values() for k in state)
    found: State = {n: {} for n in {*change.after.owners, *change.after.own}}
    for key in keys:
        _one_entry(kind, key, old, change, found)
    return found


def _one_entry(kind: str, key: str, old: State, change: Change, found: State) -> None:
    """One entry of the state, such as Adam's `exp_avg`, of every parameter of the group."""
    like: dict[str, Tensor] = {}
    for name, state in old.items():
        value, p = state.get(key), change.parameters[name]
        if torch.is_tensor(value) and value.ndim and value.shape == p.shape:
            like[name] = value
    owners = list(change.before.owners)
    if not like:
        _as_it_is(kind, key, old, change, found)
        return
    to = change.route.to
    shared: Tensor | None = None
    if owners and all(n in like for n in owners):
        if to is None:
            raise Unsupported(
                f"the shared values are held in another form once this site departs, so "
                f"{kind}'s state ({key}) cannot go on; relax another site of the tie, or build "
                "the optimizer again"
            )
        pieces = [change.part(like[n], n, change.before)[0] for n in owners]
        shared = torch.cat(pieces)[to.to(pieces[0].device)]
    start = 0
    for name in found:
        size = change.shared(change.after, name)
        had = name in change.before.own and name in like
        mine = change.part(like[name], name, change.before)[1] if had else None
        if size and shared is None:
            continue
        if not size and mine is None:
            continue
        some = shared if shared is not None else mine
        assert some is not None
        parts = [some[:0]]
        if size:
            assert shared is not None
            start = _start(change, name)
            parts.append(shared[start : start + size])
        if name in change.after.own:
            wanted = change.thetas[name].numel() - size
            kept = some[:0] if mine is None else mine[:wanted]
            parts += [kept, some.new_zeros(wanted - kept.numel())]
        found[name][key] = torch.cat(parts)


def _start(change: Change, name: str) -> int:
    """Where an owner's values lie among all that are shared."""
    before = 0
    for n, owner in change.after.owners.items():
        if n == name:
            break
        before += numel(owner.shape)
    return before


def _as_it_is(kind: str, key: str, old: State, change: Change, found: State) -> None:
    """An entry that is not shaped as its parameter, such as the number of steps."""
    moved = change.moved()
    for name in found:
        if name in change.after.owners:
            came = moved.get(name, name)
            stays = came in change.before.owners
        else:
            came, stays = name, name in change.before.own
        if not stays or key not in old.get(came, {}):
            continue
        value = old[came][key]
        resized = change.thetas[name].numel() != change.parameters[came].numel()
        if torch.is_tensor(value) and value.ndim and (resized or not change.route.same):
            raise Unsupported(
                f"{kind} keeps a state ({key}) that is not shaped as its parameter, and the "
                "parameter changes; build the optimizer again"
            )
        found[name][key] = value


def hand_over(
    optimizer: torch.optim.Optimizer,
    change: Change,
    states: State,
    after: Mapping[str, nn.Parameter],
) -> None:
    """Have an optimizer step the parameters that there are now, with the state carried."""
    was = {id(p): n for n, p in change.parameters.items()}
    called = {id(p): n for n, p in after.items()}
    home: dict[str, Any] | None = None
    for group in optimizer.param_groups:
        mine = [was.get(id(p)) for p in group["params"]]
        if home is None and any(n in change.before.owners for n in mine):
            home = group
        keep = [i for i, p in enumerate(group["params"]) if id(p) not in was or id(p) in called]
        if "param_names" in group:
            said = [
                called.get(id(p), name) if was.get(id(p)) == name else name
                for p, name in zip(group["params"], group["param_names"], strict=True)
            ]
            group["param_names"] = [said[i] for i in keep]
        group["params"] = [group["params"][i] for i in keep]
    if home is None:
        return
    for p in change.parameters.values():
        optimizer.state.pop(p, None)
    there = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in after.items():
        if id(p) not in there:
            home["params"].append(p)
            if "param_names" in home:
                home["param_names"].append(name)
        entries = {
            k: v.reshape(p.shape).to(v) if torch.is_tensor(v) and v.numel() == p.numel() else v
            for k, v in states.get(name, {}).items()
        }
        if entries:
            optimizer.state[p] = entries
