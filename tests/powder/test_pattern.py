"""A pattern as a block: its parts, its derivatives, and a fit that finds what made the data."""

import numpy as np
import pytest
import torch

import eadem
from eadem.errors import DataError, NoSuchSite, ShapeError, Unsupported
from eadem.powder import Atom, Data, Instrument, Pattern, Phase, free, freeze, peaks

SALT = [Atom("Na", "Na", (0, 0, 0), 0.02), Atom("Cl", "Cl", (0.5, 0.5, 0.5), 0.015)]
ZINC = [
    Atom("Zn", "Zn", (1 / 3, 2 / 3, 0.0), 0.01),
    Atom("O", "O", (1 / 3, 2 / 3, 0.3819), 0.01),
]


def salt(a=5.64):
    return Phase([a] * 3 + [90.0] * 3, "F m -3 m", SALT)


def zinc():
    return Phase([3.25, 3.25, 5.207, 90, 90, 120], "P 63 m c", ZINC)


def grid(low=20.0, high=100.0, step=0.05):
    return torch.arange(low, high, step, dtype=torch.float64)


def flat(x):
    return Data(x, torch.full_like(x, 100.0))


def neutrons(**given):
    return Instrument.neutron(1.6, **{"u": 0.1, "v": -0.1, "w": 0.2, "y": 0.05, **given})


def test_the_pattern_is_the_sum_that_its_formula_says():
    x = grid()
    instrument = Instrument.xray(
        (1.5406, 1.5444), 0.4, polarisation=0.8, zero=0.03, displacement=-0.02,
        transparency=0.01, u=0.02, v=-0.01, w=0.03, x=0.05, y=0.02,
    )  # fmt: skip
    phase = zinc()
    pattern = Pattern(flat(x), instrument, phase, background=3, scale=2.5e-3)
    with torch.no_grad():
        pattern.background.copy_(torch.tensor([30.0, -4.0, 2.0]))
    found = pattern.reflections()["phase"]
    hkl = found.hkl.numpy()
    both = [phase.structure_factors(h, "xray", 1.5406).detach() for h in (hkl, -hkl)]
    squared = (both[0].abs() ** 2 + both[1].abs() ** 2) / 2
    total = torch.zeros_like(x)
    for wavelength, share in ((1.5406, 1.0), (1.5444, 0.4)):
        theta = torch.asin(wavelength / (2 * found.d))
        position = torch.rad2deg(2 * theta) + 0.03 - 0.02 * torch.cos(theta)
        position = position + 0.01 * torch.sin(2 * theta)
        lorentz = 0.05 * torch.tan(theta) + 0.02 / torch.cos(theta)
        gauss = (0.02 * torch.tan(theta) ** 2 - 0.01 * torch.tan(theta) + 0.03).sqrt()
        factor = (1 + 0.8 * torch.cos(2 * theta) ** 2) / (
            2 * torch.sin(theta) ** 2 * torch.cos(theta)
        )
        area = 2.5e-3 * share * found.multiplicity * squared * factor
        total = total + peaks(x, position, area, gauss, lorentz, width=pattern.width)
    t = (2 * (x - x[0]) / (x[-1] - x[0]) - 1).numpy()
    total = total + torch.from_numpy(np.polynomial.chebyshev.chebval(t, [30.0, -4.0, 2.0]))
    torch.testing.assert_close(pattern.calculated().detach(), total, rtol=1e-6, atol=1e-5)
    expected = (pattern.y - total) / pattern.sigma
    torch.testing.assert_close(pattern.residual().detach(), expected, rtol=1e-6, atol=1e-6)


