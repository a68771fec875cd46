"""A checkpoint as tables: its ties, shared memory, equal tensors, and what they come to.

>>> import tempfile, torch
>>> from eadem.store.layout import write
>>> file = Path(tempfile.mkdtemp()) / "x.safetensors"
>>> w = torch.randn(256, 256)
>>> write(file, {"head.weight": w, "embed.weight": w.clone()}, {})
>>> found = checkpoint_summary(file)
>>> found.checkpoint.duplicates[0].names
('embed.weight', 'head.weight')
>>> print(str(found).splitlines()[-1])
2 tensors, 131,072 values, 512 KiB in 1 file; one copy of each would save 256 KiB (50.0 %).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from eadem.report import terminal
from eadem.report.numbers import count, percent
from eadem.report.summary import Summary, summary_of_record
from eadem.store.checkpoint import Checkpoint, Duplicate, checkpoint
from eadem.store.layout import DTYPES

__all__ = ["CheckpointSummary", "checkpoint_summary", "size"]

_SHOWN = 20
_NAMES = 6


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint and the ties that its record declares, None where it has no record.

    Prints as tables, on a terminal and in a notebook.
    """

    checkpoint: Checkpoint
    ties: Summary | None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.ties is not None:
            yield self.ties
        for title, columns, rows in self._tables():
            out = Table(
                title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
            )
            for i, column in enumerate(columns):
                right = i > 0
                out.add_column(column, justify="right" if right else "left", overflow="fold")
            for row in rows:
                # names come from the file: they are text, never markup
                out.add_row(*(Text(cell) for cell in row))
            yield out
        yield Text(self._verdict())

    def __str__(self) -> str:
        return terminal.plain(self)

    def _repr_html_(self) -> str:
        parts = [] if self.ties is None else [self.ties._repr_html_()]
        for title, columns, rows in self._tables():
            head = "".join(f"<th>{escape(c)}</th>" for c in columns)
            body = "".join(
                "<tr>"
                + "".join(f"<td>{escape(cell).replace(chr(10), '<br>')}</td>" for cell in row)
                + "</tr>"
                for row in rows
            )
            parts.append(
                f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead>"
                f"<tbody>{body}</tbody></table>"
            )
        return "".join([*parts, f"<p>{escape(self._verdict())}</p>"])

    def _tables(self) -> Iterator[tuple[str, Sequence[str], list[tuple[str, ...]]]]:
        found = self.checkpoint
        types: Counter[str] = Counter()
        values: Counter[str] = Counter()
        many: Counter[str] = Counter()
        for t in found.tensors:
            types[t.dtype] += t.nbytes
            values[t.dtype] += t.numel
            many[t.dtype] += 1
        yield (
            str(found.path.name),
            ("type", "tensors", "values", "size"),
            [
                (_type(d), count(many[d]), count(values[d]), size(n))
                for d, n in types.most_common()
            ],
        )
        if found.shared:
            rows: list[tuple[str, ...]] = [
                (
                    _names(s.names),
                    "one tensor" if s.whole else "parts of one memory",
                    size(s.nbytes),
                )
                for s in found.shared
            ]
            yield "names that share memory", ("names", "how", "size"), _cut(rows)
        if found.duplicates:
            rows = [
                (_names(d.names, d.transposed), _shape(d), size(d.nbytes), size(d.saved))
                for d in sorted(found.duplicates, key=lambda d: -d.saved)
            ]
            columns = ("equal to the byte", "shape", "size", "one copy saves")
            yield "tensors of equal content", columns, _cut(rows)

    def _verdict(self) -> str:
        found = self.checkpoint
        tensors, files = len(found.tensors), len(found.files)
        text = (
            f"{count(tensors)} tensor{'s' * (tensors != 1)}, {count(found.numel)} values, "
            f"{size(found.nbytes)} in {count(files)} file{'s' * (files != 1)}; "
        )
        if not found.duplicates:
            return text + "no two tensors are equal."
        share = percent(found.saved / found.nbytes)
        return f"{text}one copy of each would save {size(found.saved)} ({share})."


def checkpoint_summary(
    path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None
) -> CheckpointSummary:
    """What a checkpoint holds: ties that Eadem recorded, names that share memory in a torch
    file, and tensors of equal content (see `eadem.store.checkpoint`).

    A checkpoint does not say which of its tensors are buffers: those of floating point count
    as parameters. Raises RecordError for what is no checkpoint.
    """
    found = checkpoint(Path(path), progress)
    ties = summary_of_record(found) if found.record is not None else None
    return CheckpointSummary(found, ties)


def size(nbytes: int) -> str:
    """Bytes in binary units, three digits.

    >>> size(999), size(2048), size(5_000_000_000)
    ('999 B', '2 KiB', '4.66 GiB')
    """
    value, unit = float(nbytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1000 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.3g} {unit}"


def _type(name: str) -> str:
    found = DTYPES.get(name)
    return name if found is None else str(found).removeprefix("torch.")


def _names(names: Sequence[str], transposed: Sequence[str] = ()) -> str:
    shown = [*names, *(f"{n} (transposed)" for n in transposed)]
    rest = len(shown) - _NAMES
    if rest > 1:
        shown = [*shown[:_NAMES], f"… and {count(rest)} more"]
    return "\n".join(shown)


def _shape(d: Duplicate) -> str:
    text = " × ".join(str(n) for n in d.shape) or "scalar"
    return text + "\nall values the same" * d.constant


def _cut(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    if len(rows) <= _SHOWN:
        return rows
    rest = f"… and {count(len(rows) - _SHOWN)} more"
    return [*rows[:_SHOWN], (rest, *[""] * (len(rows[0]) - 1))]
