"""Phases: their ties among others, and CIF files read and written."""

import copy
import gzip
import sys
from importlib import resources

import gemmi
import pytest
import torch

import eadem
from eadem.errors import DataError, MissingPackage, ShapeError, Unsupported
from eadem.powder import Atom, Data, Instrument, Pattern, Phase
from eadem.powder.cif import with_uncertainty

CELL = [5.0, 5.0, 7.0, 90.0, 90.0, 120.0]
ANISO = (0.010, 0.012, 0.008, 0.005, 0.001, 0.002)


def hexagonal(a=5.0, shift=0.0):
    """Two atoms of P 63/m m c: x, 2x, z and 1/3, 2/3, 1/4."""
    x = 0.17 + shift
    atoms = [Atom("O", "O", (x, 2 * x, 0.1)), Atom("Zn", "Zn", (1 / 3, 2 / 3, 0.25), ANISO)]
    return Phase([a, a, 7.0, 90.0, 90.0, 120.0], "P 63/m m c", atoms)


def test_ties_are_seen_and_undone_as_any():
    phase = hexagonal()
    # a, c; x, z; U_iso; U11 and U33; two occupancies
    assert eadem.counts(phase).free == 2 + 2 + 1 + 2 + 2
    names = {site for tie in eadem.ties(phase) for site in tie.sites}
    assert {"cell[0]", "cell[1]", "xyz[0, 0]", "xyz[0, 1]", "u_aniso[0, 3]"} <= names
    assert "Scale(c=2.0)" in eadem.explain(phase, "xyz")
    eadem.check(phase)
    eadem.untie(phase, "cell")
    assert eadem.counts(phase).free == 6 + 2 + 1 + 2 + 2
    phase.constrain()
    assert eadem.counts(phase).free == 2 + 2 + 1 + 2 + 2


def test_displacement_tensors_are_brought_to_their_symmetry():
    u = hexagonal().u_aniso.detach()[0]
    assert u[0] == u[1] == 2 * u[3]
    assert u[4] == u[5] == 0
    assert u[2] == 0.008


def test_ties_survive_a_joint_and_a_second_tie():
    joint = eadem.Joint({"a": _block(hexagonal(5.0)), "b": _block(hexagonal(5.1, 0.01))})
    before = eadem.counts(joint).free
    eadem.tie(joint, "*.phase.cell", start="mean")
    eadem.tie(joint, "*.phase.xyz", start="mean")
    assert eadem.counts(joint).free == before - 2 - 2
    for name in ("a", "b"):
        phase = joint[name].phase
        assert phase.cell.detach().tolist() == pytest.approx([5.05, 5.05, 7, 90, 90, 120])
        x, y, z = phase.xyz.detach()[0].tolist()
        assert (x, y, z) == pytest.approx((0.175, 0.35, 0.1))
    with torch.no_grad():
        joint.get_parameter("a.phase.cell")[0] = 5.3
    assert joint["b"].phase.cell.detach()[1] == 5.3
    eadem.untie(joint, "b.phase.cell")
    assert eadem.counts(joint).free == before - 2 + 4
    eadem.check(copy.deepcopy(joint))


def test_one_phase_in_two_patterns_is_one_structure():
    phase = hexagonal()
    joint = eadem.Joint({"a": _block(phase), "b": _block(phase)})
    alone = eadem.counts(joint["a"]).free
    own = 2 + 2 + 1 + 2 + 2
    assert eadem.counts(joint).free == 2 * (alone - own) + own
    joint.residual().square().sum().backward()
    assert phase.get_parameter("cell").grad.shape == (2,)


def _block(phase):
    x = torch.arange(20, 60, 0.5, dtype=torch.float64)
    y = torch.full_like(x, 50.0)
    return Pattern(Data(x, y), Instrument.neutron(1.5, w=0.3), phase, background=1)


def test_a_saved_phase_is_the_same_when_it_is_loaded(tmp_path):
    first, other = hexagonal(5.0), hexagonal(5.2, 0.02)
    eadem.save(first, tmp_path / "phase.safetensors")
    eadem.load(other, tmp_path / "phase.safetensors")
    for name in ("cell", "xyz", "u_iso", "u_aniso", "occupancy"):
        assert torch.equal(getattr(first, name), getattr(other, name))


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (8.480442915, 0.00012, "8.48044(12)"),
        (8.480442915, 0.0002, "8.4804(2)"),
        (0.18764, 0.00195, "0.188(2)"),
        (0.18764, 0.00196, "0.188(2)"),
        (0.18764, 0.00194, "0.1876(19)"),
        (-0.0951, 0.003, "-0.095(3)"),
        (1234.5, 37.0, "1230(40)"),
        (1234.5, 14.0, "1234(14)"),
        (12345.0, 140.0, "12340(140)"),
        (90.0, 0.0, "90"),
        (1 / 3, None, "0.333333"),
        (-0.25, float("nan"), "-0.25"),
        (0.0, float("inf"), "0"),
        (1e-9, None, "0"),
    ],
)
def test_uncertainties_are_written_as_the_journals_want_them(value, error, text):
    assert with_uncertainty(value, error) == text
    if error and "(" in text:
        assert gemmi.cif.as_number(text) == pytest.approx(value, abs=0.51 * error)


