"""Pictures of observations with curves, forest plots and p-values: what is drawn where."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from eadem.report.forest import Forest, Row, forests, pvalues
from eadem.report.panels import Curve, Panel, figure, grid


def parsed(html):
    return ET.fromstring(f"<div>{html}</div>")


def drawn(path):
    """The points of a path of commands M, L and h0."""
    return [tuple(map(float, p)) for p in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", path)]


def panel(**more):
    dots = [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]
    curve = Curve("fit", [(0.0, 1.0), (2.0, 3.0)])
    return Panel("<a> & b", "x", "y", dots, [curve], **more)


def test_dots_and_curves_share_their_scales():
    root = parsed(figure(panel(residuals=[(0.0, -1.0), (2.0, 1.0)])))
    wide = next(s for s in root.iter("svg") if s.get("class") == "wide")
    paths = {p.get("class"): drawn(p.get("d")) for p in wide.iter("path")}
    dots, line, rest = paths["dots s0"], paths["line s1"], paths["dots s2"]
    assert dots[0] == line[0]  # the curve begins at the first dot
    assert line[1][0] == dots[2][0] == rest[1][0]
    assert line[1][1] == dots[1][1]  # both at y = 3
    assert dots[1][1] < dots[2][1] < dots[0][1]  # up is up
    assert all(below > dots[0][1] for _, below in rest)
    assert rest[0][1] - rest[1][1] > 0


def test_what_is_not_finite_or_not_positive_on_a_logarithm_is_left_out():
    dots = [(0.0, 1.0), (1.0, math.nan), (10.0, 2.0), (100.0, 3.0)]
    root = parsed(grid([Panel("a", "x", "y", dots, log_x=True)]))
    (path,) = (p for p in root.iter("path") if p.get("class") == "dots s0")
    assert len(drawn(path.get("d"))) == 2


def test_gaps_and_error_bars():
    html = figure(panel(gaps=[(0.5, 1.5), (5.0, 6.0)], bars=[0.1, 0.2, math.nan]))
    root = parsed(html)
    assert sum(r.get("class") == "gap" for r in root.iter("rect")) == 2  # wide and narrow
    bars = [p.get("d") for p in root.iter("path") if p.get("class") == "bars s0"]
    assert [d.count("V") for d in bars] == [2, 2]


@pytest.mark.parametrize(
    "dots", [[], [(1.0, 1.0)], [(1.0, 0.0), (1.0, 0.0)], [(0.0, -5.0), (1.0, -5.0)]]
)
def test_few_or_equal_observations_are_drawn(dots):
    assert "nan" not in figure(Panel("a", "x", "y", dots, residuals=dots))


def test_a_forest_has_an_interval_for_every_estimate_that_is_known():
    rows = [Row("1", 2.0, 0.1), Row("2", 3.0, math.inf), Row("joint", 2.2, 0.05, whole=True)]
    root = parsed(forests([Forest("k <1>", rows)]))
    whiskers = [p.get("d") for p in root.iter("path") if p.get("class") == "whisker"]
    spans = [re.findall(r"-?[\d.]+", d) for d in whiskers]
    lengths = [float(s[2]) - float(s[0]) for s in spans]
    assert lengths[0] == pytest.approx(2 * lengths[1], rel=0.02)
    text = "".join(root.itertext())
    assert "not determined" in text
    assert "k <1>" in text
    band = next(r for r in root.iter("rect") if r.get("class") == "band s1")
    assert float(band.get("width")) == pytest.approx(lengths[1], rel=0.02)


def test_p_values_are_placed_by_their_logarithms():
    root = parsed(pvalues("p", [("a", (1.0, 1e-4)), ("b", (1e-20, None))], ("F", "LR")))
    wide = next(s for s in root.iter("svg") if s.get("class") == "wide")
    at = {}
    for point in (g for g in wide.iter("g") if g.get("class", "").startswith("point")):
        at[point.get("data-tip").split()[0], point.get("class")] = float(
            next(point.iter("circle")).get("cx")
        )
    assert len(at) == 3
    one, small, least = at["a", "point s0"], at["a", "point s1"], at["b", "point s0"]
    assert one - small == pytest.approx((one - least) / 2)  # 1e-8 is the edge
