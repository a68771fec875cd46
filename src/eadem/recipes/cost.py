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

import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import eadem
from eadem.groups import Cyclic
from eadem.nn import LocallyConnected2d, group_cnn
from eadem.recipes import Context
from eadem.recipes._cost_page import draw, table
from eadem.recipes._training import one_thread_count, seeded
from eadem.report.page import ready

__all__ = ["PAIRS", "Step", "chain", "report", "run"]

DEPTH, TOKENS = 8, 8000
ROUNDS, QUICK_ROUNDS = 40, 4
FEWER, SAME = 0.6, 0.01

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


class Alive(TorchDispatchMode):
    """Bytes of the tensors that operations have made and that are still alive, at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = self.now = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if _is(t)}
        for tensor in tree_leaves(made):
            if _is(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.known | given:
                    self.known.add(storage._cdata)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def gone(self, key: int, size: int) -> None:
        """A storage has been freed."""
        self.known.discard(key)
        self.now -= size


def _is(value: object) -> bool:
    return isinstance(value, Tensor)


class Step:
    """A model's training step: forward, backward and Adam."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        self.model, self.x = model, x
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-4)
        for _ in range(2):  # Adam's state is there after the first
            self.take()

    def take(self) -> None:
        """Do it."""
        self.optimizer.zero_grad()
        self.model(self.x).square().mean().backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        """The processor's time for so many, which other processes do not add to."""
        start = time.thread_time()
        for _ in range(steps):
            self.take()
        return time.thread_time() - start

    def counted(self) -> dict[str, int]:
        """What one step needs."""
        state = sum(_bytes(v) for s in self.optimizer.state.values() for v in s.values())
        self.optimizer.zero_grad()
        with FlopCounterMode(display=False) as operations:
            self.model(self.x)
            forward = operations.get_total_flops()
            self.take()
        self.optimizer.zero_grad()
        with Alive() as alive:
            self.take()
        counts = eadem.counts(self.model)
        values = sum(_bytes(p) for p in self.parameters)
        return {
            "free": counts.free,
            "expanded": counts.expanded,
            "gradient": sum(_bytes(p.grad) for p in self.parameters if p.grad is not None),
            "optimizer": state,
            "operations": operations.get_total_flops() - forward,
            "peak": values + state + alive.most,
        }


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


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
            with torch.no_grad():
                change = float((tied(x) - untied(x)).abs().max() / tied(x).abs().max())
            steps = {"tied": Step(tied, x), "untied": Step(untied, x)}
            many = max(1, round(0.05 / steps["untied"].seconds(1)))
            times = [
                {key: step.seconds(many) / many for key, step in steps.items()}
                for _ in context.progress(range(rounds), "rounds")
            ]
            found[name] = {key: step.counted() for key, step in steps.items()}
            found[name] |= {
                "start": change,
                "ratios": sorted(t["tied"] / t["untied"] for t in times),
                "seconds": {k: median(t[k] for t in times) for k in steps},
            }
        with seeded(context.seed):
            layers = chain(torch.randn(16, 3, 16, 16))
    _claim(context, found, layers)
    context.write_metrics({"rounds": rounds, "models": found, "chain": layers})
    report(context.out)
    context.say(table(context.out))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    draw(folder, {name: build()[0] for name, build in PAIRS.items()})


def _claim(context: Context, found: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
    """Claim C32, in its two halves, and where a convolution's savings are from."""

    def over(key: str) -> dict[str, float]:
        return {name: f["tied"][key] / f["untied"][key] for name, f in found.items()}

    memory = {key: max(over(key).values()) for key in ("free", "gradient", "optimizer")}
    context.claim(
        "C32",
        "Sharing lowers complexity: fewer free values, smaller gradients and optimizer.",
        f"each ≤ {FEWER:g} of the untied twin's, in every pair (the largest ratio is given)",
        f"≤ {FEWER:g}",
        memory,
        max(memory.values()) <= FEWER,
    )
    operations = over("operations")
    context.claim(
        "C32",
        "Sharing lowers the computing cost: a training step takes fewer operations.",
        f"operations ≤ {1 - SAME:g} of the untied twin's, in at least one pair",
        f"≤ {1 - SAME:g}",
        operations,
        min(operations.values()) <= 1 - SAME,
    )
    by = {name: f["operations"] for name, f in layers.items()}
    local, shared = by["local"] / by["fully connected"], by["convolution"] / by["local"]
    window = 3 * 3 / (16 * 16)
    context.claim(
        "C32",
        "A convolution takes fewer operations than a fully connected layer because it is "
        "local, not because it is shared.",
        f"local over connected: window over image within {SAME:.0%}; convolution over local: 1 "
        f"within {SAME:.0%}",
        {"local": window, "shared": 1},
        {"local": local, "shared": shared},
        abs(local / window - 1) <= SAME and abs(shared - 1) <= SAME,
    )
