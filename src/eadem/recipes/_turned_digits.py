"""Digits turned by chance, and networks for them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import eadem
from eadem.evidence import certify
from eadem.groups import Cyclic, Dihedral, Group
from eadem.nn import group_cnn
from eadem.recipes._digits import Digits
from eadem.recipes._training import seeded

__all__ = [
    "BATCH",
    "COPIES",
    "RATE",
    "SIDE",
    "WIDTHS",
    "Job",
    "broken",
    "build",
    "group_of",
    "turned",
]

SIDE = 28
#: Fields of the three convolutions; a field has as many channels as its group has elements.
WIDTHS = {"p4": (4, 6, 8), "p4m": (3, 4, 6), "plain": (8, 12, 16)}


def turned(digits: Digits, generator: torch.Generator) -> Digits:
    """The digits, each turned about its middle by an angle of its own."""
    angle = 2 * math.pi * torch.rand(len(digits), generator=generator)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros(len(digits))
    matrix = torch.stack([cos, -sin, none, sin, cos, none], 1).reshape(-1, 2, 3)
    grid = nn.functional.affine_grid(matrix, [len(digits), 1, SIDE, SIDE], align_corners=False)
    images = digits.images.reshape(-1, 1, SIDE, SIDE)
    found = nn.functional.grid_sample(images, grid, align_corners=False)
    return Digits(found.reshape(len(digits), -1), digits.labels)


def group_of(name: str) -> Group:
    """The group that a model was built with: quarter turns, also with mirrors, or nothing."""
    kind = name.removesuffix("_twin")
    return {"p4": Cyclic(4), "p4m": Dihedral(4)}.get(kind, Cyclic(1))


def build(name: str, seed: int) -> nn.Sequential:
    """A model before training; a twin starts as the same function without the ties."""
    kind = {"augmented": "plain"}.get(name, name.removesuffix("_twin"))
    with seeded(seed):
        body = group_cnn(group_of(name), 1, WIDTHS[kind], classes=10, in_size=SIDE // 2)
    model = nn.Sequential(nn.Unflatten(1, (1, SIDE, SIDE)), nn.AvgPool2d(2), *body)
    return eadem.untie(model) if name.endswith("_twin") else model  # type: ignore[return-value]


def broken(model: nn.Sequential, name: str, images: Tensor) -> float:
    """How far the logits are from invariant, relative, in float64; the plain ones' under p4."""
    group = group_of(name)
    group = group if group.order > 1 else Cyclic(4)
    pictures = images.double().reshape(-1, 1, SIDE, SIDE)
    body = nn.Sequential(*list(copy.deepcopy(model).double().eval())[1:])
    return certify(body, group, pictures, kind="invariance").relative


BATCH, RATE, COPIES = 64, 1e-2, 8


@dataclass(frozen=True)
class Job:
    """One model to train."""

    name: str
    images: int
    seed: int
    epochs: int

    @property
    def steps(self) -> int:
        """How many optimizer steps it takes."""
        return self.epochs * -(-self.images // BATCH)
