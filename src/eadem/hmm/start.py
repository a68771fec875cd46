"""Where means start: k-means with the seeding of k-means++."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from eadem.hmm.data import Data

__all__ = ["centres"]

Floats = npt.NDArray[np.float64]


def centres(
    data: Data, count: int, rng: np.random.RandomState, restarts: int = 4, steps: int = 50
) -> Floats:
    """`count` centres of the observed frames, (count, features): Lloyd's iteration from seeds
    of Arthur & Vassilvitskii (SODA 2007), the best of some restarts, on at most 20,000 frames.
    """
    X = data.rows if data.seen is None else data.rows[data.seen.all(1)]
    if not len(X):
        return np.zeros((count, data.rows.shape[1]))
    if len(X) > 20_000:
        X = X[rng.choice(len(X), 20_000, replace=False)]
    best: tuple[float, Floats] | None = None
    for _ in range(restarts):
        at = _seeds(X, count, rng)
        for _ in range(steps):
            nearest, _ = _nearest(X, at)
            size = np.bincount(nearest, minlength=count)
            total = np.stack(
                [np.bincount(nearest, X[:, f], minlength=count) for f in range(X.shape[1])], 1
            )
            new = np.where(size[:, None] > 0, total / np.maximum(size, 1)[:, None], at)
            still = np.allclose(new, at)
            at = new
            if still:
                break
        loss = float(_nearest(X, at)[1].sum())
        if best is None or loss < best[0]:
            best = (loss, at)
    assert best is not None
    return best[1]


def _seeds(X: Floats, count: int, rng: np.random.RandomState) -> Floats:
    found = [X[rng.randint(len(X))]]
    far = ((X - found[0]) ** 2).sum(1)
    for _ in range(count - 1):
        total = far.sum()
        at = rng.choice(len(X), p=far / total) if total > 0 else rng.randint(len(X))
        found.append(X[at])
        far = np.minimum(far, ((X - X[at]) ** 2).sum(1))
    return np.array(found)


def _nearest(X: Floats, at: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    squares = (at**2).sum(1) - 2 * X @ at.T
    nearest = squares.argmin(1)
    found: Floats = ((X - at[nearest]) ** 2).sum(1)
    return nearest, found
