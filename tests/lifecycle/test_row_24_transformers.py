"""Rows 24 and 25 on transformers' own GPT-2 and Llama, with all five kinds of tie at once."""

import copy
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import eadem

transformers = pytest.importorskip("transformers")

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@dataclass(frozen=True)
class Language:
    """A stock language model and where its ties go."""

    build: Callable[[], nn.Module]
    blocks: str
    equal: str  # in every block
    up: str
    down: str
    square: str
    embedding: str
    norm: str

    def tied(self) -> nn.Module:
        torch.manual_seed(0)
        model, b = self.build(), self.blocks
        eadem.tie(model, f"{b}.*.{self.equal}")
        eadem.tie(model, f"{b}.1.{self.down}", to=f"{b}.0.{self.up}", via=eadem.Transpose())
        poses = (eadem.Same(), eadem.Rotate(1), eadem.Flip(-1))
        eadem.tie(model, {f"{b}.{i}.{self.square}": phi for i, phi in enumerate(poses)})
        eadem.tie(model, f"{self.embedding}[1]", f"{self.embedding}[3]")
        eadem.tie(model, self.norm, via=eadem.Palindrome(dim=-1))
        return model

    def relations(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        w = lambda name: _read(model, name)  # noqa: E731
        b = self.blocks
        square = w(f"{b}.0.{self.square}")
        return [
            (w(f"{b}.0.{self.equal}"), w(f"{b}.2.{self.equal}")),
            (w(f"{b}.1.{self.down}"), w(f"{b}.0.{self.up}").t()),
            (w(f"{b}.1.{self.square}"), torch.rot90(square, 1, (-2, -1))),
            (w(f"{b}.2.{self.square}"), square.flip(-1)),
            (w(self.embedding)[1], w(self.embedding)[3]),
            (w(self.norm), w(self.norm).flip(-1)),
            (w("lm_head.weight"), model.get_input_embeddings().weight.detach()),
        ]


def _read(model: nn.Module, name: str) -> Tensor:
    module, _, attr = name.rpartition(".")
    return getattr(model.get_submodule(module), attr).detach()


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=3, n_embd=8, n_head=2, vocab_size=12, n_positions=16, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(
        num_hidden_layers=3, hidden_size=8, intermediate_size=12, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=12, max_position_embeddings=16,
        tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


GPT2 = Language(
    _gpt2,
    blocks="transformer.h",
    equal="attn.c_attn.weight",
    up="mlp.c_fc.weight",
    down="mlp.c_proj.weight",
    square="attn.c_proj.weight",
    embedding="transformer.wpe.weight",
    norm="transformer.ln_f.weight",
)
LLAMA = Language(
    _llama,
    blocks="model.layers",
    equal="self_attn.k_proj.weight",
    up="mlp.up_proj.weight",
    down="mlp.down_proj.weight",
    square="self_attn.o_proj.weight",
    embedding="model.embed_tokens.weight",
    norm="model.norm.weight",
)
language = pytest.mark.parametrize("language", [GPT2, LLAMA], ids=["gpt2", "llama"])


def _train(call: nn.Module, model: nn.Module) -> list[Tensor]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        logits = call(input_ids=IDS, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


@language
def test_twenty_steps_in_one_compilation(language: Language) -> None:
    model = language.tied()
    eager = copy.deepcopy(model)
    counter = CompileCounterWithBackend("aot_eager")
    call = torch.compile(model, fullgraph=True, backend=counter)
    found, want = _train(call, model), _train(eager, eager)
    assert counter.frame_count == 1
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
    assert float(found[-1]) < 0.8 * float(found[0])
    for a, b in language.relations(model):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    eadem.check(model)


@language
def test_exported_saved_and_loaded(language: Language) -> None:
    model = language.tied().eval()
    shapes = {"input_ids": {0: Dim("batch", max=8), 1: Dim("time", max=16)}, "use_cache": None}
    program = torch.export.export(
        model, (), {"input_ids": IDS, "use_cache": False}, dynamic_shapes=shapes
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    assert {n for n, _ in loaded.named_parameters()} == {n for n, _ in model.named_parameters()}
    assert sum(p.numel() for p in loaded.parameters()) == eadem.counts(model).stored
    ids = torch.cat([IDS, IDS + 1], dim=1)[:, :9].repeat(2, 1)
    found = loaded.module()(input_ids=ids, use_cache=False).logits
    torch.testing.assert_close(found, model(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
