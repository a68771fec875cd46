"""Tables for a terminal (rich)."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from eadem.report.numbers import value
from eadem.report.page import ClaimLike

__all__ = ["claims_grid", "grid", "plain"]


def plain(shown: RenderableType, width: int = 100) -> str:
    """What a terminal would show, as text without colours.

    >>> plain("one  ")
    'one'
    """
    text = io.StringIO()
    Console(file=text, width=width, color_system=None, markup=False).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def grid(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    numeric: Sequence[int] = (),
) -> Table:
    """A table of text; the columns numbered in `numeric` are set flush right."""
    out = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    for i, column in enumerate(columns):
        out.add_column(column, justify="right" if i in numeric else "left")
    for cells in rows:
        out.add_row(*cells)
    return out


def claims_grid(claims: Sequence[ClaimLike]) -> Table:
    """The claims: whether each holds, what it says and, below that, what was measured."""
    held = sum(c.holds for c in claims)
    out = Table(
        title=f"{held} of {len(claims)} claims hold",
        title_justify="left",
        title_style="bold",
        box=None,
        show_header=False,
        padding=(0, 2, 1, 0),
        pad_edge=False,
    )
    out.add_column(no_wrap=True)
    out.add_column()
    for c in claims:
        verdict = Text("holds", "green") if c.holds else Text("fails", "bold red")
        said = Text.assemble(c.text, "\n", (value(c.measured), "cyan"))
        out.add_row(Text.assemble((c.id, "bold"), "\n", verdict), said)
    return out
