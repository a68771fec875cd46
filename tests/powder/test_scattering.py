"""Structure factors and reflections against gemmi's, and by brute force."""

import math
import tempfile
from importlib import resources
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from test_symmetry import cell_of

from eadem.errors import TooLarge, Unsupported
from eadem.powder import Atom, Phase, SpaceGroup, reflections
from eadem.powder.scattering import Diffraction, reciprocal

GROUPS = ["P -1", "P 1 21 1", "P n m a", "P 41 21 2", "R -3 m:R", "P 63/m m c", "F d -3 m:1"]
HKL = [[0, 0, 2], [1, 0, 1], [0, 2, 0], [1, 2, 3], [-2, 1, 1], [3, -1, 2], [2, 2, 0], [4, 0, 0]]


def phase(group, *, aniso=False, special=True):
    """Three elements; one atom in a special position, one anisotropic where asked."""
    u = (0.010, 0.013, 0.008, 0.001, 0.002, -0.001) if aniso else 0.012
    return Phase(
        cell_of(group),
        group,
        [
            Atom("Fe", "Fe", (0.0, 0.0, 0.0) if special else (0.31, 0.17, 0.41), 0.006),
            Atom("S", "S", (0.06, 0.37, 0.29), u, 0.9),
            Atom("O", "O", (0.27, 0.08, 0.19), 0.015),
        ],
    )


