"""The recipe transformer-kv: its quick run, and its sequences and network against oracles."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import eadem
from eadem.recipes import Context, _transformer_kv_claims, render, run
from eadem.recipes import _sequences as sequences
from eadem.recipes import _transformer_kv_measures as measures
from eadem.recipes import transformer_kv as recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("transformer-kv", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def network(pattern="none", width=8):
    torch.manual_seed(0)
    model = sequences.Transformer(width, recipe.DEPTH)
    recipe.share(model, pattern)
    return model


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C25"
    assert claim["holds"], claim["measured"]


def test_free_values_are_what_each_pattern_leaves(metrics):
    width, depth = recipe.QUICK.width, recipe.DEPTH
    free = {name: runs[0]["free"] for name, runs in metrics["patterns"].items()}
    projections, one = 6 * depth, width * width  # K and V of three kinds of attention
    saved = {
        "embedding": 2 * (sequences.LETTERS + 4) * width,
        "adjacent": projections // 2 * one,
        "all": (projections - 6) * one,
        "k=v": projections // 2 * one,
        "encoder-decoder": (projections - 2 * depth) * one,
    }
    assert {name: free["none"] - free[name] for name in saved} == saved
    layers = [getattr(network(width=width), side)[0] for side in ("encoder", "decoder")]
    single = sum(p.numel() for layer in layers for p in layer.parameters())
    assert free["none"] - free["blocks"] == (depth - 1) * single


def test_the_cache_is_counted_in_bytes_of_distinct_tensors(metrics):
    width, length = recipe.QUICK.width, sequences.LONGEST
    for name, runs in metrics["patterns"].items():
        assert runs[0]["tensors"] == _transformer_kv_claims.tensors(name)
    none = metrics["patterns"]["none"][0]["bytes"]
    assert none == 4 * 2 * recipe.DEPTH * width * (length + length + 1)
    assert metrics["patterns"]["k=v"][0]["bytes"] * 2 == none
    source = 4 * 2 * width * (length + 1)
    assert none - metrics["patterns"]["all"][0]["bytes"] == (recipe.DEPTH - 1) * source


def test_every_tie_has_evidence_and_relaxing_is_measured(metrics):
    for name, runs in metrics["patterns"].items():
        evidence = runs[0]["evidence"]
        assert (evidence is None) == (name == "none")
        if evidence:
            assert set(evidence["sites"]) == {
                s for t in eadem.ties(network(name)) for s in t.sites
            }
    for one in metrics["patterns"]["all"]:
        most, least = one["relaxed"]["most"], one["relaxed"]["least"]
        assert len(set(most) | set(least)) == 2 * measures.RELAXED
        assert one["after_tied"]["loss"] != one["after_most"]["loss"]


def test_the_page_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C25" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page


def test_sequences_are_copied_reversed_and_sorted():
    seen = sequences.batch(60, torch.Generator().manual_seed(3), 5)
    orders = {"copy": list, "reverse": lambda x: x[::-1], "sort": sorted}
    tasks = set()
    for source, wanted, place in zip(seen.source, seen.wanted, seen.place, strict=True):
        task = sequences.TASKS[int(source[0]) - sequences.LETTERS]
        letters = source[1:].tolist()
        assert len(set(letters)) == 5
        assert wanted.tolist() == orders[task](letters)
        assert source[place].tolist() == wanted.tolist()
        tasks.add(task)
    assert tasks == set(sequences.TASKS)


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours = sequences.Attention(8, 2).double()
    stock = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    with torch.no_grad():
        stock.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k.weight, ours.v.weight]))
        stock.out_proj.weight.copy_(ours.out.weight)
    x, source = torch.randn(3, 4, 8).double(), torch.randn(3, 4, 8).double()
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    expected, _ = stock(x, source, source, attn_mask=mask)
    torch.testing.assert_close(ours(x, source, mask), expected)


def test_the_decoder_does_not_see_what_it_is_to_write():
    model = network()
    seen = sequences.batch(4, torch.Generator().manual_seed(0), 5)
    other = sequences.Batch(seen.source, seen.wanted.clone(), seen.place)
    other.wanted[:, 2:] = (other.wanted[:, 2:] + 1) % sequences.LETTERS
    one, two = sequences.scores(model, seen), sequences.scores(model, other)
    torch.testing.assert_close(one[:, :3], two[:, :3])
    assert (one[:, 3:] - two[:, 3:]).abs().max() > 1e-3


def test_alignment_is_one_where_attention_is_at_the_known_place(monkeypatch):
    seen = sequences.batch(6, torch.Generator().manual_seed(0), 4)
    right = nn.functional.one_hot(seen.place, 5).double()
    weights = torch.stack([right, right.roll(1, 2)], 1).unsqueeze(0)  # one layer, two heads
    monkeypatch.setattr(measures, "attended", lambda model, one: weights)
    assert measures.aligned(None, seen).tolist() == [1.0, 0.0]


def test_the_shares_of_attention_are_probabilities():
    seen = sequences.batch(6, torch.Generator().manual_seed(0), 4)
    weights = sequences.attended(network(), seen)
    assert weights.shape == (recipe.DEPTH, 6, 4, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize(("shared", "holds"), [(0.9, True), (0.5, False)])
def test_what_is_asked_of_networks_that_have_learned(tmp_path: Path, shared, holds):
    """Three repeats: alignment and copying above none by more than two standard errors."""
    context = Context("transformer-kv", tmp_path)

    def runs(name, loss, right):
        found = {
            "free": 10 if name == "none" else 9,
            "tensors": _transformer_kv_claims.tensors(name),
        }
        return [
            found | {"loss": loss, "alignment": right + e, "by_task": [right + e, 0, 0]}
            for e in (0.0, 0.01, 0.02)
        ]

    grid = {n: runs(n, 2.0, 0.5) for n in recipe.PATTERNS}
    grid["none"] = runs("none", 1.0, 0.51)
    grid["encoder-decoder"] = runs("encoder-decoder", 2.0, shared)
    recipe.claim(context, grid)
    assert [c.holds for c in context.claims] == [True, holds, True]
    grid["adjacent"] = runs("adjacent", 0.5, 0.5)
    recipe.claim(context, grid)
    assert not context.claims[-1].holds
