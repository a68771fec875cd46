"""Row 14: save_pretrained and from_pretrained of ties that the class does not know."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_fresh import digests
from hf_systems import (
    HF_SYSTEMS,
    HfSystem,
    assert_holds,
    assert_tied,
    logits,
    rxnmapper,
    tied_rxnmapper,
    tokens,
)
from lifecycle_systems import assert_unchanged, snapshot
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import eadem

AUTO = {
    "gpt2": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "albert": "AutoModelForMaskedLM",
}
BY_NAME = {s.name: s for s in HF_SYSTEMS}
#: each declaration twice, each class twice
SOME = [
    BY_NAME[name]
    for name in (
        "gpt2-equality",
        "gpt2-part",
        "llama-transpose",
        "llama-palindrome",
        "t5-equality",
        "t5-kernels",
        "albert-part",
        "albert-transpose",
    )
]
#: what transformers says of what a folder did not fill
NOISE = ("MISSING", "UNEXPECTED", "MISMATCH", "newly initialized", "Unknown quantization")

some = pytest.mark.parametrize("hf", SOME, ids=lambda s: s.name)
each = pytest.mark.parametrize("hf", HF_SYSTEMS, ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity(before)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """Folders opened in two fresh processes: Eadem imported before transformers, or after it
    and after what is opened without Eadem.
    """
    import transformers

    transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("fresh")
    auto: list[list[str]] = []
    own: list[list[str]] = []
    without: list[list[str]] = []
    for s in SOME:
        kind = AUTO[s.name.partition("-")[0]]
        model = s.tied()
        tied, plain = str(folder / s.name), str(folder / f"{s.name}-plain")
        model.save_pretrained(tied)
        model.save_pretrained(plain, state_dict=eadem.materialize(model))
        auto.append([tied, kind])
        own.append([tied, type(model).__name__])
        without += [[plain, kind], [tied, kind]]
    real = tied_rxnmapper()
    tied, plain = str(folder / "rxnmapper"), str(folder / "rxnmapper-plain")
    real.save_pretrained(tied)
    real.save_pretrained(plain, state_dict=eadem.materialize(real))
    auto.append([tied, "AutoModelForMaskedLM"])
    without += [[plain, "AutoModelForMaskedLM"], [tied, "AutoModelForMaskedLM"]]
    jobs = {
        "eadem-first": {"with": auto},
        "eadem-last": {"with": own, "without": without},
    }
    script = str(Path(__file__).with_name("hf_fresh.py"))
    running = []
    for order, lists in jobs.items():
        listed = folder / f"{order}.json"
        listed.write_text(json.dumps(lists))
        running.append(
            subprocess.Popen(
                [sys.executable, script, order, str(listed), str(folder / f"{order}.out")],
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        )
    found: dict[Any, Any] = {"folder": folder}
    for order, process in zip(jobs, running, strict=True):
        said = process.communicate()[1]
        assert process.returncode == 0, said[-3000:]
        results = json.loads((folder / f"{order}.out").read_text())
        texts = iter(said.split("== ")[1:])
        for which in ("without", "with"):
            for path, result in results.get(which, {}).items():
                text = next(texts)
                assert text.startswith(path + "\n")
                found[order, which, path] = (result, text)
    return found


def _logits(system: HfSystem) -> list[float]:
    found: list[float] = logits(system.tied()).double().flatten().tolist()
    return found


@some
@pytest.mark.parametrize("order", ["eadem-first", "eadem-last"])
def test_a_fresh_process_has_the_ties_and_the_logits(
    fresh: dict[Any, Any], hf: HfSystem, order: str
) -> None:
    result, said = fresh[order, "with", str(fresh["folder"] / hf.name)]
    assert "error" not in result, result
    assert result["logits"] == _logits(hf)
    assert result["values"] == digests(eadem.materialize(hf.tied()))
    assert result["ties"] == json.loads(json.dumps(eadem.record(hf.tied())["ties"]))
    assert result["stored"] == result["free"] == hf.free
    assert not any(noise in said for noise in NOISE), said


@some
def test_materialized_it_opens_without_eadem(fresh: dict[Any, Any], hf: HfSystem) -> None:
    folder = str(fresh["folder"] / f"{hf.name}-plain")
    result, said = fresh["eadem-last", "without", folder]
    assert "error" not in result, result
    assert "ties" not in result
    assert result["values"] == digests(eadem.materialize(hf.tied()))
    # to rounding: a weight that lies transposed in memory may be multiplied in another order
    assert result["logits"] == pytest.approx(_logits(hf), rel=1e-5, abs=1e-5)
    assert result["stored"] == sum(p.numel() for p in hf.stock().parameters())
    assert not any(noise in said for noise in NOISE), said
    assert "quantization_config" not in json.loads(Path(folder, "config.json").read_text())


@some
def test_free_values_do_not_open_without_eadem(fresh: dict[Any, Any], hf: HfSystem) -> None:
    result, said = fresh["eadem-last", "without", str(fresh["folder"] / hf.name)]
    assert "RuntimeError" in result["error"]
    assert "got eadem" in said
    assert "MISMATCH" in said


def test_a_pretrained_model(fresh: dict[Any, Any]) -> None:
    """rxnmapper's ALBERT, tied further."""
    stock, model = rxnmapper(), tied_rxnmapper()
    assert logits(model).isfinite().all()
    assert not torch.equal(logits(model), logits(stock))
    query = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"
    q, k, v = (
        stock.get_parameter(query.replace("query", n)).detach()
        for n in ("query", "key", "value")
    )
    mean = (q + k + v.flip(-1)) / 3
    torch.testing.assert_close(model.get_parameter(query).detach(), mean)
    want = logits(model).double().flatten().tolist()
    kept = eadem.counts(model)
    spared = 2 * 256 * 256 + 512 * 256 + 512 * 128 // 2
    assert kept.free == kept.stored == sum(p.numel() for p in stock.parameters()) - spared

    values = digests(eadem.materialize(model))
    folder = str(fresh["folder"] / "rxnmapper")
    result, said = fresh["eadem-first", "with", folder]
    assert result["values"] == values
    assert result["logits"] == want
    assert result["free"] == kept.free
    assert result["ties"] == json.loads(json.dumps(eadem.record(model)["ties"]))
    assert not any(noise in said for noise in NOISE), said
    result, said = fresh["eadem-last", "without", f"{folder}-plain"]
    assert result["values"] == values
    # the stock class multiplies with a matrix, the tied one with another matrix's transpose
    assert result["logits"] == pytest.approx(want, rel=1e-4, abs=2e-4)
    exact = [logits(m.double()) for m in (eadem.twin(model), model)]
    torch.testing.assert_close(*exact, rtol=1e-10, atol=1e-10)
    assert not any(noise in said for noise in NOISE), said
    result, said = fresh["eadem-last", "without", folder]
    assert "RuntimeError" in result["error"]


