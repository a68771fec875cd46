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

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.bind import free_vector, resolved, set_free_vector
from eadem.evidence import ScoreResult, score_statistic
from eadem.recipes import Context
from eadem.recipes._ecg import ecg
from eadem.recipes._page import claims, footer, measured, write
from eadem.recipes._training import one_thread_count
from eadem.report import chart, numbers, page, terminal
from eadem.solvers import least_squares

__all__ = ["fitted", "report", "run", "windows"]

TAPS = 33
SIZES = (40, 80, 160, 320, 640)
DISTURBANCE, WHITE = 2.0, 0.5  # standard deviations; the signal's is 1
SHIFT = 3
REPEATS = 20
VERDICT = 640  # windows, for the score test
DEAF, GAIN, LOSS = 1e-12, 2.0, 0.25
NAMES = {"palindrome": "palindromic", "plain": "unconstrained"}


@dataclass(frozen=True)
class Windows:
    """Contaminated windows (n, 1, TAPS), and the clean sample in the middle of each (n,)."""

    inputs: Tensor
    wanted: Tensor


def disturbance(n: int, generator: torch.Generator, shift: int = 0) -> Tensor:
    """Smooth random curves (n, TAPS), antisymmetric about a point `shift` before the middle."""
    wide = TAPS + 2 * shift
    rough = torch.randn(n, 1, wide + 16, dtype=torch.float64, generator=generator)
    bell = torch.exp(-(torch.arange(-8.0, 9.0, dtype=torch.float64) ** 2) / 8)
    smooth = nn.functional.conv1d(rough, bell.reshape(1, 1, -1)).squeeze(1)
    odd = (smooth - smooth.flip(1)) / math.sqrt(2 * float(bell.square().sum()))
    return DISTURBANCE * odd[:, 2 * shift :]


