"""Hidden Markov models, against hmmlearn.

100 sequences of 1,000 frames, random models, in float64. E-step: expected counts of all
sequences under one model; hmmlearn is called at its own method for that, with
`implementation="scaling"`, its faster one. EM: two iterations of `fit`, with hmmlearn's
"scaling" and with its default, "log". Gaussian: two features, diagonal covariances. Both see
the same data and start, and end at the same log-likelihood (checked). hmmlearn has one thread;
Eadem one, and two, which takes two idle cores. One sequence of 100,000 frames, too, which two
threads take from both ends.

Against dynamax (its `e_step` of every sequence, jitted and mapped over them, in float64) and
pomegranate (its `summarize`, in float64): one thread each, compiled and warm.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from eadem.hmm import from_hmmlearn
from timing import Row, paired, row

SEQUENCES, FRAMES = 100, 1000
LONG = (1, 100_000)
#: Eadem's share of hmmlearn's time that is promised, by number of states, for 1 and 2 threads.
E_STEP = {4: (1 / 5, 1 / 8), 16: (1 / 7, 1 / 14), 64: (1 / 13, 1 / 30)}


def models(kind: str, states: int, implementation: str = "scaling") -> tuple[Any, Any, Any]:
    """hmmlearn's model, the same of Eadem, and observations."""
    from hmmlearn import hmm

    rng = np.random.default_rng(states)
    given = {"init_params": "", "n_iter": 2, "tol": -np.inf, "implementation": implementation}
    if kind == "categorical":
        theirs: Any = hmm.CategoricalHMM(states, n_features=4, **given)
        theirs.emissionprob_ = rng.dirichlet(np.ones(4), states)
        X: Any = rng.integers(0, 4, (SEQUENCES * FRAMES, 1))
    else:
        theirs = hmm.GaussianHMM(states, "diag", **given)
        theirs.means_, theirs._covars_ = rng.normal(size=(states, 2)), np.ones((states, 2))
        theirs.n_features = 2
        X = rng.normal(size=(SEQUENCES * FRAMES, 2))
    theirs.startprob_ = rng.dirichlet(np.ones(states))
    theirs.transmat_ = rng.dirichlet(np.ones(states), states)
    return theirs, from_hmmlearn(theirs), X


def e_step(
    kind: str, states: int, size: tuple[int, int] = (SEQUENCES, FRAMES)
) -> tuple[Callable[[], float], Callable[[], float]]:
    """An E-step of each; both return the log-likelihood."""
    theirs, ours, X = models(kind, states)
    lengths = np.full(*size)
    data = ours._data(X, np.concatenate([[0], lengths.cumsum()]))
    values = ours._values()
    return (
        lambda: float(ours._expected(data, values)["log_likelihood"]),
        lambda: float(theirs._do_estep(X, lengths)[1]),
    )


def fits(kind: str, states: int, implementation: str) -> tuple[Any, Any]:
    """Two iterations of each, from the same start; both return the last log-likelihood."""
    theirs, ours, X = models(kind, states, implementation)
    lengths = np.full(SEQUENCES, FRAMES)

    def run(model: Any) -> Callable[[], float]:
        return lambda: float(copy.deepcopy(model).fit(X, lengths).monitor_.history[-1])

    return run(ours), run(theirs)


def compared(
    name: str, against: str, pair: tuple[Any, Any], limit: float | None, rounds: int, pairs: int
) -> Row:
    """One line; asserts that both came to the same log-likelihood."""
    mine, other = pair[0](), pair[1]()
    assert abs(mine / other - 1) < 1e-9, f"{name}: {mine} against {other}"
    ratio = paired(*pair, rounds=rounds, pairs=pairs, calls=1, warmup=1)
    return row(name, against, ratio, limit)


