"""Readers: what they read, and where they say a file is wrong."""

import gzip
from importlib import resources

import pytest
import torch
from fullprof_models import columns

from eadem.errors import DataError
from eadem.powder import Data, read_counters, read_csv, read_steps, read_xye

PBSO4 = resources.files("eadem.data") / "pbso4"


def written(tmp_path, text):
    path = tmp_path / "data.txt"
    path.write_text(text)
    return path


def test_the_packages_neutron_counts_are_those_that_fullprof_read():
    with resources.as_file(PBSO4 / "neutron.dat.gz") as path:
        data = read_counters(path)
    x, observed, _ = columns("neutron")
    assert len(data) == 2920
    torch.testing.assert_close(data.x[: len(x)], x, atol=1e-9, rtol=0)
    assert torch.equal(data.y[: len(x)], observed)
    assert data.sigma[0] == 220**0.5
    assert data.sigma[41] == (211 / 2) ** 0.5


def test_the_packages_xray_counts_are_those_that_fullprof_read():
    with resources.as_file(PBSO4 / "xray.dat.gz") as path:
        data = read_steps(path)
    x, observed, _ = columns("xray")
    assert len(data) == 6001
    torch.testing.assert_close(data.x, x, atol=1e-9, rtol=0)
    assert torch.equal(data.y, observed)
    assert torch.equal(data.sigma, observed.sqrt())


def test_the_compressed_files_are_the_same_bytes_each_time():
    for name in ("neutron.dat.gz", "xray.dat.gz", "start.cif.gz", "reference_gsas2.json.gz"):
        raw = (PBSO4 / name).read_bytes()
        assert raw[4:8] == bytes(4), "no time in the header"
        assert gzip.decompress(raw)


XYE = """# a comment
Some words before
10.00  25.0  5.0
! another

10.05  16.0  4.0  7.0
/* a comment over
11.00 2.0 1.0
two lines */
10.10  9.0   3.0
"""


def test_xye(tmp_path):
    path = written(tmp_path, XYE)
    for file in (path, _gz(tmp_path)):
        data = read_xye(file)
        assert data.x.tolist() == [10.0, 10.05, 10.1]
        assert data.y.tolist() == [25.0, 16.0, 9.0]
        assert data.sigma.tolist() == [5.0, 4.0, 3.0]
    two = read_xye(written(tmp_path, "1 100\n2 0\n"))
    assert two.sigma.tolist() == [10.0, 1.0]


def _gz(tmp_path):
    path = tmp_path / "data.xye.gz"
    path.write_bytes(gzip.compress(XYE.encode()))
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no data"),
        ("words\nonly\n", "holds no data"),
        ("1 2 3\n2 3 x\n", r"line 2, column 5: 'x' is not a finite number"),
        ("1 2 3\n2 nan 1\n", r"line 2, column 3: 'nan'"),
        ("1 2 3\n2 3\n", r"line 2: 2 fields, where lines before have 3"),
        ("1 2\n3\n", r"line 2: 2θ and y are needed"),
        ("1 2 3\n3 2 1\n2 2 1\n", r"line 3, column 1: 2θ must rise, but 2 follows 3"),
        ("1 2 3\n2 2 0\n", r"line 2, column 5: the standard deviation must be positive"),
        ("1 2 3\n\n2 2 -1e9\n", r"line 3, column 5"),
    ],
)
def test_xye_says_where_it_is_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_xye(written(tmp_path, text))