def test_contributions_add_up_and_phases_have_their_names():
    pattern = Pattern(
        flat(grid()), neutrons(), {"salt": salt(), "zinc": zinc()}, scale=[2.0, 1.0]
    )
    parts = pattern.contributions()
    assert list(parts) == ["salt", "zinc", "background"]
    total = sum(parts.values())
    torch.testing.assert_close(pattern.calculated().detach(), total.detach())
    alone = Pattern(flat(grid()), neutrons(), salt(), scale=2.0).contributions()["phase"]
    torch.testing.assert_close(parts["salt"].detach(), alone.detach())
    names = dict(pattern.named_parameters())
    assert "salt.cell" in names
    assert "zinc.cell" in names
    assert tuple(pattern.scale.shape) == (2,)


def test_phases_have_widths_of_their_own():
    both = Pattern(flat(grid()), neutrons(y=0.1), {"salt": salt(), "zinc": zinc()}, scale=1.0)
    assert not both.size.requires_grad
    with torch.no_grad():
        both.size[1], both.strain[1] = 0.2, 0.05
    parts = both.contributions()
    narrow = Pattern(flat(grid()), neutrons(y=0.1), salt(), scale=1.0).contributions()
    wide = Pattern(flat(grid()), neutrons(y=0.3, x=0.05), zinc(), scale=1.0).contributions()
    torch.testing.assert_close(parts["salt"], narrow["phase"])
    torch.testing.assert_close(parts["zinc"], wide["phase"])


def test_excluded_points_are_out_and_a_baseline_follows_its_points():
    x = grid()
    base = 40 + 0.1 * x
    pattern = Pattern(
        Data(x, base), neutrons(), salt(), background=0, baseline=base, scale=0.0,
        excluded=[(0, 30), (50, 52.5)],
    )  # fmt: skip
    assert float(pattern.x[0]) > 30
    assert not bool(((pattern.x >= 50) & (pattern.x <= 52.5)).any())
    assert float(pattern.residual().detach().abs().max()) < 1e-12
    with pytest.raises(DataError, match="none is outside"):
        Pattern(flat(x), neutrons(), salt(), excluded=[(0, 180)])
    with pytest.raises(ShapeError, match="baseline"):
        Pattern(flat(x), neutrons(), salt(), baseline=base[:-1])


def test_estimate_is_linear_least_squares():
    x = grid()
    truth = Pattern(flat(x), neutrons(), {"salt": salt(), "zinc": zinc()}, scale=[3.0, 7.0])
    with torch.no_grad():
        truth.background.copy_(torch.tensor([50.0, 5.0, -3.0, 1.0, 0.5, 0.2]))
    y = truth.calculated().detach()
    pattern = Pattern(Data(x, y), neutrons(), {"salt": salt(), "zinc": zinc()})
    assert pattern.scale.tolist() == pytest.approx([3.0, 7.0], rel=1e-8)
    assert pattern.background.tolist() == pytest.approx([50.0, 5.0, -3.0, 1.0, 0.5, 0.2])
    assert pattern.rwp() < 1e-9


def test_march_and_dollases_factor_is_an_average_over_equivalents():
    phase, axis, r = zinc(), (1, 0, 2), 0.7
    pattern = Pattern(flat(grid()), neutrons(), phase, preferred=axis, scale=1.0)
    plain = Pattern(flat(grid()), neutrons(), zinc(), scale=1.0)
    assert torch.equal(pattern.calculated(), plain.calculated())
    with torch.no_grad():
        pattern.march.fill_(r)
    got = pattern.reflections()["phase"].intensity / plain.reflections()["phase"].intensity
    g = torch.linalg.inv(_metric(phase)).numpy()
    want = []
    for h in pattern.reflections()["phase"].hkl.numpy():
        mates = {
            tuple(int(v) * s for v in h @ np.array(op.rotation))
            for op in phase.group.operations
            for s in (1, -1)
        }
        each = []
        for m in mates:
            m, p = np.array(m, dtype=float), np.array(axis, dtype=float)
            cos2 = (m @ g @ p) ** 2 / ((m @ g @ m) * (p @ g @ p))
            each.append((r * r * cos2 + (1 - cos2) / r) ** -1.5)
        want.append(np.mean(each))
    np.testing.assert_allclose(got[0].numpy(), want, rtol=1e-9)
    with pytest.raises(Unsupported, match="no direction"):
        Pattern(flat(grid()), neutrons(), zinc(), preferred=(0, 0, 0))


