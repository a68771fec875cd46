"""FASTA and Stockholm, in and out."""

from __future__ import annotations

import pytest

from eadem.hmm import DNA, PROTEIN, PairHMM, SequenceError, read_fasta, read_sequences
from eadem.hmm.alphabet import guess
from eadem.hmm.sequences import read_stockholm, write_fasta, write_stockholm

STOCKHOLM = """# STOCKHOLM 1.0
#=GF ID   two
#=GF DE   of a
#=GF DE   kind

one    GA-TT
#=GR one PP 99.99
two    GACT.
#=GC RF xx.xx

one    ACA
two    AC-
#=GC RF xxx
//
"""


def written(folder, text, name="a.fa"):
    path = folder / name
    path.write_text(text)
    return path


def test_fasta(tmp_path):
    text = ">one first of two\nGATT\nACA\n\n>two\nga-tt\n"
    found = read_fasta(written(tmp_path, text))
    assert [(r.name, r.description, r.sequence) for r in found] == [
        ("one", "first of two", "GATTACA"),
        ("two", "", "ga-tt"),
    ]
    assert read_fasta(written(tmp_path, write_fasta(found))) == found
    assert read_sequences(written(tmp_path, text))[1].sequence == "gatt"


def test_stockholm(tmp_path):
    found = read_stockholm(written(tmp_path, STOCKHOLM))
    assert [(r.name, r.sequence) for r in found.records] == [
        ("one", "GA-TTACA"),
        ("two", "GACT.AC-"),
    ]
    assert found.columns == {"RF": "xx.xxxxx"}
    assert found.about == {"ID": "two", "DE": "of a kind"}
    again = read_stockholm(written(tmp_path, write_stockholm(found)))
    assert again == found
    ungapped = read_sequences(written(tmp_path, STOCKHOLM))
    assert [r.sequence for r in ungapped] == ["GATTACA", "GACTAC"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("GATTACA\n", "line 1.*before any record"),
        (">a\nGAT\n>\nGAT\n", "line 3.*without a name"),
        (">a\nGAT\n>b\n>c\nA\n", "line 3.*'b' has no letters"),
        (">a\nGAT\nG1T\n", "line 3.*'1'"),
        ("\n", "no sequence"),
    ],
)
def test_bad_fasta_is_refused_by_its_line(tmp_path, text, says):
    with pytest.raises(SequenceError, match=says):
        read_fasta(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (">a\nGAT\n", "line 1.*begins with"),
        ("", "line 1.*begins with"),
        ("# STOCKHOLM 1.0\na GAT\n", "line 2.*end with //"),
        ("# STOCKHOLM 1.0\na GAT\nb GA\n//\n", "line 3.*'b' has 2 columns"),
        ("# STOCKHOLM 1.0\na GAT GAT\n//\n", "line 2.*a name and a piece"),
        ("# STOCKHOLM 1.0\n//\n", "no sequence"),
    ],
)
def test_bad_stockholm_is_refused_by_its_line(tmp_path, text, says):
    with pytest.raises(SequenceError, match=says):
        read_stockholm(written(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SequenceError, match="cannot be read"):
        read_fasta(tmp_path / "none.fa")
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SequenceError, match="not a text file"):
        read_fasta(tmp_path / "b")


def test_an_alignment_is_written(tmp_path):
    found = PairHMM(DNA).align("gattacagattaca", "GATTACATTACA", names=("a", "b"))
    assert found.rows[0].replace("-", "") == "gattacagattaca"
    fasta = read_fasta(written(tmp_path, found.fasta()))
    stockholm = read_stockholm(written(tmp_path, found.stockholm()))
    assert tuple(r.sequence for r in fasta) == found.rows
    assert tuple(r.sequence for r in stockholm.records) == found.rows
    assert stockholm.columns["state"] == found.path
    assert found.identity == 1.0
    assert len(found.show(width=5).splitlines()) == 11
    with pytest.raises(SequenceError, match="each once"):
        PairHMM(DNA).align("A", "A", names=("a", "a")).stockholm()


def test_the_alphabet_is_guessed():
    assert guess(["ACGTNNACGTRACGTACGT"]) is DNA
    assert guess(["ACGTXACGT"]) is PROTEIN
    assert guess(["GACT", "MKV"]) is PROTEIN
