"""Pair HMM, 1,000 × 1,000 letters, one thread.

Two DNA sequences that are 12 % apart. A row in ns is the best of many runs, a cell: at least
120 million cells a second are asked of the forward pass, 45 of forward, backward and all
expected counts, 200 of Viterbi with its traceback. Forward and Viterbi are the whole calls
`PairHMM.score` and `.align`, from strings; "with posterior" also writes all of it. The rows
against Biopython's PairwiseAligner (affine gaps, which is not a probabilistic model) are in
alternation: `score` against the forward pass, and `align(...)[0]` against Viterbi.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from eadem.hmm import DNA, PairHMM
from eadem.hmm import pair_expect as run
from timing import Row, paired, row, seconds, table

LENGTH, RUNS = 1000, 300


def relatives(seed: int = 0) -> tuple[str, str]:
    """Two descendants of one random sequence, of LENGTH letters each."""
    rng = np.random.default_rng(seed)
    ancestor = rng.integers(0, 4, LENGTH + 100)

    def descendant() -> str:
        out: list[int] = []
        for letter in ancestor:
            if rng.random() < 0.02:
                continue
            if rng.random() < 0.02:
                out += list(rng.integers(0, 4, rng.geometric(0.5)))
            out.append(int(rng.integers(0, 4)) if rng.random() < 0.08 else int(letter))
        return DNA.decode(out[:LENGTH])

    return descendant(), descendant()


def best(fn: Callable[[], Any]) -> float:
    """Nanoseconds a cell of the quickest run."""
    fn()
    return min(seconds(fn) for _ in range(RUNS)) * 1e9 / LENGTH**2


def rate(name: str, cells: float | None, fn: Callable[[], Any]) -> Row:
    """A row with a limit in million cells a second, or without."""
    found = best(fn)
    return Row(
        f"{name} ({1e3 / found:.0f} million cells a second)",
        "" if cells is None else f"{cells:.0f} million cells a second",
        found,
        limit=None if cells is None else 1e3 / cells,
        unit="ns",
    )


def rows() -> list[Row]:
    """All comparisons."""
    x, y = relatives()
    model = PairHMM(DNA, threads=1)
    probabilities, data = model._model(), model.pairs([(x, y)])
    found = [
        rate("forward", 120, lambda: model.score([(x, y)])),
        rate("forward, backward, counts", 45, lambda: run.expected(probabilities, data)),
        rate("the same with posterior", None, lambda: model.posterior(x, y)),
        rate("Viterbi, traceback", 200, lambda: model.align(x, y)),
    ]
    peers = (
        ("forward against its best score", "Biopython score"),
        ("Viterbi against its best alignment", "Biopython align"),
    )
    try:
        from Bio.Align import PairwiseAligner
    except ImportError:
        missing = "Biopython (pip install biopython)"
        return found + [Row(name, missing, None) for name, _ in peers]
    aligner = PairwiseAligner(
        match_score=1, mismatch_score=-1, open_gap_score=-2, extend_gap_score=-0.5
    )
    pairs: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: model.score([(x, y)]), lambda: aligner.score(x, y)),
        (lambda: model.align(x, y), lambda: aligner.align(x, y)[0]),
    ]
    for (name, against), (ours, theirs) in zip(peers, pairs, strict=True):
        found.append(row(name, against, paired(ours, theirs)))
    return found


if __name__ == "__main__":
    print(table(rows()))
