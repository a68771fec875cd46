"""From a repeated block to its differential equation: errors, gradients and memory by depth."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eadem.errors import MissingPackage
from eadem.nn import Repeat
from eadem.recipes import Context
from eadem.recipes._digits import Digits

__all__ = ["Flow", "convergence", "memory", "saved_bytes", "slope"]

DEPTHS = (4, 8, 16, 32, 64, 128, 256)
FROM = 16
TOLERANCE = 1e-10


class Flow(nn.Module):
    """The state at time 1 of dx/dt = block(x) from x, by torchdiffeq's adaptive dopri5;
    gradients by the adjoint equation, which keeps nothing of the way.
    """

    def __init__(self, block: nn.Module, tolerance: float = TOLERANCE) -> None:
        super().__init__()
        self.block, self.tolerance = block, tolerance

    def field(self, t: Tensor, x: Tensor) -> Tensor:
        """dx/dt."""
        found: Tensor = self.block(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """x (n, width) at time 0 → at time 1."""
        try:
            from torchdiffeq import odeint_adjoint
        except ModuleNotFoundError as error:
            raise MissingPackage(
                "the recipe 'depth' solves a differential equation with the package "
                "'torchdiffeq', which is not installed: pip install \"eadem[ode]\""
            ) from error
        way = odeint_adjoint(
            self.field,
            x,
            x.new_tensor([0.0, 1.0]),
            rtol=self.tolerance,
            atol=self.tolerance,
            method="dopri5",
            adjoint_params=tuple(self.block.parameters()),
        )
        found: Tensor = way[-1]
        return found


def slope(depths: list[int], errors: list[float]) -> float:
    """Least squares of log error on log depth.

    >>> round(slope([1, 2, 4], [3.0, 1.5, 0.75]), 12)
    -1.0
    """
    x = [math.log(d) for d in depths]
    y = [math.log(e) for e in errors]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / sum((a - mx) ** 2 for a in x)


def convergence(model: nn.Sequential, digits: Digits, context: Context) -> dict[str, Any]:
    """Relative errors of the output and of the block's gradient by depth, and their slopes.

    `model` is pixels, tanh, Repeat, classes; the gradient is that of the cross-entropy.
    """
    first, squash, middle, last = model
    assert isinstance(middle, Repeat)
    block = middle.blocks[0]
    weights = list(block.parameters())
    x = squash(first(digits.images)).detach()

    def looked_at(core: nn.Module) -> tuple[Tensor, Tensor]:
        out = core(x)
        loss = nn.functional.cross_entropy(last(out), digits.labels)
        gradient = torch.autograd.grad(loss, weights)
        return out.detach(), torch.cat([g.reshape(-1) for g in gradient])

    out, gradient = looked_at(Flow(block))
    errors: dict[str, list[float]] = {"output": [], "gradient": []}
    extrapolated, before = 0.0, gradient
    for depth in context.progress(DEPTHS, "depths"):
        now = looked_at(Repeat(block, depth, step=1 / depth, reuse=True))
        errors["output"].append(_relative(now[0], out))
        errors["gradient"].append(_relative(now[1], gradient))
        extrapolated = _relative(2 * now[1] - before, gradient)
        before = now[1]
    late = [i for i, depth in enumerate(DEPTHS) if depth >= FROM]
    depths = [DEPTHS[i] for i in late]
    slopes = {k: slope(depths, [e[i] for i in late]) for k, e in errors.items()}
    return {
        "depths": DEPTHS,
        "errors": errors,
        "slopes": slopes,
        "extrapolated": extrapolated,
    }


def _relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def saved_bytes(work: Callable[[], Tensor], parameters: set[int]) -> int:
    """Bytes that autograd keeps for a backward pass through `work()`: every storage once,
    those of the `parameters` (their data_ptr) left out.
    """
    seen: dict[int, int] = {}
    alive = []  # so that no address is used again

    def pack(value: Tensor) -> Tensor:
        at = value.untyped_storage().data_ptr()
        if at not in parameters:
            seen[at] = value.untyped_storage().nbytes()
            alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        work()
    return sum(seen.values())


def memory(model: nn.Sequential, digits: Digits) -> dict[str, list[int]]:
    """By way and depth, the bytes kept; with checkpoints, the bytes of the segment that is
    computed again are added, for they are alive at once.
    """
    middle = model[2]
    assert isinstance(middle, Repeat)
    block = middle.blocks[0]
    parameters = {p.untyped_storage().data_ptr() for p in block.parameters()}
    x = torch.tanh(model[0](digits.images)).detach().requires_grad_()

    def kept(core: nn.Module) -> int:
        return saved_bytes(lambda: core(x), parameters)

    found: dict[str, list[int]] = {"plain": [], "checkpoints": [], "adjoint": []}
    for depth in DEPTHS:
        step, each = 1 / depth, round(math.sqrt(depth))
        found["plain"].append(kept(Repeat(block, depth, step=step, reuse=True)))
        cut = kept(Repeat(block, depth, step=step, reuse=True, checkpoint=each))
        again = kept(Repeat(block, each, step=step, reuse=True))
        found["checkpoints"].append(cut + again)
    solved = kept(Flow(block))
    found["adjoint"] = [solved] * len(DEPTHS)
    return found
