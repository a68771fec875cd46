"""The networks of the digits, and the tie plans of one of them."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

__all__ = ["CHANNELS", "KERNEL", "POSITIONS", "SIDE", "STRIDE", "cnn", "network"]

CHANNELS, SIDE, KERNEL, STRIDE = 8, 28, 5, 2
POSITIONS = ((SIDE - KERNEL) // STRIDE + 1) ** 2  # 12 × 12 windows


def cnn() -> nn.Sequential:
    """The reference CNN of C28: conv 32 3×3, pool, conv 64 3×3, pool, dense 128, dense 10."""
    layers: list[tuple[str, nn.Module]] = [
        ("image", nn.Unflatten(1, (1, SIDE, SIDE))),
        ("conv1", nn.Conv2d(1, 32, 3)),
        ("relu1", nn.ReLU()),
        ("pool1", nn.MaxPool2d(2)),
        ("conv2", nn.Conv2d(32, 64, 3)),
        ("relu2", nn.ReLU()),
        ("pool2", nn.MaxPool2d(2)),
        ("flat", nn.Flatten()),
        ("dense1", nn.Linear(64 * 5 * 5, 128)),
        ("relu3", nn.ReLU()),
        ("dense2", nn.Linear(128, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def network() -> nn.Sequential:
    """The network of (b): its first layer is fully connected until it is tied."""
    layers: list[tuple[str, nn.Module]] = [
        ("first", nn.Linear(SIDE * SIDE, CHANNELS * POSITIONS)),
        ("relu1", nn.ReLU()),
        ("hidden", nn.Linear(CHANNELS * POSITIONS, 64)),
        ("relu2", nn.ReLU()),
        ("out", nn.Linear(64, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))
