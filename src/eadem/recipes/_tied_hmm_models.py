"""Hidden Markov models of which two states emit alike: truth, draws, fits and tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import eadem
from eadem.hmm import CategoricalHMM

__all__ = [
    "EMITS",
    "LENGTH",
    "SHIFT",
    "drawn",
    "error",
    "fall",
    "fitted",
    "truth",
    "verdict",
]

Floats = npt.NDArray[np.float64]
PAIR = (0, 2)
LENGTH = 50
SHIFT = 0.12
START = np.array([0.25, 0.25, 0.25, 0.25])
MOVES = np.array(
    [
        [0.90, 0.10, 0.00, 0.00],
        [0.00, 0.70, 0.30, 0.00],
        [0.00, 0.00, 0.60, 0.40],
        [0.30, 0.00, 0.00, 0.70],
    ]
)
EMITS = np.array(
    [
        [0.40, 0.30, 0.10, 0.10, 0.05, 0.05],
        [0.05, 0.05, 0.40, 0.30, 0.10, 0.10],
        [0.40, 0.30, 0.10, 0.10, 0.05, 0.05],
        [0.05, 0.05, 0.05, 0.10, 0.35, 0.40],
    ]
)


def truth(shift: float = 0.0) -> CategoricalHMM:
    """The model that data are drawn from; `shift` makes the tie wrong."""
    hmm = CategoricalHMM(4, n_features=6, init_params="", n_iter=500, tol=1e-6)
    emits = EMITS.copy()
    emits[PAIR[1], :2] += (-shift, shift)
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = START, MOVES, emits
    return hmm


def drawn(hmm: CategoricalHMM, sequences: int, seed: int) -> list[npt.NDArray[Any]]:
    """Sequences of LENGTH symbols."""
    generator = np.random.RandomState(seed)
    return [hmm.sample(LENGTH, random_state=generator)[0] for _ in range(sequences)]


def fitted(start: CategoricalHMM, data: list[npt.NDArray[Any]], tied: bool) -> CategoricalHMM:
    """EM from the truth. The first state of a sequence is held: few say anything of it."""
    hmm = CategoricalHMM(4, n_features=6, init_params="", params="te", n_iter=500, tol=1e-6)
    hmm.startprob_, hmm.transmat_ = start.startprob_, start.transmat_
    hmm.emissionprob_ = start.emissionprob_
    for i, j in np.argwhere(MOVES == 0).tolist():
        eadem.tie(hmm, f"transmat[{i}, {j}]", via=eadem.Fixed(0.0))
    if tied:
        eadem.tie(hmm, *(f"emissionprob[{k}]" for k in PAIR), start="mean")
    return hmm.fit(data)


def error(hmm: CategoricalHMM, right: CategoricalHMM) -> float:
    """Mean squared error of the pair's emission probabilities."""
    rows = list(PAIR)
    found: float = ((hmm.emissionprob_[rows] - right.emissionprob_[rows]) ** 2).mean()
    return float(found)


def fall(hmm: CategoricalHMM) -> float:
    """The greatest fall of the log-likelihood in a step, relative; 0 where there is none."""
    history = np.array(hmm.monitor_.history)
    steps = np.diff(history) / np.abs(history[:-1])
    return float(max(0.0, -steps.min(initial=0.0)))


def log_density(hmm: CategoricalHMM, batch: Tensor) -> Tensor:
    """The log-likelihood of each sequence (sequences, LENGTH)."""
    return hmm.log_density(batch.reshape(-1, 1), [batch.shape[1]] * len(batch))


def verdict(hmm: CategoricalHMM, data: list[npt.NDArray[Any]]) -> dict[str, float]:
    """The p-values of the tie at the tied fit, plain and by the sandwich."""
    hmm.startprob.requires_grad_(False)
    symbols = torch.from_numpy(np.stack(data)[:, :, 0])
    second = f"emissionprob[{PAIR[1]}]"
    test = eadem.score_test(hmm, log_density, symbols, release=second)
    assert test.robust is not None
    return {"plain": float(test.pvalue), "sandwich": float(test.robust.pvalue)}
