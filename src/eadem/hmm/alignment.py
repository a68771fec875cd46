"""An alignment of two sequences: its columns, how it prints, how it is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eadem.hmm.sequences import MultipleAlignment, Record, write_fasta, write_stockholm

__all__ = ["Alignment", "Posterior"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """Two sequences and the states that emit them.

    `path` has a letter for each column: M for a pair of letters, X for a letter of x alone,
    Y for one of y alone. `log_probability` is that of the sequences along this path;
    `accuracy`, where the alignment was made for it, the expected number of pairs that are
    right.

    >>> found = Alignment("GATTA", "GTTAC", "MXMMMY", -12.5)
    >>> print(found)
    x  GATTA-
       | |||
    y  G-TTAC
    >>> found.pairs.tolist()
    [[0, 0], [2, 1], [3, 2], [4, 3]]
    """

    x: str
    y: str
    path: str
    log_probability: float
    accuracy: float | None = None
    names: tuple[str, str] = ("x", "y")

    @property
    def rows(self) -> tuple[str, str]:
        """Both sequences with gaps."""
        found = []
        for letters, gap in ((self.x, "Y"), (self.y, "X")):
            each = iter(letters)
            found.append("".join("-" if s == gap else next(each) for s in self.path))
        return found[0], found[1]

    @property
    def pairs(self) -> npt.NDArray[np.int64]:
        """The positions in x and in y of the letters in each pair, from zero, (pairs, 2)."""
        states = np.array(list(self.path), dtype="U1")
        i = np.cumsum(states != "Y") - 1
        j = np.cumsum(states != "X") - 1
        both = states == "M"
        return np.stack([i[both], j[both]], axis=1).astype(np.int64)

    @property
    def identity(self) -> float:
        """The share of pairs whose letters are the same; NaN without pairs."""
        pairs = self.pairs
        same = [self.x[i].upper() == self.y[j].upper() for i, j in pairs]
        return float(np.mean(same)) if same else float("nan")

    def records(self) -> tuple[Record, Record]:
        """Both rows, by name."""
        a, b = self.rows
        return Record(self.names[0], a), Record(self.names[1], b)

    def fasta(self) -> str:
        """Aligned FASTA."""
        return write_fasta(self.records())

    def stockholm(self) -> str:
        """Stockholm, with the states as the annotation of columns `state`."""
        return write_stockholm(MultipleAlignment(self.records(), {"state": self.path}))

    def show(self, width: int = 60) -> str:
        """Both rows under each other, | between letters that are the same."""
        a, b = self.rows
        marks = "".join(
            "|" if p.upper() == q.upper() else " " for p, q in zip(a, b, strict=True)
        )
        name = max(len(n) for n in self.names)
        lines = []
        for k in range(0, len(a), width):
            part = slice(k, k + width)
            lines += [
                f"{self.names[0]:<{name}}  {a[part]}",
                f"{'':<{name}}  {marks[part]}".rstrip(),
                f"{self.names[1]:<{name}}  {b[part]}",
                "",
            ]
        return "\n".join(lines[:-1])

    def __str__(self) -> str:
        return self.show()


@dataclass(frozen=True)
class Posterior:
    """What the model believes of a pair, given both sequences.

    `match` (n, m): the probability that letters i and j are a pair; a scipy.sparse csr_array
    where a band was asked for. `insert_x` (n,) and `insert_y` (m,): that a letter stands
    alone. Rows of `match` and `insert_x` add up to one, columns and `insert_y` too.
    """

    match: Floats
    insert_x: Floats
    insert_y: Floats
    log_likelihood: float