def windows(
    signal: Tensor, rows: Tensor, generator: torch.Generator, shift: int = 0
) -> Windows:
    """The windows of a signal that begin at `rows`, contaminated."""
    clean = signal.unfold(0, TAPS, 1)[rows]
    white = torch.randn(clean.shape, dtype=torch.float64, generator=generator)
    noisy = clean + disturbance(len(rows), generator, shift) + WHITE * white
    return Windows(noisy.unsqueeze(1), clean[:, TAPS // 2])


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


@torch.no_grad()
def gain(model: nn.Module, data: Windows) -> float:
    """Output SNR over input SNR, in dB; the signal has unit power."""
    error = (model(data.inputs).reshape(-1) - data.wanted).square().mean()
    return 10 * math.log10((DISTURBANCE**2 + WHITE**2) / float(error))


def taps_of(model: nn.Module) -> Tensor:
    """The filter's taps (TAPS,), detached."""
    return model.get_submodule("0").weight.detach().reshape(-1)  # type: ignore[operator]


@torch.no_grad()
def hearing(model: nn.Module, generator: torch.Generator) -> float:
    """Largest output to antisymmetric windows, over what the taps could add up to."""
    odd = disturbance(1000, generator)
    most = odd.abs() @ taps_of(model).abs()
    return float((model(odd.unsqueeze(1)).reshape(-1).abs() / most).max())


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
    first = torch.arange(half - TAPS + 1)
    second = torch.arange(half, len(signal) - TAPS + 1)
    gains: dict[str, dict[int, list[float]]] = {k: {n: [] for n in sizes} for k in NAMES}
    heard: dict[str, list[float]] = {k: [] for k in NAMES}
    taps: dict[str, Tensor] = {}
    with one_thread_count():
        for repeat in context.progress(range(REPEATS), "repeats"):
            for n in sizes:
                generator = torch.Generator().manual_seed(
                    (context.seed * 1000 + repeat) * 1000 + n
                )
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
            tests[name] = verdict(fitted(data, True), data)
        sample = windows(signal, second[100:101], generator)
    _claim(context, gains, heard)
    context.write_metrics(
        {
            "data": {"source": "PyWavelets", "samples": len(signal), "taps": TAPS},
            "repeats": REPEATS,
            "gain_db": gains,
            "heard": heard,
            "taps": taps,
            "record": signal,
            "window": {
                "clean": signal.unfold(0, TAPS, 1)[second[100]],
                "noisy": sample.inputs.reshape(-1),
            },
            "tests": {name: _described(result) for name, result in tests.items()},
        }
    )
    report(context.out)
    context.say(terminal.grid("SNR gain in dB", _COLUMNS, _rows(gains)))


def _described(result: ScoreResult) -> dict[str, Any]:
    robust = result.robust
    assert robust is not None
    return {
        "df": robust.df,
        "statistic": robust.statistic,
        "pvalue": robust.pvalue,
        "notes": list(result.notes),
    }


def _claim(
    context: Context, gains: Mapping[str, Mapping[int, list[float]]], heard: Any
) -> None:
    """Claim C16."""
    better = {
        n: sum(gains["palindrome"][n]) / len(gains["palindrome"][n])
        - sum(gains["plain"][n]) / len(gains["plain"][n])
        for n in gains["plain"]
    }
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


_COLUMNS = ["windows", *NAMES.values(), "difference", "better in"]


def _rows(gains: Mapping[str, Mapping[Any, list[float]]]) -> list[list[str]]:
    found = []
    for n, tied in gains["palindrome"].items():
        plain = gains["plain"][n]
        pairs = [a - b for a, b in zip(tied, plain, strict=True)]
        mean = sum(pairs) / len(pairs)
        shown = [f"{sum(g) / len(g):.2f}" for g in (tied, plain)]
        won = f"{sum(p > 0 for p in pairs)} of {len(pairs)}"
        found.append([str(n), *shown, f"{mean:+.2f}".replace("-", "−"), won])
    return found


def _gains(gains: Mapping[str, Mapping[str, list[float]]]) -> str:
    series = [
        chart.repeated(name, gains[key], style)
        for style, (key, name) in enumerate(NAMES.items())
    ]
    label = "SNR gain by number of windows: mean, least and greatest of the repeats"
    ticks = [float(n) for n in gains["plain"]]
    return chart.chart(
        chart.Chart(label, "windows to learn from", "gain, dB", series, True, x_ticks=ticks)
    )


def _lines(label: str, y_label: str, curves: Mapping[str, list[float]], start: int) -> str:
    series = [
        chart.Series(name, [float(start + i) for i in range(len(y))], y, style=s, markers=False)
        for s, (name, y) in enumerate(curves.items())
    ]
    return chart.chart(chart.Chart(label, "samples from the middle", y_label, series))


def report(folder: Path) -> None:
    """Write the page of a finished run from its metrics.json."""
    metrics = measured(folder)
    middle, gains, tests = -(TAPS // 2), metrics["gain_db"], metrics["tests"]
    taps = {name: metrics["taps"][key] for key, name in NAMES.items()}
    record = [
        chart.Series("ECG", [float(i) for i in range(1024)], metrics["record"], markers=False)
    ]
    least = next(iter(gains["plain"]))
    better = [a - b for a, b in zip(*(gains[k][least] for k in NAMES), strict=True)]
    shown = [
        [which, f"χ²({t['df']}) = {numbers.significant(t['statistic'])}", _p(t["pvalue"])]
        for which, t in (
            ("antisymmetric disturbance: the tie is right", tests["right"]),
            (f"its middle {SHIFT} samples early: the tie is wrong", tests["wrong"]),
        )
    ]
    whole = page.Page(
        title="A filter that reads the same both ways",
        eyebrow="eadem run palindrome",
        lede="A palindromic filter is one tie on one stock convolution: 17 free values at 33 "
        "taps. It hears nothing that is antisymmetric about its middle, and it needs fewer "
        "windows to learn from.",
        facts=[
            ("17 → 33", "free values → taps"),
            (f"{sum(better) / len(better):+.1f} dB", f"gained by the tie at {least} windows"),
            (numbers.significant(max(metrics["heard"]["palindrome"])), "heard of odd windows"),
        ],
        sections=[
            claims(metrics),
            page.Section(
                "signal",
                "The signal",
                "An electrocardiogram, and one window of it as the filters are given it. The "
                "sample in the middle is to be recovered.",
                [
                    chart.chart(chart.Chart("The record", "sample", "scaled", record)),
                    _lines("One window", "scaled", metrics["window"], middle),
                ],
            ),
            page.Section(
                "gain",
                "What the tie is worth",
                "Both filters learn from the same windows and are tested on the second half of "
                "the record. The fewer the windows, the more the 16 values count that the tie "
                "need not learn.",
                [_gains(gains), page.table(_COLUMNS, _rows(gains), numeric=(1, 2, 3, 4))],
            ),
            page.Section(
                "filters",
                "What was learned",
                f"The taps of the last repeat, from {least} windows.",
                [_lines("Taps", "weight", taps, middle)],
            ),
            page.Section(
                "evidence",
                "The evidence that the tie gives against itself",
                f"The score test at the tied fit of {VERDICT} windows, sandwich variance. No "
                "unconstrained filter is fitted for it.",
                [page.table(["disturbance", "statistic", "p"], shown)],
            ),
        ],
        footer=footer(metrics),
    )
    write(folder, whole)


def _p(p: float) -> str:
    return "< 10⁻³⁰⁰" if p < 1e-300 else numbers.significant(p)
