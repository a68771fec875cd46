"""The verdict of pixels on the tie of a U-Net, level by level."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import eadem
from eadem.nn import UNet

__all__ = ["PIECE", "verdict"]

PIECE = 32


def verdict(model: UNet, tiles: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """The mean test of every decoder filter at the tied fit; the pixels are Bernoulli."""
    pieces = [
        t.unfold(2, PIECE, PIECE).unfold(3, PIECE, PIECE).reshape(-1, 1, PIECE, PIECE)
        for t in tiles
    ]

    def log_density(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        image, inside = batch
        each = binary_cross_entropy_with_logits(model(image), inside, reduction="none")
        return -each.flatten(1).sum(1)

    data = list(zip(*(p.split(8) for p in pieces), strict=True))
    tests = eadem.evidence.site_mean_test(model, log_density, data, release="up.**.weight")
    return {
        name: {"z": test.statistic, "pvalue": test.pvalue, "notes": list(test.notes)}
        for name, test in tests.items()
    }
