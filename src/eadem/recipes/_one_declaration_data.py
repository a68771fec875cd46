"""The models, data and oracles of the study `one-declaration`."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn

import eadem
from eadem.evidence import ScoreTest
from eadem.hmm import CategoricalHMM
from eadem.recipes._digits import all_digits

__all__ = [
    "EMIT",
    "MOVE",
    "SIGMA",
    "START",
    "TOLD",
    "Curve",
    "TwoTowers",
    "curves_by_hand",
    "digit_pairs",
    "drawn_curves",
    "log_density",
    "minimise",
    "misfit",
    "near_the_truth",
    "off_all_paths",
    "over_all_paths",
    "sequences",
]

#: What the page says of each model.
TOLD: dict[str, dict[str, Any]] = {
    "network": {
        "data": "2,500 pairs of real MNIST digits",
        "solver": "torch.optim.LBFGS",
        "pooled": "site gradients, φᵀg",
        "oracle": "one module used twice, by hand",
    },
    "hidden Markov model": {
        "data": "drawn sequences of 32 symbols",
        "solver": "EM, eadem.hmm",
        "pooled": "expected counts, φᵀ(c/p)",
        "oracle": "the sum over all 4,096 state paths",
    },
    "least-squares fit": {
        "data": "3 drawn curves",
        "solver": "Gauss–Newton, eadem.least_squares",
        "pooled": "the Jacobian, J_W·φ",
        "oracle": "scipy, constraints substituted by hand",
    },
}


class TwoTowers(nn.Module):
    """The sum of two digits: a tower for each, and a common head."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(features, units), nn.Linear(features, units)
        self.head = nn.Linear(units, 1)

    def forward(self, pair: Tensor) -> Tensor:
        """(n, 2, features) → (n,)."""
        both = torch.tanh(self.left(pair[:, 0])) + torch.tanh(self.right(pair[:, 1]))
        found: Tensor = self.head(both).squeeze(1)
        return found


