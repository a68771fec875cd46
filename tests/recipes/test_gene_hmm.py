"""The recipe gene-hmm: its quick run, its annotation, and its pooled counts against sums."""

import json

import numpy as np
import pytest
import torch

import eadem
from eadem.recipes import gene_hmm as recipe
from eadem.recipes import run
from eadem.recipes._genome import BASES, chloroplast, label, triplets

CODE = dict(
    zip(
        (a + b + c for a in "TCAG" for b in "TCAG" for c in "TCAG"),
        "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG",
        strict=True,
    )
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("gene-hmm", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C21"
    assert claim["holds"], claim["measured"]


def test_it_finds_genes_better_than_one_answer_for_all(metrics):
    assert metrics["everything"]["tied"] > 0.3
    assert 0.4 < metrics["coding"] < 0.8
    assert recipe.matthews(np.ones(4, bool), np.array([True, False, True, True])) == 0.0


def test_free_values(metrics):
    """Three rows of 64 that sum to one are saved."""
    assert metrics["free"]["untied"] - metrics["free"]["tied"] == 3 * 63


def test_the_test_has_three_rows_of_four(metrics):
    assert metrics["evidence"]["df"] == 9


def test_a_gene_read_by_its_states_is_a_protein():
    """rbcL, forwards, and psbA, backwards: a start, a stop, and none between."""
    genome = chloroplast()
    for (first, last), back in (((54957, 56397), False), ((382, 1444), True)):
        bases, states = genome.bases[first:last], genome.states[first:last]
        if back:
            bases, states = 3 - bases[::-1], states[::-1] - 3
        assert states.tolist() == [1, 2, 3] * (len(bases) // 3)
        word = "".join(BASES[b] for b in bases)
        protein = "".join(CODE[word[i : i + 3]] for i in range(0, len(word), 3))
        assert protein[0] == "M"
        assert protein.index("*") == len(protein) - 1


def test_labels():
    assert label(4, ["<1..3"])[0].tolist() == [1, 2, 3, 0]
    assert label(4, ["1..3", "2..4"])[1].tolist() == [1, 1, 1, 2]
    states = label(8, ["join(complement(5..6),8..8)"])[0]
    assert states.tolist() == [0, 0, 0, 0, 5, 4, 0, 3]


def test_the_complement_of_triplets():
    """The symbols of the other strand, read there, are the complement's."""
    bases = np.random.default_rng(0).integers(0, 4, 50)
    turned = recipe.complement(3).bind((64,)).expand(torch.arange(64.0)).long().numpy()
    other = triplets(3 - bases[::-1])[::-1]
    assert (turned[triplets(bases)][1:-1] == other[1:-1]).all()
    assert (turned[turned] == np.arange(64)).all()


def test_pooled_counts_are_the_sums_over_the_strands():
    generator = np.random.default_rng(1)
    symbols, states = generator.integers(0, 64, 900), np.array([0, *[1, 2, 3] * 99, 0, 0])
    both = [(symbols[:300], states), (symbols[300:600], np.where(states, 7 - states, 0))]
    hmm = recipe.counted(recipe.hidden(True), both)
    rows = np.ones((7, 64))
    for x, z in both:
        np.add.at(rows, (z, x), 1)
    turned = recipe.complement(3).bind((64,)).expand(torch.arange(64.0)).long().numpy()
    for p in (1, 2, 3):
        pooled = rows[p] + rows[p + 3][turned]
        np.testing.assert_allclose(hmm.emissionprob_[p], pooled / pooled.sum(), rtol=1e-12)
        np.testing.assert_allclose(hmm.emissionprob_[p + 3], hmm.emissionprob_[p][turned])
    np.testing.assert_allclose(hmm.emissionprob_[0], rows[0] / rows[0].sum(), rtol=1e-12)
    assert hmm.transmat_[1, 3] == 0.0


def test_untied_counts_are_the_plain_ones():
    symbols, states = np.arange(64), np.array([*[1, 2, 3] * 21, 0])
    hmm = recipe.counted(recipe.hidden(False), [(symbols, states)])
    assert hmm.emissionprob_[1, 0] == pytest.approx(2 / (64 + 21))
    assert hmm.transmat_[3, 0] == pytest.approx(2 / (2 + 1 + 20))
    assert eadem.counts(hmm).free > eadem.counts(recipe.hidden(True)).free
