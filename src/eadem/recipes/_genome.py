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
