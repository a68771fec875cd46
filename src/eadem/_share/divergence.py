"""The loss of recovery from logits, and its gradient, in one pass over the vocabulary.

Written with torch's own functions, the loss of n tokens goes a dozen times over (n, words)
numbers in float32; here a few tokens at a time do, and the gradient is kept as the logits are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["IGNORED", "apart"]

#: The label of a token that the loss leaves out.
IGNORED = -100
#: Numbers of logits in float32 at a time: few enough to stay in a cache.
ROOM = 1 << 19


def apart(given: Tensor, wanted: Tensor | None, labels: Tensor, text: float = 0.0) -> Tensor:
    """(1 − text)·KL(q‖p) − text·ln p(label), the mean over tokens, in nats.

    p: the softmax of the logits `given` (n, words); q: that of `wanted`, which has no gradient
    and may be None where `text` is 1; `labels` (n,), IGNORED where a token does not count.

    >>> logits = torch.tensor([[0.0, 1.0], [5.0, 0.0]])
    >>> labels = torch.tensor([1, IGNORED])
    >>> round(apart(logits, None, labels, text=1.0).item(), 4)  # ln(1 + e⁻¹)
    0.3133
    >>> apart(logits, logits, labels).item()
    0.0
    """
    found: Tensor = _Apart.apply(given, wanted, labels, text)  # type: ignore[no-untyped-call]
    return found


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, given: Tensor, wanted: Tensor | None, labels: Tensor, text: float
    ) -> Tensor:
        count = max(int((labels != IGNORED).sum()), 1)
        grad = torch.empty_like(given)
        total = torch.zeros((), dtype=torch.float64, device=given.device)
        rows = min(max(1, ROOM // given.shape[1]), len(labels))
        buffers = 1 if wanted is None or text == 1 else 3
        room = given.new_empty((buffers, rows, given.shape[1]), dtype=torch.float32)
        for at in range(0, len(labels), rows):
            end = at + rows
            label = labels[at:end]
            live = label != IGNORED
            p = _log_softmax(given[at:end], room[0])
            place = label.clamp(min=0)[:, None]
            loss = -text * p.gather(1, place)[:, 0]
            weight = live.to(p.dtype)[:, None] / count
            if text < 1 and wanted is not None:
                q = _log_softmax(wanted[at:end], room[1])
                goal = torch.exp(q, out=room[2][: len(q)])
                loss += torch.linalg.vecdot(goal, q.sub_(p)).mul_(1 - text)
                p.exp_().sub_(goal, alpha=1 - text)
            else:
                p.exp_()
            p.scatter_add_(1, place, torch.full_like(place, -text, dtype=p.dtype))
            total += loss[live].double().sum()
            grad[at:end] = p.mul_(weight)
        ctx.save_for_backward(grad)
        return (total / count).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grads[0].to(grad.dtype), None, None, None


def _log_softmax(logits: Tensor, room: Tensor) -> Tensor:
    """Of each row, in float32, written into as many rows of `room`."""
    out = room[: len(logits)].copy_(logits)
    return out.sub_(out.logsumexp(1, keepdim=True))
