"""How many directions of a site pull away from its tie: the spectrum of its gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import svds
from torch import Tensor, nn

from eadem.evidence._trace import trace
from eadem.evidence.score import EvidenceError

__all__ = ["Spectrum", "site_gradients", "spectrum"]

#: With n micro-batches there are 2ⁿ⁻¹ sign patterns; the smallest p-value must be below 5 %.
FEWEST = 8
#: Of what is left once directions are taken out, this share of the largest is rounding.
ROUNDING = 1e-12
#: Below this side all singular values are computed, above only the largest.
SMALL = 64


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a mean gradient, largest first, against those that noise gives.

    `values`, `thresholds` (the 1 − level quantile of the largest that is left under random
    signs) and `pvalues` go as far as the first that noise explains, which is not counted in
    `rank`; or as far as `rank` where `most` ended the search, or what was left is rounding.
    """

    values: tuple[float, ...]
    thresholds: tuple[float, ...]
    pvalues: tuple[float, ...]
    rank: int
    samples: int

    def __str__(self) -> str:
        lines = [f"rank {self.rank} of {self.samples} micro-batch gradients"]
        for i, row in enumerate(zip(self.values, self.thresholds, self.pvalues, strict=True)):
            value, threshold, p = row
            lines.append(f"{i + 1:>3}  {value:.4g} against {threshold:.4g}, p = {p:.3g}")
        return "\n".join(lines)


def spectrum(
    samples: Tensor,
    level: float = 0.05,
    *,
    flips: int = 199,
    most: int | None = None,
    seed: int = 0,
) -> Spectrum:
    """How many singular values of the mean of independent matrices (n, rows, columns) are more
    than noise.

    If a mean is zero, and the samples are as likely as their opposites, the signs of the
    samples may be flipped at will; so the largest singular value of the mean is compared with
    those of `flips` means with random signs, one for each sample (for gradients, the sign-flip
    test of Hemerik, Goeman & Finos, JRSS B 82, 2020; it needs no noise level, nor noise that is
    alike in all entries). Where it is larger than all but `level` of these, its direction is
    taken out of all samples, and the next is tested in what is left: parallel analysis (Horn,
    Psychometrika 30, 1965) with deflation (Dobriban & Owen, JRSS B 81, 2019). The first test is
    exact; the probability of any direction at all, where there is none, is at most `level`.

    Samples of more axes are matrices with the first one as rows. `most` bounds the rank. Raises
    EvidenceError for fewer than eight samples, for values that are not finite, and where
    `level`, `flips` or `most` is out of range.

    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(40, 12, 9, generator=generator, dtype=torch.float64)
    >>> u, v = torch.ones(12, 1, dtype=torch.float64), torch.ones(1, 9, dtype=torch.float64)
    >>> spectrum(noise).rank, spectrum(noise + 0.5 * u @ v).rank
    (0, 1)
    """
    if samples.ndim < 3 or len(samples) < FEWEST:
        raise EvidenceError(
            f"samples of shape {tuple(samples.shape)}; the spectrum needs (n, rows, columns) "
            f"with n ≥ {FEWEST} micro-batches: take smaller ones, or more data"
        )
    if not (0 < level < 1 and flips >= 1 and (most is None or most >= 0)):
        raise EvidenceError(
            f"level={level!r}, flips={flips!r}, most={most!r}; the level is a probability "
            "between 0 and 1, and there is at least one flip and no rank below 0"
        )
    if samples.is_meta:
        raise EvidenceError("the samples are on the meta device and have no values")
    if not bool(torch.isfinite(samples).all()):
        raise EvidenceError(
            "the samples are not all finite; look for the micro-batch whose loss is not, or "
            "whose gradient overflows"
        )
    x = samples.detach().to(torch.float64).cpu().flatten(2)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (flips, len(x)), generator=generator, dtype=torch.float64) * 2 - 1
    end = min(x.shape[1:]) if most is None else min(most, *x.shape[1:])
    values: list[float] = []
    thresholds: list[float] = []
    pvalues: list[float] = []
    rank = 0
    while rank < end:
        u, s, v = _largest(x.mean(0))
        if values and s <= ROUNDING * values[0]:
            break
        null = torch.tensor([_largest(_signed(x, row))[1] for row in signs])
        p = (1 + int((null >= s).sum())) / (1 + flips)
        values.append(s)
        thresholds.append(float(null.quantile(1 - level)))
        pvalues.append(p)
        if p > level:
            break
        rank += 1
        x = x - u[:, None] * (u @ x)[:, None, :]
        x = x - (x @ v)[:, :, None] * v
    return Spectrum(tuple(values), tuple(thresholds), tuple(pvalues), rank, len(samples))


def _signed(x: Tensor, signs: Tensor) -> Tensor:
    mean: Tensor = torch.tensordot(signs, x, dims=1) / len(x)
    return mean


def _largest(matrix: Tensor) -> tuple[Tensor, float, Tensor]:
    """The largest singular value, with its vectors."""
    if min(matrix.shape) <= SMALL:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, 0], float(s[0]), v[0]
    if not bool(matrix.any()):  # ARPACK has nowhere to start
        return matrix[:, 0], 0.0, matrix[0]
    start = np.random.default_rng(0).standard_normal(min(matrix.shape))
    found = svds(matrix.numpy(), k=1, v0=start)
    return torch.as_tensor(found[0][:, 0]), float(found[1][0]), torch.as_tensor(found[2][0])


def site_gradients(
    model: nn.Module,
    site: str,
    loss: Callable[[nn.Module, Any], Tensor],
    batches: Iterable[Any],
) -> Tensor:
    """What the tie cancels of a site's gradient, micro-batch by micro-batch: (n, *site).

    `loss(model, batch)` is a scalar. Parameters' `.grad` are left as they were. Raises
    EvidenceError where the loss does not depend on the site.
    """
    kept = [(p, p.grad) for p in model.parameters()]
    found = []
    try:
        for batch in batches:
            with trace(model) as seen:
                value = loss(model, batch)
                if not isinstance(value, Tensor) or value.numel() != 1:
                    shape = tuple(getattr(value, "shape", ())) or type(value).__name__
                    raise EvidenceError(
                        f"the loss gave {shape}; it must give one number for a micro-batch"
                    )
                if value.requires_grad:
                    value.backward()
            away = seen.cancelled()
            if site not in away:
                raise EvidenceError(
                    f"the loss gives {site!r} no gradient; name a tied site that the loss "
                    f"depends on ({', '.join(away) or 'it depends on none'})"
                )
            found.append(away[site])
            for p, _ in kept:
                p.grad = None
    finally:
        for p, grad in kept:
            p.grad = grad
    if not found:
        raise EvidenceError("there are no batches; give at least eight micro-batches")
    return torch.stack(found)
