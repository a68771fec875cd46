"""Sequences to copy, reverse and sort, and an encoder–decoder that learns to.

All parameters of the transformer are those of stock modules, and queries, keys and values have
a module each, so that a pattern of sharing can name them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = [
    "DEPTH",
    "LETTERS",
    "LONGEST",
    "TASKS",
    "Batch",
    "Transformer",
    "attended",
    "batch",
    "cached",
    "scores",
]

LETTERS, SHORTEST, LONGEST, DEPTH = 8, 3, 5, 4
TASKS = ("copy", "reverse", "sort")
#: Letters, the names of the tasks, and what the decoder reads before its first letter.
TOKENS = LETTERS + len(TASKS) + 1


@dataclass(frozen=True)
class Batch:
    """`source` (n, 1 + length): the task, then letters without repetition; `wanted`
    (n, length): what to write; `place` (n, length): where in the source each stands.
    """

    source: Tensor
    wanted: Tensor
    place: Tensor

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(self.source[rows], self.wanted[rows], self.place[rows])

    def __len__(self) -> int:
        return len(self.source)


def batch(n: int, generator: torch.Generator, length: int | None = None) -> Batch:
    """`n` sequences of one length, drawn if None, each with a task of its own.

    >>> one = batch(3, torch.Generator().manual_seed(0))
    >>> bool((one.source.gather(1, one.place) == one.wanted).all())
    True
    """
    if length is None:
        length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
    letters = torch.rand(n, LETTERS, generator=generator).argsort(1)[:, :length]
    task = torch.randint(len(TASKS), (n, 1), generator=generator)
    order = torch.arange(length).expand(n, length)
    orders = torch.stack([order, order.flip(1), letters.argsort(1)])  # as in TASKS
    place = orders.gather(0, task.expand(n, length).unsqueeze(0)).squeeze(0)
    source = torch.cat([LETTERS + task, letters], 1)
    return Batch(source, letters.gather(1, place), place + 1)


class Attention(nn.Module):
    """Attention with a module each for queries, keys, values, weights and output."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )
        self.weights = nn.Softmax(-1)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """x (n, t, width), source (n, s, width), mask (t, s) of what is hidden → like x."""
        q, k, v = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (n, heads, ·, width')
            for projected in (self.q(x), self.k(source), self.v(source))
        )
        scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        found = (self.weights(scores) @ v).transpose(1, 2).flatten(2)
        result: Tensor = self.out(found)
        return result


class Layer(nn.Module):
    """A layer of the encoder, or, with `cross`, of the decoder; normalised before each part."""

    def __init__(self, width: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.attn, self.norm1 = Attention(width, heads), nn.LayerNorm(width)
        self.cross = Attention(width, heads) if cross else None
        self.norm2 = nn.LayerNorm(width) if cross else None
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, memory: Tensor | None = None
    ) -> Tensor:
        """x (n, t, width) → the same shape."""
        inner = self.norm1(x)
        x = x + self.attn(inner, inner, mask)
        if self.cross is not None and self.norm2 is not None:
            x = x + self.cross(self.norm2(x), memory)
        found: Tensor = x + self.down(self.up(self.norm3(x)).relu())
        return found


class Transformer(nn.Module):
    """An encoder and a decoder of `depth` layers each."""

    def __init__(self, width: int, depth: int, heads: int = 4) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(TOKENS, width), nn.Embedding(TOKENS, width)
        self.place = nn.Embedding(LONGEST + 1, width)
        self.encoder = nn.ModuleList(Layer(width, heads, False) for _ in range(depth))
        self.decoder = nn.ModuleList(Layer(width, heads, True) for _ in range(depth))
        self.read, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, TOKENS, bias=False)
        for one in (self.source, self.target, self.place, self.head):
            nn.init.normal_(one.weight, std=width**-0.5)

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        """Source (n, s) and what was written so far (n, t) → scores of what comes next."""
        memory = self.source(source) + self.place.weight[: source.shape[1]]
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.read(memory)
        length = before.shape[1]
        x = self.target(before) + self.place.weight[:length]
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in self.decoder:
            x = layer(x, future, memory)
        scores: Tensor = self.head(self.norm(x))
        return scores


def scores(model: nn.Module, seen: Batch) -> Tensor:
    """Scores (n, length, TOKENS) of every letter, told the right ones before it."""
    first = torch.full_like(seen.wanted[:, :1], TOKENS - 1)
    found: Tensor = model(seen.source, torch.cat([first, seen.wanted[:, :-1]], 1))
    return found


@contextmanager
def _outputs(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """What modules give in a forward pass within the block, by name."""
    kept: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: kept.update({name: out}))
        for name, module in modules.items()
    ]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def attended(model: Transformer, seen: Batch) -> Tensor:
    """Cross-attention's weights (depth, n, heads, length, 1 + length)."""
    cross = {
        str(i): model.get_submodule(f"decoder.{i}.cross.weights")
        for i in range(len(model.decoder))
    }
    with _outputs(cross) as kept:
        scores(model, seen)
    return torch.stack(list(kept.values()))


@torch.no_grad()
def cached(model: Transformer, seen: Batch) -> list[Tensor]:
    """The distinct tensors that a decoder has to keep while it writes: its layers' keys and
    values, of what was written and of the source; equal ones are kept once.
    """
    parts = {
        name: module
        for name, module in model.decoder.named_modules()
        if name.endswith((".k", ".v"))
    }
    with _outputs(parts) as kept:
        scores(model, seen)
    distinct: list[Tensor] = []
    for one in kept.values():
        if not any(torch.equal(one, other) for other in distinct):
            distinct.append(one)
    return distinct
