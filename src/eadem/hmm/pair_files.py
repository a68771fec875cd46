"""Two files of sequences, aligned pair by pair: what `eadem align` does."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from eadem.hmm.alignment import Alignment
from eadem.hmm.alphabet import DNA, PROTEIN, Alphabet, SequenceError, guess
from eadem.hmm.pair import PairHMM
from eadem.hmm.sequences import Record, read_sequences

__all__ = ["align_files", "headline", "paired", "written"]

ALPHABETS = {"dna": DNA, "protein": PROTEIN}
FASTA, STOCKHOLM = (".fa", ".fasta", ".afa", ".fna", ".faa"), (".sto", ".stk", ".stockholm")


def paired(
    a: Sequence[Record], b: Sequence[Record], files: tuple[str, str] = ("a", "b")
) -> list[tuple[Record, Record]]:
    """Records in the order of both files; a file's only record goes with each of the other's.

    Raises SequenceError where both have several, and not as many.
    """
    if len(a) == 1 or len(b) == 1:
        return [(x, y) for x in a for y in b]
    if len(a) != len(b):
        raise SequenceError(
            f"{files[0]} has {len(a)} sequences and {files[1]} {len(b)}; give as many, or one "
            "on one side"
        )
    return list(zip(a, b, strict=True))


def align_files(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    *,
    alphabet: str | None = None,
    fit: bool = False,
    mea: bool = False,
    band: int | None = None,
) -> Iterator[Alignment]:
    """Alignments of the sequences of two files (FASTA or Stockholm), under a symmetric model.

    `alphabet` is "dna", "protein" or None for a guess; `fit` learns the model from the pairs
    first. Raises SequenceError, naming the file, record and position.
    """
    pairs = paired(read_sequences(a), read_sequences(b), (str(a), str(b)))
    texts = [(x.sequence, y.sequence) for x, y in pairs]
    found = ALPHABETS[alphabet] if alphabet else guess([s for pair in texts for s in pair])
    for x, y in pairs:
        _check(found, x, a)
        _check(found, y, b)
    model = PairHMM(found, symmetric=True)
    if fit:
        model.fit(texts, band=band)
    for x, y in pairs:
        names = (x.name, y.name) if x.name != y.name else (f"{x.name}/1", f"{y.name}/2")
        method: Literal["viterbi", "mea"] = "mea" if mea else "viterbi"
        yield model.align(x.sequence, y.sequence, method, band, names)


def _check(alphabet: Alphabet, record: Record, path: str | os.PathLike[str]) -> None:
    alphabet.encode(record.sequence, f"{record.name!r} of {path}")


def headline(found: Alignment) -> str:
    """One line that says how good an alignment is."""
    pairs = len(found.pairs)
    share = f", {found.identity:.1%} the same" if pairs else ""
    sure = "" if found.accuracy is None else f", {found.accuracy:.1f} expected right"
    return (
        f"{found.names[0]} and {found.names[1]}: {pairs} pairs{share}{sure}; "
        f"log-probability {found.log_probability:.2f}"
    )


def written(found: Sequence[Alignment], path: Path) -> str:
    """The text of a file of alignments: FASTA, Stockholm or printed, by its suffix."""
    if path.suffix.lower() in FASTA:
        return "".join(f.fasta() for f in found)
    if path.suffix.lower() in STOCKHOLM:
        return "".join(f.stockholm() for f in found)
    return "\n\n".join(f"{headline(f)}\n\n{f}" for f in found) + "\n"
