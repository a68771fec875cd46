"""Hidden Markov models fitted by several processes, and by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

import eadem
from eadem.bind import free_vector
from eadem.errors import EademError
from eadem.hmm import CategoricalHMM, GaussianHMM, MixtureHMM, PairHMM, PoissonHMM, fit

STEPS: dict[str, Any] = {"n_iter": 8, "tol": -np.inf}


def _signals(features: int, seed: int = 0) -> list[Any]:
    """Eight sequences of two alternating levels."""
    rng = np.random.default_rng(seed)
    found = []
    for n in (20, 31, 12, 25, 40, 18, 22, 27):
        level = (np.arange(n) // 5 % 2)[:, None]
        found.append(7.0 + 3.0 * level + rng.normal(size=(n, features)) * (1.0 + level))
    return found


def _symbols() -> list[Any]:
    return [np.clip(s.round() - 6, 0, 3).astype(int) for s in _signals(1)]


def _started(hmm: Any, **values: Any) -> Any:
    """With a start that no process draws."""
    K = hmm.n_components
    rng = np.random.default_rng(1)
    hmm.init_params = ""
    hmm.startprob_ = rng.dirichlet(np.full(K, 5.0))
    hmm.transmat_ = rng.dirichlet(np.full(K, 5.0), size=K)
    for name, value in values.items():
        setattr(hmm, name, value)
    return hmm


def _categorical() -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(2)
    hmm = CategoricalHMM(3, n_features=4, emissionprob_prior=1.5, **STEPS)
    _started(hmm, emissionprob_=rng.dirichlet(np.ones(4), size=3))
    with eadem.plan(hmm):
        eadem.tie(hmm, "emissionprob[0]", "emissionprob[2]")
        eadem.tie(hmm, "transmat[0, 1]", "transmat[1, 0]")
    return hmm, _symbols()


def _thin_prior() -> tuple[Any, list[Any]]:
    hmm, data = _categorical()
    hmm.emissionprob_prior = 0.3
    return hmm, data


def _gaussian(kind: str) -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(3)
    hmm = GaussianHMM(3, kind, n_features=2, means_weight=0.5, means_prior=8.0, **STEPS)
    shape = {"spherical": (3,), "diag": (3, 2), "full": (3, 2, 2), "tied": (2, 2)}[kind]
    covars = np.ones(shape) if kind in ("spherical", "diag") else np.zeros(shape) + np.eye(2)
    _started(hmm, means_=8 + rng.normal(size=(3, 2)), covars_=covars)
    with eadem.plan(hmm):
        eadem.tie(hmm, {"means[0]": eadem.Same(), "means[1]": eadem.Scale(1.2)}, start="mean")
        if kind != "tied":
            eadem.tie(hmm, "covars[1]", "covars[2]")
    data = _signals(2)
    if kind == "diag":
        data[1][3, 1] = data[4][7, 0] = np.nan
    return hmm, data


def _mixture() -> tuple[Any, list[Any]]:
    rng = np.random.default_rng(4)
    hmm = MixtureHMM(2, 2, n_features=2, covariance_type="full", **STEPS)
    _started(
        hmm,
        means_=8 + rng.normal(size=(2, 2, 2)),
        covars_=np.zeros((2, 2, 2, 2)) + np.eye(2),
        weights_=np.full((2, 2), 0.5),
    )
    eadem.tie(hmm, "covars[0]", "covars[1]")
    return hmm, _signals(2)


def _poisson() -> tuple[Any, list[Any]]:
    hmm = PoissonHMM(2, n_features=1, lambdas_prior=1.0, lambdas_weight=0.2, **STEPS)
    _started(hmm, lambdas_=[[6.0], [11.0]])
    eadem.tie(hmm, {"lambdas[0]": eadem.Same(), "lambdas[1]": eadem.Scale(2.0)})
    return hmm, [np.maximum(s.round(), 0).astype(int) for s in _signals(1)]


def _by_gradient() -> tuple[Any, list[Any]]:
    hmm, data = _gaussian("diag")
    hmm.method = "gradient"
    return hmm, data


MODELS: dict[str, Callable[[], tuple[Any, list[Any]]]] = {
    "categorical": _categorical,
    "thin-prior": _thin_prior,
    **{f"gaussian-{k}": (lambda k=k: _gaussian(k)) for k in ("spherical", "diag", "full")},
    "gaussian-tied": lambda: _gaussian("tied"),
    "mixture": _mixture,
    "poisson": _poisson,
    "gradient": _by_gradient,
}


def _compared(alone: Any, own: Any, histories: tuple[list[float], list[float]]) -> Any:
    one, many = free_vector(alone).numpy(), free_vector(own).numpy()
    first, second = (np.array(h) for h in histories)
    return {
        "theta": float(np.abs(one - many).max()),
        "moved": len(first),
        "history": float(np.abs(first / second - 1).max()) if len(first) == len(second) else 9,
        "bits": many.tobytes().hex(),
    }


def model_case(make: Callable[[], tuple[Any, list[Any]]]) -> Any:
    """One model on all sequences, and on this process's."""
    (alone, data), (own, _) = make(), make()
    method = getattr(own, "method", "em")
    alone.fit(data, method=method)
    share = data[dist.get_rank() :: dist.get_world_size()]
    own.fit(share, method=method, group=dist.group.WORLD)
    return _compared(alone, own, (alone.monitor_.history, own.monitor_.history))


