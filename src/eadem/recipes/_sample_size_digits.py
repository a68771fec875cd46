"""What sharing a filter over the positions of digits is worth, in independent positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eadem.recipes import Context
from eadem.recipes._digits import all_digits
from eadem.recipes._positions import (
    FEATURES,
    by_size,
    errors,
    moments,
    pooled,
    sandwich,
    verdict,
)

__all__ = ["digits"]

INK_NOISE, SHARED, UNSHARED, VERDICT = 0.3, 16, 1600, 1000


def digits(context: Context, phi: Tensor, generator: torch.Generator) -> dict[str, Any]:
    """What sharing over 784 positions is worth on noisy digits, in independent positions."""
    shared, unshared = (60, 2) if context.quick else (400, 10)
    clean = all_digits().images.double()
    clean = clean[::4] if context.quick else clean
    images = nn.functional.pad(clean.reshape(-1, 28, 28), (2, 2, 2, 2))
    noise = torch.randn(images.shape, dtype=torch.float64, generator=generator)
    images = images + INK_NOISE * noise
    gram, right = moments(images, clean)
    one, each = torch.linalg.solve(*pooled(phi, gram, right)), torch.linalg.solve(gram, right)
    bread, breads = torch.linalg.inv(gram.sum(0)), torch.linalg.inv(gram)
    tied, free = sandwich(images, clean, one), sandwich(images, clean, each)["alone"]

    def trace(bread: Tensor, middle: Tensor) -> float:
        return float((bread @ middle @ bread).diagonal(dim1=-2, dim2=-1).sum(-1).mean())

    def draw(n: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(images), (n,), generator=generator)
        return images[rows], clean[rows]

    with context.stage("digits", shared + unshared) as advance:
        runs = [errors(draw, (SHARED,), phi, (one, each), advance) for _ in range(shared)]
        many = [errors(draw, (UNSHARED,), phi, (one, each), advance) for _ in range(unshared)]
    few = by_size([e.shared for e in runs])[SHARED]
    plenty = by_size([e.unshared for e in many])[UNSHARED]
    measured = (UNSHARED * sum(plenty) / len(plenty)) / (SHARED * sum(few) / len(few))
    test = verdict(*draw(VERDICT), phi)
    regions = one + test.expected_change.reshape(-1, FEATURES)
    some = torch.arange(6) * (len(images) // 6) + 7
    return {
        "test": test,
        "images": len(images),
        "mse": {"shared": few, "unshared": plenty},
        "worth": {
            "independent noise": trace(breads, gram) / trace(bread, gram.sum(0)),
            "own errors, were they independent": trace(breads, free)
            / trace(bread, tied["alone"].sum(0)),
            "own errors": trace(breads, free) / trace(bread, tied["together"]),
            "own errors, measured": measured,
        },
        "design effect": trace(bread, tied["together"]) / trace(bread, tied["alone"].sum(0)),
        "window": {"noisy": images[some], "clean": clean[some].reshape(-1, 28, 28)},
        "filters": {"one": one, "regions": regions},
    }
