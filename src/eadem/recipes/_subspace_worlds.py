"""Worlds of coefficients, and the estimators that know nothing of ties."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "COEFFICIENTS",
    "COLUMNS",
    "DIGIT",
    "GROUPS",
    "INDEX",
    "REAL",
    "REAL_REPEATS",
    "RHO",
    "ROWS",
    "WORLDS",
    "Fits",
    "covariance",
    "digits",
    "penalized",
    "truth",
]

WORLDS = ("equal", "sparse", "small")

COEFFICIENTS, GROUPS, RHO = 30, 5, 0.5
INDEX = torch.arange(GROUPS).repeat_interleave(COEFFICIENTS // GROUPS)
REAL, DIGIT, REAL_REPEATS = (80, 160, 320, 800), 8, 20
ROWS, COLUMNS = 8, 6
#: Coefficients of each method from inputs (N, k) and outputs (N,).
Fits = dict[str, Tensor]


def covariance() -> Tensor:
    """Σ of the inputs: ρ to the power of how far apart."""
    place = torch.arange(COEFFICIENTS, dtype=torch.float64)
    distance = (place - place.unsqueeze(1)).abs()
    return torch.full_like(distance, RHO).pow(distance)


def truth(name: str, seed: int) -> Tensor:
    """β of a world (30,), of unit signal power."""
    generator = torch.Generator().manual_seed(seed)
    beta = torch.zeros(COEFFICIENTS, dtype=torch.float64)
    if name == "equal":
        beta = torch.tensor([1.0, -0.6, 0.4, -1.0, 0.7], dtype=torch.float64)[INDEX]
    elif name == "sparse":
        places = torch.randperm(COEFFICIENTS, generator=generator)[:4]
        beta[places] = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    else:
        beta = torch.randn(COEFFICIENTS, dtype=torch.float64, generator=generator)
    return beta / (beta @ covariance() @ beta).sqrt()


def penalized(x: Tensor, y: Tensor) -> Fits:
    """Ridge and lasso, at the penalty that cross-validation chooses."""
    from sklearn.linear_model import LassoCV, RidgeCV

    ridge = RidgeCV(np.logspace(-2, 4, 25), fit_intercept=False)
    lasso = LassoCV(alphas=40, cv=5, fit_intercept=False, max_iter=100_000)
    return {
        name: torch.as_tensor(model.fit(x.numpy(), y.numpy()).coef_)
        for name, model in (("ridge", ridge), ("lasso", lasso))
    }


def digits() -> tuple[Tensor, Tensor]:
    """Pixels (1797, 48), each of zero mean and the image of unit power, and ±1 centred."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(images).reshape(-1, ROWS, 8)[:, :, 1:-1].reshape(-1, ROWS * COLUMNS)
    y = 2.0 * (torch.as_tensor(labels) == DIGIT) - 1.0
    return (x - x.mean(0)) / x.std(), y.double() - y.double().mean()
