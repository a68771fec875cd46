"""Reference alignments, and how much of them a pair HMM finds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from importlib import resources
from typing import Any

import numpy as np

from eadem.hmm import PROTEIN, PairHMM, read_stockholm
from eadem.hmm.sequences import GAPS, Record

__all__ = ["Pairs", "accuracies", "accuracy", "aligned", "picture"]


def aligned(name: str) -> list[Record]:
    """The rows of an alignment that the package carries."""
    with resources.as_file(resources.files("eadem.data").joinpath(name)) as path:
        return list(read_stockholm(path).records)


def _globins() -> tuple[list[tuple[Record, Record]], Pairs]:
    pairs = list(itertools.combinations(aligned("globins4.sto"), 2))
    return pairs, [(x.ungapped, y.ungapped) for x, y in pairs]


def accuracy(model: PairHMM, x: Record, y: Record, method: Any) -> tuple[int, int]:
    """How many of a reference alignment's pairs of letters are found, and how many it has."""
    i = j = 0
    reference = set()
    for a, b in zip(x.sequence, y.sequence, strict=True):
        here, there = a not in GAPS, b not in GAPS
        if here and there:
            reference.add((i, j))
        i, j = i + here, j + there
    pairs = model.align(x.ungapped, y.ungapped, method).pairs.tolist()
    return len(reference & {(p, q) for p, q in pairs}), len(reference)


def accuracies(
    alphabet: Any, test: Sequence[tuple[Record, Record]], train: Pairs, held: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Share of reference pairs found, before and after a fit to `train` that holds `held`."""
    found: dict[str, dict[str, float]] = {}
    model = PairHMM(alphabet, symmetric=True, threads=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.split(".")[0] not in held)
    for stage in ("start", "fitted"):
        if stage == "fitted":
            model.fit(train)
        found[stage] = {}
        for method in ("viterbi", "mea"):
            hits = np.sum([accuracy(model, x, y, method) for x, y in test], axis=0)
            found[stage][method] = float(hits[0] / hits[1])
    return found


def picture() -> dict[str, Any]:
    """The posterior of two globins' pairs of letters."""
    _, beta_alpha = _globins()
    x, y = beta_alpha[1]
    posterior = PairHMM(PROTEIN, symmetric=True, threads=1).posterior(x, y)
    return {"x": x, "y": y, "match": np.round(posterior.match, 4).tolist()}


Pairs = list[tuple[str, str]]
