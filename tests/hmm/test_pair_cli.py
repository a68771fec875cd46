"""`eadem align`: what it prints and writes, and its one-line errors."""

from __future__ import annotations

import pytest

from eadem.cli import main
from eadem.hmm import DNA, PairHMM, read_fasta
from eadem.hmm.sequences import read_stockholm


def call(capsys, *words):
    """Exit code, stdout and stderr of `eadem align`."""
    with pytest.raises(SystemExit) as caught:
        main(["align", *map(str, words)])
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.fixture
def files(tmp_path):
    pairs, _ = PairHMM(DNA).sample(3, random_state=0)
    paths = []
    for side, name in enumerate("ab"):
        path = tmp_path / f"{name}.fasta"
        path.write_text("".join(f">s{k}\n{pair[side]}\n" for k, pair in enumerate(pairs)))
        paths.append(path)
    return *paths, pairs


def test_pairs_in_order(files, capsys):
    a, b, pairs = files
    code, out, err = call(capsys, a, b)
    assert (code, err) == (0, "")
    assert out.count("log-probability") == 3
    expected = PairHMM(DNA, symmetric=True).align(*pairs[1], names=("s1/1", "s1/2"))
    assert str(expected) in out


def test_one_with_each_and_files_out(files, capsys, tmp_path):
    a, b, pairs = files
    one = tmp_path / "one.fa"
    one.write_text(f">q\n{pairs[0][0]}\n")
    fasta, stockholm = tmp_path / "o.fasta", tmp_path / "o.sto"
    assert call(capsys, one, b, "--out", fasta, "--mea", "--band", 400, "--dna")[0] == 0
    rows = read_fasta(fasta)
    assert [r.name for r in rows] == ["q", "s0", "q", "s1", "q", "s2"]
    assert [r.ungapped for r in rows[1::2]] == [y for _, y in pairs]
    code, out, _ = call(capsys, a, b, "--out", stockholm, "--fit")
    assert (code, out) == (0, f"alignments: {stockholm}\n")
    assert stockholm.read_text().count("//\n") == 3
    assert read_stockholm(stockholm).records[0].ungapped == pairs[0][0]


def test_errors_are_one_line(files, capsys, tmp_path):
    a, _, _ = files
    two, odd = tmp_path / "two.fa", tmp_path / "odd.fa"
    two.write_text(">x\nACGT\n>y\nACG\n")
    odd.write_text(">x\nAC*GT\n")
    for words, says in (
        ((a, two), "3 sequences"),
        ((odd, two), "'x' of"),
        ((a, tmp_path / "none.fa"), "cannot be read"),
        ((two, two, "--out", tmp_path / "no" / "o.sto"), "cannot be written"),
    ):
        code, _, err = call(capsys, *words)
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("eadem: ")
        assert says in err
