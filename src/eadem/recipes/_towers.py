"""Towers that put the picture of a face on a sphere: how they learn and what they find."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.nn import Siamese
from eadem.recipes._faces import drawn
from eadem.recipes._training import Advance
from eadem.recipes._verification import roc

__all__ = ["EACH", "adds_up", "contrastive", "tower", "trained", "verified"]

DRAWN, EACH, RATE, TEMPERATURE = 20, 2, 3e-3, 0.3


class Sphere(nn.Module):
    """Rows scaled to length one."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, n) → (batch, n)."""
        return nn.functional.normalize(x, dim=1)


def tower() -> nn.Sequential:
    """A picture (batch, 1, 56, 46) → its code (batch, 32) on the sphere."""
    layers: list[nn.Module] = []
    for a, b, size in ((1, 16, 5), (16, 32, 3), (32, 32, 3), (32, 32, 3)):
        layers += [nn.Conv2d(a, b, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 4 * 3, 32), Sphere())


def contrastive(left: Tensor, right: Tensor, people: int) -> Tensor:
    """The loss (…) of codes (…, n, 32) twice, as many of each of the `people`, person by
    person: from a code, those on the other side that are of its person stand out from all.
    """
    person = torch.arange(people).repeat_interleave(left.shape[-2] // people)
    same = (person[:, None] == person).to(left)
    near = left @ right.mT / TEMPERATURE
    said = near.log_softmax(-1) + near.log_softmax(-2)
    return -(said * same).sum((-2, -1)) / (2 * same.sum())


def trained(model: Siamese, known: Tensor, updates: int, seed: int, advance: Advance) -> None:
    """Adam with a rate that falls to zero along a cosine."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        pictures = drawn(known, DRAWN, EACH, generator)
        optimizer.zero_grad()
        left, right = model(*pictures)
        contrastive(left, right, DRAWN).backward()
        optimizer.step()
        rate.step()
        advance(1)


@torch.no_grad()
def verified(model: Siamese, unknown: Tensor) -> dict[str, Any]:
    """All pairs of the test pictures; and how far apart the towers put one picture."""
    x = unknown.flatten(0, 1)
    codes = [a + b for a, b in zip(model(x, x), model(x.flip(-1), x.flip(-1)), strict=True)]
    left, right = (nn.functional.normalize(c, dim=1) for c in codes)
    between = float((left - right).norm(dim=1).mean())
    free = eadem.counts(model).free
    return roc(left, right, len(unknown)) | {"between": between, "free": free}


def adds_up(known: Tensor) -> float:
    """How far the towers' traced gradients are from adding up to θ's, float64, relative."""
    model = Siamese(tower()).double()
    pictures = drawn(known.double(), DRAWN, EACH, torch.Generator().manual_seed(0))
    with eadem.trace(model) as seen:
        left, right = model(*pictures)
        contrastive(left, right, DRAWN).backward()
    worst = 0.0
    for name, owner in model.towers[0].named_parameters():
        total = seen.sites[f"towers.0.{name}"] + seen.sites[f"towers.1.{name}"]
        assert owner.grad is not None
        worst = max(worst, float((total - owner.grad).abs().max() / owner.grad.abs().max()))
    return worst
