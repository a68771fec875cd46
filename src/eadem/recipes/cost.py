"""What sharing costs and saves: memory, operations and time of tied and untied pairs.

Six pairs of networks with the same shapes, the same input and one function at the start; one
of each pair is tied and the other has a free value at every site:

- a filter over positions: `nn.Conv2d` against `eadem.nn.LocallyConnected2d`;
- the same tie through its map: `nn.Linear` under `eadem.Toeplitz2d`, against itself untied;
- tied depth: eight hidden layers of one weight, against eight weights;
- tied embedding and output: one table of tokens, against two;
- a tied autoencoder: the decoder's weight is the encoder's, transposed;
- quarter turns: a p4 network of tied convolutions, against its untied twin.

What is equal is the computation: input, batch, layers. Counted on the modules themselves, in
one training step (forward, backward, Adam) in float32 on the CPU: free values, bytes of the
gradients and of Adam's state, floating-point operations (torch's `FlopCounterMode`: those of
products and convolutions, a multiplication and an addition each), and the most bytes of
tensors alive at once. Time is a ratio, tied over untied, of the processor's time for steps
alternated in one process on one thread; no claim rests on it. A last table walks from a fully
connected layer over a local one to a convolution, where operations are saved, and says by what.

Claim C32, whose second half is expected not to hold: in none of these pairs does the tie spare
an operation, since every site is still multiplied with its input. No data are used, and
nothing is fitted, so there is no tie to test. Expected run time: 1 minute, 15 s when quick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.groups import Cyclic
from eadem.nn import LocallyConnected2d, group_cnn
from eadem.recipes import Context
from eadem.recipes._cost_claims import claim
from eadem.recipes._cost_page import draw, table
from eadem.recipes._counted_step import Step, largest_change, timed
from eadem.recipes._training import one_thread_count, seeded
from eadem.report.page import ready

__all__ = ["PAIRS", "Step", "chain", "report", "run"]

DEPTH, TOKENS = 8, 8000
ROUNDS, QUICK_ROUNDS = 40, 4

Pair = tuple[nn.Module, nn.Module, Tensor]


def over_positions() -> Pair:
    """A filter shared over 900 positions, and one for every position."""
    conv = nn.Conv2d(8, 16, 3)
    return conv, LocallyConnected2d.from_conv(conv, 32), torch.randn(16, 8, 32, 32)


def through_a_map() -> Pair:
    """A dense layer whose weight is written out from one filter, and the same without."""
    model = nn.Sequential(nn.Linear(20 * 20, 18 * 18, bias=False))
    eadem.tie(model, "0.weight", via=eadem.Toeplitz2d(20, 3), start="init")
    return model, eadem.twin(model), torch.randn(64, 400)


def tied_depth() -> Pair:
    """One hidden layer used eight times, and eight of them."""
    model = nn.Sequential(*(m for _ in range(DEPTH) for m in (nn.Linear(256, 256), nn.Tanh())))
    with eadem.plan(model):
        eadem.tie(model, "*.weight")
        eadem.tie(model, "*.bias")
    return model, eadem.twin(model), torch.randn(64, 256)


def embedding_and_output() -> Pair:
    """One table of tokens that is read from and predicted with, and two."""
    body = (nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, TOKENS, bias=False))
    model = nn.Sequential(nn.Embedding(TOKENS, 64), *body)
    eadem.tie(model, "3.weight", to="0.weight")
    return model, eadem.twin(model), torch.randint(TOKENS, (64,))


def autoencoder() -> Pair:
    """A decoder that is the encoder's transpose, and one of its own."""
    model = nn.Sequential(nn.Linear(784, 128), nn.Tanh(), nn.Linear(128, 784))
    eadem.tie(model, "2.weight", to="0.weight", via=eadem.Transpose())
    return model, eadem.twin(model), torch.randn(64, 784)


def quarter_turns() -> Pair:
    """Kernels that are turned copies of each other, and independent ones."""
    model = group_cnn(Cyclic(4), 1, (4, 6, 8), classes=10, in_size=28)
    return model, eadem.twin(model), torch.randn(16, 1, 28, 28)


PAIRS: dict[str, Callable[[], Pair]] = {
    "a filter over positions": over_positions,
    "the same through its map": through_a_map,
    "tied depth": tied_depth,
    "embedding and output": embedding_and_output,
    "autoencoder": autoencoder,
    "quarter turns": quarter_turns,
}


def chain(x: Tensor) -> dict[str, dict[str, int]]:
    """From 3 × 16 × 16 to 8 × 14 × 14: connected, local, convolution."""
    conv = nn.Conv2d(3, 8, 3)
    connected = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8 * 14 * 14))
    layers = {"fully connected": connected, "local": LocallyConnected2d.from_conv(conv, 16)}
    return {name: Step(m, x).counted() for name, m in {**layers, "convolution": conv}.items()}


def run(context: Context) -> None:
    """Count, time, and leave metrics.json and report.html."""
    ready()
    rounds = QUICK_ROUNDS if context.quick else ROUNDS
    found: dict[str, dict[str, Any]] = {}
    with one_thread_count():
        for name, build in context.progress(PAIRS.items(), "pairs", len(PAIRS)):
            with seeded(context.seed):
                tied, untied, x = build()
            change = largest_change(tied(x), untied(x))
            steps = {"tied": Step(tied, x), "untied": Step(untied, x)}
            times = timed(steps, context.progress(range(rounds), "rounds"))
            counted = {key: step.counted() for key, step in steps.items()}
            found[name] = counted | times | {"start": change}
        with seeded(context.seed):
            layers = chain(torch.randn(16, 3, 16, 16))
    claim(context, found, layers)
    context.write_metrics({"rounds": rounds, "models": found, "chain": layers})
    report(context.out)
    context.say(table(context.out))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    draw(folder, {name: build()[0] for name, build in PAIRS.items()})
