"""What is said of two models that were compared again and again."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["gap"]


def gap(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """The mean paired difference, one − other, and its standard error (0 of a single pair).

    >>> gap([2.0, 4.0], [1.0, 1.0])
    {'mean': 2.0, 'error': 1.0}
    """
    each = [a - b for a, b in zip(one, other, strict=True)]
    error = statistics.stdev(each) / len(each) ** 0.5 if len(each) > 1 else 0.0
    return {"mean": statistics.mean(each), "error": error}
