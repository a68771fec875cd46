"""A palindromic filter on an ECG: tuned to symmetric signals, deaf to antisymmetric noise.

The signal is the electrocardiogram that PyWavelets ships (MIT): 1,024 samples, scaled to unit
variance. A window of 33 samples is contaminated by a smooth disturbance that is antisymmetric
about the window's middle (four times the signal's power) and by white noise (a quarter of it),
both drawn anew for each window. A stock `nn.Conv1d(1, 1, 33)` learns to say what the clean
sample in the middle is, from n windows of the first half of the record; it is tested on every
window of the second half. The untied filter has 33 free values, the palindromic one 17.

The tie is right here. The covariance of a stationary signal is symmetric in time, so the best
linear filter (Wiener's) is a palindrome when what disturbs the window is white or antisymmetric
(its covariance commutes with reversal). SNR is in dB, power of signal over power of error; the
input's is over the window. Claim C16; 20 repeats, each with its own windows and noise, the same
for both filters; at two of the five sizes when quick. Expected run time: 20 s, 8 s when quick.

The evidence is the score test of the tie at the tied fit, from the residual of every window,
with the sandwich variance. It is made where the tie is right, and where it is wrong: with the
disturbance shifted, so that its middle is three samples before the window's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import free_vector, resolved, set_free_vector
from eadem.evidence import ScoreResult, score_statistic
from eadem.recipes import Context
from eadem.recipes._disturbed import (
    SHIFT,
    TAPS,
    Windows,
    gain,
    hearing,
    taps_of,
    windows,
)
from eadem.recipes._ecg import ecg
from eadem.recipes._page import mean
from eadem.recipes._palindrome_page import NAMES, report, table
from eadem.recipes._training import one_thread_count
from eadem.report import page
from eadem.solvers import least_squares

__all__ = ["fitted", "report", "run", "windows"]

SIZES = (40, 80, 160, 320, 640)
REPEATS, VERDICT = 20, 640  # the latter: windows for the score test
DEAF, GAIN, LOSS = 1e-12, 2.0, 0.25


def fitted(data: Windows, palindromic: bool) -> nn.Sequential:
    """The filter of least squares."""
    model = nn.Sequential(nn.Conv1d(1, 1, TAPS, bias=False, dtype=torch.float64))
    if palindromic:
        eadem.tie(model, "0.weight", via=eadem.Palindrome())
    x = data.inputs.squeeze(1)
    plan = resolved(model)
    start = torch.zeros(plan.in_shape, dtype=torch.float64)
    found = least_squares(plan, lambda taps: x @ taps - data.wanted, start)
    set_free_vector(model, found.theta)
    return model


def verdict(model: nn.Module, data: Windows) -> ScoreResult:
    """The score test of the palindrome at its fit; the errors are Gaussian, of one variance."""
    plan = resolved(model).linearize(free_vector(model))
    with torch.no_grad():
        residual = data.wanted - model(data.inputs).reshape(-1)
    variance = residual.square().mean()
    x = data.inputs.reshape(-1, TAPS)
    scores = x * (residual / variance).unsqueeze(1)  # one row a window
    return score_statistic(plan, scores.sum(0), x.T @ x / variance, middle=scores.T @ scores)


def run(context: Context) -> None:
    """Fit both filters at every size, test the tie, and leave metrics.json and report.html."""
    page.ready()
    sizes = SIZES[:2] if context.quick else SIZES
    signal = ecg()
    half = len(signal) // 2
    first, second = torch.arange(half - TAPS + 1), torch.arange(half, len(signal) - TAPS + 1)
    gains: dict[str, dict[int, list[float]]] = {k: {n: [] for n in sizes} for k in NAMES}
    heard: dict[str, list[float]] = {k: [] for k in NAMES}
    taps: dict[str, Tensor] = {}
    with one_thread_count():
        for repeat in context.progress(range(REPEATS), "repeats"):
            for n in sizes:
                seed = (context.seed * 1000 + repeat) * 1000 + n
                generator = torch.Generator().manual_seed(seed)
                test = windows(signal, second, generator)
                rows = first[torch.randint(len(first), (n,), generator=generator)]
                train = windows(signal, rows, generator)
                for name in NAMES:
                    model = fitted(train, name == "palindrome")
                    gains[name][n].append(gain(model, test))
                    heard[name].append(hearing(model, generator))
                    if n == sizes[0]:
                        taps[name] = taps_of(model)
        tests = {}
        for name, shift in (("right", 0), ("wrong", SHIFT)):
            generator = torch.Generator().manual_seed(1000 * context.seed + 999)
            rows = first[torch.randint(len(first), (VERDICT,), generator=generator)]
            data = windows(signal, rows, generator, shift)
            found = verdict(fitted(data, True), data)
            tests[name] = vars(found.robust) | {"notes": found.notes}
        sample = windows(signal, second[100:101], generator)
        clean = signal.unfold(0, TAPS, 1)[second[100]]
    _claim(context, gains, heard)
    context.write_metrics(
        {
            "data": {"source": "PyWavelets", "samples": len(signal), "taps": TAPS},
            "repeats": REPEATS,
            "gain_db": gains,
            "heard": heard,
            "taps": taps,
            "record": signal,
            "window": {"clean": clean, "noisy": sample.inputs.reshape(-1)},
            "tests": tests,
            "verdict": VERDICT,
        }
    )
    report(context.out)
    context.say(table(gains))


def _claim(
    context: Context, gains: Mapping[str, Mapping[int, list[float]]], heard: Any
) -> None:
    """Claim C16."""
    better = {n: mean(g) - mean(gains["plain"][n]) for n, g in gains["palindrome"].items()}
    deaf = max(heard["palindrome"])
    context.claim(
        "C16",
        "A palindromic filter projects on the symmetric subspace: tuned to symmetric signals, "
        "deaf to antisymmetric noise.",
        f"largest output to antisymmetric windows ≤ {DEAF:g} of what the taps could add up to; "
        f"mean SNR gain over the unconstrained filter's by ≥ {GAIN:g} dB from {SIZES[0]} "
        f"windows, and nowhere more than {LOSS:g} dB below it",
        {"deaf": f"≤ {DEAF:g}", "dB": f"≥ {GAIN:g}, then ≥ −{LOSS:g}"},
        {"deaf": deaf, "unconstrained": max(heard["plain"]), "dB": better},
        deaf <= DEAF and better[SIZES[0]] >= GAIN and min(better.values()) >= -LOSS,
    )
