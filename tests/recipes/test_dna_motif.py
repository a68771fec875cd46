"""The recipe dna-motif: its quick run, its windows and its tie."""

import json

import pytest
import torch

import eadem
from eadem.recipes import _motif, render, run
from eadem.recipes import dna_motif as recipe
from eadem.recipes._verification import area


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("dna-motif", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C26"
    assert claim["holds"], claim["measured"]


def test_only_the_tied_network_gives_one_answer_for_both_strands(metrics):
    assert metrics["other_strand"]["tied"] <= 1e-12
    assert metrics["other_strand"]["plain"] > 1e-2


def test_both_networks_have_as_many_free_values(metrics):
    tied, plain = metrics["counts"]["tied"], metrics["counts"]["plain"]
    assert tied["free"] == plain["free"] == plain["expanded"] == 8 * (4 * 11 + 1 + 1) + 1
    assert tied["expanded"] - 1 == 2 * (tied["free"] - 1)  # the head has one bias


def letters(x):
    return "".join(_motif.BASES[int(i)] for i in x)


def test_the_genome():
    sequence = letters(recipe.genome())
    assert len(sequence) == 5386
    assert sequence.startswith(
        "GAGTTTTATCGCTTCCATGACGCAGAAGTTAACACTTTCGGATATTTCTGATGAGTCGAAAAATTATC"
    )
    assert recipe.MOTIF not in sequence
    assert "TGTAATC" not in sequence


def test_every_other_window_has_the_motif_on_one_strand():
    data = recipe.windows(recipe.genome(), 200, torch.Generator().manual_seed(3))
    assert data.x.shape == (200, 4, _motif.LENGTH)
    assert torch.equal(data.x.sum(1), torch.ones(200, _motif.LENGTH))
    strands = [0, 0]
    for x, y in zip(data.x, data.y, strict=True):
        forward = letters(x.argmax(0))
        backward = letters(recipe.reverse_complement(x).argmax(0))
        here = [recipe.MOTIF in forward, recipe.MOTIF in backward]
        assert sum(here) == int(y)
        strands = [a + b for a, b in zip(strands, here, strict=True)]
    assert min(strands) > 25


def test_the_reverse_complement_of_a_known_sequence():
    x = torch.nn.functional.one_hot(torch.tensor([2, 0, 3, 3, 0, 1, 0]), 4).T
    assert letters(x.argmax(0)) == "GATTACA"
    assert letters(recipe.reverse_complement(x).argmax(0)) == "TGTAATC"


def test_the_second_half_of_the_filters_is_the_first_on_the_other_strand():
    model = recipe.classifier(True, seed=1)
    w = model.filters.weight.detach()
    assert torch.equal(w[recipe.FILTERS :], w[: recipe.FILTERS].flip(1, 2))
    eadem.check(model)


def test_auc_counts_pairs():
    y = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert area(torch.tensor([3.0, 1.0, 2.0, 1.0]), y == 1) == (1 + 1 + 0 + 0.5) / 4


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C26" in page
    assert 'class="logo"' in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
