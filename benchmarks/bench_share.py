"""Layers that multiply by the factors of their weights, against their own floor.

Eight blocks of the shapes of SmolLM2-135M, seven layers each, more than a processor keeps in
its cache, with the ranks in the middle of those that `eadem share` gives it at 80 %. The floor
of reading 512 tokens is the time of the bare products of the same shapes, two for a layer, on
operands that lie ready and in the order that the BLAS likes best; that of writing one token the
time in which as many bytes as θ has are read (their sum). A copy of half the bytes, which reads
those and writes them, is shown beside it: a core may write at the same time as it reads, and
then no product that only reads can be as fast. What a layer takes beside its reading is the
same whatever its size, and a dense layer of torch takes some of it too, which has its own row;
one block of the shapes of Llama-3.2-1B shows how it is lost in larger layers. A token takes one
compiled call a layer (numba), whose work torch's threads divide. On two of them the reading
takes half as long, and what a layer takes beside it as long as ever. Queries, keys and values
that have one basis are measured against layers that each multiply by it. The rows without a
limit say how the factors compare with the dense layers, and how many bytes stay resident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import eadem
from timing import Ratio, Row, paired, row

__all__ = ["rows"]

BLOCKS = 8
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
#: One block of Llama-3.2-1B, with ranks that keep four fifths of each layer.
LARGE = (
    (2048, 2048, 1132, "columns"),
    (512, 2048, 385, "columns"),
    (512, 2048, 385, "columns"),
    (2048, 2048, 1132, "rows"),
    (8192, 2048, 1543, "columns"),
    (8192, 2048, 1543, "columns"),
    (2048, 8192, 1543, "rows"),
)


@dataclass(frozen=True)
class Layers:
    """Tied layers, the dense ones, and the bare factors of each."""

    tied: list[nn.Module]
    dense: list[nn.Linear]
    factors: list[tuple[Tensor, Tensor]]


def layers(shapes: tuple[tuple[int, int, int, str], ...], blocks: int) -> Layers:
    """The layers, the same each time."""
    torch.manual_seed(0)
    tied, dense, factors = [], [], []
    for _ in range(blocks):
        for outputs, inputs, rank, side in shapes:
            layer = nn.Linear(inputs, outputs, bias=False)
            dense.append(nn.Linear(inputs, outputs, bias=False))
            across = inputs if side == "columns" else outputs
            phi: eadem.Map = eadem.Factored(
                rank, "rows", torch.randperm(across)[:rank].tolist()
            )
            if side == "columns":  # as eadem.share declares it
                phi = eadem.Transpose() @ phi
            holder = nn.ModuleDict({"layer": layer})
            eadem.tie(holder, {"layer.weight": phi}, start="empty")
            with torch.no_grad():
                (theta,) = eadem.ties(holder)[0].thetas
                theta.normal_(std=0.02)
            tied.append(holder["layer"])
            if side == "columns":
                factors.append((torch.randn(inputs - rank, rank), torch.randn(rank, outputs)))
            else:
                wide = torch.randn(rank, inputs), torch.randn(outputs - rank, rank)
                factors.append((wide[0].t(), wide[1].t()))
    return Layers(tied, dense, factors)


def _through(modules: Sequence[nn.Module], count: int) -> Callable[[], None]:
    given = [torch.randn(count, m.in_features) for m in modules]

    def run() -> None:
        for m, x in zip(modules, given, strict=True):
            m(x)

    return run


def bare(factors: list[tuple[Tensor, Tensor]], count: int) -> Callable[[], None]:
    """The two products of each layer, on operands that lie ready."""
    given = [
        (torch.randn(count, a.shape[0]), torch.randn(count, b.shape[0])) for a, b in factors
    ]

    def run() -> None:
        for (a, b), (x, y) in zip(factors, given, strict=True):
            x.mm(a)
            y.mm(b)

    return run


def read(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """All values, read once."""
    thetas = [p for m in modules for p in m.parameters()]

    def run() -> None:
        for p in thetas:
            p.sum()

    return run


class Attention(nn.Module):
    """Queries, keys and values of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(576, n, bias=False) for n in (576, 192, 192))

    def forward(self, x: Tensor) -> None:
        """The three, one after another."""
        for part in self.parts:
            part(x)


