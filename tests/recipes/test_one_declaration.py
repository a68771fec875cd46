"""The recipe one-declaration: its quick run, and its HMM against independent sums."""

import itertools
import json

import pytest
import torch

import eadem
from eadem.bind import free_vector, resolved
from eadem.recipes import one_declaration as recipe
from eadem.recipes import render, run

pytest.importorskip("mlxtend")


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


def test_the_forward_recursion_and_its_counts_against_all_paths():
    torch.manual_seed(0)
    hmm = recipe.CategoricalHMM(recipe.START, recipe.MOVE, recipe.EMIT)
    plan = resolved(hmm)
    for length in (1, 2, 5, 6):
        symbols = recipe.sample(1, length, torch.Generator().manual_seed(length))
        density = recipe.at_sites(hmm, recipe.likelihood, symbols)
        total, counts = recipe.expected_counts(density)(plan.expand(free_vector(hmm)))
        sites = {n: p.detach() for n, p in hmm.named_parameters()}
        expected, by_path = recipe.over_all_paths(sites, symbols[0])
        assert total == pytest.approx(expected, rel=1e-12)
        torch.testing.assert_close(counts, by_path, rtol=1e-10, atol=1e-12)


def test_the_ties_of_the_hidden_markov_model_hold_with_its_rows():
    hmm = recipe.probabilities(
        0, ("emissionprob[0]", "emissionprob[2]"), ("transmat[0, 1]", "transmat[1, 2]")
    )
    move = hmm.transmat.detach()
    torch.testing.assert_close(move.sum(1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(hmm.emissionprob[0], hmm.emissionprob[2])
    assert float(move[0, 1] - move[1, 2]) == pytest.approx(0, abs=1e-14)
    assert bool((move[recipe.MOVE == 0] == 0).all())
    # 3 + (12 − 4 impossible − 1 tied) + (12 − 3 tied)
    assert eadem.counts(hmm).free == 3 + 7 + 9
