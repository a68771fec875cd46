"""The guide's example does what the guide says, and its tables are the code's."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from eadem.cli import main
from eadem.project import MODELS, load, solve
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
    for key in (*_DATA, *_OPTIONS, *_TOP):
        assert re.search(rf"\b{key}\b", text), key


def test_every_toml_of_the_guide_is_toml():
    blocks = re.findall(r"^```toml\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        tomllib.loads(block)