@each
def test_round_trip(hf: HfSystem, tmp_path: Path) -> None:
    model = hf.tied()
    before = snapshot(model)
    model.save_pretrained(tmp_path)
    assert_unchanged(model, before)
    assert not hasattr(model.config, "quantization_config")
    again = type(model).from_pretrained(tmp_path)
    assert eadem.record(again) == eadem.record(model)
    assert again.all_tied_weights_keys == model.all_tied_weights_keys
    assert not hasattr(again.config, "quantization_config")
    assert not getattr(again, "hf_quantizer", None)
    assert not again.is_quantized
    assert torch.equal(logits(again), logits(model))
    assert_tied(again, hf)
    held = load_file(tmp_path / "model.safetensors")
    assert sum(t.numel() for t in held.values()) == hf.free
    with safe_open(tmp_path / "model.safetensors", "pt") as f:
        assert f.metadata() == {"format": "pt"}
    # what the folder holds can be loaded as any checkpoint
    again.load_state_dict(held)
    assert torch.equal(logits(again), logits(model))


@some
def test_in_bfloat16(hf: HfSystem, tmp_path: Path) -> None:
    model = hf.tied()
    model.save_pretrained(tmp_path)
    low = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert_holds(low, hf)
    torch.testing.assert_close(logits(low).float(), logits(model), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["gpt2-equality", "llama-palindrome", "t5-part"])
def test_shards(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].tied()
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    again = type(model).from_pretrained(tmp_path)
    assert_holds(again, BY_NAME[name])
    assert torch.equal(logits(again), logits(model))


