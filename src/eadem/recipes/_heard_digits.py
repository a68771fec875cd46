"""How well models of digits hear, and what the data say of their ties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2
from torch import nn

from eadem.recipes._spoken_digits import CLASSES, Utterances

__all__ = ["accuracy", "densities", "verdicts"]

Floats = npt.NDArray[np.float64]


def densities(digits: nn.ModuleDict, data: Sequence[Floats]) -> Floats:
    """The log density of each utterance under each model, (utterances, digits)."""
    each: list[Any] = list(digits.values())
    found = [hmm.log_density(list(data)).detach().numpy() for hmm in each]
    return np.stack(found, 1)


def accuracy(digits: nn.ModuleDict, test: Utterances) -> tuple[float, Floats]:
    """The share of utterances whose digit has the greatest density, and how many of each digit
    (rows) were heard as each (columns).
    """
    heard = densities(digits, [u for of in test for u in of]).argmax(1)
    truth = np.repeat(np.arange(CLASSES), [len(of) for of in test])
    table = np.zeros((CLASSES, CLASSES))
    np.add.at(table, (truth, heard), 1.0)
    return float((heard == truth).mean()), table


def verdicts(likelihood: Mapping[str, float], free: Mapping[str, int]) -> dict[str, Any]:
    """The likelihood ratio test of each model within the one before it (Wilks 1938)."""
    found = {}
    for wide, narrow in pairwise(likelihood):
        statistic = 2.0 * (likelihood[wide] - likelihood[narrow])
        df = free[wide] - free[narrow]
        found[narrow] = {
            "statistic": statistic,
            "df": df,
            "pvalue": float(chi2.sf(statistic, df)),
        }
    return found
