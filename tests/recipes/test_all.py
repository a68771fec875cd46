"""`eadem run --all`: one failure stops nothing, and one page says what came out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import eadem
from eadem import recipes
from eadem.recipes import RunError, _all
from eadem.recipes._statements import STATEMENTS

pytest.importorskip("jinja2")
# Each recipe is a process that imports torch.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STUDY = '''"""{title}."""
def run(context):
    {body}
'''
BODIES = {
    "whole": (
        "context.claim('C05', 'the sum', 'equal', 2.0, 2.0, True); "
        "context.claim('C05', 'not the mean', 'equal', 1.0, 2.0, False); "
        "context.claim('C10', 'a bound', 'less', 1, 3, False); "
        "context.claim('C99', 'of no list', 'equal', 1, 1, True); "
        "context.write_text('report.html', '<p>page</p>')"
    ),
    "broken": "raise ValueError('a <b> in 1')",
    "lacking": (
        "from eadem.recipes._data import Package; "
        "Package('no-such-data', '1.0', 'no_such_data', 'MIT').read('a.csv', '0')"
    ),
    "dying": "import os; os.kill(os.getpid(), 9)",
}


def _folder(folder: Path, monkeypatch: pytest.MonkeyPatch, bodies: dict[str, str]) -> Path:
    """Recipes that take the place of the real ones, here and in the processes started."""
    studies = folder / "studies"
    studies.mkdir()
    for name, body in bodies.items():
        (studies / f"{name}.py").write_text(STUDY.format(title=f"Title of {name}", body=body))
    here = f"import eadem.recipes as r; r.__path__ = [*r.__path__, {str(studies)!r}]; "
    monkeypatch.setattr(_all, "CHILD", here + _all.CHILD)
    monkeypatch.setattr(
        _all, "recipes", lambda: {name: f"Title of {name}" for name in sorted(bodies)}
    )
    monkeypatch.setenv("PYTHONPATH", str(Path(eadem.__file__).parents[1]))
    monkeypatch.setenv("EADEM_DATA", str(folder / "nothing"))
    return folder / "all"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        out = _folder(tmp_path_factory.mktemp("all"), patch, BODIES)
        return _all.run_all(out=out, quick=True, jobs=2)


@pytest.fixture(scope="module")
def record(result: Path) -> dict:
    return json.loads((result / "claims.json").read_text(encoding="utf-8"))


def test_one_failure_does_not_stop_the_rest(record: dict, result: Path) -> None:
    states = {study["recipe"]: study["state"] for study in record["recipes"]}
    assert states == {
        "whole": "whole",
        "broken": "failed",
        "lacking": "missing",
        "dying": "failed",
    }
    assert (result / "whole" / "metrics.json").is_file()
    assert not (result / "broken").exists()


def test_a_reason_is_given_for_what_is_not_whole(record: dict, result: Path) -> None:
    reasons = {study["recipe"]: study["reason"] for study in record["recipes"]}
    assert reasons["broken"] == "ValueError: a <b> in 1 (see broken.log)"
    assert "pip install --no-deps no-such-data==1.0" in reasons["lacking"]
    assert reasons["dying"].startswith("killed by signal 9")
    assert "Traceback" in (result / "broken.log").read_text()
    assert not (result / "whole.log").exists()


def test_every_statement_has_its_status(record: dict) -> None:
    claims = {claim["id"]: claim for claim in record["claims"]}
    assert list(claims) == [*STATEMENTS, "C99"]
    assert claims["C05"]["status"] == "holds in part"
    assert [r["holds"] for r in claims["C05"]["results"]] == [True, False]
    assert {r["recipe"] for r in claims["C05"]["results"]} == {"whole"}
    assert claims["C10"]["status"] == "does not hold"
    assert claims["C99"]["status"] == "holds"
    assert {c["status"] for k, c in claims.items() if not c["results"]} == {"not run"}


def test_the_page_says_what_holds_and_what_does_not(result: Path) -> None:
    page = (result / "index.html").read_text(encoding="utf-8")
    assert page.count("✗ does not hold") == 1
    assert page.count("– not run") == len(STATEMENTS) - 2
    assert '<a href="whole/report.html">whole</a>' in page
    assert "ValueError: a &lt;b&gt; in 1" in page
    assert "pip install --no-deps no-such-data==1.0" in page


def test_the_statements_are_the_thirty_two() -> None:
    assert list(STATEMENTS) == [f"C{n:02}" for n in range(1, 33)]


def test_resume_keeps_what_is_whole_and_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = _folder(tmp_path, monkeypatch, {"whole": BODIES["whole"]})
    (out / "whole").mkdir(parents=True)
    held = {"quick": False, "seed": 0, "device": "cpu", "seconds": 1.0, "claims": []}
    (out / "whole" / "metrics.json").write_text(json.dumps(held))
    (out / "claims.json").write_text("{}")
    _all.run_all(out=out, resume=True)
    assert json.loads((out / "claims.json").read_text())["recipes"][0]["seconds"] == 1.0
    _all.run_all(out=out, resume=True, quick=True)
    assert json.loads((out / "whole" / "metrics.json").read_text())["quick"] is True


def test_a_folder_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="--out"):
        _all.run_all(out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


INTERRUPTED = """
import signal
import sys
from pathlib import Path
from eadem.recipes import _all
import eadem.cli
# what starts tests in the background may have told them to ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
here = f"import eadem.recipes as r; r.__path__ = [*r.__path__, {sys.argv[1]!r}]; "
_all.CHILD = here + _all.CHILD
_all.recipes = lambda: {"a": "A", "b": "B", "c": "C"}
eadem.cli.main(["run", "--all", "--out", sys.argv[2]])
"""


def test_ctrl_c_keeps_what_is_whole(tmp_path: Path) -> None:
    bodies = {"a": "pass", "b": "import time; time.sleep(60)", "c": "pass"}
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(STUDY.format(title=name, body=body))
    out = tmp_path / "all"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(eadem.__file__).parents[1])},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 120
        while not (out / "b.partial" / "PARTIAL").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "--resume" in err
    found = json.loads((out / "claims.json").read_text())["recipes"]
    assert [study["state"] for study in found] == ["whole", "interrupted", "not run"]
    assert (out / "a" / "metrics.json").is_file()
    assert (out / "index.html").is_file()


def test_run_wants_a_name_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    from eadem.cli import main

    for words in (["run"], ["run", "mnist", "--all"]):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert "--all" in capsys.readouterr().err


def test_recipes_that_there_are_have_statements() -> None:
    """A claim id in a recipe's docstring is one of the list."""
    import re

    said = set()
    for name in recipes.recipes():
        module = Path(recipes.__file__).with_name(name.replace("-", "_") + ".py")
        said |= set(re.findall(r"\bC\d\d\b", module.read_text(encoding="utf-8")))
    assert said <= set(STATEMENTS)
