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

import lifecycle_systems  # noqa: E402

import eadem  # noqa: E402

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
        held = {
            o: self.folds[o].widen(t) if o in self.folds else t for o, t in theta.items()
        }
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
    owner, leaf = split(name)
    found = getattr(model.get_submodule(owner), leaf)
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


def gpt2(tied: bool = False, **options: Any) -> nn.Module:
    """A GPT-2 of two layers; `tied`: by transformers, embedding and output."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=11,
        n_positions=16,
        n_embd=8,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
        **options,
    )
    model: nn.Module = GPT2LMHeadModel(config)
    return model


def _mirror_rows(t: Tensor) -> Tensor:
    return torch.cat([t, t.flip(0)])


def _upper(w: Tensor) -> Tensor:
    return w[: w.shape[0] // 2]


@functools.cache
def hugging() -> tuple[Subject, ...]:
    """Ties that GPT-2's class does not know: equality, transpose, structure in one site."""
    h0, h1 = "transformer.h.0", "transformer.h.1"
    names: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
        "equality": (
            lambda m, at="": eadem.tie(m, f"{at}{h0}.attn.c_attn.weight",
                                       f"{at}{h1}.attn.c_attn.weight"),
            {"links": {f"{h1}.attn.c_attn.weight":
                       Link(f"{h0}.attn.c_attn.weight", same, "same")}},
        ),
        "transpose": (
            lambda m, at="": eadem.tie(m, f"{at}{h0}.mlp.c_proj.weight",
                                       to=f"{at}{h0}.mlp.c_fc.weight", via=eadem.Transpose()),
            {"links": {f"{h0}.mlp.c_proj.weight":
                       Link(f"{h0}.mlp.c_fc.weight", transposed, "view")}},
        ),
        "palindrome": (
            lambda m, at="": eadem.tie(
                m, f"{at}{h0}.mlp.c_fc.weight", via=eadem.Palindrome(dim=0)),
            {"folds": {f"{h0}.mlp.c_fc.weight": Fold(_upper, _mirror_rows)}},
        ),
    }
    return tuple(
        Subject(name, gpt2, declare, _tokens, call=_logits, **tables)
        for name, (declare, tables) in names.items()
    )


def head(tied: bool) -> Subject:
    """GPT-2's embedding and output; `tied`: by transformers itself, else to be declared."""
    sites = ("transformer.wte.weight", "lm_head.weight")
    return Subject(
        "equality",
        functools.partial(gpt2, tied),
        (lambda m, at="": None) if tied else lambda m, at="": eadem.tie(m, *sites),
        _tokens,
        links={sites[1]: Link(sites[0], same, "same")},
        call=_logits,
        plain=gpt2,
    )