def _metric(phase):
    from eadem.powder.symmetry import metric

    return torch.from_numpy(metric(phase.cell.detach().tolist()))


def test_derivatives_are_those_of_differences():
    x = grid(20, 60, 0.2)
    instrument = neutrons(zero=0.02, displacement=0.01, transparency=0.01, x=0.03)
    instrument.asymmetry = torch.nn.Parameter(torch.tensor([0.02, 0.01, 0.0, 0.0]).double())
    instrument.asymmetric = True
    free(instrument, "wavelength")
    pattern = Pattern(flat(x), instrument, zinc(), preferred=(0, 0, 1), background=2, width=1e4)
    free(pattern, "phase.occupancy")
    from eadem.bind import at_sites, free_vector, resolved

    residual = at_sites(pattern, lambda m: m.residual())
    plan = resolved(pattern)
    theta = free_vector(pattern)

    def of(t):
        return residual(plan.expand(t))

    jacobian = torch.func.jacfwd(of)(theta)
    pulled = torch.func.jacrev(of)(theta)
    torch.testing.assert_close(jacobian, pulled, rtol=1e-7, atol=1e-7)
    for i in range(theta.numel()):
        step = torch.zeros_like(theta)
        step[i] = 1e-6 * max(1.0, abs(float(theta[i])))
        by_difference = (of(theta + step) - of(theta - step)) / (2 * step[i])
        away = (jacobian[:, i] - by_difference).norm() / (1 + by_difference.norm())
        assert float(away) < 1e-5, i


def test_a_fit_finds_what_made_the_data():
    x = grid(15, 120)
    g = torch.Generator().manual_seed(1)
    made = []
    for instrument in (
        neutrons(zero=0.05),
        Instrument.xray(displacement=-0.03, w=0.02, y=0.08),
    ):
        truth = Pattern(flat(x), instrument, zinc(), background=2, scale=1.0)
        with torch.no_grad():
            size = 2000 / float(truth.calculated().max())
            truth.scale.fill_(size)
            truth.background.copy_(torch.tensor([60.0, 10.0]))
        y = truth.calculated().detach()
        noise = torch.randn(len(x), generator=g, dtype=torch.float64) * y.sqrt()
        made.append(Data(x, y + noise, y.sqrt()))
    start = {
        "n": Pattern(made[0], neutrons(zero=0.0), _off(), background=2),
        "x": Pattern(made[1], Instrument.xray(displacement=0.0, w=0.03, y=0.06), _off(),
                     background=2),
    }  # fmt: skip
    joint = eadem.Joint(start)
    for name in ("cell", "xyz", "u_iso"):
        eadem.tie(joint, f"*.phase.{name}", start="mean")
    # in P 63 m c the origin along z is free
    eadem.tie(joint, "n.phase.xyz[0, 2]", via=eadem.Fixed(0.0))
    fit = eadem.least_squares(joint, tolerance=1e-4)
    assert fit.converged
    assert 0.93 < fit.reduced_chi2 < 1.07
    for site, truth in (
        ("n.phase.cell", [3.25, 3.25, 5.207, 90, 90, 120]),
        ("x.phase.cell", [3.25, 3.25, 5.207, 90, 90, 120]),
        ("x.phase.u_iso", [0.01, 0.01]),
        ("n.instrument.zero", 0.05),
        ("x.instrument.displacement", -0.03),
    ):
        want = torch.as_tensor(truth, dtype=torch.float64)
        away = (fit.values[site] - want).abs()
        assert bool((away <= 4 * fit.stderr[site] + 1e-9).all()), site
    assert float(fit.values["x.phase.xyz"][1, 2]) == pytest.approx(0.3819, abs=2e-3)


def _off():
    phase = zinc()
    with torch.no_grad():
        phase.get_parameter("cell").add_(torch.tensor([0.002, -0.003]))
        phase.get_parameter("u_iso").fill_(0.006)
    return phase


