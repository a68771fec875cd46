"""A summary says who owns what, in a terminal, as text, as HTML, and from a file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn

import eadem
from eadem.errors import RecordError
from eadem.report.sites import map_text, site_views
from eadem.report.summary import summary, summary_of_file


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(16, 18), nn.ReLU(), nn.Linear(18, 16), nn.BatchNorm1d(16))
    eadem.tie(model, "0.weight", via=eadem.Toeplitz2d(4, 2))
    eadem.tie(model, "2.bias", via=eadem.Palindrome())
    return model


def test_counts_are_those_of_the_core() -> None:
    for model in (tied(), nn.Linear(3, 4)):
        found, counts = summary(model), eadem.counts(model)
        assert (found.free, found.stored, found.expanded) == (
            counts.free,
            counts.stored,
            counts.expanded,
        )


def test_rows_name_sites_owners_and_maps() -> None:
    first, second = summary(tied()).groups
    assert first.sites == first.owners == ("0.weight",)
    assert first.maps == ("Toeplitz2d(4, 2)",)
    assert (first.free, first.expanded) == (8, 288)
    assert (second.free, second.expanded) == (8, 16)


def test_a_dense_tie_counts_its_rank() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False))
    eadem.tie(model, "*.weight", via=eadem.Subspace(torch.randn(12, 5)))
    found = summary(model)
    assert found.free == eadem.counts(model).free == 5
    assert found.groups[0].expanded == 24
    assert any(v.kind == "mixed" for v in site_views(model))


def test_it_prints_everywhere() -> None:
    found = summary(tied())
    text, html = str(found), found._repr_html_()
    for out in (text, html):
        for word in ("0.weight", "Toeplitz2d(4, 2)", "288", "2.bias", "untied", "total"):
            assert word in out
    console = Console(file=io.StringIO(), width=60)
    console.print(found)
    assert isinstance(console.file, io.StringIO)
    assert "0.weight" in console.file.getvalue()


def test_many_sites_are_shortened() -> None:
    model = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(40)])
    eadem.tie(model, "*.weight")
    text = str(summary(model))
    assert "… and 33 more" in text
    assert "39.weight" not in text
    assert len(summary(model).groups[0].sites) == 40


def test_a_file_is_summed_up_without_its_model(tmp_path: Path) -> None:
    model = tied()
    eadem.save(model, tmp_path / "model.safetensors")
    found, wanted = summary_of_file(tmp_path / "model.safetensors"), summary(model)
    assert found.title == "model.safetensors"
    assert found.groups == wanted.groups
    buffers = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert (found.free, found.expanded) == (wanted.free + buffers, wanted.expanded + buffers)


def test_a_file_with_large_arrays_and_one_without_ties(tmp_path: Path) -> None:
    large = nn.Linear(100, 200, bias=False)
    eadem.tie(large, "weight", via=eadem.Gather(torch.randint(50, (200, 100))))
    for name, model in (("large", large), ("plain", nn.Linear(3, 4))):
        eadem.save(model, tmp_path / name)
        found, wanted = summary_of_file(tmp_path / name), summary(model)
        assert found.groups == wanted.groups
        assert (found.free, found.expanded) == (wanted.free, wanted.expanded)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(RecordError):
        summary_of_file(path)
    with pytest.raises(RecordError):
        summary_of_file(tmp_path / "absent")


def test_maps_are_written_as_one_would_write_them() -> None:
    assert map_text(eadem.Local2d((4, 6), 3, padding=1)) == "Local2d((4, 6), 3, padding=1)"
    assert map_text(eadem.Flip(-1)) == "Flip((-1,))" or map_text(eadem.Flip(-1)) == "Flip(-1)"
    assert map_text(eadem.Rotate(2)) == "Rotate(k=2)"
    assert map_text(eadem.Scale(2.0) @ eadem.Transpose()) == "Scale(2.0) @ Transpose()"
    assert map_text(eadem.Gather(torch.zeros(3, 4).long())) == "Gather(<3 × 4>)"


def test_views_cover_equality_transposes_and_parts_of_one_tensor() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 3), "b": nn.Linear(3, 4), "c": nn.Linear(4, 3)})
    eadem.tie(model, "b.weight", to="a.weight", via=eadem.Transpose())
    eadem.tie(model, "c.weight[0]", "c.weight[2]")
    views = {v.name: v for v in site_views(model)}
    assert list(views) == [f"{m}.{p}" for m in "abc" for p in ("weight", "bias")]
    assert views["a.weight"].kind == views["b.weight"].kind == "whole"
    assert views["b.weight"].owner == "a.weight"
    assert views["b.weight"].map == "Transpose()"
    assert views["c.weight"].kind == "entries"
    assert views["c.weight"].free == 8
    assert views["a.bias"].kind == "own"
    total = sum(p.numel() for p in model.parameters())
    assert max(int(v.position.max()) for v in views.values() if v.position is not None) < total
