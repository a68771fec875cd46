"""Windows of a genome with a motif in them, and what a filter learned of it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from eadem.recipes._training import descending

__all__ = [
    "BASES",
    "BATCH",
    "FILTERS",
    "FLANK",
    "LENGTH",
    "MOTIF",
    "PASSES",
    "TAPS",
    "Classifier",
    "Read",
    "Windows",
    "genome",
    "read_filter",
    "reverse_complement",
    "scores_of",
    "trained",
    "turned_by",
    "windows",
]

BASES = "ACGT"  # reversed, each base is its complement
MOTIF = "GATTACA"
LENGTH, TAPS, FILTERS, FLANK = 100, 11, 8, 6


@dataclass(frozen=True)
class Windows:
    """One-hot windows (n, 4, length) and whether each has the motif (n,), float32."""

    x: Tensor
    y: Tensor


def genome() -> Tensor:
    """The genome as numbers of BASES: (5386,) int64."""
    text = resources.files("eadem.data").joinpath("phix174.fa").read_text(encoding="ascii")
    return _numbered("".join(text.split("\n")[1:]))


def _numbered(sequence: str) -> Tensor:
    return torch.tensor([BASES.index(base) for base in sequence])


def reverse_complement(x: Tensor) -> Tensor:
    """One-hot sequences (…, 4, length) as they are read on the other strand."""
    return x.flip(-2, -1)


def windows(sequence: Tensor, n: int, generator: torch.Generator) -> Windows:
    """`n` windows of a sequence; every other one has the motif planted, on either strand."""
    start = torch.randint(len(sequence) - LENGTH + 1, (n,), generator=generator)
    found = sequence[start.unsqueeze(1) + torch.arange(LENGTH)]
    motif = _numbered(MOTIF)
    at = torch.randint(LENGTH - len(motif) + 1, (n,), generator=generator)
    strand = torch.randint(2, (n,), generator=generator)
    for i in range(0, n, 2):
        read = motif if strand[i] else (3 - motif).flip(0)
        found[i, at[i] : at[i] + len(motif)] = read
    x = nn.functional.one_hot(found, 4).to(torch.float32).transpose(1, 2)
    return Windows(x, (torch.arange(n) % 2 == 0).to(torch.float32))


class Classifier(nn.Module):
    """Filters, the maximum of each over all positions, and a weighted sum."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(4, filters, TAPS, padding=TAPS // 2, padding_mode="circular")
        self.head = nn.Linear(filters, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n,)."""
        scores: Tensor = self.head(self.filters(x).amax(-1)).squeeze(-1)
        return scores


@dataclass(frozen=True)
class Read:
    """What a classifier's strongest filter looks for: how often each base stood at each of
    its places, and of FLANK more on either side, where it responded most in windows that have
    the motif.
    """

    counts: Tensor
    consensus: str
    found: bool


@torch.no_grad()
def read_filter(model: Classifier, data: Windows) -> Read:
    """The filter with the largest weight in the head."""
    strongest = int(model.head.weight.reshape(-1).argmax())
    x = data.x[data.y == 1]
    at = model.filters(x)[:, strongest].argmax(-1)
    span = torch.arange(-FLANK - TAPS // 2, FLANK + TAPS // 2 + 1)
    places = (at.unsqueeze(1) + span) % LENGTH
    seen = x.gather(2, places.unsqueeze(1).expand(-1, 4, -1)).sum(0).T  # (places, bases)
    consensus = "".join(BASES[int(row.argmax())] for row in seen)
    other = "".join(BASES[3 - BASES.index(base)] for base in reversed(MOTIF))
    return Read(seen, consensus, MOTIF in consensus or other in consensus)


PASSES, BATCH = 100, 50


def trained(model: Classifier, data: Windows, seed: int) -> Classifier:
    """The model after PASSES over the windows."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, weight_decay=1e-3, fused=True)
    generator = torch.Generator().manual_seed(seed)
    losses = (
        binary_cross_entropy_with_logits(model(data.x[rows]), data.y[rows])
        for _ in range(PASSES * max(1, 200 // len(data.y)))
        for rows in torch.randperm(len(data.y), generator=generator).split(BATCH)
    )
    deque(descending(optimizer, losses), maxlen=0)
    return model


@torch.no_grad()
def scores_of(tied: Classifier, plain: Classifier, x: Tensor) -> dict[str, Tensor]:
    """Logits of windows (n,): tied, plain, and plain averaged over the strands."""
    other = plain(reverse_complement(x))
    return {"tied": tied(x), "plain": plain(x), "averaged": (plain(x) + other) / 2}


@torch.no_grad()
def turned_by(model: Classifier, x: Tensor) -> float:
    """Largest change of a logit from one strand to the other, over the largest logit."""
    scores = model(x)
    return float((model(reverse_complement(x)) - scores).abs().max() / scores.abs().max())
