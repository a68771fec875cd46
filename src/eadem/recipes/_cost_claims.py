"""What is asked of the costs of sharing."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from eadem.recipes import Context

__all__ = ["FEWER", "SAME", "claim"]

FEWER, SAME = 0.6, 0.01


def claim(context: Context, found: Mapping[str, Any], layers: Mapping[str, Any]) -> None:
    """Claim C32, in its two halves, and where a convolution's savings are from."""

    def over(key: str) -> dict[str, float]:
        return {name: f["tied"][key] / f["untied"][key] for name, f in found.items()}

    ask = partial(context.claim, "C32")
    memory = {key: max(over(key).values()) for key in ("free", "gradient", "optimizer")}
    ask(
        "Sharing lowers complexity: fewer free values, smaller gradients and optimizer.",
        f"each ≤ {FEWER:g} of the untied twin's, in every pair (the largest ratio is given)",
        f"≤ {FEWER:g}",
        memory,
        max(memory.values()) <= FEWER,
    )
    operations = over("operations")
    ask(
        "Sharing lowers the computing cost: a training step takes fewer operations.",
        f"operations ≤ {1 - SAME:g} of the untied twin's, in at least one pair",
        f"≤ {1 - SAME:g}",
        operations,
        min(operations.values()) <= 1 - SAME,
    )
    by = {name: f["operations"] for name, f in layers.items()}
    local, shared = by["local"] / by["fully connected"], by["convolution"] / by["local"]
    window = 3 * 3 / (16 * 16)
    ask(
        "A convolution takes fewer operations than a fully connected layer because it is "
        "local, not because it is shared.",
        f"local over connected: window over image within {SAME:.0%}; convolution over local: 1 "
        f"within {SAME:.0%}",
        {"local": window, "shared": 1},
        {"local": local, "shared": shared},
        abs(local / window - 1) <= SAME and abs(shared - 1) <= SAME,
    )
