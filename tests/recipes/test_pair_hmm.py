"""The recipe pair-hmm: its quick run, its data, and how alignments are scored."""

import json

import pytest

from eadem.hmm import DNA, PROTEIN, PairHMM
from eadem.hmm.sequences import Record
from eadem.recipes import pair_hmm as recipe
from eadem.recipes import run

pytest.importorskip("jinja2")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("pair-hmm", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert "haemoglobin" in (folder / "report.html").read_text()
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C22"
    assert claim["holds"], claim["measured"]
    assert metrics["free"] == {"tied": 15, "untied": 26}
    assert metrics["swap"]["insertions alone"] > 1e-3


@pytest.mark.slow
def test_a_fit_does_not_spoil_the_alignments(metrics):
    for stages in metrics["accuracy"].values():
        assert stages["fitted"]["mea"] > stages["start"]["mea"] - 0.01 > 0.85


def test_the_alignments_are_those_of_the_package():
    globins, copies = recipe.aligned("globins4.sto"), recipe.aligned("made1.sto")
    assert [r.name for r in globins][:2] == ["HBB_HUMAN", "HBA_HUMAN"]
    assert [len(r.ungapped) for r in globins] == [146, 141, 153, 149]
    assert len(copies) == len({r.name for r in copies}) == 100
    for r in copies:
        DNA.encode(r.ungapped)
    for r in globins:
        PROTEIN.encode(r.ungapped)


def test_accuracy_counts_the_pairs_of_the_reference():
    x, y = Record("x", "GATTA-CA"), Record("y", "GAT-AGCA")
    assert recipe.accuracy(PairHMM(DNA), x, y, "viterbi") in [(5, 6), (6, 6)]
    same = Record("y", "GATTA-CA")
    assert recipe.accuracy(PairHMM(DNA), x, same, "mea") == (7, 7)
