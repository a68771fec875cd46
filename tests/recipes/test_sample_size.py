"""The recipe sample-size: its quick run, and its normal equations against least squares."""

import json

import pytest
import torch

import eadem
from eadem.bind import resolved
from eadem.recipes import _positions as positions
from eadem.recipes import render, run

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("sample-size", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C11"
    assert claim["holds"], claim["measured"]
    assert claim["expected"]["images"] == [7600, 10]


def test_the_wrong_tie_is_found_and_the_right_one_is_not(metrics):
    white, digits = metrics["tests"]["white"], metrics["tests"]["digits"]
    assert white["df"] == digits["df"] == 15 * 25  # 16 regions, one filter
    assert white["pvalue"] > 1e-3
    assert digits["pvalue"] < 1e-6


def test_what_positions_are_worth_on_digits(metrics):
    worth = metrics["digits"]["worth"]
    # the harmonic mean of information is at most the arithmetic: with independent noise
    # sharing is worth no less than the number of positions, however the windows overlap
    assert worth["independent noise"] >= 784
    # errors of overlapping windows go together, and the sandwich knows by how much
    assert worth["own errors"] < 0.8 * worth["own errors, were they independent"]
    assert worth["own errors, measured"] == pytest.approx(worth["own errors"], rel=0.3)


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, positions.SIDE, positions.SIDE, dtype=torch.float64, generator=generator)
    said = torch.randn(n, positions.POSITIONS, dtype=torch.float64, generator=generator)
    return x, said


def phi():
    plan = resolved(positions.layer())
    return plan.dense().reshape(positions.POSITIONS, positions.FEATURES, -1)


def test_windows_are_those_of_unfold():
    x, _ = images(3)
    wanted = torch.nn.functional.unfold(x.unsqueeze(1), positions.TAPS)  # (n, 25, positions)
    assert torch.equal(positions.windows(x), wanted.permute(2, 0, 1))


def test_the_filters_are_those_of_least_squares():
    x, said = images(130)
    found = positions.errors(
        lambda n: (x[:n], said[:n]), (130,), phi(), (torch.zeros(25), torch.zeros(25)), int
    )
    w = positions.windows(x)
    one = torch.linalg.lstsq(w.reshape(-1, 25), said.T.reshape(-1)).solution
    torch.testing.assert_close(found.one, one)
    assert found.shared[130] == pytest.approx(float(one.square().mean()))
    each = torch.linalg.lstsq(w[400], said[:, 400]).solution
    torch.testing.assert_close(found.each[400], each)


def test_the_tie_is_one_filter():
    counts = eadem.counts(positions.layer())
    assert (counts.free, counts.expanded) == (25, 25 * 784)


def test_the_sandwich_is_that_of_the_scores():
    x, said = images(4)
    theta = torch.linspace(-1, 1, 25, dtype=torch.float64)
    found = positions.sandwich(x, said, theta)
    w = positions.windows(x)
    scores = w * (said.T - w @ theta).unsqueeze(2)
    wanted = scores.sum(0).T @ scores.sum(0)
    torch.testing.assert_close(found["together"], wanted)
    torch.testing.assert_close(found["alone"][7], scores[7].T @ scores[7])


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C11" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