def test_csv(tmp_path):
    plain = written(tmp_path, "1,4\n2,9\n")
    assert read_csv(plain).sigma.tolist() == [2.0, 3.0]
    path = written(tmp_path, '"angle", counts, spare, error\n1, 4, -1, 0.5\n2, 9, -1, 0.25\n')
    found = read_csv(path, columns=["angle", "counts", "error"])
    assert (found.x.tolist(), found.y.tolist()) == ([1, 2], [4, 9])
    assert found.sigma.tolist() == [0.5, 0.25]
    assert read_csv(path, columns=[0, 1, 3]).sigma.tolist() == [0.5, 0.25]
    tabs = written(tmp_path, "1\t4\n2\t9\n")
    assert read_csv(tabs, separator="\t").y.tolist() == [4, 9]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("", None, "holds no data"),
        ("x,y\n", None, "holds no data"),
        ("x,y\n1,2\n2, oops\n", None, r"line 3, column 4: 'oops'"),
        ("x,y\n1,2\n2\n", None, r"line 3: 1 fields, where 2 are needed"),
        ("x,y\n1,2\n1,2\n", None, r"line 3, column 1: 2θ must rise"),
        ("x,y\n1,2\n", ["x", "z"], r"line 1: no column is called 'z'; there are \['x', 'y'\]"),
        ("1,2\n", ["x", "y"], "there is no header"),
        ("1,2\n", [0, 5], "none of number 5"),
        ("1,2\n", [0], "not 1 columns"),
    ],
)
def test_csv_says_where_it_is_wrong(tmp_path, text, columns, message):
    with pytest.raises(DataError, match=message):
        read_csv(written(tmp_path, text), columns=columns)


HEAD = "title\n 100 0 0.050 10\n 10.000\n 10000. 0.\n"


def test_counters(tmp_path):
    data = read_counters(
        written(tmp_path, HEAD + " 1   220 2   200   100\n   -1000\n  -10000\n")
    )
    assert data.x.tolist() == pytest.approx([10.0, 10.05, 10.1])
    assert data.y.tolist() == [220, 200, 100]
    assert data.sigma.tolist() == pytest.approx([220**0.5, 10.0, 10.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\n", "2 lines; its header alone has four"),
        (HEAD.replace("0.050", "x") + " 1   220\n", r"line 2, column 8: 'x'"),
        (HEAD.replace(" 10.000\n", "\n") + " 1   220\n", r"line 3: a header with 1 numbers"),
        (HEAD + " 1   220 1   2x0\n", r"line 5, column 11: '2x0'"),
        (HEAD + " 1   220\n 0   230\n", r"line 6, column 1: 0 counters"),
        (HEAD + "   -1000\n", "no records"),
    ],
)
def test_counters_say_where_they_are_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_counters(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10 0.1 10.3 words\n1 2 3\n", r"3 counts, where line 1 announces 4"),
        ("10 0.1 9\n1 2 3\n", r"line 1: from 10 to 9 by 0.1 is no range"),
        ("10 0.1\n1 2\n", r"line 1: a header with 3 numbers"),
        ("10 0.1 10.2\n1 2 o\n", r"line 2, column 5: 'o'"),
        ("", r"line 1: a header"),
    ],
)
def test_steps_say_where_they_are_wrong(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read_steps(written(tmp_path, text))


def test_files_that_are_none(tmp_path):
    for reader in (read_xye, read_csv, read_counters, read_steps):
        with pytest.raises(DataError, match="is a folder"):
            reader(tmp_path)
        with pytest.raises(FileNotFoundError):
            reader(tmp_path / "none")
        broken = tmp_path / "broken.gz"
        broken.write_bytes(_gz(tmp_path).read_bytes()[:40])
        with pytest.raises(DataError, match="broken gzip"):
            reader(broken)


def test_data_must_go_together():
    x = torch.arange(3.0)
    with pytest.raises(DataError, match="one length"):
        Data(x, x[:2])
    with pytest.raises(DataError, match="must rise from point to point; after point 1"):
        Data(torch.tensor([0.0, 1.0, 1.0]), x)
    with pytest.raises(DataError, match="y is not finite at point 2"):
        Data(x, torch.tensor([0.0, 1.0, float("nan")]))
    with pytest.raises(DataError, match="sigma must be positive; at point 0"):
        Data(x, x, x)