def dynamax(states: int, size: tuple[int, int]) -> Callable[[], float]:
    """Its E-step of the categorical model, which returns the log-likelihood."""
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    import jax

    jax.config.update("jax_enable_x64", True)
    from dynamax.hidden_markov_model import CategoricalHMM

    theirs, _, X = models("categorical", states)
    model = CategoricalHMM(states, 1, 4)
    params, _ = model.initialize(
        initial_probs=jax.numpy.array(theirs.startprob_),
        transition_matrix=jax.numpy.array(theirs.transmat_),
        emission_probs=jax.numpy.array(theirs.emissionprob_)[:, None, :],
    )
    batch = jax.numpy.array(X.reshape(*size, 1))

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        stats, each = jax.vmap(lambda x: model.e_step(params, x, None))(batch)
        return jax.tree_util.tree_map(lambda s: s.sum(0), stats), each.sum()

    return lambda: float(jax.block_until_ready(run(params, batch))[1])


def pomegranate(states: int, size: tuple[int, int]) -> Callable[[], float]:
    """Its E-step of the categorical model, which returns the log-likelihood. It must be told
    how likely an end is: so little that nothing else changes, and that is taken off again.
    """
    from pomegranate.distributions import Categorical
    from pomegranate.hmm import DenseHMM

    theirs, _, X = models("categorical", states)
    end = 1e-13
    model = DenseHMM(
        [Categorical(torch.from_numpy(p[None])) for p in theirs.emissionprob_],
        edges=torch.from_numpy(theirs.transmat_),
        starts=torch.from_numpy(theirs.startprob_),
        ends=torch.full((states,), end, dtype=torch.float64),
    )
    given = torch.from_numpy(X.reshape(*size, 1))

    def run() -> float:
        model._reset_cache()
        return float(model.summarize(given).sum()) - size[0] * float(np.log(end))

    return run


def peers() -> list[Row]:
    """Lines against dynamax and pomegranate."""
    found = []
    for name, make, most in (("dynamax", dynamax, 3), ("pomegranate", pomegranate, 1)):
        for states in E_STEP:
            for size, rounds in (((SEQUENCES, FRAMES), most), (LONG, 1)):
                many = f"{size[0]} × {size[1]:,}"
                what = f"E-step, categorical, {states} states, {many}, 1 thread"
                kind = torch.get_default_dtype()
                torch.set_default_dtype(torch.float64)
                try:
                    pair = (e_step("categorical", states, size)[0], make(states, size))
                    found.append(compared(what, f"{name}, float64", pair, 1.0, rounds, 1))
                except ImportError:
                    found.append(Row(what, f"{name} (pip install {name})", None))
                finally:
                    torch.set_default_dtype(kind)
    return found


def rows() -> list[Row]:
    """The benchmark's lines."""
    size = f"{SEQUENCES} × {FRAMES:,}"
    try:
        import hmmlearn  # noqa: F401
    except ImportError:
        return [Row(f"HMM, {size}", "hmmlearn, not installed", None)]
    before, found = torch.get_num_threads(), []
    peer = "hmmlearn, scaling"
    try:
        for kind in ("categorical", "gaussian"):
            for states, limits in E_STEP.items():
                promised = limits if kind == "categorical" else (1 / 4,)
                pair = e_step(kind, states)
                for threads, limit in enumerate(promised, 1):
                    torch.set_num_threads(threads)
                    many = "thread" if threads == 1 else "threads"
                    name = f"E-step, {kind}, {states} states, {threads} {many}"
                    rounds, pairs = (3, 2) if states < 64 else (3, 1)
                    found.append(compared(name, peer, pair, limit, rounds, pairs))
        for states in E_STEP:
            pair = e_step("categorical", states, LONG)
            for threads in (1, 2):
                torch.set_num_threads(threads)
                many = "thread" if threads == 1 else "threads"
                name = f"E-step, categorical, {states} states, 1 × 100,000, {threads} {many}"
                found.append(compared(name, peer, pair, None, 3, 1))
        torch.set_num_threads(1)
        for kind in ("categorical", "gaussian"):
            pair = fits(kind, 16, "scaling")
            name = f"EM iteration, {kind}, 16 states, 1 thread"
            found.append(compared(name, peer, pair, 1 / 4, 3, 1))
        name = "EM iteration, categorical, 16 states, 1 thread"
        pair = fits("categorical", 16, "log")
        found.append(compared(name, "hmmlearn, log (its default)", pair, 1 / 20, 3, 1))
        found += peers()
    finally:
        torch.set_num_threads(before)
    return found


if __name__ == "__main__":
    from timing import table

    print(table(rows()))