def small(phase):
    """The same structure for gemmi, through a CIF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "phase.cif"
        phase.to_cif(path)
        found = gemmi.read_small_structure(str(path))
    for site in found.sites:  # as gemmi counts them, though not with its tolerance of 0.4 Å
        site.occ /= 1 + found.cell.is_special_position(site.fract, 1e-3)
    return found


@pytest.mark.parametrize("aniso", [False, True])
@pytest.mark.parametrize("group", GROUPS)
def test_structure_factors_are_gemmis(group, aniso):
    ours = phase(group, aniso=aniso)
    theirs = small(ours)
    for kind, made in (
        ("xray", gemmi.StructureFactorCalculatorX),
        ("neutron", gemmi.StructureFactorCalculatorN),
    ):
        calculator = made(theirs.cell)
        want = [calculator.calculate_sf_from_small_structure(theirs, h) for h in HKL]
        got = ours.structure_factors(HKL, kind).detach().numpy()
        np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_anomalous_dispersion_is_gemmis():
    ours = phase("P 1 21 1")
    theirs = small(ours)
    calculator = gemmi.StructureFactorCalculatorX(theirs.cell)
    wavelength = 1.5405
    for element in ("Fe", "S", "O"):
        z = gemmi.Element(element).atomic_number
        f1, f2 = gemmi.cromer_liberman(z=z, energy=gemmi.hc / wavelength)
        calculator.addends.set(gemmi.Element(element), f1)
        assert f2 > 0
    want = np.array([calculator.calculate_sf_from_small_structure(theirs, h) for h in HKL])
    # f″ apart: the imaginary scattering of each kind of atom is a structure of its own
    for element in ("Fe", "S", "O"):
        alone = small(ours)
        lone = gemmi.StructureFactorCalculatorN(alone.cell)
        z = gemmi.Element(element).atomic_number
        f2 = gemmi.cromer_liberman(z=z, energy=gemmi.hc / wavelength)[1]
        length = gemmi.Element(element).neutron92.get_coefs()[0]
        for i in range(len(alone.sites)):
            if alone.sites[i].element.name != element:
                alone.sites[i].occ = 0.0
        part = [lone.calculate_sf_from_small_structure(alone, h) for h in HKL]
        want = want + 1j * f2 / length * np.array(part)
    got = ours.structure_factors(HKL, "xray", wavelength).detach().numpy()
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_lead_sulphate_has_its_published_structure_factors():
    source = resources.files("eadem.data") / "pbso4" / "start.cif.gz"
    with resources.as_file(source) as path:
        lead = Phase.from_cif(path)
    hkl = [[0, 2, 0], [1, 0, 1]]
    xray = lead.structure_factors(hkl, "xray").detach()
    neutron = lead.structure_factors(hkl, "neutron").detach()
    np.testing.assert_allclose(xray.real, [-322.472, 23.919], atol=1e-3)
    np.testing.assert_allclose(neutron.real, [-50.088, -8.118], atol=1e-3)
    assert float(xray.imag.abs().max()) == 0


@pytest.mark.parametrize("group", ["P 1 21 1", "P 63", "F -4 3 m", "P n m a"])
def test_the_square_is_the_mean_of_a_reflection_and_its_opposite(group):
    ours = phase(group, aniso=True)
    hkl = np.array(HKL)
    squared = Diffraction(ours, hkl, "xray", 1.5405)(ours).squared().detach()
    one = ours.structure_factors(hkl, "xray", 1.5405).detach().abs().square()
    other = ours.structure_factors(-hkl, "xray", 1.5405).detach().abs().square()
    torch.testing.assert_close(squared, (one + other) / 2)


LISTED = """
P 1|P 1 21/c 1|P n m a|F d d 2|I 41/a m d:2|R -3 c:H|R 3:R|P 61 2 2|P 31 1 2|P a -3|F d -3 m:2
|I a -3 d|P 1 1 21/b
""".replace("\n", "").split("|")


@pytest.mark.parametrize("group", LISTED)
def test_reflections_are_gemmis(group):
    cell, dmin = cell_of(group), 0.8973
    hkl, multiplicity = reflections(SpaceGroup.of(group), cell, dmin)
    sg = gemmi.SpaceGroup(group)
    operations = sg.operations()
    theirs = gemmi.make_miller_array(gemmi.UnitCell(*cell), sg, dmin)

    def orbit(h):
        found = set()
        for op in operations.sym_ops:
            moved = tuple(op.apply_to_hkl(list(map(int, h))))
            found |= {moved, tuple(-v for v in moved)}
        return frozenset(found)

    # gemmi's list may hold systematic absences, and one index of each orbit
    want = {orbit(h) for h in theirs if not operations.is_systematically_absent(list(h))}
    got = [orbit(h) for h in hkl]
    assert len(set(got)) == len(got)
    assert set(got) == want
    assert multiplicity.tolist() == [len(o) for o in got]
    d = gemmi.UnitCell(*cell).calculate_d_array(hkl)
    assert bool((np.diff(d) <= 1e-9).all())


def test_a_cell_with_too_many_reflections_is_refused():
    with pytest.raises(TooLarge, match="shorten the range"):
        reflections(SpaceGroup.of("P 1"), [90.0] * 6, 0.3)


def test_the_reciprocal_metric_is_the_inverse():
    cell = torch.tensor([5.1, 6.3, 7.2, 81.0, 97.0, 103.0], dtype=torch.float64)
    got = reciprocal(cell)
    want = np.array(
        gemmi.UnitCell(*cell.tolist()).reciprocal_metric_tensor().as_mat33().tolist()
    )
    i, j = [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]
    np.testing.assert_allclose(got, want[i, j], rtol=1e-12)


def test_derivatives_are_those_of_differences():
    ours = phase("P 1 21 1", aniso=True)
    diffraction = Diffraction(ours, np.array(HKL), "xray", 1.5405)

    class Values:
        group, isotropic, anisotropic = ours.group, ours.isotropic, ours.anisotropic
        share = ours.share

    def squared(cell, xyz, u_iso, u_aniso, occupancy):
        at = Values()
        at.cell, at.xyz, at.u_iso, at.u_aniso, at.occupancy = (
            cell,
            xyz,
            u_iso,
            u_aniso,
            occupancy,
        )
        return diffraction(at).squared()

    names = ("cell", "xyz", "u_iso", "u_aniso", "occupancy")
    given = [getattr(ours, n).detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(squared, given, check_forward_ad=True, rtol=1e-4)


def test_unknown_radiation_and_elements_are_refused():
    ours = phase("P -1")
    with pytest.raises(Unsupported, match="'neutron', 'xray'"):
        ours.structure_factors(HKL, "electron")
    odd = Phase([5.0] * 3 + [90.0] * 3, "P 1", [Atom("A", "Zz", (0, 0, 0))])
    with pytest.raises(Unsupported, match="no chemical element"):
        odd.structure_factors(HKL, "xray")


def test_a_full_site_scatters_as_its_atoms_wherever_it_lies():
    """F(000) is Z times the number of atoms, whatever their multiplicity."""
    salt = Phase(
        [5.64] * 3 + [90.0] * 3,
        "F m -3 m",
        [Atom("Na", "Na", (0, 0, 0)), Atom("Cl", "Cl", (0.5, 0.5, 0.5))],
    )
    total = float(salt.structure_factors([[0, 0, 0]], "xray").real.detach())
    assert math.isclose(total, 4 * (11 + 17), rel_tol=1e-3)


def test_an_ion_scatters_as_the_ion_where_the_tables_have_it():
    def total(charge, element):
        atom = Atom("A", element, (0, 0, 0), 0.0, charge=charge)
        one = Phase([5.0] * 3 + [90.0] * 3, "P 1", [atom])
        return float(one.structure_factors([[0, 0, 0]], "xray").real.detach())

    assert total(2, "Pb") == pytest.approx(80, abs=0.1)
    assert total(0, "Pb") == pytest.approx(82, abs=0.1)
    assert total(-2, "O") == pytest.approx(10, abs=0.1)
    assert total(-3, "Pb") == total(0, "Pb")
    assert gemmi.IT92_get_ignore_charge()
