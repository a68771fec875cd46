"""Statistics of data that several processes hold, made one.

A solver pools what its own data say through φ first, so what travels has the size of the free
values, not of the sites. Terms are summed in the order of the processes, and each process adds
up its share of the coordinates for all of them: every process has the same bits, whatever the
backend, and so takes the same steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed

from eadem.solvers.solution import SolverError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["agreed", "pooled", "stacked"]


def pooled(local: Tensor, group: ProcessGroup | None) -> Tensor:
    """The sum of a tensor over the processes of `group`, in float64; every process must ask.

    `group` None: this process alone holds the data, and its tensor is the sum. Each process
    sends and receives twice the size of the tensor.

    >>> pooled(torch.ones(2, dtype=torch.float64), None)
    tensor([1., 1.], dtype=torch.float64)
    """
    local = local.detach().to(torch.float64)
    if group is None:
        return local
    size = distributed.get_world_size(group)
    share = -(-local.numel() // size)
    sent = local.new_zeros(size * share)
    sent[: local.numel()] = local.reshape(-1)
    received = torch.empty_like(sent)
    distributed.all_to_all_single(received, sent, group=group)
    terms = received.reshape(size, share)
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    everything = torch.empty_like(sent)
    distributed.all_gather_into_tensor(everything, total, group=group)
    return everything[: local.numel()].reshape(local.shape)


def stacked(local: Tensor, group: ProcessGroup | None) -> Tensor:
    """The tensors of all processes, of one shape, along the first axis in their order.

    >>> stacked(torch.eye(2, dtype=torch.float64), None).shape
    torch.Size([2, 2])
    """
    local = local.detach().to(torch.float64).contiguous()
    if group is None:
        return local
    size = distributed.get_world_size(group)
    found = local.new_empty(size * local.shape[0], *local.shape[1:])
    distributed.all_gather_into_tensor(found, local, group=group)
    return found


def agreed(theta: Tensor, group: ProcessGroup | None) -> None:
    """Raise SolverError unless every process starts from the same free values."""
    if group is None:
        return
    flat = theta.reshape(1, -1)
    every = stacked(flat, group)
    if not bool((every == flat).all()) or bool(torch.isnan(every).any()):
        raise SolverError(
            "the processes start from different free values (largest difference "
            f"{float((every - every[:1]).abs().max())!r}); give each the same start, as "
            "torch.distributed.broadcast(theta, 0) does"
        )
