"""Layers that multiply by the factors of their weights, against their own floor.

Sixteen blocks of the shapes of SmolLM2-135M, seven layers each, more than a processor keeps in
its cache, with the ranks in the middle of those that `eadem share` gives it at 80 %. The floor
of reading 512 tokens is the time of the bare products of the same shapes, two for a layer, on
operands that lie ready; that of writing one token the bytes of θ over the bandwidth of a copy,
which reads a byte and writes one, and is counted as two. The rows without a limit say how the
factors compare with the dense layers, and how many bytes stay resident.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import eadem
from timing import Ratio, Row, paired, row

__all__ = ["rows"]

BLOCKS = 16
TOKENS = 512
LIMIT = 1.1
#: Outputs, inputs, rank and the side of the pivots of the layers of one block.
SHAPES = (
    (576, 576, 104, "columns"),
    (192, 576, 112, "columns"),
    (192, 576, 180, "columns"),
    (576, 576, 262, "rows"),
    (1536, 576, 408, "columns"),
    (1536, 576, 446, "columns"),
    (576, 1536, 504, "rows"),
)


@dataclass(frozen=True)
class Layers:
    """Tied layers, the dense ones, and the bare factors of each."""

    tied: list[nn.Module]
    dense: list[nn.Linear]
    factors: list[tuple[Tensor, Tensor]]


def layers() -> Layers:
    """The layers, the same each time."""
    torch.manual_seed(0)
    tied, dense, factors = [], [], []
    for _ in range(BLOCKS):
        for outputs, inputs, rank, side in SHAPES:
            layer = nn.Linear(inputs, outputs, bias=False)
            dense.append(nn.Linear(inputs, outputs, bias=False))
            across = inputs if side == "columns" else outputs
            phi = eadem.Factored(rank, side, torch.randperm(across)[:rank].tolist())
            holder = nn.ModuleDict({"layer": layer})
            eadem.tie(holder, {"layer.weight": phi}, start="empty")
            with torch.no_grad():
                (theta,) = eadem.ties(holder)[0].thetas
                theta.normal_(std=0.02)
            tied.append(holder["layer"])
            if side == "columns":
                factors.append((torch.randn(rank, inputs - rank), torch.randn(outputs, rank)))
            else:
                factors.append((torch.randn(rank, inputs), torch.randn(outputs - rank, rank)))
    return Layers(tied, dense, factors)


def _through(modules: list[nn.Module], count: int) -> Callable[[], None]:
    given = [torch.randn(count, m.in_features) for m in modules]

    def run() -> None:
        for m, x in zip(modules, given, strict=True):
            m(x)

    return run


def bare(factors: list[tuple[Tensor, Tensor]], count: int) -> Callable[[], None]:
    """The two products of each layer, on operands that lie ready."""
    given = [
        (torch.randn(count, a.shape[1]), torch.randn(count, b.shape[1])) for a, b in factors
    ]

    def run() -> None:
        for (a, b), (x, y) in zip(factors, given, strict=True):
            linear(x, a)
            linear(y, b)

    return run


def copied(bytes_read: int) -> Callable[[], None]:
    """A copy that moves as many bytes as are read: half of them in, half of them out."""
    source = torch.ones(bytes_read // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def rows() -> list[Row]:
    """Reading and writing through the factors against their floors and the dense layers."""
    held = layers()
    thetas = sum(p.numel() for m in held.tied for p in m.parameters())
    dense = sum(m.weight.numel() for m in held.dense)
    found = []
    with torch.no_grad():
        reading, writing = _through(held.tied, TOKENS), _through(held.tied, 1)
        against = "the bare products of the same shapes"
        ratio = paired(reading, bare(held.factors, TOKENS), 5, pairs=2, calls=1, warmup=1)
        found.append(row(f"factors, {TOKENS} tokens", against, ratio, LIMIT))
        ratio = paired(reading, _through(held.dense, TOKENS), 5, pairs=2, calls=1, warmup=1)
        found.append(row(f"factors, {TOKENS} tokens", "the dense layers", ratio))
        ratio = paired(writing, copied(4 * thetas), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", "a copy of as many bytes", ratio, LIMIT))
        ratio = paired(writing, bare(held.factors, 1), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", against, ratio))
        ratio = paired(writing, _through(held.dense, 1), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", "the dense layers", ratio))
    share = thetas / dense
    found.append(row("bytes of θ", "the dense weights", Ratio(share, share, share)))
    return found
