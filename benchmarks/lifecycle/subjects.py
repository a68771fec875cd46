"""The tied models that every row is run over, told in a way that no library owns.

A subject says by plain functions which site is computed from which (`links`) and which site
has fewer free values than numbers (`folds`). Every way of tying, and the oracle, read the
same two tables. The five models are those of `tests/lifecycle`.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "lifecycle"))

import lifecycle_systems

import eadem

__all__ = ["FIVE", "Fold", "Link", "Subject", "read", "same", "split", "transposed"]


@dataclass(frozen=True)
class Link:
    """A site computed from another: `map` of the owner's value."""

    owner: str
    map: Callable[[Tensor], Tensor]
    kind: str = "map"  # "same", "view" (torch can alias it as a strided view), "map"


@dataclass(frozen=True)
class Fold:
    """Structure within one site: its free values, and the site from them."""

    narrow: Callable[[Tensor], Tensor]
    widen: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Subject:
    """A stock model and the tie declared on it.

    `declare(model, at)` ties it with Eadem, names prefixed by `at`. `call` gives the outputs
    as one tensor.
    """

    name: str
    factory: Callable[[], nn.Module]
    declare: Callable[..., Any]
    x: Callable[[], Tensor]
    links: Mapping[str, Link] = field(default_factory=dict)
    folds: Mapping[str, Fold] = field(default_factory=dict)
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    plain: Callable[[], nn.Module] | None = None  # where `factory` ties by itself

    @property
    def owners(self) -> tuple[str, ...]:
        """The sites that hold free values."""
        return tuple(dict.fromkeys([*(k.owner for k in self.links.values()), *self.folds]))

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all tied parameters."""
        return (*self.owners, *self.links)

    def stock(self, seed: int = 0) -> nn.Module:
        """The untied model, the same for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.factory()

    def untied(self, seed: int = 0) -> nn.Module:
        """The stock model without any tie, also where its class ties by itself."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return (self.plain or self.factory)()

    def input(self, model: nn.Module | None = None) -> Tensor:
        """A fixed batch, in the dtype of the model."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            x = self.x()
        if model is not None and x.is_floating_point():
            x = x.to(read(model, self.sites[0]).dtype)
        return x

    def free(self, seed: int = 0) -> int:
        """Numbers that a tied model needs: the untied parameters, and θ."""
        stock = self.untied(seed)
        named = {n: p.detach() for n, p in stock.named_parameters()}
        theta = sum(t.numel() for t in self.theta(named).values())
        return theta + sum(p.numel() for n, p in named.items() if n not in self.sites)

    def theta(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The free values that these site values have, by owner."""
        return {
            o: self.folds[o].narrow(values[o]) if o in self.folds else values[o]
            for o in self.owners
        }

    def expand(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every site's value from the free values."""
        held = {o: self.folds[o].widen(t) if o in self.folds else t for o, t in theta.items()}
        return held | {n: link.map(held[link.owner]) for n, link in self.links.items()}

    def agreeing(self, seed: int = 0) -> dict[str, Tensor]:
        """A stock state dict whose sites satisfy the tie, each tensor on its own."""
        state = {k: v.detach().clone() for k, v in self.untied(seed).state_dict().items()}
        sites = self.expand(self.theta(state))
        return state | {n: v.contiguous().clone() for n, v in sites.items()}

    def values(self, seed: int = 0) -> dict[str, Tensor]:
        """What a model made with this seed and tied has at its sites."""
        state = self.agreeing(seed)
        return {n: state[n] for n in self.sites}


def split(name: str) -> tuple[str, str]:
    """Module path and attribute of a site."""
    owner, _, leaf = name.rpartition(".")
    return owner, leaf


def read(model: nn.Module, name: str) -> Tensor:
    """What a user reads at a site, detached and copied."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise TypeError(f"{name} is {type(found).__name__}, no tensor")
    return found.detach().clone(memory_format=torch.contiguous_format)


def same(w: Tensor) -> Tensor:
    """The value itself."""
    return w


def transposed(w: Tensor) -> Tensor:
    """The value with its two axes exchanged."""
    return w.t()


def quarter(w: Tensor) -> Tensor:
    """A quarter turn of the last two axes."""
    return torch.rot90(w, 1, (-2, -1))


def mirrored(w: Tensor) -> Tensor:
    """The value read from the other end."""
    return w.flip(-1)


def first_rows(w: Tensor) -> Tensor:
    """Rows 0 to 2 of four."""
    return w[:3]


def four_rows(t: Tensor) -> Tensor:
    """Four rows of which the last is the second."""
    return torch.cat([t, t[1:2]])


def half(w: Tensor) -> Tensor:
    """The first half of the last axis, with the middle."""
    return w[..., : (w.shape[-1] + 1) // 2]


def palindrome(t: Tensor) -> Tensor:
    """A last axis of odd length from its first half."""
    return torch.cat([t, t[..., :-1].flip(-1)], dim=-1)


def _five() -> tuple[Subject, ...]:
    made = {s.name: s for s in lifecycle_systems.SYSTEMS}

    def subject(name: str, **tables: Any) -> Subject:
        s = made[name]
        found = Subject(name, s.factory, s.tie, s.x, **tables)
        assert found.free() == s.free, name
        return found

    return (
        subject("equality", links={"head.weight": Link("embed.weight", same, "same")}),
        subject(
            "transpose", links={"decoder.weight": Link("encoder.weight", transposed, "view")}
        ),
        subject(
            "kernels",
            links={
                "k1.weight": Link("k0.weight", quarter),
                "k2.weight": Link("k0.weight", mirrored),
            },
        ),
        subject("part", folds={"w": Fold(first_rows, four_rows)}),
        subject("palindrome", folds={"conv.weight": Fold(half, palindrome)}),
    )


FIVE = _five()


# models of transformers


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    found: Tensor = model(x).logits
    return found


def _tokens() -> Tensor:
    return torch.randint(0, 11, (2, 5))


def llama(tied: bool = False) -> nn.Module:
    """A Llama of two layers; `tied`: by transformers, embedding and output."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


def _mirror_rows(t: Tensor) -> Tensor:
    return torch.cat([t, t.flip(0)])


def _upper(w: Tensor) -> Tensor:
    return w[: w.shape[0] // 2]


@functools.cache
def hugging() -> tuple[Subject, ...]:
    """Ties that Llama's class does not know: equality, transpose, structure in one site."""
    first, second = "model.layers.0", "model.layers.1"
    up = (f"{first}.mlp.up_proj.weight", f"{second}.mlp.up_proj.weight")
    down = f"{first}.mlp.down_proj.weight"

    def equality(m: nn.Module, at: str = "") -> Any:
        return eadem.tie(m, *(at + n for n in up))

    def transpose(m: nn.Module, at: str = "") -> Any:
        return eadem.tie(m, at + down, to=at + up[0], via=eadem.Transpose())

    def symmetric(m: nn.Module, at: str = "") -> Any:
        return eadem.tie(m, at + up[0], via=eadem.Palindrome(dim=0))

    def subject(name: str, declare: Callable[..., Any], **tables: Any) -> Subject:
        return Subject(name, llama, declare, _tokens, call=_logits, **tables)

    return (
        subject("equality", equality, links={up[1]: Link(up[0], same, "same")}),
        subject("transpose", transpose, links={down: Link(up[0], transposed, "view")}),
        subject("palindrome", symmetric, folds={up[0]: Fold(_upper, _mirror_rows)}),
    )


def separated(model: nn.Module, names: Mapping[str, Any]) -> nn.Module:
    """A model with a parameter of its own at each of these places that its class has tied."""
    for name in names:
        module, leaf = split(name)
        inner = model.get_submodule(module)
        setattr(inner, leaf, nn.Parameter(getattr(inner, leaf).detach().clone()))
    return model


def family(model: str, further: bool) -> Subject:
    """A class of transformers with its own ties; `further`: and one of ours across layers."""
    from transformers import (
        AlbertConfig,
        AlbertForMaskedLM,
        GPT2Config,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    def gpt2() -> nn.Module:
        config = GPT2Config(
            vocab_size=11,
            n_positions=8,
            n_embd=8,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=1,
        )
        found: nn.Module = GPT2LMHeadModel(config)
        return found

    def t5() -> nn.Module:
        config = T5Config(
            vocab_size=11,
            d_model=8,
            d_kv=4,
            d_ff=12,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
        found: nn.Module = T5ForConditionalGeneration(config)
        return found

    def albert() -> nn.Module:
        config = AlbertConfig(
            vocab_size=11,
            num_attention_heads=2,
            hidden_size=8,
            embedding_size=8,
            num_hidden_layers=2,
            intermediate_size=12,
            max_position_embeddings=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        found: nn.Module = AlbertForMaskedLM(config)
        return found

    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    blocks = ("encoder.block.0.layer.0.SelfAttention", "encoder.block.1.layer.0.SelfAttention")
    factory, call, native, ours = {
        "GPT-2": (
            gpt2,
            _logits,
            {"lm_head.weight": "transformer.wte.weight"},
            ("transformer.h.0.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"),
        ),
        "T5": (
            t5,
            lambda m, x: m(input_ids=x, decoder_input_ids=x).logits,
            dict.fromkeys(
                (
                    "encoder.embed_tokens.weight",
                    "decoder.embed_tokens.weight",
                    "lm_head.weight",
                ),
                "shared.weight",
            ),
            (f"{blocks[0]}.q.weight", f"{blocks[1]}.q.weight"),
        ),
        "ALBERT": (
            albert,
            _logits,
            {"predictions.decoder.weight": "albert.embeddings.word_embeddings.weight"},
            (f"{layer}.attention.query.weight", f"{layer}.attention.key.weight"),
        ),
    }[model]
    links = {n: Link(o, same, "same") for n, o in native.items()}
    if further:
        links[ours[1]] = Link(ours[0], same, "same")
    return Subject(
        model,
        factory,
        (lambda m, at="": eadem.tie(m, *ours)) if further else lambda m, at="": None,
        _tokens,
        links=links,
        call=call,
        plain=lambda: separated(factory(), native),
    )


def head(tied: bool) -> Subject:
    """Llama's embedding and output; `tied`: by transformers itself, else to be declared."""
    sites = ("model.embed_tokens.weight", "lm_head.weight")
    return Subject(
        "equality",
        functools.partial(llama, tied),
        (lambda m, at="": None) if tied else lambda m, at="": eadem.tie(m, *sites),
        _tokens,
        links={sites[1]: Link(sites[0], same, "same")},
        call=_logits,
        plain=llama,
    )
