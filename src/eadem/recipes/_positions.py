"""The normal equations of a filter at every position of an image, and of one filter for all.

The layer is `LocallyConnected2d` on 32×32 images, 5×5 windows: 784 positions, 25 coefficients.
Everything is float64; memory is bounded by the images of a piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import eadem
from eadem.evidence import ScoreResult, score_statistic
from eadem.maps.algebra import stack
from eadem.maps.base import LinearMap
from eadem.nn import LocallyConnected2d
from eadem.recipes._training import Advance

__all__ = [
    "FEATURES",
    "POSITIONS",
    "REGIONS",
    "SIDE",
    "TAPS",
    "Draw",
    "Errors",
    "by_size",
    "errors",
    "layer",
    "moments",
    "pooled",
    "sandwich",
    "verdict",
    "windows",
]

SIDE, TAPS = 32, 5
WIDE, FEATURES = SIDE - TAPS + 1, TAPS * TAPS
POSITIONS, REGIONS = WIDE * WIDE, 4
CHUNK = 100

#: Gram matrices (positions, 25, 25) and right sides (positions, 25) of the normal equations.
Moments = tuple[Tensor, Tensor]
#: Draws that many images (n, 32, 32) and answers (n, positions).
Draw = Callable[[int], tuple[Tensor, Tensor]]


def layer() -> nn.Module:
    """A filter for every position, tied to be one."""
    local = LocallyConnected2d(1, 1, SIDE, TAPS, bias=False, dtype=torch.float64)
    eadem.tie(local, "weight", via=eadem.Gather(local.convolution_index("weight")))
    return local


def windows(images: Tensor) -> Tensor:
    """Images (n, 32, 32) as windows (positions, n, 25)."""
    found = images.unfold(1, TAPS, 1).unfold(2, TAPS, 1)
    return found.reshape(len(images), POSITIONS, FEATURES).transpose(0, 1).contiguous()


def moments(images: Tensor, answers: Tensor) -> Moments:
    """The normal equations of every position, in pieces so that memory stays bounded."""
    gram = torch.zeros(POSITIONS, FEATURES, FEATURES, dtype=torch.float64)
    right = torch.zeros(POSITIONS, FEATURES, 1, dtype=torch.float64)
    for part, said in zip(images.split(CHUNK), answers.split(CHUNK), strict=True):
        x = windows(part)
        gram.baddbmm_(x.transpose(1, 2), x)
        right.baddbmm_(x.transpose(1, 2), said.T.unsqueeze(2))
    return gram, right.squeeze(2)


def pooled(phi: Tensor, gram: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """φᵀGφ and φᵀr, of a map (positions, 25, free) and block-diagonal normal equations."""
    free = phi.shape[2]
    across = torch.bmm(gram, phi).reshape(-1, free)
    flat = phi.reshape(-1, free)
    return flat.T @ across, flat.T @ right.reshape(-1)


@dataclass(frozen=True)
class Errors:
    """Mean squared errors of the coefficients by number of images, and the last estimates."""

    shared: dict[int, float]
    unshared: dict[int, float]
    one: Tensor
    each: Tensor


def errors(
    draw: Draw,
    sizes: Sequence[int],
    phi: Tensor,
    truth: tuple[Tensor, Tensor],
    advance: Advance,
) -> Errors:
    """The errors after each number of images, with one filter and with one at every position;
    the latter where there are more images than coefficients.
    """
    shared: dict[int, float] = {}
    unshared: dict[int, float] = {}
    each = gram = right = torch.zeros(())
    seen = 0
    for n in sizes:
        more = moments(*draw(n - seen))
        gram, right, seen = gram + more[0], right + more[1], n
        one = torch.linalg.solve(*pooled(phi, gram, right))
        shared[n] = float((one - truth[0]).square().mean())
        if n > FEATURES + 1:
            each = torch.linalg.solve(gram, right)
            unshared[n] = float((each - truth[1]).square().mean())
        advance(1)
    return Errors(shared, unshared, one, each)


def sandwich(images: Tensor, answers: Tensor, theta: Tensor) -> dict[str, Tensor]:
    """Σ x xᵀ e² over positions (`alone`) and Σ s sᵀ over images, s = Σ x e (`together`), for
    the errors e of one filter (25,), or of one at every position (positions, 25).
    """
    shape = (POSITIONS, FEATURES, FEATURES)
    alone = torch.zeros(shape, dtype=torch.float64)
    together = torch.zeros(shape[1:], dtype=torch.float64)
    for part, said in zip(images.split(CHUNK), answers.split(CHUNK), strict=True):
        x = windows(part)
        of_each = theta.expand(POSITIONS, FEATURES).unsqueeze(2)
        scores = x * (said.T.unsqueeze(2) - x @ of_each)
        alone.baddbmm_(scores.transpose(1, 2), scores)
        image = scores.sum(0)
        together += image.T @ image
    return {"alone": alone, "together": together}


def verdict(images: Tensor, answers: Tensor, phi: Tensor) -> ScoreResult:
    """The score test of one filter against one for each of 16 regions, clustered by image."""
    gram, right = moments(images, answers)
    theta = torch.linalg.solve(*pooled(phi, gram, right))
    x = windows(images)
    residual = answers.T - x @ theta
    variance = residual.square().mean()
    shape = (REGIONS, WIDE // REGIONS, REGIONS, WIDE // REGIONS)
    scores = (x * residual.unsqueeze(2) / variance).reshape(*shape, -1, FEATURES).sum((1, 3))
    rows = scores.flatten(0, 1).transpose(0, 1).flatten(1)  # (images, regions · 25)
    blocks = gram.reshape(*shape, FEATURES, FEATURES).sum((1, 3)).flatten(0, 1) / variance
    tie = stack([eadem.Same().bind((FEATURES,))] * REGIONS**2)
    assert isinstance(tie, LinearMap)
    return score_statistic(tie, rows.sum(0), torch.block_diag(*blocks), middle=rows.T @ rows)


def by_size(runs: Sequence[dict[int, float]]) -> dict[int, list[float]]:
    """The errors of repeated runs, by number of images."""
    return {n: [r[n] for r in runs] for n in runs[0]}
