"""Row 39: models with ties of their own (GPT-2, T5, ALBERT, Llama), tied further."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from hf_systems import (
    HF_SYSTEMS,
    HfSystem,
    assert_holds,
    assert_related,
    assert_tied,
    forward,
    logits,
    tokens,
)
from lifecycle_systems import value
from torch import Tensor, nn

import eadem

NATIVE = [s for s in HF_SYSTEMS if s.names.native]
BY_NAME = {s.name: s for s in HF_SYSTEMS}
#: each declaration and each class
FEW = [
    BY_NAME[n]
    for n in ("gpt2-equality", "t5-transpose", "gpt2-kernels", "albert-part", "t5-palindrome")
]
few = pytest.mark.parametrize("hf", FEW, ids=lambda s: s.name)
every = pytest.mark.parametrize("hf", NATIVE, ids=lambda s: s.name)


def further(name: str) -> nn.Module:
    """A Llama that ties its embedding itself, tied further."""
    system = BY_NAME[name]
    model = system.stock(tie_word_embeddings=True)
    system.tie(model)
    assert isinstance(model, nn.Module)
    return model


@every
def test_aliases_are_adopted(hf: HfSystem) -> None:
    stock = hf.stock()
    output, embedding = hf.names.output, hf.names.embedding
    assert stock.get_parameter(output) is stock.get_parameter(embedding)
    model = hf.tied()
    assert_holds(model, hf)
    assert any({output, embedding} <= set(t.sites) for t in eadem.ties(model))
    assert_tied(model, hf)


def checkpointed(model: nn.Module) -> bool:
    """Activation checkpointing where the class has it (ALBERT has not)."""
    if model.supports_gradient_checkpointing:
        model.activation_checkpointing_enable()
    return bool(model.supports_gradient_checkpointing)


EVENTS: dict[str, Callable[[nn.Module], object]] = {
    "tie_weights": lambda m: m.tie_weights(),
    "init_weights": lambda m: m.init_weights(),
    "post_init": lambda m: m.post_init(),
    "base": lambda m: m.base_model.tie_weights(),
    "checkpointing": lambda m: checkpointed(m),
    "twice": lambda m: (m.tie_weights(), m.tie_weights()),
}


@every
def test_what_the_class_does_later_keeps_the_ties(hf: HfSystem) -> None:
    model = hf.tied()
    before = logits(model), eadem.record(model), dict(model.named_parameters())
    for event in EVENTS.values():
        event(model)
        assert torch.equal(logits(model), before[0])
        assert eadem.record(model) == before[1]
        now = dict(model.named_parameters())
        assert now.keys() == before[2].keys()
        assert all(now[n] is p for n, p in before[2].items())
    assert_tied(model, hf)


@few
def test_drawn_anew(hf: HfSystem) -> None:
    """`init_weights` of a model that counts as not initialised."""
    model = hf.tied()
    for module in model.modules():
        module.__dict__.pop("_is_hf_initialized", None)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model.init_weights()
    assert_holds(model, hf)
    for name in hf.sites:
        name = name.partition("[")[0]
        if name in before:
            assert not torch.equal(before[name], model.state_dict()[name])
    assert_tied(model, hf)


@few
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half(hf: HfSystem, dtype: torch.dtype) -> None:
    model = hf.tied()
    model = model.half() if dtype == torch.float16 else model.to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert_holds(model, hf)
    assert_tied(model.float(), hf)


@pytest.mark.parametrize(
    "name", ["gpt2-part", "gpt2-kernels", "llama-equality", "t5-transpose"]
)
def test_generate(name: str) -> None:
    model = BY_NAME[name].tied()
    ids = tokens()
    mask = torch.ones_like(ids)
    given = {"attention_mask": mask, "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        want = eadem.twin(model).generate(ids, **given)
        assert torch.equal(model.generate(ids, **given), want)
    assert_tied(model, BY_NAME[name])


def untied(hf: HfSystem, model: nn.Module) -> nn.Module:
    """The class with a parameter at every site, holding what is read there."""
    stock = hf.stock().double()
    for name, _ in list(stock.named_parameters(remove_duplicate=False)):
        path, _, attr = name.rpartition(".")
        stock.get_submodule(path)._parameters[attr] = nn.Parameter(value(model, name))
    named = dict(stock.named_parameters(remove_duplicate=False))
    assert len({id(p) for p in named.values()}) == len(named)
    assert isinstance(stock, nn.Module)
    return stock


def directions(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        yield {
            n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for n, p in model.named_parameters()
        }


@pytest.mark.parametrize(
    ("hf", "checkpointing"),
    [(s, False) for s in NATIVE] + [(s, True) for s in FEW],
    ids=lambda v: getattr(v, "name", "checkpointing" if v else "plain"),
)
def test_gradients_are_the_sums_over_sites(hf: HfSystem, checkpointing: bool) -> None:
    """⟨θ.grad, δ⟩ = Σ ⟨site gradient, A δ⟩: gradients of the untied class, and the change
    that δ makes at each of its sites.
    """
    model = hf.tied().double()
    stock = untied(hf, model)
    if checkpointing and not checkpointed(model):
        return
    model.train()
    stock.train()
    ours, theirs = forward(model), forward(stock)
    torch.testing.assert_close(ours.loss, theirs.loss, rtol=1e-12, atol=0)
    ours.loss.backward()
    theirs.loss.backward()
    sites = dict(stock.named_parameters())
    for delta in directions(model):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(delta[name])
        grads = {n: p.grad for n, p in model.named_parameters()}
        got = sum(float((g * delta[n]).sum()) for n, g in grads.items() if g is not None)
        want = sum(
            float((p.grad * (value(moved, n) - value(model, n))).sum())
            for n, p in sites.items()
            if p.grad is not None
        )
        assert got == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", ["llama-equality", "llama-part", "llama-transpose"])
def test_llama_with_its_own_tie(name: str) -> None:
    model = further(name)
    before = logits(model)
    model.tie_weights()
    model.init_weights()
    assert torch.equal(logits(model), before)
    assert_related(model, BY_NAME[name])
    w = value(model, "model.embed_tokens.weight")
    assert torch.equal(value(model, "lm_head.weight"), w)
    assert "lm_head.weight" not in model.state_dict()


def test_a_pair_without_a_parameter_to_share_becomes_a_tie() -> None:
    """The class asks for a tie with a parameter that holds its free values only."""
    model = BY_NAME["gpt2-part"].tied()
    eadem.untie(model, "lm_head.weight")
    assert "lm_head.weight" in model.state_dict()
    model.tie_weights()
    assert "lm_head.weight" not in model.state_dict()
    assert_tied(model, BY_NAME["gpt2-part"])


def test_a_config_that_ties_later() -> None:
    model = BY_NAME["llama-part"].tied()
    w = value(model, "model.embed_tokens.weight")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert torch.equal(value(model, "lm_head.weight"), w)
    assert "lm_head.weight" not in model.state_dict()
    assert_related(model, BY_NAME["llama-part"])


def test_an_optimizer_of_an_adopted_alias() -> None:
    """The parameter that an alias gives up is the one that its owner keeps."""
    system = BY_NAME["gpt2-kernels"]
    model = system.stock()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    shared = model.lm_head.weight
    eadem.tie(model, "lm_head.weight", "transformer.wte.weight")
    assert model.transformer.wte.weight is shared
    before = shared.detach().clone()
    forward(model).loss.backward()
    optimizer.step()
    assert not torch.equal(before, value(model, "lm_head.weight"))
    assert len(optimizer.state) == len(list(model.parameters()))
    eadem.check_optimizers(model, optimizer)


def test_an_alias_declared_again_is_one_tie() -> None:
    """The record does not depend on whether what the class ties is declared too."""
    model, other = BY_NAME["gpt2-kernels"].tied(), BY_NAME["gpt2-kernels"].tied()
    eadem.tie(other, "lm_head.weight", to="transformer.wte.weight")
    assert eadem.record(model) == eadem.record(other)
