"""Whole patterns against FullProf's, at FullProf's parameters."""

import math

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
    low = pattern.x < 130  # beyond, asymmetry makes peaks negative, and FullProf has zero
    away = (ours - theirs)[low].square().mean().sqrt() / theirs.max()
    assert float(away) < 5e-5
    assert float((ours - theirs).square().mean().sqrt() / theirs.max()) < 1e-3
    assert float((base - theirs)[low].abs().max()) > 0.5 * float(theirs.max())


def test_with_fullprofs_zeros_the_whole_xray_pattern_is_fullprofs():
    """Peak by peak as FullProf sums them: ended at 48 widths, and never negative."""
    pattern, base, theirs = xray()
    x, (p1, p2, p3, p4) = pattern.x, pattern.instrument.asymmetry.detach()
    with torch.no_grad():
        position, area, g, l = pattern._peaks("phase", 0)
    fifth = g**5 + 2.69269 * g**4 * l + 2.42843 * g**3 * l**2 + 4.47163 * g**2 * l**3
    fwhm = (fifth + 0.07842 * g * l**4 + l**5) ** 0.2
    q = l / fwhm
    eta = 1.36603 * q - 0.47719 * q**2 + 0.11116 * q**3
    ours = base.clone()
    for i in (area > 0).nonzero().reshape(-1).tolist():
        z = (position[i] - x) / fwhm[i]
        bell = eta[i] * (2 / math.pi) / (1 + 4 * z**2)
        bell += (1 - eta[i]) * math.sqrt(4 * math.log(2) / math.pi) * 16 ** (-(z**2))
        a = 2 * z * torch.exp(-(z**2))
        b = 2 * (2 * z**2 - 3) * a
        theta = math.radians(float(position[i]) / 2)
        skew = (p1 * a + p2 * b) / math.tan(theta) + (p3 * a + p4 * b) / math.tan(2 * theta)
        peak = (area[i] / fwhm[i] * bell * (1 + skew)).clamp(min=0)
        ours += torch.where(z.abs() < 48, peak, 0.0)
    assert float((ours - theirs).square().mean().sqrt() / theirs.max()) < 2e-5


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
