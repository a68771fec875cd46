"""Whole patterns against FullProf's, at FullProf's parameters."""

import pytest
import torch
from fullprof_models import neutron, xray


def calculated(pattern):
    with torch.no_grad():
        return pattern.calculated()


def test_the_neutron_pattern_is_fullprofs():
    pattern, base, theirs = neutron()
    ours = calculated(pattern)
    away = (ours - theirs).square().mean().sqrt() / theirs.max()
    # FullProf ends a peak at once, where ours fade; the promise is 0.3 %
    assert float(away) < 1e-4
    scale = ((ours - base) @ (theirs - base)) / (theirs - base).square().sum()
    assert float(scale) == pytest.approx(1, abs=5e-4)


def test_the_xray_pattern_is_fullprofs():
    pattern, base, theirs = xray()
    ours = calculated(pattern)
    low = pattern.x < 130  # beyond, FullProf's tails of the last reflections are stronger
    away = (ours - theirs)[low].square().mean().sqrt() / theirs.max()
    assert float(away) < 5e-5
    assert float((ours - theirs).square().mean().sqrt() / theirs.max()) < 1e-3
    assert float((base - theirs)[low].abs().max()) > 0.5 * float(theirs.max())


def test_xray_intensities_are_fullprofs():
    """Net counts in windows of 2.5°, where there are reflections to speak of."""
    pattern, base, theirs = xray()
    ours, net = calculated(pattern) - base, theirs - base
    # the high side of the first one, at 16.46°, is made negative by its asymmetry: FullProf
    # has zero there
    first = (pattern.x > 15) & (pattern.x < 16.5)
    assert float(ours[first].sum() / net[first].sum()) == pytest.approx(1, abs=0.005)
    for low, high, limit in ((17.5, 65.0, 0.005), (65.0, 110.0, 0.01)):
        window = ((pattern.x - low) / 2.5).floor().long()
        inside = (pattern.x >= low) & (pattern.x < high)
        sums = [
            torch.zeros(int((high - low) / 2.5))
            .double()
            .index_add(0, window[inside], c[inside])
            for c in (ours, net)
        ]
        strong = sums[1] > 0.01 * sums[1].max()
        assert int(strong.sum()) >= 15
        assert float((sums[0] / sums[1] - 1)[strong].abs().max()) < limit


def test_the_tables_of_dispersion_matter():
    """With Cromer & Liberman's f′ of lead instead of FullProf's, intensities differ."""
    pattern, base, theirs = xray(dispersion=None)
    low = pattern.x < 65
    ratio = (calculated(pattern) - base)[low].sum() / (theirs - base)[low].sum()
    assert 1.01 < float(ratio) < 1.04


def test_reflections_lie_where_fullprof_has_its_marks():
    for make, marks in ((neutron, (20.334, 25.767, 25.924)), (xray, (16.456, 20.796))):
        found = make()[0].reflections()["phase"]
        assert found.position[0, : len(marks)].tolist() == pytest.approx(marks, abs=6e-4)
    doublet = found.position[:, 0].tolist()
    assert doublet == pytest.approx([16.456, 16.497], abs=6e-4)
    assert len(found.hkl) == 405
