"""Tables fit a terminal of 80 columns and say everything in words."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from eadem.recipes import Claim
from eadem.report.terminal import claims_grid, grid


def shown(table: Table) -> str:
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_claims_say_their_verdict_and_what_was_measured() -> None:
    claims = [
        Claim("C01", "counts [agree]", "equal", 1, {"free": 9000}, True),
        Claim("C02", "a bound", "≤ 1", 1, 2.5, False),
    ]
    text = shown(claims_grid(claims))
    assert "1 of 2 claims hold" in text
    for part in ("C01", "holds", "counts [agree]", "free: 9,000", "C02", "fails", "2.50"):
        assert part in text


def test_a_grid_keeps_every_cell() -> None:
    text = shown(grid("T", ["a", "b"], [["one\ntwo", "1,000"]], numeric=[1]))
    for part in ("T", "a", "b", "one", "two", "1,000"):
        assert part in text
