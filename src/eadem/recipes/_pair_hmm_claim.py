"""What is asked of the symmetric pair HMM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from eadem.recipes import Context

__all__ = ["LEVEL", "POWER", "SIZE", "SIZE_QUICK", "STRICT", "SWAP", "TESTS", "claim"]

SWAP, LEVEL, STRICT = 1e-10, 0.05, 1e-3
SIZE, SIZE_QUICK, POWER = 0.15, 0.34, 0.8
TESTS = ("score", "likelihood ratio")


def _rejected(found: Sequence[Any], test: str) -> float:
    return sum(bool(v[test]["pvalue"] < LEVEL) for v in found) / len(found)


def claim(context: Context, swap: Any, drawn: Any, real: Any) -> None:
    """Claim C22."""
    most = SIZE_QUICK if context.quick else SIZE
    size = {test: _rejected(drawn["true"], test) for test in TESTS}
    power = {test: _rejected(drawn["false"], test) for test in TESTS}
    p = {name: v["likelihood ratio"]["pvalue"] for name, v in real.items()}
    exact = max(swap["all ties"], swap["insertions, match transposed"])
    holds = (
        exact <= SWAP
        and max(size.values()) <= most
        and min(power.values()) >= POWER
        and p["in random order"] > STRICT >= p["the longer first"]
        and all(map(math.isfinite, p.values()))
    )
    context.claim(
        "C22",
        "A pair HMM whose insertions are tied does not change, as far as they go, when the "
        "sequences are swapped, and not at all when the match emissions are symmetric too; "
        "and the data can reject the symmetry.",
        f"swap error ≤ {SWAP:g}; false alarms at 5 % in ≤ {100 * most:g} % of draws by either "
        f"test, power ≥ {100 * POWER:g} %; real pairs in random order not rejected at "
        f"{100 * STRICT:g} %, with the longer first rejected",
        {
            "swap": f"≤ {SWAP:g}",
            "size": f"≤ {most:g}",
            "power": f"≥ {POWER:g}",
            "real": f"{STRICT:g}",
        },
        {"swap": swap, "size": size, "power": power, "real": p},
        holds,
    )
