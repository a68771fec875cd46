"""Row 21: `resize_token_embeddings` ties the resized sites again, or refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hf_systems import (
    HF_SYSTEMS,
    VOCABULARY,
    WIDTH,
    HfSystem,
    assert_related,
    forward,
    logits,
)
from lifecycle_systems import assert_unchanged, snapshot, value
from torch import nn

import eadem

BY_NAME = {s.name: s for s in HF_SYSTEMS}
every = pytest.mark.parametrize("hf", HF_SYSTEMS, ids=lambda s: s.name)


def _resized(hf: HfSystem, size: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.tied()
        model.resize_token_embeddings(size)
    assert isinstance(model, nn.Module)
    return model


@every
def test_grown(hf: HfSystem) -> None:
    before, model = hf.tied(), _resized(hf, VOCABULARY + 4)
    old, new = (value(m, hf.names.embedding) for m in (before, model))
    assert new.shape == (VOCABULARY + 4, WIDTH)
    assert torch.equal(new[:VOCABULARY], old)
    assert torch.equal(
        value(model, hf.names.output)[:VOCABULARY], value(before, hf.names.output)
    )
    torch.testing.assert_close(logits(model)[..., :VOCABULARY], logits(before))
    assert model.config.vocab_size == VOCABULARY + 4
    if "t5" not in hf.name:  # which then has one module in three places
        assert eadem.record(model)["ties"] == eadem.record(before)["ties"]
    # what is tied at both ends grew once; ALBERT's head has a bias beside
    tied_ends = hf.names.native or "equality" in hf.name
    bias = 4 if "albert" in hf.name else 0
    more = 4 * WIDTH * (1 if tied_ends else 2) + bias
    assert sum(p.numel() for p in model.parameters()) == hf.free + more
    eadem.check(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    forward(model).loss.backward()
    optimizer.step()
    assert_related(model, hf)


@pytest.mark.parametrize("name", ["gpt2-equality", "llama-part", "t5-part", "albert-kernels"])
def test_grown_then_saved(name: str, tmp_path: Path) -> None:
    model = _resized(BY_NAME[name], VOCABULARY + 3)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert eadem.counts(again).free == eadem.counts(model).free
    assert_related(again, BY_NAME[name])


@pytest.mark.parametrize("name", ["gpt2-part", "llama-equality", "t5-kernels", "albert-part"])
def test_shrunk(name: str) -> None:
    hf = BY_NAME[name]
    model = _resized(hf, 7)
    assert torch.equal(
        value(model, hf.names.embedding), value(hf.tied(), hf.names.embedding)[:7]
    )
    assert_related(model, hf)
    eadem.check(model)


@pytest.mark.parametrize("name", ["gpt2-part", "llama-equality", "t5-kernels", "albert-part"])
def test_asked_for_the_size_it_has(name: str) -> None:
    hf = BY_NAME[name]
    model = hf.tied()
    before = snapshot(model)
    model.resize_token_embeddings()
    assert_unchanged(model, before)
    same = _resized(hf, VOCABULARY)
    assert torch.equal(logits(same), logits(model))
    assert_related(same, hf)
    eadem.check(same)


def test_padded_to_a_multiple() -> None:
    hf = BY_NAME["gpt2-equality"]
    model = hf.tied()
    model.resize_token_embeddings(pad_to_multiple_of=8, mean_resizing=False)
    assert value(model, hf.names.output).shape == (16, WIDTH)
    assert_related(model, hf)


def test_a_row_that_goes_is_refused() -> None:
    hf = BY_NAME["gpt2-part"]
    model = hf.stock()
    eadem.tie(model, f"{hf.names.embedding}[1]", f"{hf.names.embedding}[9]")
    before = snapshot(model)
    with pytest.raises(eadem.EademError, match=r"resize_token_embeddings.*wte\.weight.*untie"):
        model.resize_token_embeddings(7)
    assert_unchanged(model, before)
    model.resize_token_embeddings(20)
    w = value(model, hf.names.embedding)
    assert torch.equal(w[1], w[9])


def test_a_tie_of_a_part_is_kept() -> None:
    hf = BY_NAME["gpt2-part"]
    model = hf.stock()
    eadem.tie(model, f"{hf.names.embedding}[:8]", "transformer.h.0.attn.c_proj.weight")
    before = eadem.record(model)["ties"]
    model.resize_token_embeddings(VOCABULARY + 2)
    assert eadem.record(model)["ties"] == before
    w = value(model, hf.names.embedding)
    assert torch.equal(w[:8], value(model, "transformer.h.0.attn.c_proj.weight"))
    eadem.check(model)


def test_a_basis_of_its_size_is_refused() -> None:
    hf = BY_NAME["gpt2-part"]
    model = hf.stock()
    basis = torch.eye(VOCABULARY * WIDTH)[:, ::2].contiguous()
    eadem.tie(model, hf.names.embedding, via=eadem.Subspace(basis))
    before = snapshot(model)
    with pytest.raises(eadem.Unsupported, match=r"wte\.weight.*another shape.*eadem\.untie"):
        model.resize_token_embeddings(VOCABULARY + 2)
    assert_unchanged(model, before)
    eadem.check(model)


def test_a_tie_with_a_matrix_that_keeps_its_size_is_refused() -> None:
    hf = BY_NAME["gpt2-part"]
    model = hf.stock(vocab_size=8, n_positions=8)
    eadem.tie(model, hf.names.embedding, "transformer.wpe.weight")
    before = snapshot(model)
    with pytest.raises(
        eadem.Unsupported, match=r"wte\.weight.*wpe\.weight.*another shape.*eadem\.untie"
    ):
        model.resize_token_embeddings(10)
    assert_unchanged(model, before)
    assert model.config.vocab_size == 8
