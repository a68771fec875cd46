"""Files of sequences and alignments: FASTA (aligned or not) and Stockholm, in and out.

Letters are kept as they stand; what they mean is the alphabet's business. Errors name the file
and the line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eadem.hmm.alphabet import SequenceError

__all__ = [
    "MultipleAlignment",
    "Record",
    "read_fasta",
    "read_sequences",
    "read_stockholm",
    "write_fasta",
    "write_stockholm",
]

GAPS = "-.~_"
WIDTH = 60


@dataclass(frozen=True)
class Record:
    """One sequence of a file, gaps included where it is aligned."""

    name: str
    sequence: str
    description: str = ""

    @property
    def ungapped(self) -> str:
        """The letters alone."""
        return self.sequence.translate({ord(c): None for c in GAPS})


@dataclass(frozen=True)
class MultipleAlignment:
    """Aligned sequences, and Stockholm's annotation of columns (#=GC) and of all (#=GF)."""

    records: tuple[Record, ...]
    columns: dict[str, str] = field(default_factory=dict)
    about: dict[str, str] = field(default_factory=dict)


def _lines(path: str | os.PathLike[str]) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SequenceError(f"{path} is not a text file: {error}") from error
    except OSError as error:
        raise SequenceError(f"{path} cannot be read: {error.strerror or error}") from error


def read_fasta(path: str | os.PathLike[str]) -> list[Record]:
    """The records of a FASTA file: `>name description`, then lines of letters.

    Raises SequenceError, naming the line.
    """
    found: list[tuple[str, str, int, list[str]]] = []
    for number, raw in enumerate(_lines(path), 1):
        line = raw.strip()
        if not line or line.startswith(";"):
            continue
        if line.startswith(">"):
            name, _, about = line[1:].strip().partition(" ")
            if not name:
                raise SequenceError(f"{path}, line {number}: a record without a name")
            found.append((name, about.strip(), number, []))
        elif not found:
            raise SequenceError(
                f"{path}, line {number}: {line[:20]!r} comes before any record; a FASTA file "
                "begins with a line >name"
            )
        else:
            _letters(line, f"{path}, line {number}")
            found[-1][3].append("".join(line.split()))
    if not found:
        raise SequenceError(f"{path} holds no sequence")
    for name, _, number, parts in found:
        if not "".join(parts):
            raise SequenceError(f"{path}, line {number}: {name!r} has no letters")
    return [Record(name, "".join(parts), about) for name, about, _, parts in found]


def _letters(text: str, where: str) -> None:
    for c in text:
        if not (c.isalpha() or c.isspace() or c in GAPS or c == "*"):
            raise SequenceError(f"{where}: {c!r} is neither a letter nor a gap")


def read_stockholm(path: str | os.PathLike[str]) -> MultipleAlignment:
    """The first alignment of a Stockholm file, its blocks joined.

    Annotation of single sequences (#=GS, #=GR) is passed over. Raises SequenceError, naming
    the line.
    """
    lines = _lines(path)
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if not lines or not lines[first].startswith("# STOCKHOLM 1."):
        raise SequenceError(
            f"{path}, line {first + 1}: a Stockholm file begins with # STOCKHOLM 1.0"
        )
    rows: dict[str, list[str]] = {}
    columns: dict[str, list[str]] = {}
    about: dict[str, list[str]] = {}
    last: dict[str, int] = {}
    for number, line in enumerate(lines[first + 1 :], first + 2):
        if line.strip() == "//":
            break
        words = line.split(None, 2)
        if not words or (line.startswith("#") and not line.startswith("#=")):
            continue
        if words[0] == "#=GF" and len(words) == 3:
            about.setdefault(words[1], []).append(words[2])
        elif words[0] == "#=GC" and len(words) == 3:
            columns.setdefault(words[1], []).append("".join(words[2].split()))
        elif not line.startswith("#="):
            if len(words) != 2:
                raise SequenceError(
                    f"{path}, line {number}: a line is a name and a piece of an alignment, "
                    f"not {line.strip()[:30]!r}"
                )
            _letters(words[1], f"{path}, line {number}")
            rows.setdefault(words[0], []).append(words[1])
            last[words[0]] = number
    else:
        raise SequenceError(f"{path}, line {len(lines)}: the alignment does not end with //")
    if not rows:
        raise SequenceError(f"{path} holds no sequence")
    joined = {name: "".join(parts) for name, parts in rows.items()}
    width = len(next(iter(joined.values())))
    for name, row in joined.items():
        if len(row) != width:
            raise SequenceError(
                f"{path}, line {last[name]}: {name!r} has {len(row)} columns in all, the first "
                f"sequence {width}"
            )
    return MultipleAlignment(
        tuple(Record(name, row) for name, row in joined.items()),
        {name: "".join(parts) for name, parts in columns.items()},
        {name: " ".join(parts) for name, parts in about.items()},
    )


def read_sequences(path: str | os.PathLike[str]) -> list[Record]:
    """The sequences of a FASTA or Stockholm file, told apart by its first line, gaps removed.

    Raises SequenceError, naming the line.
    """
    first = next((line for line in _lines(path) if line.strip()), "")
    stockholm = first.startswith("# STOCKHOLM")
    found: Iterable[Record] = read_stockholm(path).records if stockholm else read_fasta(path)
    return [Record(r.name, r.ungapped, r.description) for r in found]


def write_fasta(records: Sequence[Record]) -> str:
    """FASTA, sixty letters a line.

    >>> print(write_fasta([Record("a", "GATTACA", "a gene")]), end="")
    >a a gene
    GATTACA
    """
    lines = []
    for r in records:
        lines.append(f">{r.name} {r.description}".rstrip())
        lines += [r.sequence[i : i + WIDTH] for i in range(0, len(r.sequence), WIDTH)]
    return "\n".join(lines) + "\n"


def write_stockholm(alignment: MultipleAlignment) -> str:
    """Stockholm 1.0, each sequence on one line.

    Raises SequenceError where rows differ in length, a name has spaces, or two are the same.
    """
    names = [r.name for r in alignment.records]
    if len({len(r.sequence) for r in alignment.records}) > 1:
        raise SequenceError("the rows of an alignment must have as many columns each")
    wrong = [n for n in names if not n or n.split() != [n]]
    if wrong or len(set(names)) < len(names):
        again = wrong or sorted({n for n in names if names.count(n) > 1})
        raise SequenceError(f"Stockholm needs names without spaces, each once; not {again}")
    width = max([len(n) for n in names] + [len(n) + 5 for n in alignment.columns])
    lines = ["# STOCKHOLM 1.0"]
    lines += [f"#=GF {name} {text}" for name, text in alignment.about.items()]
    lines += [f"{r.name:<{width}} {r.sequence}" for r in alignment.records]
    lines += [f"{'#=GC ' + n:<{width}} {row}" for n, row in alignment.columns.items()]
    return "\n".join([*lines, "//"]) + "\n"
