"""The guide's example does what the guide says, and its tables are the code's."""

from __future__ import annotations

import gzip
import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

from eadem.cli import main
from eadem.powder import read_steps
from eadem.project import MODELS, load, powder, solve
from eadem.project.build import build
from eadem.project.expression import FUNCTIONS
from eadem.project.spec import _DATA, _OPTIONS, _TOP

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "project.md"


@pytest.fixture
def folder(tmp_path):
    """The files that the guide prints."""
    text = GUIDE.read_text(encoding="utf-8")
    files = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == ["plain.csv", "inhibited.csv", "enzyme.toml"]
    for name, content in files:
        (tmp_path / name).write_text(content)
    return tmp_path


def test_the_example_does_what_it_says(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as done:
        main(["fit", "enzyme.toml"])
    assert not done.value.code
    out = capsys.readouterr().out
    printed = re.search(r"```console\n(.*?)```", GUIDE.read_text(), re.DOTALL).group(1)
    for line in printed.splitlines()[1:]:
        start = line.partition("…")[0].rstrip()
        assert not start or any(seen.startswith(start) for seen in out.splitlines()), start
    assert (folder / "enzyme-fit" / "report.html").is_file()


def test_one_k_is_accepted_and_more_precise_and_one_vm_rejected(folder):
    path = folder / "enzyme.toml"
    tied = solve(load(path))
    assert tied.verdicts[0].word(False) == "nothing against it"
    text = path.read_text()
    path.write_text(text.replace('equal = ["*.K"]', ""))
    separate = solve(load(path))
    errors = [float(separate.fit.stderr[f"{n}.K"]) for n in ("plain", "inhibited")]
    assert float(tied.fit.stderr["plain.K"]) < min(errors)
    path.write_text(text.replace("*.K", "*.Vm"))
    wrong = solve(load(path))
    assert wrong.verdicts[0].word(False) == "rejected"
    assert wrong.verdicts[0].changes["plain.Vm"] > 0 > wrong.verdicts[0].changes["inhibited.Vm"]


def test_the_guide_names_every_model_function_and_key():
    text = GUIDE.read_text(encoding="utf-8")
    for name in (*MODELS, "polynomial"):
        assert f"`{name}`" in text
    listed = re.search(r"the functions `([\w ]+)`", text).group(1)
    assert listed.split() == sorted(FUNCTIONS)
    for key in (*_DATA, *_OPTIONS, *_TOP, *powder._DATA, *powder._PHASE, *powder._READERS):
        assert re.search(rf"\b{key}\b", text), key


def test_every_toml_of_the_guide_is_toml():
    blocks = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 9
    for block in blocks:
        tomllib.loads(block)


def test_the_powder_project_of_the_guide_can_be_built(tmp_path):
    text = GUIDE.read_text(encoding="utf-8")
    first, more = (
        b
        for b in re.findall(r"^```toml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        if "PbSO4" in b
    )
    folder = resources.files("eadem").joinpath("data", "pbso4")
    for name, file in (("start.cif", "start.cif.gz"), ("neutron.dat", "neutron.dat.gz")):
        (tmp_path / name).write_bytes(gzip.decompress(folder.joinpath(file).read_bytes()))
    data = read_steps(str(folder.joinpath("xray.dat.gz")))
    rows = zip(data.x.tolist(), data.y.tolist(), data.sigma.tolist(), strict=True)
    (tmp_path / "xray.xye").write_text("\n".join(f"{a} {b} {c}" for a, b, c in rows))
    (tmp_path / "pbso4.toml").write_text(first + more)
    built = build(load(tmp_path / "pbso4.toml"))
    shared = ["*.PbSO4.cell", "*.PbSO4.xyz", "*.PbSO4.u_iso"]
    assert [t.text for t in built.ties][1:] == shared
    assert len(built.ties[0].sites) == 2
    assert built.bounds["neutron.PbSO4.u_iso.O1"] == (0.0, 0.1)
    assert built.starts["xray.PbSO4.u_iso"].tolist() == [0.008] * 5
    for block in built.powder.values():
        assert block.rwp() < 0.7