def test_a_cif_comes_back_as_it_was_written(tmp_path):
    first = hexagonal()
    sigma = {
        "zn.phase.cell": torch.tensor([0.002, 0.002, 0.0004, 0, 0, 0], dtype=torch.float64),
        "zn.phase.xyz": torch.full((2, 3), 0.00012, dtype=torch.float64),
        "xyz": torch.full((2, 3), 9.0, dtype=torch.float64),
    }
    path = tmp_path / "out.cif"
    first.to_cif(path, sigma, prefix="zn.phase.")
    text = path.read_text()
    for wanted in ("_cell_length_a 5.000(2)", "_cell_length_c 7.0000(4)", "0.17000(12)"):
        assert wanted in text
    assert "_cell_angle_gamma 120\n" in text
    assert [p.name for p in tmp_path.iterdir()] == ["out.cif"]
    again = Phase.from_cif(path)
    assert again.labels == first.labels
    assert again.positions == first.positions == ("x, 2x, z", "1/3, 2/3, 1/4")
    assert again.group.name == first.group.name
    assert (again.isotropic, again.anisotropic) == ((0,), (1,))
    for name in ("cell", "xyz", "u_iso", "u_aniso", "occupancy"):
        torch.testing.assert_close(
            getattr(again, name), getattr(first, name), atol=1e-6, rtol=0
        )


def test_a_cif_that_cannot_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "out.cif"
    path.write_text("before")
    phase = hexagonal()
    with pytest.raises(RuntimeError):
        phase.to_cif(path, {"xyz": torch.zeros(5)})
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def _start():
    return (resources.files("eadem.data") / "pbso4" / "start.cif.gz").read_bytes()


def test_reads_text_a_file_and_a_compressed_file(tmp_path):
    text = gzip.decompress(_start()).decode()
    (tmp_path / "a.cif").write_text(text)
    (tmp_path / "a.cif.gz").write_bytes(_start())
    found = [Phase.from_cif(s) for s in (text, tmp_path / "a.cif", str(tmp_path / "a.cif.gz"))]
    for phase in found:
        assert phase.name == "pbso4-phase"
        assert phase.labels == ("Pb", "S", "O1", "O2", "O3")
        assert phase.positions == ("x, 1/4, z",) * 4 + ("x, y, z",)
        assert eadem.counts(phase).free == 3 + 4 * 2 + 3 + 5 + 5


MINIMAL = """data_x
_cell_length_a 5
_cell_length_b 5
_cell_length_c 5
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'P m -3 m'
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cs 0 0 0
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("data_x", "data x"), "is no CIF"),
        (("_cell_length_a 5\n", ""), "cell is missing"),
        (("'P m -3 m'", "'P q 7'"), "no space group is called 'P q 7'"),
        (("_space_group_name_H-M_alt 'P m -3 m'\n", ""), "no space group is given"),
        (("Cs 0 0 0\n", "Cs 0 0 .\n"), "'Cs' lacks a coordinate"),
        (("Cs 0 0 0\n", "Xx 0 0 0\n"), "element of atom 'Xx'"),
        (("_atom_site_fract_x\n", "_atom_site_other\n"), "no atoms"),
    ],
)
def test_a_cif_that_lacks_something_says_what(change, message):
    text = MINIMAL.replace(*change)
    assert text != MINIMAL
    with pytest.raises(DataError, match=message):
        Phase.from_cif(text)


def test_a_cif_is_read_by_its_operations_where_it_lists_them():
    listed = "loop_\n_space_group_symop_operation_xyz\n'x,y,z'\n'-x,-y,-z'\n"
    phase = Phase.from_cif(MINIMAL.replace("_space_group_name_H-M_alt 'P m -3 m'\n", listed))
    assert phase.u_iso.tolist() == [0.01]  # the file gives none
    assert phase.group.order == 2
    with pytest.raises(DataError, match="no block 'y'"):
        Phase.from_cif(MINIMAL, block="y")


def test_no_file_and_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Phase.from_cif(tmp_path / "none.cif")
    with pytest.raises(DataError, match="folder"):
        Phase.from_cif(tmp_path)
    (tmp_path / "b.cif.gz").write_bytes(_start()[:200])
    with pytest.raises(DataError, match="gzip"):
        Phase.from_cif(tmp_path / "b.cif.gz")


def test_without_gemmi_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemmi", None)
    with pytest.raises(MissingPackage, match=r"eadem\[powder\]"):
        hexagonal()


def test_odd_phases_are_refused():
    atom = Atom("C", "C", (0, 0, 0))
    with pytest.raises(Unsupported, match="labels of their own"):
        Phase(CELL, "P 3", [atom, atom])
    with pytest.raises(Unsupported, match="at least one atom"):
        Phase(CELL, "P 3", [])
    with pytest.raises(ShapeError, match="six numbers"):
        Phase(CELL[:3], "P 3", [atom])
    with pytest.raises(ShapeError, match="displacement"):
        Phase(CELL, "P 3", [Atom("C", "C", (0, 0, 0), (0.1, 0.1, 0.1))])
