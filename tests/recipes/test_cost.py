"""The recipe cost: its quick run, its counts against arithmetic, its memory against a sum."""

import json

import pytest
import torch
from torch import nn

from eadem.recipes import _counted_step, render, run
from eadem.recipes import cost as recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("cost", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_memory_is_saved_operations_are_not_and_locality_is_what_saves_them(metrics):
    memory, operations, locality = metrics["claims"]
    assert {c["id"] for c in metrics["claims"]} == {"C32"}
    assert memory["holds"], memory["measured"]
    assert not operations["holds"]
    assert operations["measured"] == dict.fromkeys(recipe.PAIRS, 1.0)
    assert locality["holds"], locality["measured"]


def test_counts_are_those_of_arithmetic(metrics):
    pair = metrics["models"]["a filter over positions"]
    each = 16 * (8 * 9 + 1)
    assert (pair["tied"]["free"], pair["untied"]["free"]) == (each, 900 * each)
    # 16 images, 900 places, 16 channels of 72 products; forward, and the weight's gradient
    assert pair["tied"]["operations"] == 2 * 2 * 16 * 900 * 16 * 72
    depth = metrics["models"]["tied depth"]
    assert (
        depth["untied"]["free"] == recipe.DEPTH * depth["tied"]["free"] == 8 * (256 * 256 + 256)
    )
    forward = 2 * 64 * 256 * 256
    assert depth["tied"]["operations"] == forward * (3 * recipe.DEPTH - 1)


def test_adam_keeps_two_numbers_for_each_that_is_free(metrics):
    for pair in metrics["models"].values():
        for m in (pair["tied"], pair["untied"]):
            rest = m["optimizer"] - 2 * m["gradient"]
            assert 0 < rest <= 4 * 20  # a counter of steps for every parameter
            assert m["peak"] >= 4 * m["free"] + m["gradient"] + m["optimizer"]


def test_a_pair_starts_as_one_function(metrics):
    assert max(pair["start"] for pair in metrics["models"].values()) <= 1e-5


def test_alive_is_the_most_that_was_alive_at_once():
    x = torch.ones(1000)
    with _counted_step.Alive() as alive:
        a = x + 1  # 4,000 bytes
        b = a * a  # 8,000
        c = b.reshape(10, 100)  # a view
        a.mul_(2)
        del a
        d = c.sum()  # 4,004
        del b, c
        e = torch.zeros(500)  # 2,004
        del d
    assert alive.most == 8000
    assert alive.now == 2000 == 4 * e.numel()


def test_a_step_holds_what_backward_needs():
    x = torch.ones(8, 100)
    step = recipe.Step(nn.Sequential(nn.Linear(100, 50), nn.Tanh(), nn.Linear(50, 2)), x)
    found = step.counted()
    assert found["operations"] == 2 * 8 * (100 * 50 * 2 + 50 * 2 * 3)
    assert found["peak"] >= found["optimizer"] + 2 * found["gradient"]


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C32" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
