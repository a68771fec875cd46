"""What scikit-learn asks of an estimator: its constructor's arguments, and a generator."""

from __future__ import annotations

import inspect
from typing import Any, Self

import numpy as np

from eadem.hmm.data import HMMError

__all__ = ["Estimator", "random"]


def random(state: Any) -> np.random.RandomState:
    """A generator from a seed, a generator, or None."""
    if state is None:
        return np.random.mtrand._rand
    if isinstance(state, int | np.integer):
        return np.random.RandomState(int(state))
    if isinstance(state, np.random.RandomState):
        return state
    raise HMMError(f"random_state={state!r} is neither a seed nor a numpy RandomState")


class Estimator:
    """The arguments of the constructor, kept as attributes, to read and to change."""

    @classmethod
    def _names(cls) -> list[str]:
        return [p for p in inspect.signature(cls.__init__).parameters if p != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn has it."""
        return {name: getattr(self, name) for name in self._names()}

    def set_params(self, **params: Any) -> Self:
        """Change arguments of the constructor. Raises HMMError for a name it does not have."""
        names = self._names()
        for name, value in params.items():
            if name not in names:
                raise HMMError(
                    f"{type(self).__name__} has no parameter {name!r}; it has {names}"
                )
            setattr(self, name, value)
        return self
