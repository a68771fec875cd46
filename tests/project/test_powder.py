"""Powder patterns of a project, against patterns made and refined without one."""

from __future__ import annotations

import csv
import gzip
import json
from importlib import resources

import numpy as np
import pytest
import torch

import eadem
from eadem.powder import Data, Instrument, Pattern, Phase, read_counters, read_steps
from eadem.powder.instrument import free, freeze
from eadem.project import ProjectError, fit_project, load, solve
from eadem.project.build import build

PROJECT = """
title = "Lead sulphate"

[phase.PbSO4]
cif = "start.cif"

[data.neutron]
model = "powder"
file = "neutron.xye"
radiation = "neutron"
wavelength = 1.909
exclude = [[30.0, 31.0]]
range = [20, 45]
background = 3
instrument = {zero = -0.1, u = 0.11, v = -0.28, w = 0.27}

[data.xray]
model = "powder"
file = "xray.xye"
radiation = "xray"
wavelength = [1.5405, 1.5443]
ratio = 0.5
polarisation = 0.7
range = [20, 38]
background = 3
instrument = {displacement = 0.0, w = 0.01, y = 0.05}
"""
STAGES = """
[[stage]]
free = ["*.scale", "*.background"]
[[stage]]
free = ["*.scale", "*.background", "*.PbSO4.cell", "neutron.instrument.zero"]
[options]
cluster = 40
"""
FREED = (
    ("*.scale", "*.background"),
    ("*.scale", "*.background", "*.PbSO4.cell", "neutron.instrument.zero"),
)


def source(name):
    return resources.files("eadem").joinpath("data", "pbso4", name)


def columns(path, data):
    table = torch.stack([data.x, data.y, data.sigma], 1).numpy()
    np.savetxt(path, table, fmt="%.17g")


@pytest.fixture(scope="session")
def measured():
    """Stretches of the two patterns, and the text of the CIF."""
    neutrons = read_counters(source("neutron.dat.gz")).without((0, 19), (46, 200))
    xrays = read_steps(source("xray.dat.gz")).without((0, 19), (39, 200))
    xrays = Data(xrays.x[::2], xrays.y[::2], xrays.sigma[::2])
    text = gzip.decompress(source("start.cif.gz").read_bytes()).decode()
    return {"neutron": neutrons, "xray": xrays}, text


@pytest.fixture
def folder(tmp_path, measured):
    patterns, text = measured
    for name, data in patterns.items():
        columns(tmp_path / f"{name}.xye", data)
    (tmp_path / "start.cif").write_text(text)
    return tmp_path


def project(folder, text):
    path = folder / "pbso4.toml"
    path.write_text(text)
    return load(path)


def by_hand(measured):
    """The same two patterns, tied, as a program would have them."""
    data, text = measured
    instruments = {
        "neutron": Instrument.neutron(1.909, zero=-0.1, u=0.11, v=-0.28, w=0.27),
        "xray": Instrument.xray(
            (1.5405, 1.5443), 0.5, polarisation=0.7, displacement=0.0, w=0.01, y=0.05
        ),
    }
    used = {
        "neutron": data["neutron"].without((0, 19.999), (30, 31), (45.001, 90)),
        "xray": data["xray"].without((0, 19.999), (38.001, 90)),
    }
    blocks = {
        name: Pattern(
            used[name],
            instruments[name],
            {"PbSO4": Phase.from_cif(text)},
            background=3,
            width=30.0,
        )
        for name in used
    }
    joint = eadem.Joint(blocks)
    ties = [eadem.tie(joint, f"*.PbSO4.{s}") for s in ("cell", "xyz", "u_iso")]
    for sites, tolerance in zip(FREED, (5e-2, 3e-4), strict=True):
        freeze(joint, "**")
        free(joint, *sites)
        fit = eadem.least_squares(joint, tolerance=tolerance)
    return fit, ties