def test_large_arrays_are_tensors(tmp_path: Path) -> None:
    system = BY_NAME["gpt2-equality"]
    size = 1200 * 8
    index = torch.randperm(size, generator=torch.Generator().manual_seed(2)).reshape(1200, 8)
    model = system.stock(vocab_size=1200)
    eadem.tie(model, "transformer.wte.weight", via=eadem.Gather(index // 2))
    model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").stat().st_size < 4096
    held = load_file(tmp_path / "model.safetensors")
    assert [k for k in held if k.startswith("eadem/")]
    again = type(model).from_pretrained(tmp_path)
    assert eadem.record(again) == eadem.record(model)
    assert eadem.counts(again).free == eadem.counts(model).free
    assert torch.equal(logits(again), logits(model))
    model.load_state_dict(held)  # the record's arrays are passed over
    shards = tmp_path / "shards"
    model.save_pretrained(shards, max_shard_size="40KB")
    assert torch.equal(logits(type(model).from_pretrained(shards)), logits(model))


def test_a_constant_site(tmp_path: Path) -> None:
    model = BY_NAME["gpt2-part"].tied()
    constant = torch.linspace(-1, 1, 8)
    eadem.tie(model, "transformer.h.1.attn.c_proj.bias", via=eadem.Fixed(constant))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.transformer.h[1].attn.c_proj.bias, constant)
    assert torch.equal(logits(again), logits(model))


@some
def test_another_class_of_the_same_folder(hf: HfSystem, tmp_path: Path) -> None:
    """Without the head: the ties of what is left."""
    from transformers import AutoModel

    model = hf.tied()
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    eadem.check(base)
    ids = tokens()
    more = {"decoder_input_ids": ids} if "t5" in hf.name else {}
    with torch.no_grad():
        want = model(input_ids=ids, output_hidden_states=True, **more)
        got = base(input_ids=ids, **more).last_hidden_state
    states = want.get("decoder_hidden_states") or want.hidden_states
    assert torch.equal(got, states[-1])
    prefix = model.base_model_prefix + "." if base is not model else ""
    for name in hf.sites:
        here = name.partition("[")[0].removeprefix(prefix)
        if name not in (hf.names.output,):
            inner = base.get_submodule(here.rpartition(".")[0])
            assert torch.equal(inner.weight, _value(model, name.partition("[")[0]))


def _value(model: nn.Module, name: str) -> torch.Tensor:
    found = model.get_submodule(name.rpartition(".")[0]).weight
    assert isinstance(found, torch.Tensor)
    return found


def test_a_head_on_a_folder_without_one(tmp_path: Path) -> None:
    from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Model

    base = GPT2Model(BY_NAME["gpt2-part"].stock().config).eval()
    eadem.tie(base, "wte.weight[1]", "wte.weight[3]")
    eadem.tie(base, "h.*.attn.c_proj.weight")
    base.save_pretrained(tmp_path)
    head = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(head.lm_head.weight, base.wte.weight)  # as its class ties it
    assert eadem.counts(head).free == eadem.counts(base).free
    other = GPT2ForSequenceClassification.from_pretrained(tmp_path)
    ids = tokens()
    with torch.no_grad():
        want = base(input_ids=ids).last_hidden_state
        for model in (head, other):
            assert torch.equal(model.transformer(input_ids=ids).last_hidden_state, want)


def test_a_tie_through_a_head_that_is_not_there(tmp_path: Path) -> None:
    """Two ties meet at the head only: a class without it cannot keep both."""
    from transformers import LlamaForCausalLM, LlamaModel

    model = BY_NAME["llama-equality"].stock()
    eadem.tie(model, "lm_head.weight", to="model.embed_tokens.weight")
    eadem.tie(model, "lm_head.weight", via=eadem.Palindrome(dim=-1))
    model.save_pretrained(tmp_path)
    kept = LlamaModel.from_pretrained(tmp_path)  # W = θ and W = φ θ' are W = φ θ'
    w = kept.embed_tokens.weight
    assert torch.equal(w, w.flip(-1))
    assert torch.equal(w, model.model.embed_tokens.weight)
    eadem.untie(model)
    eadem.tie(
        model, {"lm_head.weight": eadem.Flip(0), "model.embed_tokens.weight": eadem.Same()}
    )
    eadem.tie(model, "lm_head.weight", via=eadem.Palindrome(dim=-1))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(model))
    with pytest.raises(eadem.RecordError, match=r"embed_tokens.* through 'lm_head\.weight'"):
        LlamaModel.from_pretrained(tmp_path)


