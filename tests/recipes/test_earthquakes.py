"""The recipe earthquakes: its quick run, and its series."""

import itertools
import json

import pytest

from eadem.recipes import earthquakes as recipe
from eadem.recipes import run


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("earthquakes", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert "Every step gains" in (folder / "report.html").read_text()
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C21"
    assert claim["holds"], claim["measured"]


def test_the_states_are_years_of_one_kind(metrics):
    decoded = metrics["fits"][-1]["decoded"]
    assert len(decoded) == 107
    assert sum(a != b for a, b in itertools.pairwise(decoded)) < 20


def test_a_tie_holds_in_its_fit(metrics):
    first, second = metrics["beliefs"].values()
    assert first["transmat"][0][1] == first["transmat"][1][0]
    assert second["rates"][1] == pytest.approx(3 * second["rates"][0], rel=1e-12)
    assert first["df"] == second["df"] == 1


def test_the_series_is_whole():
    counts = recipe.counts()[:, 0]
    assert (counts[0], counts[43], counts[-1]) == (13, 41, 11)
