"""Traces: a training step whose site gradients are kept, against the same step without.

A step is forward, backward and an SGD update; traced, it also ends with `Trace.step`, which
adds the gradients to the running means and works out each tie's conflict in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn import functional

import eadem
from timing import Row, paired, row

__all__ = ["rows"]

#: What the project promises of a traced step's time over that of a plain one.
LIMIT = 1.3


def towers(width: int) -> nn.Module:
    """Two towers of three layers, tied layer by layer, compared by their product."""

    def tower() -> nn.Module:
        layers = [nn.Linear(width, width), nn.Tanh()] * 2
        return nn.Sequential(nn.Linear(784, width), nn.Tanh(), *layers[:3])

    torch.manual_seed(0)
    model = nn.ModuleDict({"left": tower(), "right": tower()})
    with eadem.plan(model):
        for name in ("0.weight", "2.weight", "4.weight"):
            eadem.tie(model, f"left.{name}", f"right.{name}")
    return model


def step(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        left, right = model["left"](x), model["right"](y)  # type: ignore[operator,index]
        functional.mse_loss(left, right).backward()
        optimizer.step()

    return run


def compare(width: int, batch: int) -> list[Row]:
    """A traced step against a plain one."""
    x, y = torch.randn(2, batch, 784)
    plain, traced = towers(width), towers(width)
    found = []
    with ExitStack() as stack:
        seen = stack.enter_context(eadem.trace(traced))
        bare = step(traced, x, y)

        def kept() -> None:
            bare()
            seen._calls.clear()

        def whole() -> None:
            bare()
            seen.step()

        other = step(plain, x, y)
        size = f"two towers, {width} wide, batch {batch}"
        for name, run, limit in (
            ("gradients kept", kept, LIMIT),
            ("and conflict, means", whole, None),
        ):
            ratio = paired(run, other, rounds=25, pairs=10)
            found.append(row(f"{size}: {name}", "the same step", ratio, limit))
    return found


def rows() -> list[Row]:
    """All of the table."""
    return [*compare(64, 32), *compare(256, 128)]
