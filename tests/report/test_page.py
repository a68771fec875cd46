"""A page stands alone: nothing from elsewhere, everything escaped, readable without colour."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any

import pytest

from eadem.errors import MissingPackage
from eadem.report.chart import Chart, Series, chart, ticks
from eadem.report.page import (
    Page,
    Section,
    claims_table,
    foldout,
    pair,
    ready,
    render,
    row,
    table,
)

VOID = {"meta", "link", "img", "br", "circle", "line", "rect", "path"}


class Outline(HTMLParser):
    """Checks that tags close in order, and collects what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def outline(html: str) -> Outline:
    found = Outline()
    found.feed(html)
    assert found.open == []
    return found


@dataclass(frozen=True)
class AClaim:
    id: str = "C05"
    text: str = "sums & not <means>"
    predicate: str = "error ≤ 1e-12"
    expected: Any = 1e-12
    measured: Any = None
    holds: bool = True


LINES = Chart(
    "accuracy by size",
    "images",
    "accuracy",
    [
        Series("a <b>", [100, 1000], [0.5, 0.9], [0.4, 0.8], [0.6, 0.95], [(100, 0.45)], 0),
        Series("c", [100, 1000], [0.51, 0.9], style=1),
    ],
    log_x=True,
    percent_y=True,
    x_ticks=[100, 1000],
)


@pytest.fixture(scope="module")
def html() -> str:
    blocks = [
        chart(LINES),
        table(["a", "b"], [["x<y", "1,000"]], numeric=[1]),
        row("<p>one</p>", "<p>two</p>"),
        pair("<p>one</p>"),
        foldout("more <i>", "<p>inside</p>"),
        claims_table([AClaim(), AClaim(holds=False, measured={"sum": 0.5})]),
    ]
    sections = [Section("one", "Heads & tails", "text <b>", blocks)]
    return render(Page("Title <x>", "eadem", "lede", [("4×", "fewer")], sections, ["foot"]))


def test_nothing_comes_from_elsewhere(html: str) -> None:
    found = outline(html)
    assert all(r.startswith("data:") for r in found.references), found.references
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html)
    assert "default-src 'none'" in html


def test_text_is_escaped(html: str) -> None:
    assert "<x>" not in html
    assert "Title &lt;x&gt;" in html
    assert "x&lt;y" in html
    assert "a &lt;b&gt;" in html
    assert "sums &amp; not &lt;means&gt;" in html


def test_a_verdict_is_words_not_colour(html: str) -> None:
    text = " ".join(outline(html).text)
    assert "✓ holds" in text
    assert "✗ does not hold" in text


def test_marks_can_be_reached_and_read(html: str) -> None:
    points = re.findall(r'<g class="point[^>]*>', html)
    assert len(points) == 2 * 4  # drawn wide and narrow
    assert all('tabindex="0"' in p and "aria-label" in p for p in points)
    assert any("spread 40.0 % – 60.0 %" in p for p in points)


def test_series_differ_in_dash_and_marker_too() -> None:
    drawn = chart(LINES)
    assert "stroke-dasharray" in drawn
    assert '<rect class="mark"' in drawn
    assert '<circle class="mark"' in drawn


@pytest.mark.parametrize("y", [[0.0], [0.3, 0.3], [-2.0, 5.0], [1e-9, 2e-9]])
def test_any_range_can_be_drawn(y: list[float]) -> None:
    drawn = chart(Chart("one", "x", "y", [Series("s", list(range(1, len(y) + 1)), y)]))
    assert "nan" not in drawn
    assert "inf" not in drawn


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((0.0, 1.0), (0.65, 0.87), (-3.0, 12.0), (0.0, 2.31)):
        found = ticks(low, high)
        assert 3 <= len(found) <= 8
        assert low - 1e-9 <= found[0]
        assert found[-1] <= high + 1e-9


def test_without_jinja2_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingPackage, match=r"eadem\[report\]"):
        ready()
    with pytest.raises(MissingPackage, match=r"eadem\[report\]"):
        render(Page("t", "e", "l"))
