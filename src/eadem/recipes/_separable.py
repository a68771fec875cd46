"""Whether random labels can be fitted, and how many, decided exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor, nn

from eadem.evidence import ScoreTest, score_test
from eadem.nn import LocallyConnected2d

__all__ = [
    "CLOSE",
    "MARGIN",
    "POOL",
    "TAPS",
    "TESTED",
    "Averaged",
    "coordinates",
    "features",
    "fits",
    "largest",
    "verdict",
]

CLOSE, MARGIN = 0.1, 1e-7


class Averaged(nn.Module):
    """A filter at every position, averaged over them: scores (n,) of images (n, side·side)."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.local = LocallyConnected2d(1, 1, side, TAPS, bias=False, dtype=torch.float64)
        self.bias = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Scores (n,)."""
        at = self.local(x.reshape(-1, 1, self.side, self.side))
        scores: Tensor = at.flatten(1).mean(1) + self.bias
        return scores


def features(model: nn.Module, x: Tensor) -> Tensor:
    """The score's gradient by the free values, for every image: (n, free)."""
    free = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}

    def score(values: dict[str, Tensor], image: Tensor) -> Tensor:
        said: Tensor = torch.func.functional_call(model, values, (image.unsqueeze(0),))
        return said.squeeze(0)

    rows = torch.func.vmap(torch.func.grad(score), (None, 0))(free, x)
    return torch.cat([rows[k].reshape(len(x), -1) for k in free], 1)


def coordinates(rows: Tensor) -> Tensor:
    """The same features in as few coordinates as they span, white: (n, rank)."""
    u, s, _ = torch.linalg.svd(rows, full_matrices=False)
    kept: Tensor = u[:, s > 1e-9 * s[0]] * len(rows) ** 0.5
    return kept


def fits(points: NDArray[Any], labels: NDArray[Any]) -> bool:
    """Whether some weights give every point (n, rank) its label's sign (±1): the largest
    margin, of weights in ±1, by linear programming.
    """
    n, rank = points.shape
    found = linprog(
        np.append(np.zeros(rank), -1.0),
        np.hstack([-labels[:, None] * points, np.ones((n, 1))]),
        np.zeros(n),
        bounds=[(-1, 1)] * rank + [(0, None)],
        method="highs",
    )
    if found.status != 0 or found.fun is None:
        raise ArithmeticError(f"the linear program ended undecided: {found.message}")
    return bool(-found.fun > MARGIN)


def largest(points: NDArray[Any], labels: NDArray[Any]) -> int:
    """How many of the points, from the first on, have labels that can be fitted together."""
    low = int(points.shape[1])
    high = 5 * low // 2
    while fits(points[:high], labels[:high]):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(points[:middle], labels[:middle]) else (low, middle)
    return low


TAPS, POOL, TESTED = 3, 2000, 6


def verdict(model: nn.Module, x: Tensor, labels: Tensor) -> ScoreTest:
    """The score test of the tie of a model at its logistic fit of labels ±1."""
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def log_density(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return nn.functional.logsigmoid(batch[1] * model(batch[0]))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -log_density(model, (x, labels)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return score_test(model, log_density, (x, labels))
