"""The log density of each sequence as one function of torch's autograd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from eadem.hmm import expect as e_step
from eadem.hmm.data import Data

if TYPE_CHECKING:
    from eadem.hmm.base import HMM

__all__ = ["log_densities", "recursion"]


def log_densities(model: HMM, data: Data, sites: Mapping[str, Tensor]) -> Tensor:
    """The log density of each sequence at these values of the sites, (sequences,)."""
    run: Any = _Densities.apply
    found: Tensor = run(model, data, tuple(sites), *sites.values())
    return found


class _Densities(torch.autograd.Function):
    """Forward: the compiled recursion. Backward: expected counts over probabilities, of every
    sequence, from one E-step. Backward of that: torch's own, through `recursion`.
    """

    @staticmethod
    def forward(
        ctx: Any, model: HMM, data: Data, names: tuple[str, ...], *given: Tensor
    ) -> Tensor:
        values = {n: _array(t) for n, t in zip(names, given, strict=True)}
        each = e_step.log_likelihood(
            model._frames(data, values), values["startprob"], values["transmat"]
        )
        ctx.save_for_backward(*given)
        ctx.model, ctx.data, ctx.names, ctx.slopes = model, data, names, None
        return torch.from_numpy(each).to(given[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        if torch.is_grad_enabled() and (grad.requires_grad or _tracked(given)):
            sites = dict(zip(ctx.names, given, strict=True))
            total = (grad * recursion(ctx.model, ctx.data, sites)).sum()
            wanted = [t for t in given if t.requires_grad]
            found = iter(
                torch.autograd.grad(total, wanted, create_graph=True, materialize_grads=True)
            )
            return (
                None,
                None,
                None,
                *(next(found) if t.requires_grad else None for t in given),
            )
        if ctx.slopes is None:
            values = {n: _array(t) for n, t in zip(ctx.names, given, strict=True)}
            _, every = ctx.model._each(ctx.data, values)
            slopes = [ctx.model._gradient(stats, values) for stats in every]
            ctx.slopes = [torch.from_numpy(np.stack([s[n] for s in slopes])) for n in ctx.names]
        pulled = (
            torch.tensordot(grad.to(s), s, 1).to(t)
            for s, t in zip(ctx.slopes, given, strict=True)
        )
        return (None, None, None, *pulled)


def _tracked(given: tuple[Tensor, ...]) -> bool:
    return any(t.requires_grad for t in given)


def _array(value: Tensor) -> Any:
    return np.ascontiguousarray(value.detach().cpu().double().numpy())


def recursion(model: HMM, data: Data, sites: Mapping[str, Tensor]) -> Tensor:
    """The same log densities by torch's operations, a step of all sequences at a time: slow,
    and differentiable as often as one likes.
    """
    table = model._log_torch(data, sites)  # (rows, K)
    shift = table.detach().amax(1)
    shift = torch.where(torch.isfinite(shift), shift, 0.0)
    table = (table - shift.unsqueeze(1)).exp()
    x = torch.arange(data.frames) if data.x is None else torch.from_numpy(data.x)
    starts, lengths = torch.from_numpy(data.bounds[:-1]), torch.from_numpy(np.diff(data.bounds))
    alpha = sites["startprob"].expand(len(starts), -1)
    total = shift.new_zeros(len(starts))
    for t in range(int(lengths.max())):
        live = t < lengths
        row = x[torch.where(live, starts + t, 0)]
        moved = alpha @ sites["transmat"] if t else alpha
        new = moved * table[row]
        size = torch.where(live, new.sum(1), 1.0)
        total = total + torch.where(live, size.log() + shift[row], 0.0)
        alpha = torch.where(live.unsqueeze(1), new / size.unsqueeze(1), alpha)
    return total
