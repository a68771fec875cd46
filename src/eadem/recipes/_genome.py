"""An annotated genome: bases as numbers, and by base what the annotation says of it.

The chloroplast of Arabidopsis thaliana (GenBank NC_000932.1; `data/SOURCES.md`). Its inverted
repeat stands there twice; the second copy, from base 128,215 on, is left out, so that what is
learned from is never tested on.
"""

from __future__ import annotations

import gzip
import re
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt
import torch

import eadem

__all__ = ["BASES", "Genome", "chloroplast", "label", "triplets"]

Ints = npt.NDArray[np.int64]
BASES = "ACGT"  # the complement of base b is 3 − b
ONCE = 128_214


@dataclass(frozen=True)
class Genome:
    """By base: its number in BASES, its state (0: not coding; 1, 2, 3: codon position, read
    forwards; 4, 5, 6: codon position 1, 2, 3 on the other strand), and the number of the coding
    sequence (0: none), all (n,).
    """

    bases: Ints
    states: Ints
    genes: Ints


def chloroplast() -> Genome:
    """The genome without its second repeat."""
    packed = resources.files("eadem.data").joinpath("chloroplast.txt.gz").read_bytes()
    _, text, *places = gzip.decompress(packed).decode("ascii").strip().split("\n")
    states, genes = label(len(text), places)
    bases = np.array([BASES.index(b) for b in text])
    return Genome(bases[:ONCE], states[:ONCE], genes[:ONCE])


def label(n: int, places: list[str]) -> tuple[Ints, Ints]:
    """States and genes of `n` bases from the locations of coding sequences, as GenBank writes
    them: first..last counted from 1, join(…), complement(…). Where two overlap, the first one
    listed holds.

    >>> label(9, ["join(2..3,5..5)", "complement(6..8)"])[0].tolist()
    [0, 1, 2, 0, 3, 6, 5, 4, 0]
    """
    states, genes = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    for number, place in enumerate(places, 1):
        whole = place.startswith("complement(")
        bases: list[tuple[int, bool]] = []
        for match in re.finditer(r"(complement\()?<?(\d+)\.\.>?(\d+)", place):
            part = [i - 1 for i in range(int(match[2]), int(match[3]) + 1)]
            back = match[1] is not None and not whole
            bases += [(i, back or whole) for i in (reversed(part) if back else part)]
        if whole:
            bases.reverse()
        for k, (i, back) in enumerate(bases):
            if states[i] == 0:
                states[i], genes[i] = k % 3 + 1 + 3 * back, number
    return states, genes


def triplets(bases: Ints) -> Ints:
    """Each base with its two neighbours, 16·before + 4·base + after; ends see themselves."""
    before, after = np.r_[bases[:1], bases[:-1]], np.r_[bases[1:], bases[-1:]]
    found: Ints = 16 * before + 4 * bases + after
    return found


PIECE, STRETCH = 8000, 1000


def complement(width: int) -> eadem.Gather:
    """Symbols of `width` bases as the other strand has them: complemented, read backwards.

    >>> complement(1).bind((4,)).expand(torch.arange(4.0)).tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    symbols = torch.arange(4**width).reshape((4,) * width)
    turned = symbols.permute(*reversed(range(width))).flip(*range(width))
    return eadem.Gather(turned.reshape(-1))


def matthews(said: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float:
    """Matthews' correlation coefficient; 0 where one answer is given throughout.

    >>> round(matthews(np.array([True, True, False]), np.array([True, False, False])), 12)
    0.5
    """
    if said.all() or not said.any() or true.all() or not true.any():
        return 0.0
    return float(np.corrcoef(said, true)[0, 1])


def pieces(genome: Genome) -> tuple[list[slice], list[slice]]:
    """Pieces to learn from and pieces to test on, in turn."""
    every = [slice(i, i + PIECE) for i in range(0, len(genome.bases), PIECE)]
    return every[::2], every[1::2]