def test_a_project_is_the_refinement_written_out(folder, measured):
    out = folder / "out"
    out.mkdir()
    asked = project(folder, PROJECT + STAGES)
    found = fit_project(asked, out)
    fit, ties = by_hand(measured)
    assert found.fit.converged
    assert found.fit.chi2 == pytest.approx(fit.chi2, rel=1e-9)
    assert found.fit.dof == fit.dof
    for site in ("neutron.PbSO4.cell", "xray.PbSO4.cell", "neutron.instrument.zero"):
        torch.testing.assert_close(found.fit.values[site], fit.values[site])
        torch.testing.assert_close(found.fit.stderr[site], fit.stderr[site])
    states = {n: s for n, s in found.state.items() if ".PbSO4." in n}
    assert states["neutron.PbSO4.cell.a"] == "free"
    assert states["xray.PbSO4.cell.a"] == "tied"
    assert states["neutron.PbSO4.cell.beta"] == "by symmetry"
    assert states["neutron.PbSO4.xyz.Pb.y"] == "by symmetry"
    assert states["neutron.PbSO4.xyz.Pb.x"] == "fixed"
    assert found.state["neutron.instrument.wavelength"] == "fixed"
    assert found.state["neutron.scale"] == "free"
    assert float(found.built.starts["neutron.instrument.zero"]) == -0.1
    assert float(fit.values["neutron.instrument.zero"]) != -0.1

    cell, xyz, u = found.verdicts
    assert (cell.tie, xyz.tie, u.tie) == ("*.PbSO4.cell", "*.PbSO4.xyz", "*.PbSO4.u_iso")
    ids = [i // 40 for i in range(len(found.fit.residuals["neutron"]))]
    ids += [ids[-1] + 1 + i // 40 for i in range(len(found.fit.residuals["xray"]))]
    wanted = fit.score_test(release=ties[0], cluster=ids)
    assert cell.df == 3
    assert cell.statistic == pytest.approx(wanted.statistic, rel=1e-6)
    assert cell.robust_pvalue == pytest.approx(wanted.robust.pvalue, rel=1e-5)
    change = float(wanted.changes["xray.PbSO4.cell"][0])
    assert cell.changes["xray.PbSO4.cell.a"] == pytest.approx(change, rel=1e-5)
    assert xyz.word(True) == u.word(True) == "everything tied is fixed"
    assert {row["df"] for row in found.clusters} == {3}

    _the_folder_says_so(out, found)


def _the_folder_says_so(out, found):
    data = json.loads((out / "fit.json").read_text())
    blocks = found.built.powder
    for name in ("neutron", "xray"):
        assert data["data"][name]["rwp"] == pytest.approx(blocks[name].rwp())
        curve = np.genfromtxt(out / f"{name}.csv", delimiter=",", names=True)
        size = np.sum((curve["y"] / curve["sigma"]) ** 2)
        rwp = np.sqrt(np.sum(curve["residual"] ** 2) / size)
        assert rwp == pytest.approx(blocks[name].rwp())
        with (out / f"{name}.reflections.csv").open() as file:
            first = next(csv.DictReader(file))
        a, _, c, *_ = found.fit.values[f"{name}.PbSO4.cell"].tolist()
        assert [first[k] for k in ("phase", "h", "k", "l")] == ["PbSO4", "1", "0", "1"]
        assert float(first["d"]) == pytest.approx((a**-2 + c**-2) ** -0.5)
    with (out / "values.csv").open() as file:
        rows = {r["parameter"]: r for r in csv.DictReader(file)}
    a = rows["neutron.PbSO4.cell.a"]
    assert float(a["stderr"]) == float(found.fit.stderr["neutron.PbSO4.cell"][0])
    assert rows["neutron.PbSO4.cell.gamma"]["state"] == "by symmetry"
    names = data["correlation"]["names"]
    assert {"neutron.PbSO4.cell.a", "neutron.instrument.zero"} < set(names)
    assert not any(n.startswith("xray.PbSO4") for n in names)

    import gemmi

    block = gemmi.cif.read(str(out / "PbSO4.cif")).sole_block()
    shown = block.find_value("_cell_length_a")
    assert shown.endswith(")")
    assert gemmi.cif.as_number(shown) == pytest.approx(float(a["value"]), abs=2e-3)
    assert block.find_value("_cell_angle_beta") == "90"
    again = Phase.from_cif(out / "PbSO4.cif")
    assert again.positions == found.built.powder["neutron"].phases["PbSO4"].positions
    page = (out / "report.html").read_text()
    assert page.count('<figure class="pattern"') == 2
    for word in ("Rwp", "x, 1/4, z", shown, "neutron.PbSO4.cell.a", "PbSO4.cif"):
        assert word in page


def started(folder, text):
    """A project put together, not fitted."""
    return build(project(folder, text))


NEUTRON = PROJECT.partition("[data.xray]")[0]


def test_starts_fixed_values_bounds_and_what_is_refined(folder):
    text = (
        PROJECT
        + """
start = {"PbSO4.u_iso" = [0.01, 0.011, 0.012, 0.013, 0.014]}
[start]
"*.PbSO4.cell" = [8.5, 5.4, 7.0, 90, 90, 90]
neutron.background = 50.0
neutron.scale = 0.5
[fixed]
"*.PbSO4.occupancy" = true
neutron.instrument.zero = -0.08
[bounds]
"*.PbSO4.u_iso" = [0.0, 0.1]
"*.PbSO4.cell" = [5.0, 9.0]
[ties]
xray.instrument.w = "0.1*neutron.instrument.w"
"""
    )
    text = text.replace("background = 3", 'background = 3\nrefine = "wavelength"', 1)
    built = started(folder, text)
    values = eadem.bind.site_values(built.joint)
    assert values["xray.PbSO4.cell"].tolist() == [8.5, 5.4, 7.0, 90, 90, 90]
    assert values["neutron.PbSO4.u_iso"].tolist() == [0.01, 0.011, 0.012, 0.013, 0.014]
    assert values["neutron.background"].tolist() == [50.0] * 3
    assert values["neutron.scale"].tolist() == [0.5]
    assert float(values["neutron.instrument.zero"]) == -0.08
    assert float(values["xray.instrument.w"]) == pytest.approx(0.027)
    assert "neutron.instrument.wavelength" not in built.fixed
    assert {"xray.instrument.wavelength", "neutron.instrument.zero"} < built.fixed
    assert built.bounds["neutron.PbSO4.u_iso.O1"] == (0.0, 0.1)
    assert built.bounds["xray.PbSO4.cell.a"] == (5.0, 9.0)
    assert "xray.PbSO4.cell.alpha" not in built.bounds
    listed = built.powder["xray"].reflections()["PbSO4"]
    a, b, c, *_ = values["xray.PbSO4.cell"].tolist()
    h, k, l = listed.hkl.double().unbind(1)
    torch.testing.assert_close(listed.d, (h**2 / a**2 + k**2 / b**2 + l**2 / c**2).rsqrt())
    built.free_only(built.sites())
    moving = {n for n, p in built.joint.named_parameters() if p.requires_grad}
    assert moving == {
        "neutron.scale", "neutron.background", "neutron.instrument.wavelength",
        "neutron.instrument.u", "neutron.instrument.v", "neutron.instrument.w",
        "neutron.PbSO4.cell", "neutron.PbSO4.xyz", "neutron.PbSO4.u_iso",
        "xray.scale", "xray.background", "xray.instrument.displacement",
        "xray.instrument.y",
    }  # fmt: skip


def test_scale_and_background_begin_at_their_best(folder):
    block = started(folder, NEUTRON + '[start]\n"**.cell" = [8.5, 5.4, 7.0, 90, 90, 90]\n')
    pattern = block.powder["neutron"]
    before = pattern.residual().square().sum()
    for name in ("scale", "background"):
        for factor in (0.9, 1.1):
            with torch.no_grad():
                parameter = pattern.get_parameter(name)
                parameter.mul_(factor)
                assert pattern.residual().square().sum() > before
                parameter.div_(factor)


def test_what_a_phase_has_of_its_own_is_not_shared(folder, tmp_path):
    text = PROJECT.replace('cif = "start.cif"', 'cif = "start.cif"\nown = ["cell"]')
    found = solve(project(folder, text + "[options]\nmax_iterations = 1\n"))
    assert [t.text for t in found.built.ties] == ["*.PbSO4.xyz", "*.PbSO4.u_iso"]
    values = found.fit.values
    assert not torch.equal(values["neutron.PbSO4.cell"], values["xray.PbSO4.cell"])
    assert torch.equal(values["neutron.PbSO4.xyz"], values["xray.PbSO4.xyz"])
    from eadem.project.files import structures

    assert sorted(structures(found)) == ["PbSO4.neutron.cif", "PbSO4.xray.cif"]


def test_a_second_phase_and_a_direction(folder):
    (folder / "salt.cif").write_text(SALT)
    text = NEUTRON.replace(
        "background = 3", 'background = 3\nphases = ["PbSO4", "NaCl"]\n'
        "preferred = {NaCl = [0, 0, 1]}",
    )  # fmt: skip
    built = started(folder, text + '[phase.NaCl]\ncif = "salt.cif"\n')
    state = {n: e for n, e in built.entries.items() if ".NaCl." in n}
    assert state["neutron.NaCl.cell.a"].leads
    assert state["neutron.NaCl.cell.b"].follows
    assert state["neutron.NaCl.xyz.Cl.x"].constant
    assert {"neutron.scale.PbSO4", "neutron.scale.NaCl", "neutron.march"} < set(built.entries)
    assert set(built.powder["neutron"].reflections()) == {"PbSO4", "NaCl"}


SALT = """data_salt
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_space_group_name_H-M_alt 'F m -3 m'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_U_iso_or_equiv
Na Na 0 0 0 0.01
Cl Cl 0.5 0.5 0.5 0.01
"""

IRON = SALT[: SALT.index("Na Na")].replace("5.64", "2.866").replace("F m -3 m", "I m -3 m")
IRON = (
    IRON.replace("data_salt", "data_iron")
    + """Fe Fe 0 0 0 0.01
loop_
_atom_site_aniso_label
_atom_site_aniso_U_11
_atom_site_aniso_U_22
_atom_site_aniso_U_33
_atom_site_aniso_U_12
_atom_site_aniso_U_13
_atom_site_aniso_U_23
Fe 0.004 0.004 0.004 0 0 0
"""
)


def test_a_phase_of_one_anisotropic_atom_is_reported(folder):
    (folder / "iron.cif").write_text(IRON)
    text = NEUTRON.replace("range = [20, 45]", "range = [20, 46]")
    text = text.replace("wavelength = 1.909", "wavelength = 1.5")
    text += '[phase.Fe]\ncif = "iron.cif"\n[[stage]]\nfree = "*.background"\n'
    out = folder / "out"
    out.mkdir()
    found = fit_project(project(folder, text), out)
    states = {n.removeprefix("neutron.Fe."): s for n, s in found.state.items() if ".Fe" in n}
    assert states["u_aniso.Fe.U11"] == states["occupancy"] == "fixed"
    assert states["u_aniso.Fe.U22"] == states["u_aniso.Fe.U12"] == "by symmetry"
    again = Phase.from_cif(out / "Fe.cif")
    assert again.u_aniso.tolist() == [[0.004] * 3 + [0.0] * 3]
    page = (out / "report.html").read_text()
    assert ">anisotropic</td>" in page
    assert "Fe (1 1 0)" in page


WRONG = [
    ("cif = ", "cfi = ", "pbso4.toml:LINE:1: there is no key 'cfi'; nearest: cif"),
    ('"start.cif"', '"strat.cif"', "pbso4.toml:LINE:1: there is no file 'strat.cif'; nearest"),
    ('"start.cif"', '"../x.cif"', "pbso4.toml:LINE:1: the file '../x.cif' is not in the"),
    ('cif = "start.cif"', 'cif = "start.cif"\nown = "cel"', "a phase has no 'cel'; nearest"),
    ("background = 3", "phases = 'PbSO'", "there is no phase 'PbSO'; nearest: PbSO4"),
    ("background = 3", "backgrond = 3", "there is no key 'backgrond'; nearest: background"),
    ("background = 3", "background = 0", "pbso4.toml:LINE:1: background is the number of"),
    ("background = 3", "preferred = {PbSO4 = [0, 1]}", "a direction is [h, k, l]"),
    ("background = 3", "refine = 'wavelenth'", "'wavelenth' is no parameter; nearest: wave"),
    ("background = 3", "format = 'xyz'", "there is no format 'xyz'; nearest: xye"),
    ("background = 3", "ratio = 0.5", "neutrons have no ratio"),
    ('"neutron"', '"electron"', "radiation = 'neutron' or 'xray'"),
    ("wavelength = 1.909", "wavelength = 1e-6", "wavelength is from 0.05 to 20, not 1e-06"),
    ("wavelength = 1.909", "", "neutrons need wavelength"),
    ("range = [20, 45]", "range = [120, 145]", "the ranges leave no observation"),
    ("zero = -0.1", "zeor = -0.1", "there is no key 'zeor'; nearest: zero"),
    ("zero = -0.1", "zero = '1'", "data.neutron.instrument.zero must be a number"),
]


@pytest.mark.parametrize(("old", "new", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_project_is_named(folder, monkeypatch, old, new, said):
    monkeypatch.chdir(folder)
    text = NEUTRON.replace(old, new, 1)
    line = text[: text.find(new)].count("\n") + 1
    (folder / "pbso4.toml").write_text(text)
    from pathlib import Path

    with pytest.raises(ProjectError) as caught:
        build(load(Path("pbso4.toml")))
    assert said.replace("LINE", str(line)) in str(caught.value)
    assert str(caught.value).startswith("pbso4.toml:")
    assert "\n" not in str(caught.value)


LATER = [
    ('[start]\n"**.cell" = [8.5, 5.4]\n', "'neutron.PbSO4.cell' has 6 values, not 2"),
    ('[start]\n"**.cell" = 8.5\n', "the symmetry of 'PbSO4' does not allow it"),
    ("[ties]\nneutron.scale = 'neutron.instrument.u'\n", "only single ones follow others"),
    ("[ties]\nequal = [['neutron.PbSO4.cell', 'neutron.background']]\n", "not as many values"),
    ("[[stage]]\nfree = '*.instrument.wavelength'\n", "only where refine"),
]


@pytest.mark.parametrize(("text", "said"), LATER, ids=range(len(LATER)))
def test_what_does_not_fit_together_is_named(folder, text, said):
    with pytest.raises(ProjectError, match=r"^.*pbso4.toml:\d+:\d+: ") as caught:
        solve(project(folder, NEUTRON + text))
    assert said in str(caught.value)


FILES = [
    ("start.cif", "loop_ \n", "loop_ \n _x 'abc\n", r"^start.cif:30:9: is no CIF: untermin"),
    ("start.cif", "data_pbso4", "dta_pbso4", r"^start.cif:3:1: is no CIF: expected block"),
    ("start.cif", "0.18820", "abc", r"^start.cif:39:1: .*atom 'Pb' lacks a coordinate"),
    ("start.cif", "_cell_length_a", "_cell_length_q", r"^start.cif: .*the cell is missing"),
    ("start.cif", "beta   90", "beta   95", r"^start.cif: the cell does not have the symm"),
    ("neutron.xye", "20.0", "20.O", r"^neutron.xye:\d+:1: '20.O.*' is not a finite number"),
    ("neutron.xye", "\n20.0", "\n10.0", r"^neutron.xye:\d+:1: 2θ must rise"),
]


@pytest.mark.parametrize(("name", "old", "new", "said"), FILES, ids=range(len(FILES)))
def test_a_wrong_file_is_named_by_line_and_column(folder, name, old, new, said):
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ProjectError, match=said) as caught:
        started(folder, NEUTRON)
    assert str(folder) not in str(caught.value)


def test_files_that_are_no_patterns(folder):
    (folder / "neutron.xye").write_bytes(gzip.compress(b"0" * (65 * 1024**2)))
    with pytest.raises(ProjectError, match="is larger than"):
        started(folder, NEUTRON)
    (folder / "neutron.xye").write_bytes(b"\x1f\x8bxx")
    with pytest.raises(ProjectError, match=r"^neutron.xye: cannot be read"):
        started(folder, NEUTRON)
    (folder / "start.cif").write_text("/etc/passwd")
    (folder / "neutron.xye").write_text("20 1 1\n21 1 1\n")
    with pytest.raises(ProjectError, match=r"^start.cif:1:1: is no CIF"):
        started(folder, NEUTRON)


def test_fullprofs_records_are_read(folder):
    raw = gzip.decompress(source("neutron.dat.gz").read_bytes())
    (folder / "d1a.dat").write_bytes(raw)
    text = NEUTRON.replace("neutron.xye", "d1a.dat").replace(
        "background = 3", 'background = 3\nformat = "d1a"'
    )
    known = started(folder, NEUTRON).powder["neutron"]
    found = started(folder, text).powder["neutron"]
    torch.testing.assert_close(found.sigma, known.sigma)


def test_single_numbers_are_tied_beside_the_structure(folder):
    text = PROJECT + '[ties]\nequal = [["neutron.*.u_iso.O1", "neutron.*.u_iso.O2"]]\n'
    text += 'start = {"*.PbSO4.u_iso" = [0.01, 0.01, 0.02, 0.03, 0.01]}\n'
    text = text.replace("start = {", "[start]\n", 1).replace("]}", "]")
    found = solve(project(folder, text + STAGES.replace("*.PbSO4.cell", "*.PbSO4.u_iso")))
    for name in ("neutron", "xray"):
        u = found.fit.values[f"{name}.PbSO4.u_iso"].tolist()
        assert u[2] == u[3]
        assert len(set(u)) == 4
    assert found.state["neutron.PbSO4.u_iso.O1"] == "free"
    assert found.state["xray.PbSO4.u_iso.O1"] == "tied"
    oxygens = found.verdicts[0]
    assert oxygens.tie == "neutron.*.u_iso.O1 = neutron.*.u_iso.O2"
    assert oxygens.df == 1
    wanted = found.fit.score_test(release=found.built.ties[0].tie)
    assert oxygens.statistic == pytest.approx(wanted.statistic)
    assert set(oxygens.changes) == {"neutron.PbSO4.u_iso.O1", "neutron.PbSO4.u_iso.O2"}


def test_the_command_line(folder, monkeypatch, capsys):
    from eadem.cli import main

    text = PROJECT + '[[stage]]\nfree = ["*.scale", "*.background"]\n'
    project(folder, text)
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as done:
        main(["fit", "pbso4.toml", "--quiet"])
    assert not done.value.code
    out = capsys.readouterr().out
    assert "neutron: Rwp " in out
    assert "neutron.background[2]" in out
    assert "neutron.PbSO4.cell.a" not in out
    assert "tie *.PbSO4.cell: everything tied is fixed" in out
    written = {p.name for p in (folder / "pbso4-fit").iterdir()}
    assert written == {
        "PbSO4.cif", "fit.json", "neutron.csv", "neutron.reflections.csv", "report.html",
        "values.csv", "xray.csv", "xray.reflections.csv",
    }  # fmt: skip
    project(folder, text.replace("wavelength = 1.909", "wavelenth = 1.909"))
    with pytest.raises(SystemExit) as done:
        main(["fit", "pbso4.toml"])
    assert done.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("eadem: pbso4.toml:11:1: there is no key 'wavelenth'; nearest: ")
    assert said.count("\n") == 1
