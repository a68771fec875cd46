"""The recipe capacity: its quick run, its features and its search."""

import json

import numpy as np
import pytest
import torch

from eadem import theory
from eadem.recipes import _capacity_page, render, run
from eadem.recipes import capacity as recipe

pytest.importorskip("mlxtend")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("capacity", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C10"
    assert claim["holds"], claim["measured"]


def test_the_rank_is_the_filters_or_the_images(metrics):
    for side in (5, 7):
        ranks = {kind: at[str(side)]["rank"] for kind, at in metrics["models"].items()}
        assert ranks == {
            "shared": theory.capacity(9),
            "unshared": theory.capacity(side**2),
            "dense": theory.capacity((side - 2) ** 2),
        }


def test_up_to_the_capacity_everything_is_fitted(metrics):
    for at in metrics["models"].values():
        for m in at.values():
            assert min(m["fitted"]) >= m["rank"]


def test_the_tie_is_right_for_random_labels_and_wrong_for_real_ones(metrics):
    random, real = metrics["tests"]["random"], metrics["tests"]["real"]
    assert random["df"] == real["df"] == 36 - 9  # the pixels' weights, less the filter's
    assert random["pvalue"] > 1e-3
    assert real["pvalue"] < 1e-6


def test_features_are_the_averaged_windows():
    x = torch.randn(4, 36, dtype=torch.float64)
    found = recipe.features(recipe.build("shared", 6), x)
    windows = torch.nn.functional.unfold(x.reshape(-1, 1, 6, 6), 3).mean(2)
    bias = torch.ones(4, 1, dtype=torch.float64)
    wanted = torch.cat([bias, windows], 1)
    order = found.sum(0).argsort(), wanted.sum(0).argsort()
    torch.testing.assert_close(found[:, order[0]], wanted[:, order[1]])


def test_unshared_filters_read_the_pixels():
    x = torch.randn(60, 25, dtype=torch.float64)
    found = recipe.coordinates(recipe.features(recipe.build("unshared", 5), x))
    pixels = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    assert found.shape == pixels.shape
    both = torch.cat([found, pixels], 1)
    assert int(torch.linalg.matrix_rank(both)) == 26  # the same space


def test_labels_of_a_plane_are_fitted_and_a_contradiction_is_not():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200, 4))
    labels = np.sign(points @ rng.standard_normal(4))
    assert recipe.fits(points, labels)
    assert not recipe.fits(np.vstack([points, points[:1]]), np.append(labels, -labels[0]))


def test_the_largest_number_is_where_the_first_misfit_comes():
    rng = np.random.default_rng(1)
    for _ in range(3):
        points, labels = rng.standard_normal((40, 5)), rng.choice([-1.0, 1.0], 40)
        every = [n for n in range(1, 41) if recipe.fits(points[:n], labels[:n])]
        assert every == list(range(1, len(every) + 1))  # what fits, fits without the last
        assert recipe.largest(points, labels) == every[-1]


def test_the_bound_is_met_and_not_before():
    n = _capacity_page.samples_for(10)
    assert theory.generalization_bound(10, n) <= 0.1 < theory.generalization_bound(10, n - 1)


def test_the_page_is_whole_and_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C10" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page
