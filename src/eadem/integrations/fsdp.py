"""Fully sharded data parallelism (FSDP2) of a tied model.

FSDP gathers a parameter while the module that it was wrapped with runs, and reduces its
gradient when that module's backward is over. The sites of a tie may lie in several blocks, so
the parameters that hold its free values must be wrapped with a module that contains them all.
`fully_shard` finds that module for each parameter and leaves all others to torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import fully_shard as shard

from eadem.bind import Reader, match, readers
from eadem.errors import NoSuchSite, Unsupported, nearest

__all__ = ["fully_shard"]


def fully_shard(
    model: nn.Module,
    *blocks: str | nn.Module,
    ignored_params: Iterable[nn.Parameter] = (),
    **options: Any,
) -> nn.Module:
    """Shard a model and some of its blocks with torch's `fully_shard`, and keep its ties.

    Each block is wrapped, inner ones first, then the model itself. A parameter whose value is
    used in several blocks, by a tie or because the model holds it in several places, goes to
    the innermost wrapped module that contains all of its uses. It is whole in memory for as
    long as that module runs; every other parameter is as torch has it.

    Args:
        model: the tied model, not sharded yet; on `meta` too.
        blocks: modules of it, or their names, or patterns ("layers.*").
        ignored_params: parameters to leave alone.
        options: what torch's `fully_shard` takes, the same for every block: `mesh`,
            `reshard_after_forward`, `mp_policy`, `offload_policy`, `shard_placement_fn`.

    Returns:
        The model.

    Raises:
        NoSuchSite: a name or pattern that matches no module.
        Unsupported: the model is sharded already. It is left as it was.

    >>> import eadem, torch
    >>> from torch.distributed.device_mesh import init_device_mesh
    >>> torch.distributed.init_process_group(
    ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    ... )
    >>> model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    >>> turned = {"0.weight": eadem.Same(), "2.weight": eadem.Rotate(1)}
    >>> _ = eadem.tie(model, turned)
    >>> _ = fully_shard(model, "*", mesh=init_device_mesh("cpu", (1,)))
    >>> model(torch.ones(1, 3)).sum().backward()
    >>> model[0].weight.grad.shape
    torch.Size([3, 3])
    >>> torch.distributed.destroy_process_group()
    """
    wrapped = _wrapped(model, blocks)
    homes = _homes(model, wrapped)
    ignored = set(ignored_params)
    moved: dict[nn.Module, list[_Stand]] = {}
    for stand, home in homes:
        if stand.theta not in ignored:
            moved.setdefault(home, []).append(stand)
    taken = {s.theta for stands in moved.values() for s in stands}
    for module in reversed(wrapped):  # children come after their parents
        with _shown(module, moved.get(module, [])) as shown:
            shard(module, ignored_params=ignored | (taken - shown), **options)
    return model


class _Stand(nn.Module):
    """Stands for one stored θ towards FSDP, wherever it is held.

    FSDP reads and sets a parameter as an attribute of its module. Where a site shows another
    value than its θ, the attribute is not the parameter; and FSDP looks for parameters only
    in modules that no inner block has taken. A stand, made a child of the module that is
    being wrapped, answers both; FSDP keeps it, the model does not.
    """

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.__dict__.update(seats=reader.seats, held=None)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        yield "theta", self.theta

    def __getattribute__(self, name: str) -> Any:
        if name != "theta":
            return super().__getattribute__(name)
        held = self.__dict__["held"]
        module, attr = self.seats[0]
        return module._parameters[attr] if held is None else held

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "theta":
            super().__setattr__(name, value)
        elif self.held is not None:
            self.__dict__["held"] = value
        else:
            for module, attr in self.seats:
                module._parameters[attr] = value

    def register_state_dict_pre_hook(self, hook: Any) -> Any:
        return self.seats[0].module.register_state_dict_pre_hook(hook)

    def _register_load_state_dict_pre_hook(self, hook: Any, with_module: bool = False) -> Any:
        return self.seats[0].module._register_load_state_dict_pre_hook(hook, with_module)


@contextmanager
def _shown(module: nn.Module, stands: list[_Stand]) -> Iterator[set[nn.Parameter]]:
    """While `module` is wrapped, these parameters are found through their stands alone."""
    before = {seat.module: list(seat.module._parameters) for s in stands for seat in s.seats}
    inner = dict(module._modules)
    for s in stands:
        s.__dict__["held"] = s.theta
        for owner, attr in s.seats:
            del owner._parameters[attr]
        module._modules[f"_eadem_stand_{len(module._modules)}"] = s
    try:
        yield {s.held for s in stands}
    finally:
        module._modules.clear()
        module._modules.update(inner)
        for s in stands:
            found, s.__dict__["held"] = s.held, None
            s.theta = found
        for owner, order in before.items():
            now = {attr: owner._parameters[attr] for attr in order}
            owner._parameters.clear()
            owner._parameters.update(now)


def _wrapped(model: nn.Module, blocks: Iterable[str | nn.Module]) -> list[nn.Module]:
    """The modules to wrap, the model first, parents before children."""
    names = {m: n for n, m in model.named_modules()}
    sharded = [n for m, n in names.items() if isinstance(m, FSDPModule)]
    if sharded:
        raise Unsupported(
            f"{sharded[0] or 'the model'!r} is sharded already; call fully_shard once, on the "
            "tied model, with all of its blocks"
        )
    chosen = {model}
    for block in blocks:
        if isinstance(block, str):
            matched = set(match(block, names.values()))
            found = {m for m, n in names.items() if n and n in matched}
            if not found:
                raise NoSuchSite(
                    f"no module matches {block!r}; {nearest(block, names.values())}"
                )
        elif block in names:
            found = {block}
        else:
            raise NoSuchSite(
                f"a {type(block).__name__} was given as a block that is not in this "
                f"{type(model).__name__}; shard it by itself, or name a module of the model"
            )
        chosen |= found
    return [m for m in names if m in chosen]


def _homes(model: nn.Module, wrapped: list[nn.Module]) -> list[tuple[_Stand, nn.Module]]:
    """The parameters that FSDP would not find where they belong, each with the wrapped module
    that is to gather it.
    """
    inside = _containers(model, set(wrapped))
    homes = []
    for reader in readers(model):
        around = [inside[m] for m in reader.modules]
        home = [w for w in around[0] if all(w in a for a in around)][-1]
        found = {inside[m][-1] for m, _ in reader.seats}
        if reader.covered or found != {home}:
            homes.append((_Stand(reader), home))
    return homes


def _containers(
    model: nn.Module, wrapped: set[nn.Module]
) -> dict[nn.Module, tuple[nn.Module, ...]]:
    """For each module, the wrapped modules on every way to it from the model, outermost
    first, itself included.
    """
    found: dict[nn.Module, tuple[nn.Module, ...]] = {}
    todo: list[tuple[nn.Module, tuple[nn.Module, ...]]] = [(model, ())]
    while todo:
        module, above = todo.pop()
        here = (*above, module) if module in wrapped else above
        if module in found:
            common = tuple(m for m in found[module] if m in here)
            if common == found[module]:
                continue
            here = common
        found[module] = here
        todo += [(child, here) for child in module.children()]
    return found
