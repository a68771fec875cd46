"""How the small language models are trained, and judged on the plays held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from eadem.recipes._one_tensor import (
    BATCH,
    LENGTH,
    Language,
    adamw,
    models,
    nats,
)
from eadem.recipes._text import Text, windows
from eadem.recipes._training import Advance, descending, seeded

__all__ = ["RANKS", "Sizes", "by_rank", "held_out", "language_trained", "letters"]

#: Ranks of subwords by frequency, where bits are told apart.
RANKS = (1, 64, 256, 512, 1024)


@dataclass(frozen=True)
class Sizes:
    """Subwords, width, steps and repeats; windows to test on; batches of the evidence."""

    tokens: int
    width: int
    steps: int
    repeats: int
    tested: int
    batches: int


def language_trained(
    text: Text, seed: int, name: str, size: Sizes, at: Sequence[int], advance: Advance
) -> tuple[str, dict[int, float], list[float], Language]:
    """A model after training: bits a character by step, and bits a token by rank at the end."""
    with seeded(seed):
        model = models(size.tokens, size.width)[name]
    generator = torch.Generator().manual_seed(seed)
    test = windows(text.tested, LENGTH + 1, size.tested, generator)
    optimizer, found = adamw(model.parameters()), {}
    losses = (
        nats(model, windows(text.learned, LENGTH + 1, BATCH, generator)).mean()
        for _ in range(at[-1])
    )
    for step, _ in enumerate(descending(optimizer, losses), 1):
        advance(1)
        if step in at:
            lost = held_out(model, test)
            found[step] = float(lost.sum()) / math.log(2) / letters(text, test[:, 1:])
    return name, found, by_rank(lost, test[:, 1:], size.tokens), model


@torch.no_grad()
def held_out(model: nn.Module, test: Tensor) -> Tensor:
    """Nats of every token but the first of windows, a few windows at a time."""
    return torch.cat([nats(model, part) for part in test.split(64)])


def letters(text: Text, window: Tensor) -> int:
    """How many characters tokens are; what has no number counts as one."""
    size = torch.tensor([max(1, len(t)) for t in text.tokens])
    return int(size[window].sum())


def by_rank(lost: Tensor, window: Tensor, tokens: int) -> list[float]:
    """Mean bits of the tokens between one of RANKS and the next."""
    bounds = [r for r in RANKS if r <= tokens]
    inside = [(window >= a) & (window < b) for a, b in pairwise(bounds)]
    return [float(lost[mask].mean()) / math.log(2) for mask in inside]
