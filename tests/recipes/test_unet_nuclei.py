"""The recipe unet: its quick run, and its pieces."""

import json

import pytest
import torch

import eadem
from eadem.nn import UNet
from eadem.recipes import _nuclei, run
from eadem.recipes import unet as recipe
from eadem.recipes._data import Package
from eadem.recipes._nuclei import MASK, STARDIST, nuclei


def here(package: Package, member: str, sha256: str) -> bool:
    try:
        package.read(member, sha256)
    except eadem.MissingPackage:
        return False
    return True


pytestmark = pytest.mark.skipif(
    not here(STARDIST, "data/images/mask2d.tif", MASK), reason=STARDIST.line()
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("unet", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_says_what_was_measured(metrics):
    """A quick run trains too little to ask that it holds."""
    (claim,) = metrics["claims"]
    assert claim["id"] == "C18"
    got = claim["measured"]
    wanted = got["share"] <= 0.7 and got["below full"] <= 0.01 and got["above equal"] >= 0
    assert claim["holds"] == wanted


def test_budgets_are_as_said(metrics):
    free = {k: runs[0]["free"] for k, runs in metrics["nets"].items()}
    assert 0.9 * free["tied"] < free["equal"] <= free["tied"] < free["full"]
    assert free["tied"] == eadem.counts(UNet(1, 1, recipe.WIDTHS, tied=True)).free


def test_a_short_training_lowers_the_loss(metrics):
    for runs in metrics["nets"].values():
        for one in runs:
            assert sum(one["loss"][-5:]) < 0.8 * sum(one["loss"][:5])
            assert 0.0 <= one["dice"] <= 1.0


def test_every_decoder_filter_has_its_verdict(metrics):
    sites = {f"up.{i}.{name}.weight" for i in range(2) for name in ("below", "skip")}
    for one in metrics["evidence"]:
        assert set(one) == {"joint", *sites}
        assert all(0.0 <= test["pvalue"] <= 1.0 for test in one.values())


def test_tiles_are_the_picture_cut_up():
    image, inside = nuclei(128)
    assert image.shape == inside.shape == (16, 1, 128, 128)
    assert float(inside.mean()) == pytest.approx(0.19922637939453125)
    assert abs(float(image.mean())) < 1e-5
    assert float(image[inside == 1].mean()) > float(image[inside == 0].mean()) + 1.0
    whole, _ = nuclei(512)
    assert torch.equal(whole[0, 0, 128:256, :128], image[4, 0])


def test_dice_by_hand():
    a, b = torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])
    assert recipe.dice(a, b) == 0.5
    assert recipe.dice(a, a) == 1.0
    assert recipe.dice(a, 1 - a) == 0.0


def test_crops_turn_image_and_mask_together():
    tiles = torch.randn(3, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    image, mask = recipe.crops((tiles, 2 * tiles), 20, torch.Generator().manual_seed(1))
    assert image.shape == (20, 1, _nuclei.CROP, _nuclei.CROP)
    assert torch.equal(mask, 2 * image)
    assert len({float(x) for x in image[:, 0, 0, 0]}) == 20
