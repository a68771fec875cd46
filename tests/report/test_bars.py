"""Bars: lengths in proportion, parts end to end, nothing said by colour alone."""

import re

import pytest

from eadem.report.bars import Bar, Bars, Group, bars


def wide(spec):
    return bars(spec).partition('<svg class="narrow"')[0]


def rects(html):
    found = re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', html)
    return [(float(x), float(w)) for x, w in found]


def test_lengths_are_in_proportion_and_parts_meet():
    spec = Bars(
        "a", "b", [Group("g", [Bar("x", [1.0, 3.0]), Bar("y", [2.0, 0.0])])], ["p", "q"]
    )
    (x0, w0), (x1, w1), (x2, w2), (_, w3) = rects(wide(spec))
    assert w1 / w0 == pytest.approx(3, rel=1e-2)
    assert x1 == pytest.approx(x0 + w0, abs=0.11)
    assert (x2, w2) == (x0, pytest.approx(2 * w0, rel=1e-2))
    assert w3 == 0.0


def test_a_bar_beyond_the_end_is_cut_and_says_its_length():
    spec = Bars("a", "b", [Group("g", [Bar("x", [1.0]), Bar("y", [900.0])])], end=2.0)
    html = wide(spec)
    (_, short), (_, long) = rects(html)
    assert long == pytest.approx(2 * short, rel=1e-2)
    assert re.search(r">900 →<", html)
    assert html.count("→") == 1


def test_tips_say_parts_and_spread_and_text_is_escaped():
    one = Bar("<b>", [1.0, 0.5], low=1.2, high=1.9)
    html = wide(Bars("a", "b", [Group("g & h", [one])], ["bias²", "variance"]))
    assert "&lt;b&gt;: 1.50\nbias² 1.00\nvariance 0.500\nspread 1.20 – 1.90" in html
    assert "g &amp; h" in html
    assert "<b>" not in html
