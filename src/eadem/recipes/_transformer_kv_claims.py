"""What is asked of the patterns of sharing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from eadem.recipes import Context
from eadem.recipes._repeats import gap
from eadem.recipes._sequences import DEPTH

__all__ = ["KV", "claim", "tensors"]

#: Those that share keys or values.
KV = ("adjacent", "all", "k=v", "encoder-decoder", "blocks")


def tensors(pattern: str) -> int:
    """How many tensors the decoder caches: K and V of what was written and of the source."""
    source = {"adjacent": DEPTH, "all": 2, "blocks": 2}.get(pattern, 2 * DEPTH)
    return 2 * DEPTH if pattern == "k=v" else 2 * DEPTH + source


def claim(context: Context, grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Claim C25, in three parts."""
    free = {n: runs[0]["free"] for n, runs in grid.items()}
    kept = {n: runs[0]["tensors"] for n, runs in grid.items()}
    fewer = all(f < free["none"] for n, f in free.items() if n != "none")
    wanted = {n: tensors(n) for n in grid}
    context.claim(
        "C25",
        "Sharing keys and values across layers, or between encoder and decoder, takes fewer "
        "parameters.",
        "every pattern has fewer free values than none, and the decoder caches as many "
        "distinct tensors as counted by hand",
        {"free values": f"< {free['none']}", "tensors": wanted},
        {"free values": free, "tensors": kept},
        fewer and kept == wanted,
    )
    if not context.quick:
        _learned(context, grid)


def _learned(context: Context, grid: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """What is asked of networks that have learned."""
    none, shared = grid["none"], grid["encoder-decoder"]
    gains = {
        "alignment": gap(*([r["alignment"] for r in runs] for runs in (shared, none))),
        "copying": gap(*([r["by_task"][0] for r in runs] for runs in (shared, none))),
    }
    context.claim(
        "C25",
        "Keys and values shared between encoder and decoder give a shared space that helps "
        "copying and alignment.",
        "alignment and accuracy of copying are above those without sharing, each by > 2 "
        "standard errors of the paired difference",
        dict.fromkeys(gains, "> 2 standard errors"),
        {n: "{mean:+.3f} ± {error:.3f}".format(**g) for n, g in gains.items()},
        all(g["mean"] > 2 * g["error"] for g in gains.values()),
    )
    losses = {n: statistics.mean(r["loss"] for r in runs) for n, runs in grid.items()}
    context.claim(
        "C25",
        "Sharing keys and values comes at some loss of expressiveness.",
        "the mean test loss of every pattern that shares keys or values is above that of none",
        f"> {losses['none']:.3f}",
        {n: round(losses[n], 3) for n in KV},
        all(losses[n] > losses["none"] for n in KV),
    )
