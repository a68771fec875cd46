"""What is asked of the joint fits of `eadem run global-fit`."""

from __future__ import annotations

from typing import Any

from eadem.recipes import Context
from eadem.recipes._global_fit_joint import (
    LEVEL,
)
from eadem.recipes._global_fit_numbers import (
    precisions,
    unit,
)

__all__ = ["claims"]

FIRM, STRICT, BETTER, MEASURED = 0.01, 0.001, 0.95, 0.20


def claims(context: Context, found: dict[str, Any]) -> None:
    """Claim C31, in three parts."""
    numbers = [row for s in found.values() for row in s["published"]]
    off = [abs(row[4] - float(row[3])) / unit(row[3]) for row in numbers]
    context.claim(
        "C31",
        "Fitted curve by curve, the parameters are the published ones.",
        "each estimate and standard error within one unit of the last printed digit",
        {"numbers": len(numbers), "largest difference": "≤ 1"},
        {"numbers": len(numbers), "largest difference": max(off)},
        len(numbers) == 22 and max(off) <= 1.0,
    )
    precise = {f"{k} {n}": p["ratio"] for k, s in found.items() for n, p in precisions(s)}
    drawn = {
        f"{k} {n}": (r, s["drawn"]["foretold"][n])
        for k, s in found.items()
        if "drawn" in s
        for n, r in s["drawn"]["ratios"].items()
    }
    slack = [r for r in precise.values() if r > BETTER]
    measured = all(r < 1 and abs(r / wanted - 1) <= MEASURED for r, wanted in drawn.values())
    context.claim(
        "C31",
        "A shared parameter is estimated from all curves more precisely than from any one.",
        "of every parameter that the accepted sharings tie, the joint standard error over the "
        f"smallest separate one < 1, and ≤ {BETTER} for three quarters; over draws the ratio "
        f"of standard deviations < 1 and within {100 * MEASURED:g} % of that of the standard "
        "errors at the fit drawn from (full runs)",
        {"every ratio": "< 1"},
        precise | {f"{n}, drawn and foretold": list(r) for n, r in drawn.items()},
        bool(precise)
        and max(precise.values()) < 1
        and 4 * len(slack) <= len(precise)
        and measured
        and (context.quick or bool(drawn)),
    )
    every = {f"{k} {n}": t for k, s in found.items() for n, t in s["ties"].items()}
    three = {n: [t[f"{w}_pvalue"] for w in ("f", "ratio", "score")] for n, t in every.items()}
    alike = {n for n, p in three.items() if len({v < LEVEL for v in p}) == 1}
    firm = sorted(n for n, p in three.items() if max(p) < FIRM)
    kept = sorted(n for n, p in three.items() if min(p) >= LEVEL)
    studies = all(any(f"{k} {n}" in alike for n in s["ties"]) for k, s in found.items())
    k, vm = (every[f"Puromycin {n}"]["f_pvalue"] for n in ("K", "Vm"))
    context.claim(
        "C31",
        "The data say which sharing holds: they reject some ties and accept others.",
        f"Puromycin: K accepted (p ≥ {LEVEL:g}), Vm rejected (p < {STRICT:g}); F, likelihood "
        f"ratio and score test alike on ≥ 1 tie of each study; ≥ 4 rejected by all at {FIRM:g}",
        {"K": f"≥ {LEVEL:g}", "Vm": f"< {STRICT:g}", "rejected by all": "≥ 4"},
        {"K": k, "Vm": vm, "rejected by all": firm, "accepted by all": kept},
        k >= LEVEL and vm < STRICT and studies and len(firm) >= 4,
    )
