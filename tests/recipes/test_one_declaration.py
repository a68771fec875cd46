"""The recipe one-declaration: its quick run, and its HMM against independent sums."""

import itertools
import json

import pytest
import torch

from eadem.recipes import _one_declaration_data as data
from eadem.recipes import render, run

pytest.importorskip("mlxtend")
pytest.importorskip("numba")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("one-declaration", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C30"
    assert claim["holds"], claim["measured"]


def test_every_solver_found_what_its_oracle_found(metrics):
    for name, model in metrics["models"].items():
        assert model["agrees"], (name, model["discrepancy"])
        assert model["free"] < model["expanded"]


def test_em_is_monotone(metrics):
    history = metrics["models"]["hidden Markov model"]["history"]
    assert len(history) > 2
    assert all(b >= a for a, b in itertools.pairwise(history))


def test_degrees_of_freedom_are_what_the_ties_took(metrics):
    models = metrics["models"]
    assert models["network"]["true_tie"]["df"] == 14  # 2 × 6 weights and 2 biases
    assert models["hidden Markov model"]["true_tie"]["df"] == 4  # 3 of a row, and one move
    assert models["least-squares fit"]["true_tie"]["df"] == 3  # 2 rates and a width


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C30" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page


def test_relaxing_the_wrong_tie_gives_back_what_it_took(metrics):
    square = metrics["models"]["network"]["relaxed"]
    assert square["relaxed"] < square["wrong"]
    assert metrics["models"]["least-squares fit"]["relaxed"] is None


def test_the_hidden_markov_model_against_all_paths():
    hmm = data.near_the_truth(0)
    for length in (1, 2, 5, 6):
        (symbols,) = data.sequences(1, length, torch.Generator().manual_seed(length))
        assert data.off_all_paths(hmm, symbols) < 1e-10
    hmm.transmat_ = data.MOVE.roll(1, 0).numpy()
    total, _ = data.over_all_paths(hmm, symbols)
    before, _ = data.over_all_paths(data.near_the_truth(0), symbols)
    assert abs(total - before) > 1e-3


def test_a_curve_is_what_its_data_were_drawn_from():
    """At the truth the residuals are the errors, of variance 1."""
    x, y = data.drawn_curves(4000, torch.Generator().manual_seed(0))
    for i in range(3):
        curve = data.Curve(x, y[i], i)
        for name, values in data.TRUTH.items():
            curve.get_parameter(name).data.fill_(values[i])
        assert float(curve.residual().detach().square().mean()) == pytest.approx(1, abs=0.1)
