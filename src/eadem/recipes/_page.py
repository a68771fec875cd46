"""What the pages of all recipes have alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eadem.recipes import METRICS, REPORT, Claim
from eadem.recipes._run import write_atomic
from eadem.report import page

__all__ = ["claims", "footer", "mean", "measured", "write"]


def measured(folder: Path) -> dict[str, Any]:
    """What a finished run measured: its metrics.json."""
    found: dict[str, Any] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return found


def mean(values: Sequence[float]) -> float:
    """The mean of what the repeats measured."""
    return sum(values) / len(values)


def claims(metrics: Mapping[str, Any]) -> page.Section:
    """The run's claims: what was asked, expected and measured."""
    table = page.claims_table([Claim(**c) for c in metrics["claims"]])
    return page.Section("claim", "The claim", blocks=[table])


def footer(metrics: Mapping[str, Any]) -> list[str]:
    """How to have the same run again.

    >>> footer({"seed": 3, "quick": True})
    ['seed 3, quick']
    """
    return [f"seed {metrics['seed']}" + (", quick" if metrics["quick"] else "")]


def write(folder: Path, whole: page.Page) -> None:
    """The page beside the metrics."""
    write_atomic(folder / REPORT, page.render(whole))
