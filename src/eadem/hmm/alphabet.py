"""Letters of sequences: DNA and proteins with their codes for what is not certain, or any."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eadem.errors import EademError

__all__ = ["DNA", "PROTEIN", "Alphabet", "SequenceError", "guess"]

Ints = npt.NDArray[np.int64]


class SequenceError(EademError, ValueError):
    """A sequence, an alignment or a file of them that cannot be read, and where."""


@dataclass(frozen=True)
class Alphabet:
    """Letters, and codes that stand for one of several of them.

    `letters` are numbered from zero; `ambiguous` gives the letters that a code may be, and
    `same` codes that are another's. With `fold`, small letters are capital ones.

    >>> DNA.encode("acgtn")
    array([ 0,  1,  2,  3, 14])
    >>> DNA.membership[DNA.encode("R")[0]]
    array([1., 0., 1., 0.])
    """

    letters: str
    ambiguous: Mapping[str, str] = field(default_factory=dict)
    same: Mapping[str, str] = field(default_factory=dict)
    fold: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        codes = self.letters + "".join(self.ambiguous)
        if len(self.letters) < 2 or len(set(codes)) != len(codes):
            raise SequenceError(
                f"the alphabet {codes!r} must have at least two letters, each once"
            )
        strange = set("".join(self.ambiguous.values())) - set(self.letters)
        if strange:
            raise SequenceError(f"{sorted(strange)} are not letters of {self.letters!r}")
        table = np.full(0x110000 if not codes.isascii() else 128, -1, dtype=np.int64)
        number = {c: i for i, c in enumerate(codes)}
        number.update({c: number[to] for c, to in self.same.items()})
        for code, i in number.items():
            table[ord(code)] = i
            if self.fold:
                table[ord(code.lower())] = i
        object.__setattr__(self, "_table", table)

    def __len__(self) -> int:
        return len(self.letters)

    @property
    def codes(self) -> str:
        """The letters and then the ambiguous codes."""
        return self.letters + "".join(self.ambiguous)

    @property
    def membership(self) -> npt.NDArray[np.float64]:
        """Which letters each code may be, (codes, letters) of zeros and ones."""
        found = np.zeros((len(self.codes), len(self)))
        for i, code in enumerate(self.codes):
            for letter in self.ambiguous.get(code, code):
                found[i, self.letters.index(letter)] = 1.0
        return found

    def encode(self, sequence: Any, where: str = "the sequence") -> Ints:
        """The codes' numbers, (length,). Takes a string, or integers of letters or codes.

        Raises SequenceError, naming `where` and the position.
        """
        if isinstance(sequence, str):
            return self._read(sequence, where)
        if isinstance(sequence, torch.Tensor):
            sequence = sequence.detach().cpu().numpy()
        found = np.asarray(sequence)
        if found.size == 0 and found.ndim == 1:
            return np.zeros(0, dtype=np.int64)
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise SequenceError(
                f"{where} is {found.dtype} of shape {found.shape}; give a string, or a flat "
                "array of integers"
            )
        found = found.astype(np.int64)
        bad = np.flatnonzero((found < 0) | (found >= len(self.codes)))
        if bad.size:
            raise SequenceError(
                f"{where} has {found[bad[0]]} at position {bad[0]} (from 0); letters are 0 to "
                f"{len(self) - 1}, with ambiguous codes to {len(self.codes) - 1}"
            )
        return found

    def _read(self, text: str, where: str) -> Ints:
        points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
        table: Ints = self.__dict__["_table"]
        found = np.where(points < len(table), table[np.minimum(points, len(table) - 1)], -1)
        bad = np.flatnonzero(found < 0)
        if bad.size:
            letter = text[int(bad[0])]
            gap = "; sequences to align have no gaps: remove them" if letter in "-." else ""
            raise SequenceError(
                f"{where} has {letter!r} at position {bad[0]} (from 0), which is no letter of "
                f"{self.name or 'the alphabet'} {self.codes!r}{gap}"
            )
        return found

    def decode(self, codes: Any) -> str:
        """The string of codes' numbers."""
        return "".join(self.codes[int(i)] for i in codes)


_ANY = "ACDEFGHIKLMNPQRSTVWY"

#: DNA or RNA with IUPAC's codes (Cornish-Bowden, Nucleic Acids Res. 13, 3021, 1985); U is T.
DNA = Alphabet(
    "ACGT",
    {
        "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
        "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
    },
    {"U": "T"},
    fold=True,
    name="DNA",
)  # fmt: skip

#: The twenty amino acids in the order of BLOSUM62, with B, Z, J and X; U and O are X.
PROTEIN = Alphabet(
    "ARNDCQEGHILKMFPSTWYV",
    {"B": "DN", "Z": "EQ", "J": "IL", "X": _ANY},
    {"U": "X", "O": "X"},
    fold=True,
    name="protein",
)


def guess(sequences: Sequence[str]) -> Alphabet:
    """DNA where nine letters in ten are A, C, G, T, U or N, and all can be DNA.

    >>> guess(["GATTACA", "acgtn"]).name, guess(["MVLSEGEWQ"]).name
    ('DNA', 'protein')
    """
    text = "".join(sequences).upper()
    common = sum(text.count(c) for c in "ACGTUN")
    possible = set(text) <= set(DNA.codes) | set(DNA.same)
    return DNA if possible and common >= 0.9 * len(text) else PROTEIN
