"""Signals of MNIST-1D, and the linear worlds that answer to them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "DRIFT",
    "FEATURES",
    "FILTER",
    "NOISE",
    "PLACES",
    "TAPS",
    "TURN",
    "WIDTH",
    "WORLDS",
    "World",
    "closed_form",
    "drawn",
    "fitted",
    "signals",
    "world",
]

WIDTH, TAPS, NOISE, DRIFT = 40, 5, 0.5, 0.25
PLACES = WIDTH - TAPS + 1
FILTER, TURN = (1.0, 2.0, 0.0, -2.0, -1.0), (1.0, -1.0, 0.0, -1.0, 1.0)
WORLDS = ("right", "approximate", "wrong")


def signals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Signals (n, 40) float64 and their labels (n,), drawn by the package."""
    from mnist1d.data import get_dataset_args, make_dataset

    settings = get_dataset_args()
    settings.num_samples, settings.train_split, settings.seed = n, 1.0, seed
    made = make_dataset(settings)
    return torch.as_tensor(made["x"]), torch.as_tensor(made["y"], dtype=torch.int64)


@dataclass(frozen=True)
class World:
    """Signals as a learner sees them (N, 40), and the true W (36, 40)."""

    x: Tensor
    truth: Tensor

    @property
    def root(self) -> Tensor:
        """L of E[xxᵀ] = L Lᵀ: ‖A L‖² is the mean squared output of A."""
        root: Tensor = torch.linalg.cholesky(self.x.T @ self.x / len(self.x))
        return root


def world(name: str, x: Tensor, seed: int) -> World:
    """One of WORLDS."""
    base, turn = (torch.tensor(w, dtype=torch.float64) for w in (FILTER, TURN))
    drift = DRIFT * (name == "approximate") * float(base.norm() / turn.norm())
    phase = 2 * math.pi * torch.arange(PLACES, dtype=torch.float64) / PLACES
    each = base + drift * phase.sin().unsqueeze(1) * turn
    truth = torch.zeros(PLACES, WIDTH, dtype=torch.float64)
    for p in range(PLACES):
        truth[p, p : p + TAPS] = each[p]
    truth /= (x @ truth.T).square().mean().sqrt()
    if name == "wrong":
        order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))
        x, truth = x[:, order], truth[:, order]
    return World(x, truth)


def drawn(at: World, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A training set: signals, and what W makes of them, with noise."""
    x = at.x[torch.randint(len(at.x), (n,), generator=generator)]
    noise = torch.randn(n, PLACES, dtype=x.dtype, generator=generator)
    return x, x @ at.truth.T + NOISE * noise


def closed_form(plan: str, n: int) -> float:
    """The variance, in mean squared output, under a right tie."""
    features, uses = FEATURES[plan]
    return features * NOISE**2 / (n * uses - features - 1)


#: Features of one output's regression under each plan, and how often a signal uses them.
FEATURES = {"connected": (WIDTH, 1), "local": (TAPS, 1), "shared": (TAPS, PLACES)}


def fitted(phi: Tensor | None, x: Tensor, y: Tensor) -> Tensor:
    """W (36, 40) of least squares under a plan: the normal equations, pulled back by φ."""
    moment, cross = x.T @ x, y.T @ x
    if phi is None:
        found: Tensor = torch.linalg.solve(moment, cross.T).T
        return found
    free = phi.shape[2]
    flat = phi.reshape(-1, free)
    within = flat.T @ (moment @ phi).reshape(-1, free)
    theta = torch.linalg.solve(within, flat.T @ cross.reshape(-1))
    return torch.mv(flat, theta).reshape(cross.shape)
