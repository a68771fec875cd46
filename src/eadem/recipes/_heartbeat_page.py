"""What the page of `eadem run heartbeat` says."""

from __future__ import annotations

from typing import Any

__all__ = ["STUDY"]

STUDY: dict[str, Any] = {
    "lede": "Cut anywhere, a record looks the same at every moment, and one "
    "filter serves them all. Held at the beat, every moment is another phase of "
    "the heart. The tie is the same; the data's verdict is not.",
    "measure": "share of the variance explained 50 ms ahead",
    "x": "windows learned from",
    "percent": True,
    "statistic": "χ², robust",
    "test": "At the tied fit, may these moments have a filter of their own? The "
    "score test with the sandwich over windows, 12 degrees of freedom.",
}
