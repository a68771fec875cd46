"""Models of hmmlearn as models of Eadem."""

from __future__ import annotations

from typing import Any

import numpy as np

from eadem.hmm.base import HMM
from eadem.hmm.data import HMMError
from eadem.hmm.discrete import CategoricalHMM, PoissonHMM
from eadem.hmm.gaussian import GaussianHMM
from eadem.hmm.mixture import MixtureHMM

__all__ = ["from_hmmlearn"]

_KINDS: dict[str, type[HMM]] = {
    "CategoricalHMM": CategoricalHMM,
    "GaussianHMM": GaussianHMM,
    "PoissonHMM": PoissonHMM,
    "GMMHMM": MixtureHMM,
}


def from_hmmlearn(model: Any) -> HMM:
    """The same model, with its arguments and the values it has. Raises HMMError for others.

    >>> from hmmlearn.hmm import PoissonHMM as Peer
    >>> peer = Peer(2)
    >>> peer.startprob_, peer.transmat_ = np.array([0.5, 0.5]), np.full((2, 2), 0.5)
    >>> peer.lambdas_ = np.array([[1.0], [4.0]])
    >>> X = np.array([[1], [5], [0]])
    >>> bool(np.isclose(from_hmmlearn(peer).score(X), peer.score(X)))
    True
    """
    name = next((c.__name__ for c in type(model).__mro__ if c.__name__ in _KINDS), None)
    if name is None:
        raise HMMError(f"{type(model).__name__} is none of hmmlearn's {', '.join(_KINDS)}")
    kind = _KINDS[name]
    given = {k: v for k, v in model.get_params(deep=False).items() if k in kind._names()}
    if name == "GMMHMM":
        given = {k: v for k, v in given.items() if k not in ("covars_prior", "covars_weight")}
    found = kind(**given)
    if "n_features" in vars(model) and model.n_features is not None:
        found.n_features = int(model.n_features)
        found._allocate()
    order = sorted(found.letters, key=lambda n: n == "covars")
    for site in order:
        held = "_covars_" if site == "covars" and "_covars_" in vars(model) else f"{site}_"
        if held in vars(model):
            value = np.asarray(vars(model)[held], dtype=float)
            if site == "covars" and found._shape("covars") != value.shape:
                value = value.mean(axis=1)
            found._set({site: value})
    return found