def together() -> tuple[list[nn.Module], list[nn.Module]]:
    """Blocks whose queries, keys and values have one basis of 300; and the same layers asked
    each by itself, outside a forward that could keep what they have in common.
    """
    torch.manual_seed(0)
    models: list[nn.Module] = []
    for _ in range(BLOCKS):
        model = Attention()
        whole = eadem.Factored(300, "rows", torch.randperm(576)[:300].tolist())
        maps, at = {}, 0
        for i, part in enumerate(model.parts):
            maps[f"parts.{i}.weight"] = eadem.Transpose() @ eadem.Block(at, 960, 1) @ whole
            at += part.out_features
        eadem.tie(model, maps, start="empty")
        with torch.no_grad():
            next(model.parameters()).normal_(std=0.02)
        models.append(model)
    return models, [part for model in models for part in model.parts]


def asked(modules: list[nn.Module], count: int) -> Callable[[], None]:
    """Modules that read inputs of 576."""
    x = torch.randn(count, 576)

    def run() -> None:
        for m in modules:
            m(x)

    return run


def copied(bytes_read: int) -> Callable[[], None]:
    """A copy that moves as many bytes as are read: half of them in, half of them out."""
    source = torch.ones(bytes_read // 8)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def rows() -> list[Row]:
    """Reading and writing through the factors against their floors and the dense layers."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        found = _alone()
        torch.set_num_threads(2)
        return found + _several("2 threads")
    finally:
        torch.set_num_threads(threads)


def _several(threads: str) -> list[Row]:
    held, found = layers(SHAPES, BLOCKS), []
    with torch.no_grad():
        for count in (TOKENS, 1):
            ratio = paired(
                _through(held.tied, count), _through(held.dense, count), 7, pairs=4, calls=1
            )
            what = f"factors, {count} token{'s' * (count > 1)}, {threads}"
            found.append(row(what, "the dense layers", ratio))
        ratio = paired(
            _through(held.tied, TOKENS),
            bare(held.factors, TOKENS),
            5,
            pairs=2,
            calls=1,
            warmup=1,
        )
        against = "the bare products of the same shapes"
        found.append(row(f"factors, {TOKENS} tokens, {threads}", against, ratio, LIMIT))
        ratio = paired(_through(held.tied, 1), read(held.tied), 7, pairs=4, calls=1, warmup=1)
        what = f"factors, 1 token, {threads}"
        found.append(row(what, "a sum of as many bytes", ratio, LIMIT))
        dense = _through(held.dense, 1), read(held.dense)
        ratio = paired(*dense, 7, pairs=4, calls=1, warmup=1)
        found.append(row(f"dense layers, 1 token, {threads}", "a sum of as many bytes", ratio))
        large = layers(LARGE, 1)
        ratio = paired(_through(large.tied, 1), read(large.tied), 7, pairs=4, calls=1, warmup=1)
        what = f"factors, 1 token, shapes of Llama-3.2-1B, {threads}"
        found.append(row(what, "a sum of as many bytes", ratio, LIMIT))
    return found


def _alone() -> list[Row]:
    held = layers(SHAPES, BLOCKS)
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
        ratio = paired(writing, read(held.tied), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", "a sum of as many bytes", ratio, LIMIT))
        ratio = paired(writing, copied(4 * thetas), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", "a copy of half as many bytes", ratio))
        ratio = paired(writing, bare(held.factors, 1), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", against, ratio))
        ratio = paired(writing, _through(held.dense, 1), 7, pairs=4, calls=1, warmup=1)
        found.append(row("factors, 1 token", "the dense layers", ratio))
        ratio = paired(_through(held.dense, 1), read(held.dense), 7, pairs=4, calls=1, warmup=1)
        found.append(row("dense layers, 1 token", "a sum of as many bytes", ratio))
        large = layers(LARGE, 1)
        ratio = paired(_through(large.tied, 1), read(large.tied), 7, pairs=4, calls=1, warmup=1)
        what = "factors, 1 token, shapes of Llama-3.2-1B"
        found.append(row(what, "a sum of as many bytes", ratio, LIMIT))
        del large
        shared, alone = together()
        for count in (TOKENS, 1):
            ratio = paired(asked(shared, count), asked(alone, count), 5, pairs=2, calls=1)
            what = f"one basis of q, k, v, {count} token{'s' * (count > 1)}"
            found.append(row(what, "each by itself", ratio))
    share = thetas / dense
    found.append(row("bytes of θ", "the dense weights", Ratio(share, share, share)))
    return found
