"""Models that give sharding something to get wrong, beside the systems of every row."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import eadem


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width + 1)
        self.down = nn.Linear(width + 1, width)
        self.own = nn.Linear(width, width)
        #: names of modules that were seen sharded while this block ran
        self.sharded: list[str] = []
        self.look: dict[str, nn.Module] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.sharded = [n for n, m in self.look.items() if type(m.weight) is not nn.Parameter]
        return x + self.down(torch.tanh(self.up(self.own(x))))


class Stack(nn.Sequential):
    """Blocks that run last to first: a site is used before the block that holds its θ."""

    checkpointed = False

    def forward(self, h: Tensor) -> Tensor:
        for block in reversed(self):
            h = checkpoint(block, h, use_reentrant=False) if self.checkpointed else block(h)
        return h


class Deep(nn.Module):
    """A language model of four blocks, run last to first, under a tied vocabulary of 11.

    Ties: embedding and output; every block's `up`; `down` is block 0's `up` transposed in
    block 1; `own` turned by a quarter from block 2 to block 3; `own` of block 0 a palindrome;
    in block 1 two rows of `own` are two others.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.stack = Stack(*(Block(5) for _ in range(4)))
        self.head = nn.Linear(5, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stack(self.embed(x)))


def deep(checkpointed: bool = False) -> Deep:
    """The tied model, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Deep().double()
    model.stack.checkpointed = checkpointed
    with eadem.plan(model):
        eadem.tie(model, "head.weight", to="embed.weight")
        eadem.tie(model, "stack.*.up.weight")
        eadem.tie(model, "stack.1.down.weight", to="stack.1.up.weight", via=eadem.Transpose())
        eadem.tie(
            model, {"stack.2.own.weight": eadem.Same(), "stack.3.own.weight": eadem.Rotate(1)}
        )
        eadem.tie(model, "stack.0.own.weight", via=eadem.Palindrome(dim=-1))
        eadem.tie(model, "stack.1.own.weight[:2]", "stack.1.own.weight[2:4]")
    return model


class Branches(nn.Module):
    """Three layers with one θ; `b` and `c` are left out of some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.a = nn.Linear(4, 4, bias=False)
        self.b = nn.Linear(4, 4, bias=False)
        self.c = nn.Linear(4, 4, bias=False)
        self.reentrant: bool | None = None

    def part(self, layer: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh(layer(x))

    def forward(self, x: Tensor, use: str = "abc") -> Tensor:
        h = self.first(x)
        for name in use:
            layer = getattr(self, name)
            if self.reentrant is None:
                h = h + self.part(layer, h)
            else:
                h = h + checkpoint(self.part, layer, h, use_reentrant=self.reentrant)
        return h


BRANCHES = {
    "equality": lambda m: eadem.tie(m, "a.weight", "b.weight", "c.weight"),
    "transpose": lambda m: eadem.tie(
        m, "b.weight", "c.weight", to="a.weight", via=eadem.Transpose()
    ),
    "kernels": lambda m: eadem.tie(
        m, {"a.weight": eadem.Same(), "b.weight": eadem.Rotate(1), "c.weight": eadem.Flip(-1)}
    ),
    "part": lambda m: [
        eadem.tie(m, "a.weight", "b.weight", "c.weight"),
        eadem.tie(m, "a.weight[1]", "a.weight[3]"),
    ],
    "palindrome": lambda m: eadem.tie(
        m, "a.weight", "b.weight", "c.weight", via=eadem.Palindrome(dim=-1)
    ),
}


def branches(kind: str, tied: bool = True) -> Branches:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Branches().double()
    if tied:
        BRANCHES[kind](model)
    return model
