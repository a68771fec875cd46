"""Tables for a terminal (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from eadem.report.numbers import value
from eadem.report.page import ClaimLike

__all__ = ["claims_grid", "grid"]


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
    """One line a claim: what was expected, what was measured, whether it holds."""
    out = Table(title="Claims", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    out.add_column("", no_wrap=True)
    out.add_column("", no_wrap=True)
    out.add_column("claim", ratio=3)
    out.add_column("measured", ratio=4)
    for c in claims:
        mark = "[green]holds[/]" if c.holds else "[bold red]fails[/]"
        out.add_row(f"[bold]{c.id}[/]", mark, c.text, value(c.measured))
    return out
