"""One network on several inputs, each through a tower of its own."""

from __future__ import annotations

import copy

from torch import Tensor, nn

import eadem
from eadem.errors import OutOfRange, ShapeError

__all__ = ["Siamese"]


class Siamese(nn.Module):
    """`towers` copies of `tower`, tied: input i goes through tower i, into one space.

    The towers of Bromley et al. (NIPS 1993). Every tower is a site of its own, tied by
    `eadem.tie_modules`, so that `eadem.trace` and the tests tell apart what each input asks of
    the weights, and `eadem.untie` and `eadem.twin` give towers that go their own way. Buffers
    stay apart: a tower with `nn.BatchNorm2d` keeps running means for each of its inputs.

    Args:
        tower: a module that takes one input.
        towers: how many inputs there are.
        tied: whether the towers are tied; if not, they are copies with one start.

    Raises OutOfRange for fewer than two towers, ShapeError in a forward pass on another number
    of inputs.

    >>> import torch
    >>> pair = Siamese(nn.Linear(4, 2))
    >>> eadem.counts(pair).free, eadem.counts(eadem.twin(pair)).free
    (10, 20)
    >>> x = torch.randn(3, 4)
    >>> left, right = pair(x, x)
    >>> torch.equal(left, right)
    True
    """

    def __init__(self, tower: nn.Module, towers: int = 2, *, tied: bool = True) -> None:
        super().__init__()
        if not isinstance(towers, int) or towers < 2:
            raise OutOfRange(f"Siamese: towers={towers!r}; give a whole number from 2 on")
        copies = (copy.deepcopy(tower) for _ in range(towers - 1))
        self.towers = nn.ModuleList([tower, *copies])
        if tied and any(True for _ in tower.parameters()):
            eadem.tie_modules(self, "towers.*")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """An input for each tower → what each made of its own, in order."""
        if len(inputs) != len(self.towers):
            raise ShapeError(
                f"Siamese: {len(inputs)} inputs for {len(self.towers)} towers; give one to each"
            )
        return tuple(t(x) for t, x in zip(self.towers, inputs, strict=True))
