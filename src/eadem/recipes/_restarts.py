"""The best of many fits of a hidden Markov model, and what its steps did."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import numpy.typing as npt

from eadem.hmm import PoissonHMM

__all__ = ["best", "counts", "lowest_step"]


def best(states: int, starts: int, seed: int) -> PoissonHMM:
    """The best fit of several starts, its states by rate."""
    hmm = PoissonHMM(
        states, n_features=1, n_init=starts, random_state=seed, n_iter=5000, tol=1e-10
    )
    hmm.fit(counts())
    order = np.argsort(hmm.lambdas_[:, 0])
    start, move, rates = hmm.startprob_, hmm.transmat_, hmm.lambdas_
    hmm.startprob_, hmm.lambdas_ = start[order], rates[order]
    hmm.transmat_ = move[np.ix_(order, order)]
    return hmm


def lowest_step(hmm: PoissonHMM) -> float:
    """The least gain of an EM step, relative to the log-likelihood."""
    history = np.array(hmm.monitor_.history)
    return float(np.diff(history).min(initial=0.0) / abs(history[-1]))


def counts() -> npt.NDArray[np.int64]:
    """Earthquakes of magnitude 7 or greater by year, 1900 to 2006, (107, 1).

    >>> counts().shape, int(counts().sum())
    ((107, 1), 2072)
    """
    text = files("eadem").joinpath("data", "earthquakes.txt").read_text(encoding="utf-8")
    return np.array(text.split(), dtype=np.int64)[:, None]
