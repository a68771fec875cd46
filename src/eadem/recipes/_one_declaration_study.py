"""One model's study: its solver against an oracle, and the verdicts on two ties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

import eadem
from eadem.evidence import ScoreTest

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """One model: how its solver fared against the oracle, and the verdicts on two ties."""

    model: nn.Module
    discrepancy: float
    tolerance: float
    history: list[float]
    true: ScoreTest
    wrong: ScoreTest
    by_robust: bool = False
    relaxed: Mapping[str, float] | None = None

    def record(self) -> dict[str, Any]:
        """The study in JSON's types."""
        counts = eadem.counts(self.model)
        p_true, p_wrong = (
            t.robust.pvalue if self.by_robust and t.robust else t.pvalue
            for t in (self.true, self.wrong)
        )
        return {
            "free": counts.free,
            "expanded": counts.expanded,
            "discrepancy": self.discrepancy,
            "tolerance": self.tolerance,
            "history": self.history,
            "agrees": self.discrepancy <= self.tolerance,
            "p_true": p_true,
            "p_wrong": p_wrong,
            "by_robust": self.by_robust,
            "true_tie": _record(self.true),
            "wrong_tie": _record(self.wrong),
            "relaxed": self.relaxed,
        }


def _record(result: ScoreTest) -> dict[str, Any]:
    found = {k: getattr(result, k) for k in ("statistic", "df", "pvalue", "stationarity")}
    robust = None if result.robust is None else asdict(result.robust)
    return found | {"robust": robust, "notes": result.notes}
