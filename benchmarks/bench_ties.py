"""Ties: a tied model against the same model written by hand.

A step is forward, backward and an SGD update; an evaluation is one forward pass under
`no_grad`. Both models hold the same values. torch's own parametrize stands beside each
transpose, as the peer that a tie would otherwise be written with.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

import eadem
from eadem.maps import Gather, LinearMap, Palindrome
from timing import Row, paired, row, seconds

__all__ = ["rows"]

SIZES = ((64, 32), (256, 128), (784, 128))
BATCH = 64
#: What the project promises of a tied model's time over that of the hand-written one.
LIMIT = 1.05


class Tied(nn.Module):
    """A stock autoencoder, before it is tied."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(wide, narrow)
        self.decoder = nn.Linear(narrow, wide)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.relu(self.encoder(x)))


class Expression(nn.Module):
    """What one writes by hand: a layer that applies the other's weight, transposed."""

    def __init__(self, source: nn.Linear, bias: nn.Parameter) -> None:
        super().__init__()
        self.source = [source]  # in a list, so that it is no sub-module a second time
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.source[0].weight.t(), self.bias)


class Turned(nn.Module):
    """The transpose as torch's parametrize has it: the source held, not registered."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        self.source = [source]

    def forward(self) -> Tensor:
        return self.source[0].weight.t()

    def right_inverse(self, _: Tensor) -> tuple[()]:
        return ()


def by_eadem(wide: int, narrow: int) -> nn.Module:
    """The autoencoder tied by Eadem."""
    torch.manual_seed(0)
    model = Tied(wide, narrow)
    eadem.tie(model, "decoder.weight", to="encoder.weight", via=eadem.Transpose())
    return model


def by_hand(wide: int, narrow: int) -> nn.Module:
    """The same with the expression written in a module."""
    torch.manual_seed(0)
    model = Tied(wide, narrow)
    model.decoder = Expression(model.encoder, model.decoder.bias)  # type: ignore[assignment]
    return model


def by_parametrize(wide: int, narrow: int) -> nn.Module:
    """The same with torch.nn.utils.parametrize."""
    torch.manual_seed(0)
    model = Tied(wide, narrow)
    parametrize.register_parametrization(
        model.decoder, "weight", Turned(model.encoder), unsafe=True
    )
    return model


Use = Callable[[], object]


def step(model: nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> Use:
    """One training step of `model`, called as `call` (itself by default)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    forward = model if call is None else call

    def run() -> None:
        optimizer.zero_grad()
        functional.mse_loss(forward(x), x).backward()
        optimizer.step()

    return run


def evaluation(call: Callable[[Tensor], Tensor], x: Tensor) -> Use:
    """One forward pass under no_grad."""

    def run() -> None:
        with torch.no_grad():
            call(x)

    return run


def transposes(compiled: bool) -> list[Row]:
    """A transpose tie and torch's parametrize, each against the expression by hand."""
    found = []
    how = "compiled" if compiled else "eager"
    for wide, narrow in SIZES:
        x = torch.randn(BATCH, wide)
        models = [f(wide, narrow) for f in (by_eadem, by_hand, by_parametrize)]
        calls: list[Callable[[Tensor], Tensor]] = list(models)
        if compiled:
            torch._dynamo.reset()
            calls = [torch.compile(m, fullgraph=True) for m in models]
            for m, c in zip(models, calls, strict=True):
                torch.testing.assert_close(c(x), m(x), rtol=1e-4, atol=1e-5)
        ours, hand, torchs = (step(m, x, c) for m, c in zip(models, calls, strict=True))
        size = f"{wide}→{narrow}"
        name = f"transpose, step, {size}, {how}"
        found.append(row(name, "F.linear(x, W.t()) by hand", paired(ours, hand), LIMIT))
        found.append(
            row(f"  torch parametrize, step, {size}, {how}", "by hand", paired(torchs, hand))
        )
        ours, hand, torchs = (evaluation(c, x) for c in calls)
        name = f"transpose, evaluation, {size}, {how}"
        found.append(row(name, "F.linear(x, W.t()) by hand", paired(ours, hand), LIMIT))
        found.append(
            row(
                f"  torch parametrize, evaluation, {size}, {how}",
                "by hand",
                paired(torchs, hand),
            )
        )
    return found