def test_patterns_that_differ_in_their_numbers_alone_are_one_batch():
    from eadem.fits._setup import setup
    from eadem.solvers.losses import Loss

    x = grid(30, 60, 0.1)
    blocks = {f"t{i}": Pattern(flat(x), neutrons(), salt(5.64 + 1e-4 * i)) for i in range(3)}
    joint = eadem.Joint(blocks)
    problem = setup(joint, Loss("linear", 1.0)).problem
    assert [p.batch.names for p in problem.pieces] == [("t0", "t1", "t2")]
    own = torch.stack([m.residual().detach() for m in blocks.values()])
    torch.testing.assert_close(problem.first.residuals[0], own)


def test_parameters_are_freed_and_frozen_by_name():
    pattern = Pattern(flat(grid()), neutrons(), salt())

    def refined():
        return {n for n, p in pattern.named_parameters() if p.requires_grad}

    first = refined()
    assert "instrument.wavelength" not in first
    assert "instrument.zero" not in first
    assert "instrument.u" in first
    assert freeze(pattern, "instrument.*", "phase.u_iso") == (
        *(f"instrument.{n}" for n in ("wavelength", "zero", "displacement", "transparency")),
        *(f"instrument.{n}" for n in "uvwxy"),
        "phase.u_iso",
    )
    assert refined() == {"scale", "background", "phase.cell"}
    assert free(pattern, "instrument.zero") == ("instrument.zero",)
    assert "instrument.zero" in refined()
    with pytest.raises(NoSuchSite, match=r"instrument\.zero"):
        free(pattern, "instrument.zerro")


def test_a_site_that_another_holds_is_freed_with_it():
    joint = eadem.Joint({k: Pattern(flat(grid()), neutrons(), salt()) for k in "ab"})
    eadem.tie(joint, "*.phase.cell")
    assert freeze(joint, "b.phase.cell") == ("a.phase.cell",)
    assert not joint.get_parameter("a.phase.cell").requires_grad
    assert free(joint, "b.phase.cell") == ("a.phase.cell",)


def test_a_reflection_that_leaves_the_sphere_is_gone_and_nothing_is_undefined():
    pattern = Pattern(
        flat(grid(20, 179, 0.5)), Instrument.neutron(1.6, w=0.3), salt(), scale=1.0
    )
    with torch.no_grad():
        pattern.phase.get_parameter("cell").fill_(5.50)
    table = pattern.reflections()["phase"]
    lost = table.intensity[0] == 0
    assert bool(lost.any())
    assert bool((1.6 / (2 * table.d) > 0.999)[lost].all())
    r = pattern.residual()
    r.square().sum().backward()
    for name, p in pattern.named_parameters():
        assert p.grad is None or bool(torch.isfinite(p.grad).all()), name


def test_odd_patterns_and_instruments_are_refused():
    x = grid()
    with pytest.raises(Unsupported, match="cannot be called 'scale'"):
        Pattern(flat(x), neutrons(), {"scale": salt()})
    with pytest.raises(Unsupported, match="not a Phase"):
        Pattern(flat(x), neutrons(), {"a": torch.nn.Linear(1, 1)})
    with pytest.raises(Unsupported, match="needs a Phase"):
        Pattern(flat(x), neutrons(), {})
    with pytest.raises(ShapeError, match="scales"):
        Pattern(flat(x), neutrons(), salt(), scale=[1.0, 2.0])
    with pytest.raises(DataError, match="no reflection"):
        Pattern(flat(grid(2, 5)), neutrons(), salt())
    with pytest.raises(TypeError, match="no \\['q'\\]"):
        Instrument.neutron(1.6, q=1.0)
    with pytest.raises(Unsupported, match="positive numbers"):
        Instrument.neutron(-1.0)
    with pytest.raises(ShapeError, match="asymmetry"):
        Instrument.neutron(1.6, asymmetry=(0.1,))
