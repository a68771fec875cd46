"""The command line: what it prints, what it leaves on disk, and its one-line errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eadem import recipes
from eadem.cli import main
from eadem.recipes import METRICS, REPORT, Context, RunError
from eadem.recipes._run import PARTIAL, output_folder, write_atomic

STUDY = '''"""A study of nothing.

More about it.
"""
import random
import torch

def run(context):
    for _ in context.progress([1, 2], "outer"):
        for _ in context.progress(range(2), "inner"):
            pass
    value = torch.rand(2, dtype=torch.float64)
    context.claim("C00", "a draw lies in [0, 1)", "0 <= measured < 1", "[0, 1)", value, True)
    context.write_metrics({"draw": value, "other": random.random(), "bad": float("nan")})
    context.write_text("report.html", "<p>page</p>")
'''


def call(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line on stderr of a command that must fail with code 2."""
    code, out, err = call(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("eadem: ")
    assert err.count("\n") == 1
    return err


@pytest.fixture
def study(recipe_folder: Path) -> str:
    (recipe_folder / "a_study.py").write_text(STUDY)
    return "a-study"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom eadem.cli import main\ntry:\n    main(['--help'])\n"
        "except SystemExit as e:\n    assert not e.code\n"
        "print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert "summary" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_list_reads_titles_without_importing(
    recipe_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe_folder / "two_words.py").write_text('"""Its title.\n\nmore"""\nraise SystemError')
    (recipe_folder / "_private.py").write_text('"""Not shown."""')
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert any(line.split() == ["two-words", "Its", "title"] for line in out.splitlines())
    assert "Not shown" not in out


def test_run_prints_claims_and_ends_with_the_page(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "result"
    code, text, err = call(capsys, "run", study, "--quick", "--seed", 3, "--out", out)
    assert (code, err) == (0, "")
    assert text.splitlines()[-1] == f"report: {out / REPORT}"
    assert "1 of 1 claims hold" in text
    metrics = json.loads((out / METRICS).read_text())
    assert (metrics["recipe"], metrics["seed"], metrics["quick"]) == ("a-study", 3, True)
    assert metrics["claims"][0]["holds"] is True
    assert metrics["bad"] == "nan"
    assert [p.name for p in out.parent.iterdir()] == ["result"]
    assert sorted(p.name for p in out.iterdir()) == [METRICS, REPORT]


def test_seed_decides_everything(study: str, tmp_path: Path) -> None:
    def drawn(seed: int, name: str) -> dict[str, object]:
        folder = recipes.run(study, out=tmp_path / name, seed=seed)
        metrics = json.loads((folder / METRICS).read_text())
        del metrics["seconds"], metrics["cpu_seconds"]
        return metrics

    assert drawn(1, "a") == drawn(1, "b")
    assert drawn(1, "c")["draw"] != drawn(2, "d")["draw"]


def test_a_whole_result_is_replaced_only_by_a_whole_one(
    study: str, recipe_folder: Path, tmp_path: Path
) -> None:
    out = recipes.run(study, out=tmp_path / "r")
    before = (out / METRICS).read_bytes()
    (recipe_folder / "broken.py").write_text(
        '"""Broken."""\ndef run(context):\n'
        "    context.write_text('half', 'x')\n    raise ValueError('no')"
    )
    with pytest.raises(ValueError, match="no"):
        recipes.run("broken", out=out)
    assert (out / METRICS).read_bytes() == before
    partial = tmp_path / "r.partial"
    assert "failed (ValueError)" in (partial / PARTIAL).read_text()
    assert f"eadem run broken --out {out}" in (partial / PARTIAL).read_text()
    recipes.run(study, out=out, seed=5)
    assert json.loads((out / METRICS).read_text())["seed"] == 5
    assert not partial.exists()
    assert not (tmp_path / "r.replaced").exists()


def test_a_result_moved_aside_by_a_killed_run_comes_back(study: str, tmp_path: Path) -> None:
    out = recipes.run(study, out=tmp_path / "r")
    out.rename(tmp_path / "r.replaced")
    with pytest.raises(ValueError, match="stop"), output_folder(out, "again"):
        raise ValueError("stop")
    assert (out / METRICS).exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        output_folder(tmp_path / "r", "x"),
        pytest.raises(RunError, match="another run"),
        output_folder(tmp_path / "r", "x"),
    ):
        pass


