"""The verdict of annotated genes on a tie of the two strands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import eadem
from eadem.bind import resolved
from eadem.hmm import CategoricalHMM
from eadem.recipes._genome import (
    Genome,
)

__all__ = ["STATES", "Ints", "coding", "counted", "log_density", "verdict"]


def log_density(hmm: CategoricalHMM, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Of a symbol in its annotated state."""
    probabilities = hmm.emissionprob
    assert isinstance(probabilities, Tensor)
    return probabilities[batch[0], batch[1]].log()


def verdict(hmm: CategoricalHMM, genome: Genome, learned: Sequence[slice]) -> dict[str, Any]:
    """The score test of the tie on single bases, plain and robust over coding sequences."""
    at = np.concatenate([np.arange(len(genome.bases))[p] for p in learned])
    at = at[genome.states[at] > 0]
    counted(hmm, [(genome.bases[p], genome.states[p]) for p in learned])
    seen = np.zeros((STATES, 4))
    np.add.at(seen, (genome.states[at], genome.bases[at]), 1)
    batch = tuple(torch.from_numpy(v[at]) for v in (genome.states, genome.bases))
    genes = torch.from_numpy(genome.genes[at])
    release = [f"emissionprob[{p}]" for p in (4, 5, 6)]
    test = eadem.score_test(
        hmm, log_density, batch, release=release, cluster=genes, information="outer"
    )
    robust = test.robust
    assert robust is not None
    return {
        "bases": len(at),
        "genes": len(genes.unique()),
        "df": test.df,
        "plain": {"statistic": test.statistic, "pvalue": test.pvalue},
        "robust": {"statistic": robust.statistic, "pvalue": robust.pvalue},
        "shares": (seen[1:] / seen[1:].sum(1, keepdims=True)).tolist(),
    }


Ints = npt.NDArray[np.int64]
STATES = 7


def counted(hmm: CategoricalHMM, pieces: Sequence[tuple[Ints, Ints]]) -> CategoricalHMM:
    """Learn from symbols and their states: counts through φᵀ, and one more of each."""
    values = {n: np.ones(s) for n, s in resolved(hmm).shapes.items()}
    for symbols, states in pieces:
        values["startprob"][states[0]] += 1
        np.add.at(values["transmat"], (states[:-1], states[1:]), 1)
        np.add.at(values["emissionprob"], (states, symbols), 1)
    phi: Any = resolved(hmm)
    counts = torch.cat([torch.from_numpy(values[n]).reshape(-1) for n in phi.shapes])
    pooled = phi.split(phi.forward(phi.adjoint(counts)))
    for name, found in pooled.items():
        setattr(hmm, f"{name}_", (found / found.sum(-1, keepdim=True)).numpy())
    return hmm


def coding(hmm: CategoricalHMM, symbols: Sequence[Ints]) -> npt.NDArray[np.bool_]:
    """Which bases code, by posterior probability."""
    lengths = [len(s) for s in symbols]
    posterior = hmm.predict_proba(np.concatenate(symbols)[:, None], lengths)
    found: npt.NDArray[np.bool_] = posterior[:, 0] < 0.5
    return found
