"""How well codes say whether two pictures show one person: the ROC curve over all pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["area", "curve", "roc"]


def area(scores: Tensor, same: Tensor) -> float:
    """The area under the ROC curve: how often a pair of one person scores above one of two."""
    _, inverse, counts = scores.double().unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1).double() / 2)[inverse]
    yes, no = int(same.sum()), int((~same).sum())
    return float((ranks[same].sum() - yes * (yes + 1) / 2) / (yes * no))


def curve(scores: Tensor, same: Tensor, points: int = 101) -> list[float]:
    """Of the pairs of one person, how many pass where a share 0, 0.01, … of the others do."""
    levels = torch.linspace(1, 0, points, dtype=torch.float64)
    thresholds = scores[~same].double().quantile(levels)
    return [float((scores[same] >= t).double().mean()) for t in thresholds]


def roc(left: Tensor, right: Tensor, people: int) -> dict[str, Any]:
    """All pairs of a picture and a later one: codes (pictures, n) of the first by `left`, of
    the other by `right`, as many pictures of each of the `people`, person by person.
    """
    person = torch.arange(people).repeat_interleave(len(left) // people)
    i, j = torch.triu_indices(len(left), len(left), 1)
    scores = (normalize(left, dim=1)[i] * normalize(right, dim=1)[j]).sum(1)
    same = person[i] == person[j]
    return {"auc": area(scores, same), "curve": curve(scores, same)}