def test_part_of_a_tie_is_not_saved(tmp_path: Path) -> None:
    model = BY_NAME["gpt2-part"].tied()
    with pytest.raises(eadem.Unsupported, match=r"wte\.weight.*lm_head.*deepcopy"):
        model.transformer.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_state_dict_in_two_forms_is_refused(tmp_path: Path) -> None:
    model = BY_NAME["llama-transpose"].tied()
    eadem.tie(model, "model.norm.weight", via=eadem.Palindrome())
    mixed = {**model.state_dict(), "model.norm.weight": model.model.norm.weight.detach()}
    with pytest.raises(eadem.RecordError, match=r"norm\.weight.*in full.*materialize"):
        model.save_pretrained(tmp_path, state_dict=mixed)
    assert not list(tmp_path.iterdir())


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    from transformers import TorchAoConfig
    from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer

    model = BY_NAME["llama-transpose"].tied()
    config = TorchAoConfig.__new__(TorchAoConfig)
    config.quant_method = "torchao"
    model.hf_quantizer = TorchAoHfQuantizer.__new__(TorchAoHfQuantizer)
    model.hf_quantizer.quantization_config = config
    with pytest.raises(
        eadem.Unsupported, match=r"quantised \(torchao\).*up_proj.*eadem\.untie"
    ):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_model_untied_again_is_saved_plain(tmp_path: Path) -> None:
    model = BY_NAME["gpt2-kernels"].tied()
    model.save_pretrained(tmp_path)
    config = type(model.config).from_pretrained(tmp_path)
    assert config.quantization_config["quant_method"] == "eadem"
    stock = BY_NAME["gpt2-kernels"].stock()
    stock.config = config  # made from a folder of a tied model, but not tied
    stock.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(type(model).from_pretrained(tmp_path)), logits(stock))


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (lambda r: r["sites"].update({"lm_head.weight": [3, 3]}), r"shape \[3, 3\]"),
        (lambda r: r.update(version=99), "version 99"),
        (lambda r: r.update(format="other"), "no record"),
        (lambda r: r.update(ties=[[{"sites": ["lm_head.weight"], "map": 3}]]), "damaged|map"),
        (lambda r: r.update(ties=3), "damaged"),
        (lambda r: r.update(ties=[]), "mismatched_sizes"),
    ],
)
def test_a_damaged_record_is_refused(harm: Any, match: str, tmp_path: Path) -> None:
    model = BY_NAME["gpt2-part"].tied()
    model.save_pretrained(tmp_path)
    at = tmp_path / "config.json"
    config = json.loads(at.read_text())
    harm(config["quantization_config"]["record"])
    at.write_text(json.dumps(config))
    with pytest.raises((eadem.RecordError, RuntimeError), match=match):
        type(model).from_pretrained(tmp_path)


def test_a_folder_without_the_free_values_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = BY_NAME["gpt2-palindrome"].tied()
    model.save_pretrained(tmp_path)
    name = BY_NAME["gpt2-palindrome"].names.up
    held = load_file(tmp_path / "model.safetensors")
    del held[name]
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(eadem.RecordError, match=rf"{name}.*does not hold them"):
        type(model).from_pretrained(tmp_path)


def test_offloaded_by_a_device_map(tmp_path: Path) -> None:
    system = BY_NAME["gpt2-palindrome"]
    model = system.tied()
    model.save_pretrained(tmp_path / "one")
    places = {
        "transformer.wte": "disk",
        "transformer.wpe": "cpu",
        "transformer.h": "disk",
        "transformer.ln_f": "cpu",
        "lm_head": "cpu",
    }
    again = type(model).from_pretrained(
        tmp_path / "one", device_map=places, offload_folder=tmp_path / "off"
    )
    assert dict(again.named_parameters())["transformer.wte.weight"].is_meta
    assert torch.equal(logits(again), logits(model))
    with pytest.warns(UserWarning, match="offloaded"):
        again.save_pretrained(tmp_path / "two")
    assert torch.equal(logits(type(model).from_pretrained(tmp_path / "two")), logits(model))
