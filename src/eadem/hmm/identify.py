"""What data could say of a model's values: gradients on sequences that it drew itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from eadem.hmm.data import observations

if TYPE_CHECKING:
    from eadem.hmm.base import HMM

__all__ = ["drawn_scores"]

Floats = npt.NDArray[np.float64]
#: Probabilities below this are at zero, and stay there.
ZERO = 1e-6


def drawn_scores(
    model: HMM, many: int, step: Mapping[str, Floats] | None = None
) -> dict[str, Floats]:
    """∂ log density / ∂ site of sequences drawn from the model, by site (many, *shape).

    The sequences, a little over four times as long as there are states, are the same for
    every `step`, along which the values are first moved as far as they may be.
    """
    values = model._values()
    rng = np.random.RandomState(0)
    frames = 4 * model.n_components + 4
    drawn = [model.sample(frames, random_state=rng)[0] for _ in range(many)]
    if step is not None:
        values = _moved(model, values, step)
    _, every = model._each(model._data(*observations(drawn, None)), values)
    found = [model._gradient(stats, values) for stats in every]
    return {name: np.stack([f[name] for f in found]) for name in values}


def _moved(
    model: HMM, values: Mapping[str, Floats], step: Mapping[str, Floats]
) -> dict[str, Floats]:
    """Values as far along a direction as leaves them well inside what they may be."""
    kinds = model.site_constraints
    steps = {
        n: np.where((v < ZERO) & (kinds.get(n) == "rows"), 0.0, step[n])
        for n, v in values.items()
    }
    share = min(_room(v, steps[n], n, kinds.get(n)) for n, v in values.items())
    found = {n: v + share * steps[n] for n, v in values.items()}
    return {
        n: v / v.sum(-1, keepdims=True) if kinds.get(n) == "rows" else v
        for n, v in found.items()
    }


def _room(value: Floats, step: Floats, name: str, kind: str | None) -> float:
    """How many steps a site's values may go: two fifths of the way to zero where they must be
    positive, and their own size where they need not be.
    """
    most = float(np.abs(step).max(initial=0.0))
    if not most:
        return np.inf
    if kind == "symmetric":
        least = np.linalg.eigvalsh(value).min()
        return float(0.4 * least / (most * value.shape[-1]))
    if name == "means":
        return float(max(np.abs(value).max(), 1.0)) / most
    moves = step != 0
    return float((0.4 * value[moves] / np.abs(step[moves])).min())
