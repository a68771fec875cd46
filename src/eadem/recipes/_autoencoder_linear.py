"""The linear autoencoder that nothing ties, and what an L2 penalty makes of it."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.fits import RankWarning

__all__ = ["PENALTY", "QUICK_SIDE", "SIDE", "Linear", "linear"]

SIDE, QUICK_SIDE, HIDDEN, PENALTY = 10, 6, 6, 0.01


class Linear(nn.Module):
    """Down and up without bias; its residuals' squares are the error and the penalty."""

    def __init__(self, root: Tensor, penalty: float) -> None:
        super().__init__()
        self.root, self.weight = root, math.sqrt(penalty)
        self.down = nn.Parameter(torch.randn(HIDDEN, len(root), dtype=torch.float64) / 6)
        self.up = nn.Parameter(torch.randn(len(root), HIDDEN, dtype=torch.float64) / 6)

    def residual(self) -> Tensor:
        """Σ r² = E‖x − up·down·x‖² + penalty·(‖up‖² + ‖down‖²), with E xxᵀ = root·rootᵀ."""
        left = self.root - self.up @ (self.down @ self.root)
        both = (self.weight * self.up, self.weight * self.down)
        return torch.cat([v.reshape(-1) for v in (left, *both)])

    def distance(self) -> float:
        """‖up − downᵀ‖/‖down‖."""
        return float((self.up - self.down.T).detach().norm() / self.down.detach().norm())


def linear(images: Tensor, penalty: float, iterations: int) -> dict[str, Any]:
    """The linear model by Adam, then at its least: how far the decoder is from the encoder's
    transpose on the way and there, and what `suggest_ties` finds.
    """
    x = images - images.mean(0)
    values, vectors = torch.linalg.eigh(x.T @ x / x.square().sum())
    model = Linear(vectors * values.clamp(min=0).sqrt(), penalty)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    path = []
    for _ in range(iterations):
        optimizer.zero_grad()
        model.residual().square().sum().backward()
        optimizer.step()
        path.append(model.distance())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # a rotation of the code is free
        eadem.least_squares(model, tolerance=1e-13)
    found = eadem.suggest_ties(model, align=False).found
    return {
        "path": path,
        "distance": model.distance(),
        "suggested": [[s.kind, s.residual, s.pvalue] for s in found],
    }