def several() -> Any:
    """Three models of different numbers of states, with covariances tied across them."""

    def made() -> nn.ModuleDict:
        rng = np.random.default_rng(6)
        models = nn.ModuleDict()
        for name, K in (("a", 2), ("b", 2), ("c", 3)):
            hmm = GaussianHMM(K, n_features=2, covars_prior=0.0)
            _started(hmm, means_=8 + rng.normal(size=(K, 2)), covars_=np.ones((K, 2)))
            models[name] = hmm
        with eadem.plan(models):
            eadem.tie(models, "a.covars", "b.covars")
            eadem.tie(models, "c.means[2]", "a.means[0]")
        return models

    data = {name: _signals(2, seed) for seed, name in enumerate("abc")}
    share = {n: d[dist.get_rank() :: dist.get_world_size()] for n, d in data.items()}
    alone, own = made(), made()
    first = fit(alone, data, **STEPS)
    second = fit(own, share, group=dist.group.WORLD, **STEPS)
    return _compared(alone, own, (first.history, second.history))


def pairs() -> Any:
    """A pair HMM, symmetric but for one tie across distributions."""
    drawn, _ = PairHMM("ACGT").sample(8, random_state=0)
    data = [(x or "A", y or "C") for x, y in drawn]
    alone, own = PairHMM("ACGT", symmetric=True), PairHMM("ACGT", symmetric=True)
    alone.fit(data, n_iter=6)
    share = data[dist.get_rank() :: dist.get_world_size()]
    own.fit(share, n_iter=6, group=dist.group.WORLD)
    return _compared(alone, own, (alone.monitor_.history, own.monitor_.history))


def starts() -> Any:
    """What is drawn is one process's; what is set must agree."""
    data = _signals(1)[dist.get_rank() :: dist.get_world_size()]
    drawn = GaussianHMM(2, n_features=1, n_init=2).fit(data, group=dist.group.WORLD)
    found = {"drawn": free_vector(drawn).numpy().tobytes().hex()}
    own = _started(
        GaussianHMM(2, n_features=1), means_=[[7.0], [10.0]], covars_=np.ones((2, 1))
    )
    own.means_ = own.means_ + dist.get_rank()
    try:
        own.fit(data, group=dist.group.WORLD)
    except EademError as error:
        found["refused"] = str(error)
    symbols = [np.array([[0], [1 + dist.get_rank()]])]
    try:
        CategoricalHMM(2).fit(symbols, group=dist.group.WORLD)
    except EademError as error:
        found["features"] = str(error)
    return found
