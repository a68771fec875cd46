"""One block, applied over and over: depth that costs no parameters."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

import eadem
from eadem.errors import OutOfRange, ShapeError

__all__ = ["Repeat"]


class Repeat(nn.Module):
    """`block` applied `depth` times: x ← block(x), or x ← x + step · block(x).

    The block gives back the shape it is given. Every application is a site: `blocks` holds the
    block and `depth` − 1 copies of it, tied by `eadem.tie_modules`, so that `eadem.trace` and
    the tests tell the layers apart and `eadem.untie` and `eadem.twin` give the deep network
    with a set of weights a layer. Buffers stay apart.

    Args:
        block: a module that maps a tensor to one of the same shape.
        depth: how often it is applied.
        step: the second form, with this step. With `step` = T/`depth` it is Euler's method for
            dx/dt = block(x) from 0 to T, which it tends to at first order in 1/`depth`
            (Hairer, Nørsett & Wanner, Solving Ordinary Differential Equations I, II.3).
        checkpoint: so many applications are one segment, of which the backward pass keeps only
            the input and computes the rest again. Segments of √`depth` keep least (Chen et
            al., arXiv:1604.06174). None keeps everything.
        reuse: the one module is applied `depth` times and nothing is copied or tied; several
            such models may share a block. `eadem.trace(model, "blocks.0.**")` tells the calls
            apart. The state dict is the same.

    Raises OutOfRange for a depth or segment below one, ShapeError in a forward pass where the
    block changes the shape.

    >>> import torch
    >>> net = Repeat(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), 6)
    >>> eadem.counts(net).free, eadem.counts(eadem.twin(net)).free
    (20, 120)
    >>> x = torch.randn(3, 4)
    >>> torch.equal(net(x), Repeat(copy.deepcopy(net.blocks[0]), 6, reuse=True)(x))
    True
    >>> net
    Repeat(
      depth=6
      (blocks): ModuleList(
        (0-5): 6 x Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): Tanh()
        )
      )
    )
    """

    def __init__(
        self,
        block: nn.Module,
        depth: int,
        *,
        step: float | None = None,
        checkpoint: int | None = None,
        reuse: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("depth", depth), ("checkpoint", checkpoint)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise OutOfRange(f"Repeat: {name}={value!r}; give a whole number from 1 on")
        self.depth, self.step, self.checkpoint = depth, step, checkpoint
        copies = 0 if reuse else depth - 1
        self.blocks = nn.ModuleList([block, *(copy.deepcopy(block) for _ in range(copies))])
        if copies and any(True for _ in block.parameters()):
            eadem.tie_modules(self, "blocks.*")

    def forward(self, x: Tensor) -> Tensor:
        """x (any shape that the block takes) → the same shape."""
        if self.checkpoint is None or self.checkpoint >= self.depth:
            return self._segment(x, 0, self.depth)
        for first in range(0, self.depth, self.checkpoint):
            last = min(first + self.checkpoint, self.depth)
            x = recomputed(self._segment, x, first, last, use_reentrant=False)
        return x

    def _segment(self, x: Tensor, first: int, last: int) -> Tensor:
        for i in range(first, last):
            y: Tensor = self.blocks[i % len(self.blocks)](x)
            if y.shape != x.shape:
                raise ShapeError(
                    f"Repeat: its block made {tuple(y.shape)} of {tuple(x.shape)}; a block "
                    "that is applied again gives back the shape it is given"
                )
            x = y if self.step is None else x + self.step * y
        return x

    def extra_repr(self) -> str:
        """What is printed besides the blocks."""
        more = {"step": self.step, "checkpoint": self.checkpoint}
        given = [f"{k}={v!r}" for k, v in more.items() if v is not None]
        return ", ".join([f"depth={self.depth}", *given])
