"""A model as a function of the values at its sites: what solvers and tests see of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eadem._plan import Plan, Site, canonical, resolve
from eadem.bind.look import _all, resolved
from eadem.bind.names import Sites
from eadem.bind.ties import Tie
from eadem.bind.untie import twin
from eadem.errors import NoSuchSite
from eadem.maps.constant import on_cpu

__all__ = ["at_sites", "site_coordinates", "trainable", "without"]


class _Call(nn.Module):
    """A function of a model, as a module, so that `functional_call` can swap its values."""

    def __init__(self, model: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *data: Any) -> Any:
        return self.function(self.model, *data)


def at_sites(
    model: nn.Module, function: Callable[..., Any], dtype: torch.dtype | None = None
) -> Callable[..., Any]:
    """`function(model, *data)` as a function of the flat values of all sites.

    Returns `at(values, *data)`, with `values` in the order of `resolved(model)`; it may be
    differentiated, and is computed on an untied copy, in `dtype` where one is given. The
    model's buffers are those of the copy.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    >>> import eadem
    >>> _ = eadem.tie(model, "*.weight")
    >>> at = at_sites(model, lambda m, x: m(x))
    >>> at(torch.cat([torch.eye(2), 2 * torch.eye(2)]).reshape(-1), torch.ones(2))
    tensor([2., 2.])
    """
    plan, apart = resolved(model), twin(model)
    call = _Call(apart if dtype is None else apart.to(dtype), function)

    sizes = [s.stop - s.start for s in plan.slices.values()]

    def at(values: Tensor, *data: Any) -> Any:
        pieces = torch.split(values, sizes)  # one node to differentiate, not one for each site
        each = zip(plan.shapes.items(), pieces, strict=True)
        sites = {f"model.{name}": piece.reshape(shape) for (name, shape), piece in each}
        return torch.func.functional_call(call, sites, data)

    return at


def site_coordinates(model: nn.Module, *sites: str) -> Tensor:
    """Where sites lie in the flat vector of all sites, (n,) int64, each once, ascending.

    `sites` are names, patterns and parts, as in `tie`. Raises NoSuchSite.

    >>> site_coordinates(nn.Linear(2, 3), "weight[1]", "bias")
    tensor([2, 3, 6, 7, 8])
    """
    index, found = Sites(model), []
    plan = resolved(model)
    for text in sites:
        for name, where in index.find(text):
            if name not in plan.shapes:
                raise NoSuchSite(f"{name!r} is not a parameter of the model")
            site = Site(name, canonical(where, index.shape(name), text))
            found.append(site.coordinates(plan.shapes[name]) + plan.slices[name].start)
    flat = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
    return torch.from_numpy(flat)


def trainable(model: nn.Module) -> Tensor:
    """Which of the flat free values are trained: a mask in the order of `free_vector`.

    >>> trainable(nn.Linear(2, 1).requires_grad_(False))
    tensor([False, False, False])
    """
    parts = [
        torch.full((p.numel(),), p.requires_grad, dtype=torch.bool) for p in model.parameters()
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.bool)


@on_cpu()
def without(model: nn.Module, *gone: Tie) -> Plan:
    """The plan that the model would have if these ties had not been declared.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> import eadem
    >>> t = eadem.tie(model, "*.weight")
    >>> _ = eadem.tie(model, "*.bias")
    >>> resolved(model).rank, without(model, t).rank
    (6, 10)
    """
    sites = Sites(model)
    shapes = {n: sites.shape(n) for n in sites.places}
    out = {id(t._bound) for t in gone}
    everything = _all(sites)
    known = {id(b) for _, b in everything}
    for t in gone:
        if id(t._bound) not in known:
            raise NoSuchSite(f"{t!r} is not a tie of this model; eadem.ties(model) lists them")
    return resolve(shapes, [d for d, b in everything if id(b) not in out])
