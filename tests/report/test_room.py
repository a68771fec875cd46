"""Names have the room that they take."""

from __future__ import annotations

import re

import pytest

from eadem.report.bars import Bar, Bars, Group, bars
from eadem.report.chart import Chart, Series, chart

#: The least width of a letter of 12.5 px.
LEAST = 6.5


@pytest.mark.parametrize("name", ["a", "one filter, shared over time", "x" * 40])
def test_names_at_the_ends_of_lines_stay_within_the_drawing(name):
    drawn = chart(Chart("c", "x", "y", [Series(name, [0, 1], [0, 1])]))
    wide = drawn[: drawn.index('class="narrow"')]
    (at,) = re.findall(rf'<text class="end s0" x="([\d.]+)" y="[\d.]+">{name}</text>', wide)
    assert float(at) + LEAST * len(name) <= 760
    assert "keys shown" not in drawn


def test_names_too_long_for_that_stand_below():
    drawn = chart(Chart("c", "x", "y", [Series("x" * 60, [0, 1], [0, 1])]))
    assert 'class="end' not in drawn
    assert '<ul class="keys shown">' in drawn


def test_names_of_bars_are_not_cut_where_the_page_is_narrow():
    name = "HopConv, shared by all"
    drawn = bars(Bars("b", "%", [Group("Cora", [Bar(name, (81.0,))])]))
    narrow = drawn[drawn.index('class="narrow"') :]
    (at,) = re.findall(rf'<text class="tick" x="([\d.]+)"[^>]*>{name}</text>', narrow)
    assert float(at) >= LEAST * len(name)
