"""The drawing of a diffraction pattern."""

import re
from xml.etree import ElementTree

from eadem.report.pattern import Pattern, pattern


def spec(n=50):
    x = [10 + 0.1 * i for i in range(n)]
    observed = [100.0 + (i % 7) for i in range(n)]
    calculated = [102.0 for _ in x]
    return Pattern("<a & b>", x, observed, calculated, [(11.0, '(1 "0" 0)'), (12.5, "(0 2 0)")])


def paths(html):
    found = re.findall(r'<path class="(\w+)" d="([^"]*)"', html)
    return {
        kind: [tuple(map(float, p)) for p in re.findall(r"[ML](\S+?) (-?[\d.]+)", d)]
        for kind, d in found
    }


def test_points_curves_and_marks_are_those_given():
    given = spec()
    found = paths(pattern(given))
    assert [round(x, 3) for x, _ in found["seen"]] == [round(x, 3) for x in given.x]
    assert [-y for _, y in found["seen"]] == given.observed
    assert [-y for _, y in found["fitted"]] == given.calculated
    apart = [o - c for o, c in zip(given.observed, given.calculated, strict=True)]
    assert [-y for _, y in found["apart"]] == apart
    assert [x for x, _ in found["mark"]] == [11.0, 12.5]


def test_it_is_well_formed_and_escaped():
    html = pattern(spec())
    root = ElementTree.fromstring(html)
    assert root.get("data-marks").startswith('11.000 (1 "0" 0)|')
    assert len(root.findall(".//svg")) == 4
    assert "<a & b>" not in html


def test_the_view_holds_every_point():
    given = spec()
    root = ElementTree.fromstring(pattern(given))
    boxes = {
        s.get("class"): [float(v) for v in s.get("viewBox").split()] for s in root.iter("svg")
    }
    x, y, width, height = boxes["main"]
    assert (x, round(x + width, 6)) == (given.x[0], round(given.x[-1], 6))
    assert all(y <= -v <= y + height for v in (*given.observed, *given.calculated))
    low, span = boxes["apart"][1], boxes["apart"][3]
    assert low == -span / 2 <= -4


def test_a_pattern_without_marks_or_difference():
    same = Pattern("same", [1.0, 2.0], [5.0, 5.0], [5.0, 5.0])
    root = ElementTree.fromstring(pattern(same))
    assert root.get("data-marks") == ""
