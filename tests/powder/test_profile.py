"""Sums of peaks against the dense formula, and their derivatives against those of it."""

import math

import pytest
import torch

import eadem
from eadem.errors import ShapeError, Unsupported
from eadem.powder import peaks


def grid(kind):
    """Points: even, uneven, or with a gap."""
    x = torch.linspace(10, 60, 1501, dtype=torch.float64)
    if kind == "uneven":
        g = torch.Generator().manual_seed(3)
        x = 10 + 50 * torch.rand(1501, generator=g, dtype=torch.float64).sort().values
    if kind == "gap":
        x = x[(x < 27.3) | (x > 33.1)]
    return x


def some(n=60, seed=0, low=5.0, high=66.0):
    """Position, area, gauss, lorentz of peaks in no order, some beyond the ends."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(4, n, generator=g, dtype=torch.float64)
    return low + (high - low) * u[0], 1 + 9 * u[1], 0.05 + 0.3 * u[2], 0.3 * u[3]


SKEWS = {
    "none": None,
    "two-sided": torch.tensor([0.12, -0.02, 0.05, 0.03], dtype=torch.float64),
    "axial": torch.tensor([0.03, 0.02], dtype=torch.float64),
}


def dense(x, position, area, gauss, lorentz, width, skew=None):
    """Every peak at every point, as the formula is written; and axial divergence by a sum
    over many points of the slit and the sample.
    """
    g, l = gauss, lorentz
    fwhm = (
        g**5
        + 2.69269 * g**4 * l
        + 2.42843 * g**3 * l**2
        + 4.47163 * g**2 * l**3
        + 0.07842 * g * l**4
        + l**5
    ) ** 0.2
    q = l / fwhm
    eta = 1.36603 * q - 0.47719 * q**2 + 0.11116 * q**3
    d = x.unsqueeze(1) - position
    tail = fwhm / (2 * math.pi) / (d**2 + fwhm**2 / 4)
    bell = torch.exp(-4 * math.log(2) * d**2 / fwhm**2) * math.sqrt(4 * math.log(2) / math.pi)
    one = eta * tail + (1 - eta) * bell / fwhm
    if skew is not None:
        theta, z = torch.deg2rad(position) / 2, -d / fwhm
        fa = 2 * z * torch.exp(-(z**2))
        fb = 2 * (2 * z**2 - 3) * fa
        one = one * (
            1
            + (skew[0] * fa + skew[1] * fb) / torch.tan(theta)
            + (skew[2] * fa + skew[3] * fb) / torch.tan(2 * theta)
        )
    level, start, end = (1 / (1 + 4 * z**2) for z in (d / fwhm, 0.8 * width, width))
    ending = ((level - end) / (start - end)).clamp(0, 1)
    return (area * (one + (ending - 1) * eta * tail)).sum(1)


def close(found, wanted, tolerance):
    assert float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("kind", ["even", "uneven", "gap"])
@pytest.mark.parametrize("skew", ["none", "two-sided"])
@pytest.mark.parametrize("width", [8.0, 30.1, 1e4])
def test_the_sum_is_that_of_the_formula(kind, skew, width):
    x, given = grid(kind), some()
    found = peaks(x, *given, asymmetry=SKEWS[skew], width=width)
    wanted = dense(x, *given, width, SKEWS[skew])
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("skew", ["none", "two-sided"])
@pytest.mark.parametrize("width", [8.0, 30.1])
def test_derivatives_are_those_of_the_formula(skew, width):
    x, given, asymmetry = grid("gap"), some(), SKEWS[skew]
    inputs = given if asymmetry is None else (*given, asymmetry)

    def ours(*a):
        return peaks(x, *a[:4], asymmetry=a[4] if len(a) > 4 else None, width=width)

    def theirs(*a):
        return dense(x, *a[:4], width, a[4] if len(a) > 4 else None)

    g = torch.Generator().manual_seed(1)
    v = tuple(torch.randn(3, *a.shape, generator=g, dtype=torch.float64) for a in inputs)
    along = torch.func.vmap(lambda *v: torch.func.jvp(ours, inputs, v)[1])(*v)
    for i in range(3):
        each = tuple(t[i] for t in v)
        wanted = torch.func.jvp(theirs, inputs, each)[1]
        close(along[i], wanted, 1e-12)
        close(torch.func.jvp(ours, inputs, each)[1], wanted, 1e-12)

    u = torch.randn(3, len(x), generator=g, dtype=torch.float64)
    _, back = torch.func.vjp(ours, *inputs)
    batched = torch.func.vmap(back)(u)
    wanted = torch.func.vmap(torch.func.vjp(theirs, *inputs)[1])(u)
    for ours_, theirs_ in zip(batched, wanted, strict=True):
        close(ours_, theirs_, 1e-12)
    leaves = [a.clone().requires_grad_() for a in inputs]
    plain = torch.autograd.grad(ours(*leaves) @ u[0], leaves)
    for ours_, theirs_ in zip(plain, wanted, strict=True):
        close(ours_, theirs_[0], 1e-12)


@pytest.mark.parametrize("skew", ["two-sided", "axial"])
def test_derivatives_are_those_of_finite_differences(skew):
    x = torch.linspace(18, 32, 300, dtype=torch.float64)
    given = [a.requires_grad_() for a in (*some(5, 2, 20, 30), SKEWS[skew].clone())]

    def sums(*a):
        return peaks(x, *a[:4], asymmetry=a[4], width=8.0)

    assert torch.autograd.gradcheck(sums, given, check_forward_ad=True, atol=1e-5)


def test_blocks_of_their_own_points_and_peaks_are_batched():
    x = torch.stack([grid("even"), grid("uneven")])
    given = [torch.stack(pair) for pair in zip(some(seed=0), some(seed=1), strict=True)]
    found = torch.func.vmap(peaks)(x, *given)
    v = [torch.ones_like(a) for a in given]

    def along(x, *rest):
        return torch.func.jvp(lambda *a: peaks(x, *a), rest[:4], rest[4:])[1]

    pushed = torch.func.vmap(along)(x, *given, *v)
    for i in range(2):
        each = tuple(a[i] for a in given)
        close(found[i], peaks(x[i], *each), 1e-14)
        alone = along(x[i], *each, *(a[i] for a in v))
        close(pushed[i], alone, 1e-14)


def test_a_peak_has_its_area_and_its_width():
    one = torch.ones(1, dtype=torch.float64)
    x = torch.linspace(0, 100, 200_001, dtype=torch.float64)
    for gauss, lorentz, lost in ((0.2, 0.0, 1e-12), (0.0, 0.2, 2e-3), (0.15, 0.1, 2e-3)):
        y = peaks(x, 50 * one, one, gauss * one, lorentz * one, width=1e4)
        assert float(torch.trapezoid(y, x)) == pytest.approx(1.0, abs=lost)
    bell = peaks(x, 50 * one, one, 0.2 * one, 0 * one)
    assert float(bell[int(50.1 / 0.0005)] / bell.max()) == pytest.approx(0.5, abs=1e-9)
    skewed = peaks(
        x, 50 * one, one, 0.15 * one, 0.05 * one, asymmetry=SKEWS["two-sided"], width=1e4
    )
    plain = peaks(x, 50 * one, one, 0.15 * one, 0.05 * one, width=1e4)
    # the asymmetric part is odd: it moves area, and adds none
    assert float(torch.trapezoid(skewed - plain, x)) == pytest.approx(0.0, abs=1e-9)
    assert float(((skewed - plain) * (x - 50)).sum()) < 0


def test_a_window_ends_where_it_says():
    x = torch.linspace(19, 21, 401, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    y = peaks(x, 20 * one, one, 0 * one, 0.1 * one, width=8.02)
    assert torch.equal(y > 0, (x - 20).abs() <= 0.802)
    whole = peaks(x, 20 * one, one, 0 * one, 0.1 * one, width=1e4)
    inner = (x - 20).abs() <= 0.8 * 0.802
    close(y[inner], whole[inner], 1e-14)
    assert bool((y[~inner] < whole[~inner]).all())


def slits(x, position, fwhm, sample, slit, n=400):
    """A Gaussian peak seen by pairs of a point of the sample and one of the slit, each at a
    height of its own: the cone of 2θ through both meets the detector at 2φ.
    """
    at = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 - 1
    h = (sample * at.unsqueeze(1) - slit * at).reshape(-1)
    double = math.radians(position)
    seen = torch.rad2deg(torch.acos(math.cos(double) * torch.sqrt(1 + h * h)))
    weight = 1 / ((1 + h * h) * torch.sin(torch.deg2rad(seen)))
    found = torch.zeros_like(x)
    for part, by in zip(seen.split(4000), weight.split(4000), strict=True):
        z = (x.unsqueeze(1) - part) / fwhm
        found += torch.exp(-4 * math.log(2) * z * z) @ by
    return found / weight.sum() * math.sqrt(4 * math.log(2) / math.pi) / fwhm


@pytest.mark.parametrize(
    ("position", "sample", "slit"), [(12.0, 0.03, 0.02), (150.0, 0.02, 0.02)]
)
def test_axial_divergence_is_that_of_pairs_of_points(position, sample, slit):
    one = torch.ones(1, dtype=torch.float64)
    x = torch.linspace(position - 1, position + 1, 201, dtype=torch.float64)
    skew = torch.tensor([sample, slit], dtype=torch.float64)
    found = peaks(x, position * one, one, 0.1 * one, 0 * one, asymmetry=skew, nodes=12)
    close(found, slits(x, position, 0.1, sample, slit), 2e-4)
    # towards the beam below 90°, away from it above
    assert (float((found * (x - position)).sum()) < 0) == (position < 90)


def test_without_divergence_a_peak_is_symmetric():
    x, given = grid("even"), some()
    plain = peaks(x, *given)
    close(peaks(x, *given, asymmetry=torch.zeros(4, dtype=torch.float64)), plain, 1e-14)
    small = torch.tensor([1e-6, 1e-6], dtype=torch.float64)
    close(peaks(x, *given, asymmetry=small), plain, 1e-8)


def test_no_peak_and_no_point_near():
    x = grid("even")
    none = torch.zeros(0, dtype=torch.float64)
    assert not peaks(x, none, none, none, none).any()
    one = torch.ones(1, dtype=torch.float64)
    far = peaks(x, 500 * one, one, 0.1 * one, 0.1 * one)
    assert not far.any()
    v = torch.func.jvp(lambda p: peaks(x, p, one, 0.1 * one, 0.1 * one), (500 * one,), (one,))
    assert not v[1].any()


def test_what_is_not_finite_is_nan():
    x, (position, area, gauss, lorentz) = grid("even"), some()
    position[3] = torch.nan
    assert peaks(x, position, area, gauss, lorentz).isnan().all()
    assert peaks(x, *some()[:2], 0 * gauss, 0 * lorentz).isnan().all()


def test_what_does_not_fit_is_refused():
    x, given = grid("even"), some()
    with pytest.raises(ShapeError, match=r"one area each.*\(60,\).*\(3,\)"):
        peaks(x, given[0], given[1][:3], *given[2:])
    with pytest.raises(ShapeError, match=r"\(points,\)"):
        peaks(x.reshape(1, -1), *given)
    with pytest.raises(ShapeError, match=r"\(4,\).*\(2,\), S/L and D/L"):
        peaks(x, *given, asymmetry=torch.zeros(3))
    with pytest.raises(Unsupported, match=r"width is 5.*8 FWHM"):
        peaks(x, *given, width=5)
    with pytest.raises(Unsupported, match="ascend"):
        peaks(x.flip(0), *given)


class Pattern(torch.nn.Module):
    """Peaks with free positions, areas and widths, on a constant."""

    def __init__(self, x, y, position):
        super().__init__()
        self.x, self.y = x, y
        n = len(position)
        one = torch.ones(n, dtype=torch.float64)
        self.position = torch.nn.Parameter(position)
        self.area = torch.nn.Parameter(5 * one)
        self.gauss = torch.nn.Parameter(0.2 * one[:1])
        self.lorentz = torch.nn.Parameter(0.1 * one[:1])
        self.floor = torch.nn.Parameter(0 * one[0])

    def residual(self):
        n = len(self.position)
        widths = (self.gauss.expand(n), self.lorentz.expand(n))
        found = peaks(self.x, self.position, self.area, *widths)
        return (self.y - found - self.floor) / 0.1


def test_a_fit_through_peaks_converges():
    x = grid("even")
    position = torch.linspace(12, 58, 20, dtype=torch.float64)
    one = torch.ones(20, dtype=torch.float64)
    g = torch.Generator().manual_seed(5)
    area = 2 + 5 * torch.rand(20, generator=g, dtype=torch.float64)
    y = peaks(x, position, area, 0.25 * one, 0.15 * one) + 3.0
    y = y + 0.1 * torch.randn(len(x), generator=g, dtype=torch.float64)
    fit = eadem.least_squares(eadem.Joint({"a": Pattern(x, y, position + 0.04)}))
    assert fit.converged
    assert fit.free == 43
    assert abs(fit.reduced_chi2 - 1) < 0.15
    off = (fit.values["a.area"] - area) / fit.stderr["a.area"]
    assert float(off.square().mean()) < 2
