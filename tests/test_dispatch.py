"""An equality tie costs nothing: the operators dispatched are those of a hand-tied model."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import eadem


class Count(TorchDispatchMode):
    """Every operator that reaches the dispatcher, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.calls.append(str(func))
        return func(*args, **(kwargs or {}))


def operators(model: nn.Module, x: Tensor, optimizer: bool = False) -> list[str]:
    """What one training step, or one evaluation of a model, dispatches."""
    model.zero_grad()
    step = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=False)
    with Count() as count:
        model(x).square().mean().backward()
        if optimizer:
            step.step()
    with torch.no_grad(), Count() as evaluation:
        model(x)
    return [*count.calls, "—", *evaluation.calls]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x)))


def _by_hand(model: nn.Module) -> None:
    model.head.weight = model.embed.weight
    model.body[2].weight = model.body[0].weight


def _by_eadem(model: nn.Module) -> None:
    eadem.tie(model, "embed.weight", "head.weight")
    eadem.tie(model, "body.*.weight")


@pytest.mark.parametrize("optimizer", [False, True])
def test_equality_dispatches_what_aliasing_does(optimizer: bool) -> None:
    hand, ours = Tokens(), Tokens()
    ours.load_state_dict(hand.state_dict())
    _by_hand(hand)
    _by_eadem(ours)
    x = torch.randint(0, 7, (5, 3))
    assert operators(ours, x, optimizer) == operators(hand, x, optimizer)
    torch.testing.assert_close(ours(x), hand(x), rtol=0, atol=0)


def test_equality_after_a_copy_and_a_cast() -> None:
    hand, ours = Tokens(), Tokens()
    _by_hand(hand)
    _by_eadem(ours)
    x = torch.randint(0, 7, (5, 3))
    assert operators(copy.deepcopy(ours).double(), x) == operators(hand.double(), x)


class ByHand(nn.Module):
    """An autoencoder with the transpose written out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3)
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(
            torch.tanh(self.encoder(x)), self.encoder.weight.t(), self.bias
        )


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3)
        self.decoder = nn.Linear(3, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def test_a_transpose_dispatches_what_is_written_by_hand() -> None:
    hand, ours = ByHand(), Autoencoder()
    eadem.tie(ours, "decoder.weight", to="encoder.weight", via=eadem.Transpose())
    x = torch.randn(5, 6)
    assert Counter(operators(ours, x)) == Counter(operators(hand, x))


def compiled(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """The nodes of the one graph that torch.compile makes of a model, by kind and target."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.graph)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(model, fullgraph=True, backend=backend)(x)
    (graph,) = graphs
    nodes = list(graph.nodes)
    return [(n.op, "" if n.op == "placeholder" else str(n.target)) for n in nodes]


def test_equality_compiles_to_what_aliasing_does() -> None:
    hand, ours = Tokens(), Tokens()
    _by_hand(hand)
    _by_eadem(ours)
    x = torch.randint(0, 7, (5, 3))
    assert compiled(ours, x) == compiled(hand, x)


class Written(nn.Module):
    """A layer whose weight is picked from fewer values, written out."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(5))
        self.bias = nn.Parameter(torch.zeros(6))
        self.index = index

    def forward(self, x: Tensor) -> Tensor:
        weight = self.theta.index_select(0, self.index).view(6, 6)
        return nn.functional.linear(x, weight, self.bias)


def test_a_gather_dispatches_what_is_written_by_hand() -> None:
    index = torch.arange(36) % 5
    hand, ours = Written(index), nn.Sequential(nn.Linear(6, 6))
    eadem.tie(ours, "0.weight", via=eadem.Gather(index.reshape(6, 6)))
    x = torch.randn(5, 6)
    assert Counter(operators(ours, x)) == Counter(operators(hand, x))


class Repeated(nn.Module):
    """A mapped site that is read four times in one forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = torch.tanh(self.w(x))
        return x


@pytest.mark.parametrize(
    ("phi", "operator"),
    [
        (lambda: eadem.Palindrome(dim=-1), "index_select"),
        (lambda: eadem.Gather(torch.arange(36).reshape(6, 6) % 5), "index_select"),
    ],
    ids=["palindrome", "gather"],
)
def test_a_mapped_site_is_computed_once_in_a_forward_pass(
    phi: Callable[[], eadem.LinearMap], operator: str
) -> None:
    model = Repeated()
    eadem.tie(model, "w.weight", via=phi())
    x = torch.randn(2, 6)
    with torch.no_grad(), Count() as count:
        model(x)
    assert sum(operator in call for call in count.calls) == 1
    with Count() as count:
        model(x).sum().backward()
    assert sum(operator in call and "back" not in call for call in count.calls) == 1