def digit_pairs(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The 5,000 digits in 2,500 random ordered pairs: (n, 2, 6) features, standardised sum.

    A digit's features are its six leading principal components, of unit variance.
    """
    digits = all_digits()
    images, labels = digits.images.double(), digits.labels.double()
    centred = images - images.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(images))
    features = centred @ vectors[:, -6:] / values[-6:].sqrt()
    order = torch.randperm(len(labels), generator=generator).reshape(-1, 2)
    total = labels[order].sum(1)
    return features[order], (total - total.mean()) / total.std()


def misfit(model: nn.Module, pair: Tensor, total: Tensor) -> Tensor:
    """Observed less predicted sum, (n,)."""
    found: Tensor = total - model(pair)
    return found


def minimise(model: nn.Module, *data: Tensor) -> list[float]:
    """Fit by torch's L-BFGS, as any module would be; the mean square at each evaluation."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=500,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = misfit(model, *data).square().mean()
        loss.backward()
        seen.append(loss.item())
        return loss

    optimizer.step(closure)
    return [*seen, float(misfit(model, *data).detach().square().mean())]


#: States 0 and 2 emit alike, 0→1 is as likely as 1→2, and four moves are impossible, without
#: which two states that emit alike could trade transitions and the data would not notice.
START = torch.full((4,), 0.25, dtype=torch.float64)
MOVE = torch.tensor(
    [[0.1, 0.8, 0, 0.1], [0, 0.1, 0.8, 0.1], [0, 0.1, 0.4, 0.5], [0.8, 0.05, 0, 0.15]],
    dtype=torch.float64,
)
EMIT = torch.tensor(
    [
        [0.85, 0.05, 0.05, 0.05],
        [0.05, 0.85, 0.05, 0.05],
        [0.85, 0.05, 0.05, 0.05],
        [0.05, 0.05, 0.10, 0.80],
    ],
    dtype=torch.float64,
)


def sequences(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Sequences (count, length) from the true model."""
    state = torch.multinomial(START, count, replacement=True, generator=generator)
    symbols = []
    for _ in range(length):
        symbols.append(torch.multinomial(EMIT[state], 1, generator=generator).squeeze(1))
        state = torch.multinomial(MOVE[state], 1, generator=generator).squeeze(1)
    return torch.stack(symbols, 1)


def near_the_truth(seed: int) -> CategoricalHMM:
    """A start, untied: the truth mixed with the uniform distribution over what is possible, so
    that the nearest point that a tie allows is positive, as EM needs, under a wrong tie too.
    """
    generator = torch.Generator().manual_seed(seed)

    def near(p: Tensor) -> Any:
        possible = (p > 0).to(p.dtype)
        mixed = 0.7 * p + 0.3 * possible / possible.sum(-1, keepdim=True)
        noisy = mixed * (0.8 + 0.4 * torch.rand(p.shape, generator=generator, dtype=p.dtype))
        return (noisy / noisy.sum(-1, keepdim=True)).numpy()

    hmm = CategoricalHMM(4, n_features=4, init_params="", n_iter=500, tol=1e-6)
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = near(START), near(MOVE), near(EMIT)
    return hmm


def log_density(hmm: CategoricalHMM, symbols: Tensor) -> Tensor:
    """The log-likelihood of each sequence, of (sequences, length)."""
    return hmm.log_density(symbols.reshape(-1, 1), [symbols.shape[1]] * len(symbols))


def over_all_paths(hmm: CategoricalHMM, symbols: Tensor) -> tuple[float, dict[str, Any]]:
    """Log-likelihood and expected counts by site of one short sequence: path by path."""
    names = ("startprob", "transmat", "emissionprob")
    start, move, emit = sites = [getattr(hmm, f"{n}_") for n in names]
    counts = [np.zeros_like(p) for p in sites]
    total, seen = 0.0, symbols.tolist()
    for path in itertools.product(range(len(start)), repeat=len(seen)):
        used: list[tuple[int, Any]] = [(0, path[0])]
        used += [(1, pair) for pair in itertools.pairwise(path)]
        used += [(2, pair) for pair in zip(path, seen, strict=True)]
        weight = float(np.prod([(start, move, emit)[k][at] for k, at in used]))
        total += weight
        for k, at in used:
            counts[k][at] += weight
    return float(np.log(total)), {n: c / total for n, c in zip(names, counts, strict=True)}


def off_all_paths(hmm: CategoricalHMM, symbols: Tensor) -> float:
    """How far the model's log-likelihood (relative) and expected counts are from those sums."""
    free = eadem.twin(hmm)
    total, counts = over_all_paths(free, symbols)
    free.requires_grad_(True).zero_grad()
    got = log_density(free, symbols.unsqueeze(0)).sum()
    got.backward()
    away = [abs(float(got.detach()) / total - 1)]
    for name, expected in counts.items():
        p = free.get_parameter(name)
        assert p.grad is not None
        away.append(float(np.abs((p * p.grad).detach().numpy() - expected).max()))
    return max(away)


#: Amplitude, rate, peak, centre and width of each curve, as the data are made, and the start.
TRUTH = {
    "amplitude": [4.0, 2.5, 3.0],
    "rate": [0.8, 0.8, 0.8],
    "peak": [1.5, 2.0, 1.0],
    "centre": [2.0, 3.0, 3.5],
    "width": [0.3, 0.7, 0.5],
}
GUESS = {
    "amplitude": [3.0, 3.0, 3.0],
    "rate": [1.0, 1.0, 1.0],
    "peak": [1.0, 1.0, 1.0],
    "centre": [2.0, 3.0, 3.5],
    "width": [0.4, 0.4, 0.4],
}
SIGMA = 0.05


class Curve(nn.Module):
    """A decay with a peak, as it was observed.

    y = amplitude·exp(−rate·x) + peak·exp(−(x − centre)²/2width²).
    """

    amplitude: nn.Parameter
    rate: nn.Parameter
    peak: nn.Parameter
    centre: nn.Parameter
    width: nn.Parameter

    def __init__(self, x: Tensor, y: Tensor, number: int) -> None:
        super().__init__()
        self.x, self.y = x, y
        for name, values in GUESS.items():
            start = torch.tensor(values[number], dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(start))

    def residual(self) -> Tensor:
        """(observed − curve)/σ at every point."""
        bell = torch.exp(-0.5 * ((self.x - self.centre) / self.width) ** 2)
        found = self.amplitude * torch.exp(-self.rate * self.x) + self.peak * bell
        return (self.y - found) / SIGMA


def drawn_curves(points: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x (points,) and the three curves with errors (3, points)."""
    x = torch.linspace(0, 5, points, dtype=torch.float64)
    a, r, p, c, w = (torch.tensor(v, dtype=torch.float64).unsqueeze(1) for v in TRUTH.values())
    clean = a * torch.exp(-r * x) + p * torch.exp(-0.5 * ((x - c) / w) ** 2)
    return x, clean + SIGMA * torch.randn(clean.shape, generator=generator, dtype=torch.float64)


def curves_by_hand(x: Tensor, y: Tensor) -> dict[str, float]:
    """The same fit by scipy, by site, with the constraints written into the model."""
    grid, observed = x.numpy(), y.numpy()

    def sites(free: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        width = np.array([free[10], 2.0 * free[10] + 0.1, free[11]])
        rate = np.full(3, np.exp(free[3]))
        return dict(zip(TRUTH, (free[:3], rate, free[4:7], free[7:10], width), strict=True))

    def residual(free: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        a, r, p, c, w = (v[:, None] for v in sites(free).values())
        model = a * np.exp(-r * grid) + p * np.exp(-0.5 * ((grid - c) / w) ** 2)
        flat: np.ndarray[Any, Any] = ((observed - model) / SIGMA).ravel()
        return flat

    start = np.array([3, 3, 3, 0.0, 1, 1, 1, 2, 3, 3.5, 0.4, 0.4], dtype=float)
    fit = least_squares(residual, start, xtol=1e-15, ftol=1e-15, gtol=1e-15)
    return {
        f"curve{i}.{name}": float(value)
        for name, values in sites(fit.x).items()
        for i, value in enumerate(values)
    }


def towers_verdict(model: TwoTowers, pairs: tuple[Tensor, Tensor]) -> ScoreTest:
    """The score test of the towers' tie, with Gaussian errors of the variance at the fit."""
    sigma = misfit(model, *pairs).detach().square().mean().sqrt()

    def residual(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return misfit(m, *batch) / sigma

    return eadem.score_test(
        model, lambda m, b: -0.5 * residual(m, b).square(), pairs, information=residual
    )
