"""The five declarations on transformers' own GPT-2, Llama, T5 and ALBERT, built small.

As in lifecycle_systems: a stock model, the declaration, and the relation that must hold
between the values read at its sites, written by hand. `spared` is how many numbers the
declaration saves against the class with its own ties.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lifecycle_systems import value
from torch import Tensor, nn

import eadem

VOCABULARY, WIDTH, INNER, LAYERS = 11, 8, 12, 3
Pairs = list[tuple[Tensor, Tensor]]


def gpt2(**given: Any) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        **{"vocab_size": VOCABULARY, "n_positions": 8, **given},
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=2,
        n_inner=INNER,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    return GPT2LMHeadModel(config).eval()


def llama(**given: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        max_position_embeddings=16,
        **{"tie_word_embeddings": False, **given},
    )
    return LlamaForCausalLM(config).eval()


def t5(**given: Any) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=INNER,
        num_layers=LAYERS,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        **given,
    )
    return T5ForConditionalGeneration(config).eval()


def albert(**given: Any) -> nn.Module:
    from transformers import AlbertConfig, AlbertForMaskedLM

    config = AlbertConfig(
        vocab_size=VOCABULARY,
        embedding_size=WIDTH,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=INNER,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **given,
    )
    return AlbertForMaskedLM(config).eval()


@dataclass(frozen=True)
class Names:
    """Where a class keeps what the five declarations tie."""

    factory: Callable[..., nn.Module]
    embedding: str
    output: str
    #: the same matrix in several layers
    layers: tuple[str, ...]
    #: two matrices of transposed shapes
    up: str
    down: str
    #: three square matrices
    square: tuple[str, str, str]
    #: whether the class ties embedding and output by itself
    native: bool = True


CLASSES = {
    "gpt2": Names(
        gpt2,
        "transformer.wte.weight",
        "lm_head.weight",
        tuple(f"transformer.h.{i}.mlp.c_fc.weight" for i in range(LAYERS)),
        "transformer.h.0.mlp.c_fc.weight",
        "transformer.h.0.mlp.c_proj.weight",
        tuple(f"transformer.h.{i}.attn.c_proj.weight" for i in range(3)),  # type: ignore[arg-type]
    ),
    "llama": Names(
        llama,
        "model.embed_tokens.weight",
        "lm_head.weight",
        tuple(f"model.layers.{i}.mlp.gate_proj.weight" for i in range(LAYERS)),
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
        tuple(f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkv"),  # type: ignore[arg-type]
        native=False,
    ),
    "t5": Names(
        t5,
        "shared.weight",
        "lm_head.weight",
        tuple(f"decoder.block.{i}.layer.2.DenseReluDense.wi.weight" for i in range(LAYERS)),
        "encoder.block.0.layer.1.DenseReluDense.wi.weight",
        "encoder.block.0.layer.1.DenseReluDense.wo.weight",
        tuple(f"encoder.block.1.layer.0.SelfAttention.{p}.weight" for p in "qkv"),  # type: ignore[arg-type]
    ),
    "albert": Names(
        albert,
        "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.weight",
        (
            "albert.embeddings.token_type_embeddings.weight[0]",
            "albert.embeddings.token_type_embeddings.weight[1]",
        ),
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight",
        "albert.encoder.albert_layer_groups.0.albert_layers.0.ffn_output.weight",
        tuple(
            f"albert.encoder.albert_layer_groups.0.albert_layers.0.attention.{p}.weight"
            for p in ("query", "key", "value")
        ),  # type: ignore[arg-type]
    ),
}


def read(model: nn.Module, site: str) -> Tensor:
    """The value at a site or at a row of one."""
    name, _, index = site.partition("[")
    found = value(model, name)
    return found[int(index.rstrip("]"))] if index else found


@dataclass(frozen=True)
class HfSystem:
    """A class, a declaration on it, and what must hold."""

    name: str
    names: Names
    tie: Callable[[nn.Module], Any]
    relation: Callable[[nn.Module], Pairs]
    spared: int
    sites: tuple[str, ...]

    def stock(self, seed: int = 0, **given: Any) -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = self.names.factory(**given)
            with torch.no_grad():  # biases and norms too, so that every value counts
                for p in model.parameters():
                    p.add_(torch.randn_like(p) * 0.1)
        return model

    def tied(self, seed: int = 0, **given: Any) -> Any:
        model = self.stock(seed, **given)
        self.tie(model)
        return model

    @property
    def free(self) -> int:
        """How many numbers the tied model has."""
        return sum(p.numel() for p in self.stock().parameters()) - self.spared


def _systems() -> Iterator[HfSystem]:
    for kind, n in CLASSES.items():
        for what, declare, relation, spared, sites in (
            ("equality", _equal, _are_equal, _equality_spares(n), (n.embedding, n.output)),
            ("transpose", _transpose, _are_transposed, INNER * WIDTH, (n.up, n.down)),
            ("kernels", _poses, _are_poses, 2 * WIDTH * WIDTH, n.square),
            ("part", _rows, _are_rows, WIDTH, (n.embedding,)),
            ("palindrome", _palindrome, _is_palindrome, _half(n), (n.up,)),
        ):
            yield HfSystem(
                f"{kind}-{what}",
                n,
                lambda m, n=n, declare=declare: declare(m, n),
                lambda m, n=n, relation=relation: relation(m, n),
                spared,
                (*sites, *n.layers) if what == "equality" else sites,
            )


def _equality_spares(n: Names) -> int:
    each = WIDTH if "[" in n.layers[0] else INNER * WIDTH
    return (len(n.layers) - 1) * each + (0 if n.native else VOCABULARY * WIDTH)


def _equal(m: nn.Module, n: Names) -> None:
    with eadem.plan(m):
        eadem.tie(m, n.output, to=n.embedding)
        eadem.tie(m, *n.layers)


def _are_equal(m: nn.Module, n: Names) -> Pairs:
    first = read(m, n.layers[0])
    return [
        (read(m, n.output), read(m, n.embedding)),
        *((read(m, other), first) for other in n.layers[1:]),
    ]


def _transpose(m: nn.Module, n: Names) -> None:
    eadem.tie(m, n.down, to=n.up, via=eadem.Transpose())


def _are_transposed(m: nn.Module, n: Names) -> Pairs:
    return [(read(m, n.down), read(m, n.up).t())]


def _poses(m: nn.Module, n: Names) -> None:
    a, b, c = n.square
    eadem.tie(m, {a: eadem.Same(), b: eadem.Rotate(1), c: eadem.Flip(-1)})


def _are_poses(m: nn.Module, n: Names) -> Pairs:
    a, b, c = (read(m, s) for s in n.square)
    return [(b, torch.rot90(a, 1, (-2, -1))), (c, a.flip(-1))]


def _rows(m: nn.Module, n: Names) -> None:
    eadem.tie(m, f"{n.embedding}[1]", f"{n.embedding}[3]")


def _are_rows(m: nn.Module, n: Names) -> Pairs:
    w = read(m, n.embedding)
    return [(w[1], w[3])]


def _palindrome(m: nn.Module, n: Names) -> None:
    eadem.tie(m, n.up, via=eadem.Palindrome(dim=-1))


def _half(n: Names) -> int:
    return INNER * WIDTH // 2


def _is_palindrome(m: nn.Module, n: Names) -> Pairs:
    w = read(m, n.up)
    return [(w, w.flip(-1))]


def rxnmapper() -> Any:
    """A pretrained ALBERT that maps the atoms of chemical reactions (Schwaller et al. 2021)."""
    from transformers import AlbertForMaskedLM

    package = find_spec("rxnmapper")
    assert package is not None
    assert package.submodule_search_locations is not None
    folder = Path(package.submodule_search_locations[0], "models", "transformers")
    model = AlbertForMaskedLM.from_pretrained(
        folder / "albert_heads_8_uspto_all_1310k", weights_only=True
    )
    return model.eval()


def tied_rxnmapper() -> Any:
    """The same, with further ties: least squares over what was learned at the sites."""
    model = rxnmapper()
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    with eadem.plan(model):
        eadem.tie(
            model,
            {
                f"{layer}.attention.query.weight": eadem.Same(),
                f"{layer}.attention.key.weight": eadem.Same(),
                f"{layer}.attention.value.weight": eadem.Flip(-1),
            },
            start="mean",
        )
        eadem.tie(
            model,
            f"{layer}.ffn_output.weight",
            to=f"{layer}.ffn.weight",
            via=eadem.Transpose(),
            start="mean",
        )
    eadem.tie(model, "albert.embeddings.position_embeddings.weight", via=eadem.Palindrome())
    return model


HF_SYSTEMS: tuple[HfSystem, ...] = tuple(_systems())


def tokens() -> Tensor:
    """A batch of token ids."""
    return torch.tensor([[3, 1, 4, 1, 5], [2, 7, 1, 10, 9]])


def logits(model: nn.Module) -> Tensor:
    """The model's output for that batch, without gradients."""
    with torch.no_grad():
        return forward(model).logits


def forward(model: nn.Module) -> Any:
    """Logits and, for the class's own loss, labels."""
    ids = tokens()
    return model(input_ids=ids, labels=ids)


def assert_related(model: nn.Module, system: HfSystem) -> None:
    """The relation holds to the bit."""
    for a, b in system.relation(model):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def assert_holds(model: nn.Module, system: HfSystem) -> None:
    """The relation holds, and each free value is stored once under one name."""
    assert_related(model, system)
    eadem.check(model)
    stored = dict(model.named_parameters())
    assert list(stored) == list(dict(model.named_parameters(remove_duplicate=False)))
    assert sum(p.numel() for p in stored.values()) == system.free
    assert set(model.state_dict()) - {n for n, _ in model.named_buffers()} == set(stored)
    assert eadem.counts(model).free == system.free


def assert_tied(model: nn.Module, system: HfSystem) -> None:
    """The relation holds now, and after every stored value has changed and some steps."""
    assert_holds(model, system)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            noise = torch.linspace(-1, 1, p.numel()).sin() + 0.1 * i + 0.05
            p.add_(0.1 * noise.reshape(p.shape).to(p))
    assert_holds(model, system)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        forward(model).loss.backward()
        optimizer.step()
    assert_holds(model, system)
