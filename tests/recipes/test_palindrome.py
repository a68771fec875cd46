"""The recipe palindrome: its quick run, and its filters against the normal equations."""

import json

import pytest
import torch

import eadem
from eadem.recipes import _disturbed, render, run
from eadem.recipes import palindrome as recipe

pytest.importorskip("pywt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("palindrome", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C16"
    assert claim["holds"], claim["measured"]


def test_only_the_palindrome_is_deaf(metrics):
    assert max(metrics["heard"]["palindrome"]) <= 1e-12
    assert min(metrics["heard"]["plain"]) > 1e-3


def test_the_wrong_tie_is_found_and_the_right_one_is_not(metrics):
    right, wrong = metrics["tests"]["right"], metrics["tests"]["wrong"]
    assert right["df"] == wrong["df"] == 16  # 33 taps, 17 free
    assert right["pvalue"] > 1e-3
    assert wrong["pvalue"] < 1e-6


def data(shift=0):
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(400, (100,), generator=generator)
    return recipe.windows(recipe.ecg(), rows, generator, shift)


@pytest.mark.parametrize("palindromic", [True, False])
def test_a_filter_is_that_of_the_normal_equations(palindromic):
    given = data()
    model = recipe.fitted(given, palindromic)
    x = given.inputs.squeeze(1)
    basis = torch.eye(recipe.TAPS, dtype=torch.float64)
    if palindromic:
        basis = (basis + basis.flip(0))[:, : recipe.TAPS // 2 + 1]
    wanted = basis @ torch.linalg.lstsq(x @ basis, given.wanted).solution
    taps = model[0].weight.detach().reshape(-1)
    torch.testing.assert_close(taps, wanted, rtol=1e-8, atol=1e-9)
    assert eadem.counts(model).free == basis.shape[1]


def test_the_disturbance_is_odd_about_its_middle():
    generator = torch.Generator().manual_seed(0)
    odd = _disturbed.disturbance(50, generator)
    assert torch.equal(odd, -odd.flip(1))
    shifted = _disturbed.disturbance(50, generator, shift=3)
    middle = recipe.TAPS // 2 - 3
    near = shifted[:, middle - 5 : middle + 6]
    assert torch.equal(near, -near.flip(1))
    assert not torch.allclose(shifted, -shifted.flip(1))
    assert float(odd.square().mean()) == pytest.approx(_disturbed.DISTURBANCE**2, rel=0.25)


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C16" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