def test_ctrl_c_leaves_a_marked_folder(recipe_folder: Path, tmp_path: Path) -> None:
    (recipe_folder / "slow.py").write_text(
        '"""Slow."""\nimport time\ndef run(context):\n'
        "    context.write_text('begun', 'x')\n    time.sleep(60)"
    )
    code = (
        "import signal, sys, eadem.recipes\nfrom eadem.cli import main\n"
        # what starts tests in the background may have told them to ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"eadem.recipes.__path__.append({str(recipe_folder)!r})\n"
        f"main(['run', 'slow', '--out', {str(tmp_path / 'r')!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    partial = tmp_path / "r.partial"
    try:
        end = time.monotonic() + 60
        while not (partial / "begun").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert "has not finished" in (partial / PARTIAL).read_text()
        time.sleep(0.5)  # into the recipe's own sleep: a signal within a finalizer is lost
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err == f"eadem: interrupted; {partial / PARTIAL} says how to start again\n"
    assert "was interrupted" in (partial / PARTIAL).read_text()
    assert not (tmp_path / "r").exists()


def test_report_shows_a_finished_run(
    study: str, recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (recipe_folder / "a_study.py").open("a") as file:
        file.write("\ndef report(folder):\n    (folder / 'report.html').write_text('again')\n")
    out = recipes.run(study, out=tmp_path / "r")
    code, text, _ = call(capsys, "report", out)
    assert code == 0
    assert text.splitlines()[-1] == f"report: {out / REPORT}"
    assert (out / REPORT).read_text() == "again"


def test_report_refuses_what_is_not_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no readable metrics.json" in fails(capsys, "report", tmp_path)
    (tmp_path / METRICS).write_text('{"recipe": ')
    assert "holds no readable metrics.json" in fails(capsys, "report", tmp_path)
    (tmp_path / METRICS).write_text('{"recipe": "x", "schema": 99, "claims": []}')
    assert "newer than this version" in fails(capsys, "report", tmp_path)
    (tmp_path / PARTIAL).write_text("")
    assert "not a whole result" in fails(capsys, "report", tmp_path)


def test_recipe_typo(study: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no recipe 'a-stud'; nearest: a-study" in fails(capsys, "run", "a-stud")


def test_folder_that_cannot_be_written(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    assert "--out" in fails(capsys, "run", study, "--out", file / "below")
    assert "is a file" in fails(capsys, "run", study, "--out", file)
    assert "--out" in fails(capsys, "run", study, "--out", "/proc/nowhere/r")
    assert "--out" in fails(capsys, "run", study, "--out", "/")
    assert file.read_text() == "mine"


def test_a_folder_of_the_users_own_is_never_replaced(
    study: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("thesis", "r.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "chapter.txt").write_text("mine")
    assert "no run wrote" in fails(capsys, "run", study, "--out", tmp_path / "thesis")
    assert "no run wrote" in fails(capsys, "run", study, "--out", tmp_path / "r")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "mine"
    assert (tmp_path / "r.partial" / "chapter.txt").read_text() == "mine"


def test_missing_data_package_names_the_extra(
    recipe_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (recipe_folder / "needy.py").write_text(
        '"""Needy."""\ndef run(context):\n    import no_such_data.digits'
    )
    err = fails(capsys, "run", "needy", "--out", tmp_path / "r")
    assert "'no_such_data'" in err
    assert 'pip install "eadem[recipes]"' in err


@pytest.mark.parametrize("device", ["nonsense", "meta:x", "hpu:99"])
def test_device_that_cannot_be_used(
    study: str, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--device cpu" in fails(capsys, "run", study, "--device", device)


@pytest.mark.parametrize(
    "words", [("rn",), ("run",), ("run", "x", "--sede", "1"), ("run", "x", "--seed", "-1")]
)
def test_usage_errors_are_one_line(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    fails(capsys, *words)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "neither a file nor MODULE:FACTORY"),
        ("no_such_module:build", "ModuleNotFoundError"),
        ("models_here:absent", "AttributeError"),
        ("models_here:broken", "ValueError: two lines"),
        ("models_here:number", "returned int"),
    ],
)
def test_summary_of_what_is_no_model(
    name: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "models_here.py").write_text(
        "def broken():\n    raise ValueError('two\\nlines')\ndef number():\n    return 1\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert says in fails(capsys, "summary", name)


def test_metrics_keep_the_keys_of_the_run(tmp_path: Path) -> None:
    context = Context("x", tmp_path)
    with pytest.raises(RunError, match="write_metrics was given claims, seed"):
        context.write_metrics({"seed": 1, "claims": []})
    assert not list(tmp_path.iterdir())


def test_atomic_write_leaves_the_old_file_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]


FACTORY = """
import eadem
from torch import nn

def build():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    eadem.tie(model, "2.weight", to="0.weight", via=eadem.Transpose())
    return model
"""


@pytest.fixture
def factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`module:factory` of a tied model, importable from the current folder alone."""
    name = f"models_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return f"{name}:build"


def test_summary_of_a_factory(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "summary", factory)
    assert (code, err) == (0, "")
    assert {"0.weight", "2.weight"} <= set(out.replace(",", " ").split())
    assert "34" in out  # free: 24 + 4 + 6
    assert "58" in out  # expanded


def test_summary_of_a_checkpoint(
    factory: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import eadem
    from eadem.cli import _built

    path = tmp_path / "model.safetensors"
    eadem.save(_built(factory), path)
    code, out, err = call(capsys, "summary", path)
    assert (code, err) == (0, "")
    assert {"0.weight", "2.weight"} <= set(out.replace(",", " ").split())
    path.write_bytes(path.read_bytes()[:-5])
    fails(capsys, "summary", path)
    path.write_bytes(b"not a checkpoint")
    fails(capsys, "summary", path)


PROJECT = """
[data.a]
file = "a.csv"
model = "line"
sigma = 0.1
[data.b]
file = "b.csv"
model = "line"
sigma = 0.1
[ties]
equal = "*.slope"
"""


@pytest.fixture
def fit_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two lines of one slope, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("a", 1), ("b", 4)):
        rows = "".join(f"{x},{level + 2 * x + 0.1 * (-1) ** x}\n" for x in range(8))
        (tmp_path / f"{name}.csv").write_text("x,y\n" + rows)
    path = tmp_path / "lines.toml"
    path.write_text(PROJECT)
    return path


def test_fit_leaves_a_report_and_prints_the_values(
    capsys: pytest.CaptureFixture[str], fit_project: Path
) -> None:
    code, out, err = call(capsys, "fit", "lines.toml")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert any("offset" in line for line in lines)
    assert any(line.startswith("a.slope") and line.rstrip().endswith("free") for line in lines)
    assert any(line.startswith("b.slope") and line.rstrip().endswith("tied") for line in lines)
    assert any(line.startswith("tie *.slope: nothing against it") for line in lines)
    folder = fit_project.with_name("lines-fit")
    assert lines[-1] == f"report: {folder / 'report.html'}"
    names = {p.name for p in folder.iterdir()}
    assert names == {"report.html", "fit.json", "values.csv", "a.csv", "b.csv"}
    assert not fit_project.with_name("lines-fit.partial").exists()


def test_fit_again_replaces_its_folder_and_no_other(
    capsys: pytest.CaptureFixture[str], fit_project: Path
) -> None:
    folder = fit_project.with_name("out")
    assert call(capsys, "fit", "lines.toml", "--out", folder, "--quiet")[0] == 0
    before = (folder / "fit.json").read_text()
    fit_project.write_text(PROJECT.replace("*.slope", "*.intercept"))
    code, out, _ = call(capsys, "fit", "lines.toml", "--out", folder, "-q")
    assert code == 0
    assert "offset" not in out
    assert (folder / "fit.json").read_text() != before
    foreign = fit_project.with_name("mine")
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    err = fails(capsys, "fit", "lines.toml", "--out", foreign)
    assert "no run wrote" in err
    assert (foreign / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[ties]", "[ties", "lines.toml:10:6: "),
        ("*.slope", "*.slop", "lines.toml:11:1: '*.slop' is no parameter; nearest: "),
        (
            '"a.csv"',
            '"../a.csv"',
            "lines.toml:3:1: the file '../a.csv' is not in",
        ),
        ("model", "modle", "lines.toml:4:1: there is no key 'modle'; nearest: model"),
    ],
)
def test_fit_errors_are_one_line_with_the_place(
    capsys: pytest.CaptureFixture[str], fit_project: Path, old: str, new: str, said: str
) -> None:
    fit_project.write_text(PROJECT.replace(old, new, 1))
    assert fails(capsys, "fit", "lines.toml").startswith(f"eadem: {said}")
    assert {p.name for p in fit_project.parent.iterdir()} == {"a.csv", "b.csv", "lines.toml"}


def test_fit_names_the_line_of_bad_data(
    capsys: pytest.CaptureFixture[str], fit_project: Path
) -> None:
    data = fit_project.with_name("b.csv")
    data.write_text(data.read_text() + "8,2O.1\n")
    assert fails(capsys, "fit", "lines.toml").startswith("eadem: b.csv:10:3: '2O.1' is not a")
    assert fails(capsys, "fit", "none.toml").startswith("eadem: there is no project file")


def test_fit_that_does_not_converge_is_reported_with_code_1(
    capsys: pytest.CaptureFixture[str], fit_project: Path
) -> None:
    curve = 'expression = "h*exp(-k*x)"\nstart = {h = 900, k = 9}'
    text = PROJECT.replace('model = "line"', curve).replace("slope", "k")
    fit_project.write_text(text + "[options]\nmax_iterations = 1\n")
    code, out, err = call(capsys, "fit", "lines.toml")
    assert code == 1
    assert err.startswith("eadem: not converged: ")
    assert "report: " in out
    page = (fit_project.with_name("lines-fit") / "report.html").read_text()
    assert "did not converge" in page


def test_a_hostile_project_runs_nothing(
    capsys: pytest.CaptureFixture[str], fit_project: Path
) -> None:
    for text in (
        "__import__('os').system('touch pwned')",
        "x.__class__.__mro__",
        "open('pwned', 'w')",
        "(lambda: 0)()",
    ):
        curve = f'expression = "{text}"'
        fit_project.write_text(PROJECT.replace('model = "line"', curve, 1))
        assert "column" in fails(capsys, "fit", "lines.toml")
        fit_project.write_text(PROJECT + f'a.intercept = "{text}"\n')
        assert "column" in fails(capsys, "fit", "lines.toml")
    assert {p.name for p in fit_project.parent.iterdir()} == {"a.csv", "b.csv", "lines.toml"}


def test_help_of_fit_needs_no_torch() -> None:
    code = (
        "import sys\nfrom eadem.cli import main\n"
        "try: main(['fit', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
