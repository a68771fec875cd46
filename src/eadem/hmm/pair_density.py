"""The log-likelihood of pairs as a function of probabilities that torch can differentiate."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from eadem.hmm import pair_expect as run

__all__ = ["log_densities"]

Floats = npt.NDArray[np.float64]
#: Largest relative change of a probability in a difference.
STEP = 3e-5


def log_densities(flat: Tensor, pairs: run.Pairs, threads: int) -> Tensor:
    """One log-likelihood a pair, (pairs,), from the probabilities by code (pair_expect.Model).

    The gradient is c/p, expected counts over probabilities; where p = 0 it is zero. The second
    derivative is a central difference of it, to about 1e-8 of its size.
    """
    found: Tensor = _LogDensity.apply(flat, _Pairs(pairs, threads, _codes(flat)))  # type: ignore[no-untyped-call]
    return found


def _codes(flat: Tensor) -> int:
    """K of K² + 2K + 8 values."""
    return int(np.sqrt(flat.numel() - len(run.MOVES) + 1)) - 1


class _Pairs:
    """Sequences, and the slopes c/p of their log-likelihoods."""

    def __init__(self, pairs: run.Pairs, threads: int, codes: int) -> None:
        self.pairs, self.threads, self.codes = pairs, threads, codes

    def value(self, flat: Floats) -> Floats:
        return run.likelihoods(run.Model.of(flat, self.codes), self.pairs, self.threads)

    def slopes(self, flat: Floats) -> Floats:
        """(pairs, values)."""
        model = run.Model.of(flat, self.codes)
        _, counts = run.expected(model, self.pairs, self.threads, each=True)
        return np.divide(counts, flat, out=np.zeros_like(counts), where=counts > 0)

    def slope(self, flat: Floats, weight: Floats) -> Floats:
        """Σ weight·slopes, (values,)."""
        found: Floats = weight @ self.slopes(flat)
        return found

    def curvature(self, flat: Floats, weight: Floats, along: Floats) -> Floats:
        """The derivative of `slope` along a direction of the probabilities."""
        positive = flat > 0
        along = np.where(positive, along, 0.0)
        size = np.abs(along[positive] / flat[positive]).max(initial=0.0)
        if size == 0.0:
            return np.zeros_like(flat)
        h = STEP / size
        near = self.slope(flat + h * along, weight) - self.slope(flat - h * along, weight)
        far = self.slope(flat + 2 * h * along, weight) - self.slope(
            flat - 2 * h * along, weight
        )
        found: Floats = (8 * near - far) / (12 * h)
        return found


def _array(value: Tensor) -> Floats:
    found: Floats = value.detach().cpu().numpy()
    return found


class _LogDensity(torch.autograd.Function):
    """ℓ of each pair."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, pairs: _Pairs) -> Tensor:
        ctx.save_for_backward(flat)
        ctx.pairs = pairs
        return torch.from_numpy(pairs.value(_array(flat))).to(flat.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (flat,) = ctx.saved_tensors
        return _Slope.apply(flat, grads[0], ctx), None  # type: ignore[no-untyped-call]


class _Slope(torch.autograd.Function):
    """Σ weight·∂ℓ/∂p; the slopes of all pairs are kept for the next time they are asked."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, weight: Tensor, owner: Any) -> Tensor:
        if not hasattr(owner, "slopes"):
            owner.slopes = owner.pairs.slopes(_array(flat))
        ctx.save_for_backward(flat, weight)
        ctx.owner = owner
        return torch.from_numpy(_array(weight) @ owner.slopes).to(flat.device)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        flat, weight = ctx.saved_tensors
        along = _array(grads[0])
        pairs, slopes = ctx.owner.pairs, ctx.owner.slopes
        second = pairs.curvature(_array(flat), _array(weight), along)
        each = torch.from_numpy(slopes @ along)
        return torch.from_numpy(second).to(flat.device), each.to(flat.device), None