def equality() -> list[Row]:
    """An equality tie against `b.weight = a.weight`."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 128))
    hand = copy.deepcopy(ours)
    eadem.tie(ours, "0.weight", "2.weight")
    hand[2].weight = hand[0].weight
    x = torch.randn(BATCH, 128)
    return [
        row(
            "equality, step, 128→128",
            "b.weight = a.weight",
            paired(step(ours, x), step(hand, x)),
        ),
        row(
            "equality, evaluation, 128→128",
            "b.weight = a.weight",
            paired(evaluation(ours, x), evaluation(hand, x)),
        ),
    ]


class Written(nn.Module):
    """A linear layer whose weight is an expression of a smaller parameter."""

    def __init__(self, theta: Tensor, bias: Tensor, index: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(theta.detach().clone())
        self.bias = nn.Parameter(bias.detach().clone())
        self.index = index
        self.shape = (len(bias), -1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.theta.index_select(0, self.index).view(self.shape)
        return functional.linear(x, weight, self.bias)


class Reads(nn.Module):
    """A root model that uses its layer `times` times over."""

    def __init__(self, layer: nn.Module, times: int) -> None:
        super().__init__()
        self.layer = layer
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.relu(self.layer(x))
        return x


def mapped() -> list[Row]:
    """A structured site against the gather that one would write, which is done at each use."""
    found = []
    for width in (64, 256, 784):
        size = width * width
        scattered = torch.randint(
            0, size // 3, (width, width), generator=torch.Generator().manual_seed(0)
        )
        cases: list[tuple[str, LinearMap, int]] = [
            ("Palindrome", Palindrome(dim=-1), 1),
            ("Gather", Gather(scattered), 1),
            ("Gather", Gather(scattered), 4),
        ]
        for name, phi, times in cases:
            torch.manual_seed(0)
            model = Reads(nn.Linear(width, width), times)
            eadem.tie(model, "layer.weight", via=phi)
            hand = _by_index(model, times)
            x = torch.randn(BATCH, width)
            torch.testing.assert_close(model(x), hand(x), rtol=0, atol=0)
            what = f"{name} {width}→{width}" + (f", read {times} times" if times > 1 else "")
            against = "θ.index_select(0, index) by hand"
            ratio = paired(_squares(model, x), _squares(hand, x))
            found.append(row(f"{what}, step", against, ratio, LIMIT))
            ratio = paired(evaluation(model, x), evaluation(hand, x))
            found.append(row(f"{what}, evaluation", against, ratio, LIMIT))
    return found


def _by_index(model: Reads, times: int) -> Reads:
    """The hand-written peer: which free value stands where is found by writing numbers."""
    layer = model.layer
    theta = layer._parameters["weight"]
    assert isinstance(layer, nn.Linear)
    assert theta is not None
    held = theta.detach().clone()
    with torch.no_grad():
        theta.copy_(torch.arange(theta.numel(), dtype=theta.dtype))
        index = layer.weight.detach().reshape(-1).long().clone()
        theta.copy_(held)
    return Reads(Written(held, layer.bias, index), times)


def _squares(model: nn.Module, x: Tensor) -> Use:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    return run


def _best(name: str, limit: float | None, prepare: Callable[[], Use]) -> Row:
    """Seconds of a call that a model allows once: the best of five models, with the rest."""
    times = [_once(prepare()) for _ in range(5)]
    return replace(Row(name, "seconds", min(times), min(times), max(times), limit), unit="s")


def _once(use: Use) -> float:
    """Seconds of one call, the garbage collector at rest as in `timeit` and `paired`."""
    gc.collect()
    gc.disable()
    try:
        return seconds(use)
    finally:
        gc.enable()


def _many(sites: int) -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(sites)))
    return model.to_empty(device="cpu")


def declaring() -> list[Row]:
    """The cost of a declaration."""

    def pattern() -> Use:
        model = _many(10_000)
        return lambda: eadem.tie(model, "*.weight")

    def separate() -> Use:
        model = _many(2_000)

        def calls() -> None:
            for i in range(0, 2_000, 2):
                eadem.tie(model, f"{i}.weight", f"{i + 1}.weight")

        return calls

    def chain() -> Use:
        model = _many(101)

        def calls() -> None:
            for i in range(100):
                eadem.tie(model, f"{i}.weight", f"{i + 1}.weight")

        return calls

    order = torch.randperm(10_000_000, generator=torch.Generator().manual_seed(0))

    def permutation() -> Use:
        model = nn.Module()
        model.a = nn.Parameter(torch.zeros(10_000_000))
        model.b = nn.Parameter(torch.zeros(10_000_000))
        phi = Gather(order)
        return lambda: eadem.tie(model, {"a": eadem.Same(), "b": phi})

    def evaluate() -> Use:
        bound = Gather(order).bind((10_000_000,))
        theta = torch.randn(10_000_000)
        bound.forward(theta)
        return lambda: bound.adjoint(bound.forward(theta))

    return [
        _best("tie of one pattern over 10,000 sites", 1.0, pattern),
        _best("1,000 separate ties on one model", 2.0, separate),
        _best("100 separate ties, each on the last one's site", None, chain),
        _best("tie of two sites by a permutation of 10⁷ values", None, permutation),
        _best("a permutation map over 10⁷ values, forward and adjoint", 1.0, evaluate),
    ]


def rows() -> list[Row]:
    """All of the table."""
    return [
        *equality(),
        *transposes(compiled=False),
        *transposes(compiled=True),
        *mapped(),
        *declaring(),
    ]
