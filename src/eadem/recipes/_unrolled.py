"""Stacks of recurrent cells, and how nearly they are the stock modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import eadem

__all__ = [
    "LETTERS",
    "LONG",
    "SCORED",
    "STEPS",
    "Reader",
    "Stack",
    "equal_to_stock",
    "like",
    "nats",
]

LONG, STEPS, SCORED, LETTERS = 50, 32, 24, 48


class Stack(nn.Module):
    """`depth` cells, one after the other; each reads its own input and the state before it."""

    def __init__(
        self, cell: type[nn.RNNCellBase], inputs: int, hidden: int, depth: int
    ) -> None:
        super().__init__()
        kind: Any = cell
        self.steps = nn.ModuleList(kind(inputs, hidden) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (batch, depth, inputs) → states (batch, depth, hidden)."""
        state, states = None, []
        for t, cell in enumerate(self.steps):
            state = cell(x[:, t], state)
            states.append(state)
        return torch.stack(states, 1)


def like(stack: Stack, stock: nn.RNNBase) -> Stack:
    """The stack, tied over time, with the values of the stock module."""
    eadem.tie_modules(stack, "steps.*")
    with torch.no_grad():
        for name, value in stack.steps[0].named_parameters():
            value.copy_(stock.get_parameter(f"{name}_l0"))
    return stack


def equal_to_stock(kind: str, updates: int = 100) -> dict[str, float]:
    """Largest differences from `nn.RNN` or `nn.GRU`, float64: outputs and gradients relative
    to the largest entry, the weights after so many updates by Adam too; and how far the traced
    gradients of the steps are from adding up to θ's.
    """
    cell, whole = {"RNN": (nn.RNNCell, nn.RNN), "GRU": (nn.GRUCell, nn.GRU)}[kind]
    stock = whole(7, 12, batch_first=True).double()
    stack = like(Stack(cell, 7, 12, LONG).double(), stock)
    x = torch.randn(5, LONG, 7, dtype=torch.float64)
    wanted = torch.randn(5, LONG, 12, dtype=torch.float64)
    found = {"parameters": float(eadem.counts(stack).free)}
    found["outputs"] = _off(stack(x), stock(x)[0])
    (stock(x)[0] - wanted).square().mean().backward()
    with eadem.trace(stack) as seen:
        (stack(x) - wanted).square().mean().backward()
    names = [n for n, _ in stack.steps[0].named_parameters()]
    pairs = [(stack.steps[0].get_parameter(n), stock.get_parameter(f"{n}_l0")) for n in names]
    found["gradients"] = max(_off(_grad(a), _grad(b)) for a, b in pairs)
    sums = [sum(seen.sites[f"steps.{t}.{n}"] for t in range(LONG)) for n in names]
    found["sum"] = max(
        _off(torch.as_tensor(total), _grad(a))
        for total, (a, _) in zip(sums, pairs, strict=True)
    )
    models: list[tuple[nn.Module, Any]] = [
        (stock, lambda: stock(x)[0]),
        (stack, lambda: stack(x)),
    ]
    for model, outputs in models:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(updates):
            optimizer.zero_grad()
            (outputs() - wanted).square().mean().backward()
            optimizer.step()
    found["trained"] = max(_off(a, b) for a, b in pairs)
    return found


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _off(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


class Reader(nn.Module):
    """A character model: what runs over time, and a classifier of its states."""

    def __init__(self, core: nn.Module, hidden: int) -> None:
        super().__init__()
        self.core, self.head = core, nn.Linear(hidden, LETTERS)

    def forward(self, window: Tensor) -> Tensor:
        """Characters (batch, STEPS) → scores of the next ones (batch, STEPS, LETTERS)."""
        found = self.core(nn.functional.one_hot(window, LETTERS).to(self.head.weight))
        states: Tensor = found[0] if isinstance(found, tuple) else found
        scores: Tensor = self.head(states)
        return scores


def nats(model: nn.Module, window: Tensor) -> Tensor:
    """Cross-entropy of the last SCORED characters (batch, SCORED)."""
    scores = model(window[:, :-1])[:, -SCORED:]
    wanted = window[:, 1:][:, -SCORED:]
    return nn.functional.cross_entropy(scores.transpose(1, 2), wanted, reduction="none")
