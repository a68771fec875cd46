"""Row 29: LoRA on tied sites: outputs equal before and after merge and unmerge, or refused."""

import copy
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lifecycle_systems import (
    SYSTEMS,
    System,
    assert_related,
    assert_unchanged,
    snapshot,
    value,
)
from torch import Tensor, nn

import eadem

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, get_peft_model  # noqa: E402
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402

pytestmark = [
    # peft warns of every tied embedding, whatever is done about it
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:All adapters are already merged"),
    pytest.mark.filterwarnings("ignore:.*fan_in_fan_out is set to False"),
    # peft says so after a merge where the two have been untied
    pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied"),
    # transformers, of its own call
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated"),
]

TARGETED = [s for s in SYSTEMS if s.name != "part"]


def _modules(system: System) -> list[str]:
    return [name.rpartition(".")[0] for name in system.sites]


def _adapted(
    model: nn.Module, targets: list[str] | str, scale: float = 0.3, **options: Any
) -> Any:
    """The model with an adapter that does something."""
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_" in name:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return adapted.eval()


def _layers(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, BaseTunerLayer)]


def _states(model: nn.Module) -> list[list[str]]:
    return [list(m.merged_adapters) for m in _layers(model)]


def _near(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("system", TARGETED, ids=lambda s: s.name)
@pytest.mark.parametrize("which", ["all", "last"])
def test_only_the_adapter_trains(system: System, which: str) -> None:
    model = system.tied()
    x, names = system.input(), _modules(system)
    plain = model.eval()(x)
    adapted = get_peft_model(
        model, LoraConfig(r=2, target_modules=names if which == "all" else names[-1:])
    )
    assert torch.equal(adapted.eval()(x), plain)
    frozen = {n: p.clone() for n, p in adapted.named_parameters() if "lora_" not in n}
    assert frozen
    assert all(not p.requires_grad for n, p in adapted.named_parameters() if n in frozen)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(adapted(x), plain)
    for name, old in frozen.items():
        assert torch.equal(dict(adapted.named_parameters())[name], old), name
    with adapted.disable_adapter():
        assert torch.equal(adapted(x), plain)
    eadem.check(adapted)
    assert len(eadem.ties(adapted)) == 1
    assert_related(adapted.unload(), system)


@pytest.mark.parametrize("system", TARGETED, ids=lambda s: s.name)
@pytest.mark.parametrize("which", ["all", "last"])
@pytest.mark.parametrize("verb", ["merge_adapter", "merge_and_unload"])
@pytest.mark.parametrize("safe", [False, True])
def test_a_change_that_leaves_the_tie_is_refused(
    system: System, which: str, verb: str, safe: bool
) -> None:
    names = _modules(system)
    adapted = _adapted(system.tied(), names if which == "all" else names[-1:])
    x = system.input()
    before, states, out = snapshot(adapted), _states(adapted), adapted(x)
    with pytest.raises(eadem.TieBroken) as refusal:
        getattr(adapted, verb)(safe_merge=safe)
    said = str(refusal.value)
    for name in names:
        assert re.search(rf"\b{name}(\.base_layer)?\.(weight)\b", said), said
    assert re.search(r"adapter 'default'.*cannot hold.*Nothing was changed.*unmerged", said)
    assert "eadem.untie" in said
    assert_unchanged(adapted, before)
    assert _states(adapted) == states
    assert torch.equal(adapted(x), out)
    eadem.check(adapted)
    site = eadem.ties(adapted)[0].sites[0]
    assert "refused: TieBroken: adapter 'default'" in eadem.explain(adapted, site)


@pytest.mark.parametrize("system", TARGETED, ids=lambda s: s.name)
def test_the_way_out_untie_then_merge(system: System) -> None:
    adapted = _adapted(system.tied(), _modules(system), 0.01)
    x = system.input()
    out = adapted(x)
    eadem.untie(adapted)
    _near(adapted.merge_and_unload()(x), out)


@pytest.mark.parametrize("system", TARGETED, ids=lambda s: s.name)
def test_one_layer_alone_is_refused_too(system: System) -> None:
    adapted = _adapted(system.tied(), _modules(system))
    before, out = snapshot(adapted), adapted(system.input())
    for layer in _layers(adapted):
        with pytest.raises(eadem.TieBroken, match=r"cannot hold"):
            layer.merge()
        assert not layer.merged
    assert_unchanged(adapted, before)
    assert torch.equal(adapted(system.input()), out)


def test_a_part_of_a_tensor_targeted_by_name_is_refused() -> None:
    system = next(s for s in SYSTEMS if s.name == "part")
    model = nn.ModuleDict({"rows": system.tied()})
    before = snapshot(model)
    config = LoraConfig(r=2, target_modules=[], target_parameters=["rows.w"])
    with pytest.raises(eadem.Unsupported, match=r"target_parameters names 'rows.w'.*untie"):
        get_peft_model(model, config)
    assert_unchanged(model, before)


class Pair(nn.Module):
    """Two linear layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(5, 5)
        self.b = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def _pair() -> nn.Module:
    torch.manual_seed(0)
    return Pair()


AT = "base_model.model."
A, B = "lora_A.default.weight", "lora_B.default.weight"


def _embedding(m: nn.Module) -> None:
    embed, head = f"{AT}embed.lora_embedding_", f"{AT}head.lora_"
    eadem.tie(m, f"{head}A.default.weight", to=f"{embed}B.default", via=eadem.Transpose())
    eadem.tie(m, f"{head}B.default.weight", to=f"{embed}A.default", via=eadem.Transpose())


def _across(m: nn.Module) -> None:
    eadem.tie(m, f"{AT}decoder.{A}", to=f"{AT}encoder.{B}", via=eadem.Transpose())
    eadem.tie(m, f"{AT}decoder.{B}", to=f"{AT}encoder.{A}", via=eadem.Transpose())


def _posed(m: nn.Module) -> None:
    maps = (eadem.Same(), eadem.Rotate(1), eadem.Flip(-1))
    eadem.tie(m, {f"{AT}k{i}.{A}": phi for i, phi in enumerate(maps)})
    eadem.tie(m, *(f"{AT}k{i}.{B}" for i in range(3)))


def _both(m: nn.Module) -> None:
    eadem.tie(m, f"{AT}a.{A}", f"{AT}b.{A}")
    eadem.tie(m, f"{AT}a.{B}", f"{AT}b.{B}")


def _system(name: str) -> Callable[[], nn.Module]:
    return next(s for s in SYSTEMS if s.name == name).tied


def _tied_pair() -> nn.Module:
    model = _pair()
    eadem.tie(model, "a.weight", "b.weight")
    return model


X = torch.linspace(-1, 1, 15)
#: A tied model, its targets, how its adapter is tied alike, an input.
ALIKE: dict[str, tuple[Callable[[], nn.Module], list[str], Callable[[nn.Module], Any], Tensor]]
ALIKE = {
    "linear": (_tied_pair, ["a", "b"], _both, X.reshape(3, 5)),
    "embedding": (_system("equality"), ["embed", "head"], _embedding, torch.arange(7)[None]),
    "transpose": (_system("transpose"), ["encoder", "decoder"], _across, X[:12].reshape(2, 6)),
    "kernels": (_system("kernels"), ["k0", "k1", "k2"], _posed, torch.ones(1, 1, 5, 5)),
    "palindrome": (
        _system("palindrome"),
        ["conv"],
        lambda m: eadem.tie(m, f"{AT}conv.{A}", via=eadem.Palindrome(dim=-1)),
        X[:9].reshape(1, 1, 9),
    ),
}

Alike = tuple[Any, list[str], Tensor, Tensor, Tensor]


@pytest.fixture(params=list(ALIKE))
def alike(request: pytest.FixtureRequest) -> Iterator[Alike]:
    """An adapted model whose adapter keeps to the tie, its targets, an input, and its outputs
    with and without the adapter.
    """
    make, targets, tie, x = ALIKE[request.param]
    model = make().eval()
    plain = model(x)
    adapted = _adapted(model, targets)
    tie(adapted)
    out = adapted(x)
    assert not torch.allclose(out, plain, atol=1e-2)
    yield adapted, targets, x, out, plain
    eadem.check(adapted)


@pytest.mark.parametrize("safe", [False, True])
def test_an_adapter_tied_like_its_sites_merges_once(alike: Alike, safe: bool) -> None:
    adapted, targets, x, out, plain = alike
    ties = [t.sites for t in eadem.ties(adapted)]
    first = adapted.get_submodule(AT + targets[0])
    # the oracle: θ is the first site's, and takes that site's change once
    wanted = first.base_layer.weight.detach() + first.get_delta_weight("default").detach()
    adapted.merge_adapter(safe_merge=safe)
    assert all(m.merged_adapters == ["default"] for m in _layers(adapted))
    _near(first.base_layer.weight, wanted)
    _near(adapted(x), out)
    adapted.unmerge_adapter()
    assert not any(m.merged for m in _layers(adapted))
    _near(adapted(x), out)
    assert [t.sites for t in eadem.ties(adapted)] == ties
    with adapted.disable_adapter():
        _near(adapted(x), plain)


def test_a_merged_adapter_is_disabled_as_a_whole(alike: Alike) -> None:
    """peft unmerges layer by layer in the forward; the layers of a tie go together."""
    adapted, _, x, out, plain = alike
    adapted.merge_adapter()
    with adapted.disable_adapter():
        _near(adapted(x), plain)
    _near(adapted(x), out)


def test_unmerging_one_layer_unmerges_its_tie(alike: Alike) -> None:
    adapted, _, x, out, _ = alike
    adapted.merge_adapter()
    _layers(adapted)[-1].unmerge()
    assert not any(m.merged for m in _layers(adapted))
    _near(adapted(x), out)


def test_unloading_leaves_the_tie_and_the_stock_modules(alike: Alike) -> None:
    adapted, _, x, out, _ = alike
    before = len(eadem.ties(adapted))
    done = adapted.merge_and_unload()
    _near(done(x), out)
    assert not any("lora" in n or "base_layer" in n for n in done.state_dict())
    assert 0 < len(eadem.ties(done)) <= before
    eadem.check(done)
    plain = eadem.twin(done)
    _near(plain(x), out)


def test_copies_of_a_merged_model(alike: Alike) -> None:
    adapted, _, x, out, plain = alike
    adapted.merge_adapter()
    for other in (copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        _near(other(x), out)
        with other.disable_adapter():
            _near(other(x), plain)
        assert not any(m.merged for m in _layers(other))
        eadem.check(other)
    _near(adapted(x), out)
    assert all(m.merged for m in _layers(adapted))


def test_deleting_the_adapter_takes_its_own_ties_along(alike: Alike) -> None:
    adapted, _, x, _, plain = alike
    adapted.delete_adapter("default")
    eadem.check(adapted)
    assert all("lora" not in name for t in eadem.ties(adapted) for name in t.sites)
    _near(adapted.base_model.model(x), plain)


def test_a_small_change_in_half_precision_is_still_seen() -> None:
    model = _tied_pair().to(torch.bfloat16)
    adapted = _adapted(model, ["b"], 0.04)
    largest = adapted.get_submodule(AT + "b").get_delta_weight("default").abs().max()
    assert 0 < largest < 0.02
    with pytest.raises(eadem.TieBroken, match="cannot hold"):
        adapted.merge_adapter()


def test_free_layers_are_merged_as_ever(system: System) -> None:
    """Beside the tie: merging writes only where it should."""
    model = nn.ModuleDict({"tied": system.tied(), "free": nn.Linear(4, 4)})
    adapted = _adapted(model, ["free"])
    site = value(model, f"tied.{system.sites[0]}")
    weight = model["free"].base_layer.weight.clone()
    delta = model["free"].get_delta_weight("default").detach()
    adapted.merge_adapter()
    assert torch.equal(value(model, f"tied.{system.sites[0]}"), site)
    _near(model["free"].base_layer.weight, weight + delta)
    adapted.unmerge_adapter()
    eadem.check(adapted)
    assert_related(adapted.merge_and_unload()["tied"], system)


@pytest.mark.parametrize(
    "config",
    [
        LoHaConfig(r=2, target_modules=["a", "b"]),
        IA3Config(target_modules=["a", "b"], feedforward_modules=[]),
    ],
    ids=lambda c: c.peft_type.value,
)
def test_other_tuners_are_refused_alike(config: Any) -> None:
    adapted = get_peft_model(_tied_pair(), config).eval()
    x = X.reshape(3, 5)
    with torch.no_grad():
        for i, p in enumerate(p for p in adapted.parameters() if p.requires_grad):
            p.add_(torch.linspace(-0.5, 0.5 + i, p.numel()).reshape(p.shape))
    out, before = adapted(x), snapshot(adapted)
    with pytest.raises(eadem.TieBroken, match="cannot hold"):
        adapted.merge_adapter()
    assert_unchanged(adapted, before)
    assert torch.equal(adapted(x), out)


def _llama(native: bool = True) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=24,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=native,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=24,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    return transformers.GPT2LMHeadModel(config).eval()


EMBED = "model.embed_tokens.weight"
IDS = torch.arange(8)[None]


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def _tied_llama(native: bool = True) -> nn.Module:
    model = _llama(native)
    eadem.tie(model, EMBED, "lm_head.weight")
    return model


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]]
)
def test_llama_with_unlike_changes_is_refused(native: bool, targets: list[str]) -> None:
    model = _tied_llama(native)
    adapted = _adapted(model, targets)
    out, before = _logits(adapted), snapshot(adapted)
    for verb in ("merge_adapter", "merge_and_unload"):
        with pytest.raises(eadem.TieBroken, match=r"embed_tokens\..*lm_head\..*cannot hold"):
            getattr(adapted, verb)()
    assert_unchanged(adapted, before)
    assert torch.equal(_logits(adapted), out)
    assert adapted.config.tie_word_embeddings is native
    eadem.untie(adapted)
    _near(_logits(adapted.merge_and_unload()), out)


def test_gpt2_head_alone_is_refused() -> None:
    model = _gpt2()
    eadem.tie(model, "lm_head.weight", "transformer.wte.weight")
    adapted = _adapted(model, ["lm_head"])
    wte = model.transformer.wte.weight.clone()
    with pytest.raises(eadem.TieBroken, match=r"wte\.weight.*lm_head\.base_layer\.weight"):
        adapted.merge_and_unload()
    assert torch.equal(model.transformer.wte.weight, wte)


def test_gpt2_layers_that_share_their_attention() -> None:
    model = _gpt2()
    eadem.tie(model, "transformer.h.*.attn.c_attn.weight")
    adapted = _adapted(model, ["c_attn"])
    with pytest.raises(eadem.TieBroken, match=r"h\.0\.attn\.c_attn.*h\.1\.attn\.c_attn"):
        adapted.merge_adapter()
    for part in ("A", "B"):
        eadem.tie(adapted, f"**.c_attn.lora_{part}.default.weight")
    out = _logits(adapted)
    adapted.merge_adapter()
    _near(_logits(adapted), out)
    _near(_logits(adapted.merge_and_unload()), out)


def _train(adapted: Any) -> None:
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.2)
    adapted.train()
    for _ in range(3):
        optimizer.zero_grad()
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    adapted.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
        {
            "target_modules": ["v_proj"],
            "modules_to_save": ["lm_head", "embed_tokens"],
            "ensure_weight_tying": True,
        },
        {"target_modules": ["v_proj"], "trainable_token_indices": [1, 3, 5]},
        {"target_modules": "all-linear"},
    ],
    ids=["both", "modules_to_save", "tokens", "all-linear"],
)
def test_llama_with_the_same_change_everywhere(options: dict[str, Any], tmp_path: Path) -> None:
    model = _tied_llama()
    plain = _logits(model)
    adapted = get_peft_model(model, LoraConfig(r=2, **options))
    _train(adapted)
    out = _logits(adapted)
    assert not torch.allclose(out, plain, atol=1e-3)
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(_tied_llama(), tmp_path)
    assert torch.equal(_logits(again), out)
    eadem.check(again)
    with adapted.disable_adapter():
        _near(_logits(adapted), plain)
    adapted.merge_adapter()
    _near(_logits(adapted), out)
    with adapted.disable_adapter():
        _near(_logits(adapted), plain)
    _near(_logits(adapted), out)
    done = adapted.merge_and_unload()
    _near(_logits(done), out)
    assert done.config.tie_word_embeddings
    assert done.lm_head.weight is done.model.embed_tokens.weight
    eadem.check(done)
    names = {n for t in eadem.ties(done) for n in t.sites}
    assert names == {EMBED, "lm_head.weight"}


def test_llama_takes_the_change_once() -> None:
    """peft alone gives the one weight of a natively tied model W + 2Δ."""
    options = {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True}
    adapted = get_peft_model(_tied_llama(), LoraConfig(r=2, **options))
    _train(adapted)
    embed = adapted.get_input_embeddings()
    weight = embed.base_layer.weight.clone()
    delta = embed.get_delta_weight("default").detach()
    assert delta.abs().max() > 0.01
    done = adapted.merge_and_unload()
    _near(done.lm_head.weight, weight + delta)


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_a_copy_of_a_tied_module_is_refused(saved: list[str]) -> None:
    model = _tied_llama()
    before = snapshot(model)
    config = LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=saved)
    with pytest.raises(eadem.Unsupported, match=r"modules_to_save.*lm_head\.weight.*untie"):
        get_peft_model(model, config)
    assert_unchanged(model, before)
    eadem.untie(model)
    get_peft_model(model, config)


def test_a_copy_of_the_whole_of_a_tie_is_trained_and_taken_over() -> None:
    model = _llama(native=False)
    gate, up = (f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up"))
    eadem.tie(model, gate, up)
    config = LoraConfig(r=2, target_modules=["lm_head"], modules_to_save=["layers.1.mlp"])
    adapted = get_peft_model(model, config)
    _train(adapted)
    eadem.check(adapted)
    out = _logits(adapted)
    done = adapted.merge_and_unload()
    _near(_logits(done), out)
    eadem.check(done)
    assert done.get_parameter(gate) is done.model.layers[1].mlp.up_proj.weight
    assert len(eadem.ties(done)) == 1


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_takes_from_the_weight_is_refused(init: str) -> None:
    model = _tied_llama()
    before = snapshot(model)
    for targets in (["lm_head"], ["embed_tokens", "q_proj"]):
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=init)
        with pytest.raises(eadem.Unsupported, match=rf"{init}.*tied.*eadem\.untie"):
            get_peft_model(model, config)
    assert_unchanged(model, before)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init))
    eadem.check(model)


def test_peft_without_ties_is_left_alone() -> None:
    x = X.reshape(3, 5)
    adapted = _adapted(_pair(), ["a", "b"])
    out = adapted(x)
    adapted.merge_adapter()
    _near(adapted(x), out)
    _layers(adapted)[0].unmerge()
    assert [m.merged for m in _layers(adapted)] == [False, True]
    assert not any(k.startswith("_eadem") for m in adapted.modules() for k in m.__dict__)


def test_a_tie_with_a_site_outside_the_adapted_model() -> None:
    """The adapter is on the site that owns θ; the other is in a module peft never sees."""
    outer = nn.ModuleDict({"inside": _pair(), "outside": nn.Linear(5, 5)})
    eadem.tie(outer, "inside.a.weight", "outside.weight")
    adapted = _adapted(outer["inside"], ["a"])
    other = outer["outside"].weight.clone()
    with pytest.raises(eadem.TieBroken, match=r"inside\.a\..*outside\.weight.*cannot hold"):
        adapted.merge_and_unload()
    assert torch.equal(outer["outside"].weight, other)
    fresh = nn.ModuleDict({"inside": _pair(), "outside": nn.Linear(5, 5)})
    eadem.tie(fresh, "inside.a.weight", "outside.weight")
    config = LoraConfig(r=2, target_modules=["a"], init_lora_weights="pissa")
    with pytest.raises(eadem.Unsupported, match=r"pissa.*'a\.weight'.*tied"):
        get_peft_model(fresh["inside"], config)


def test_a_tie_declared_on_an_adapted_model() -> None:
    adapted = _adapted(_pair(), ["a"])
    eadem.tie(adapted, f"{AT}a.base_layer.weight", f"{AT}b.weight")
    (layer,) = _layers(adapted)
    before = snapshot(adapted)
    for merge in (layer.merge, adapted.merge_adapter):
        with pytest.raises(eadem.TieBroken, match=r"a\.base_layer\.weight.*b\.weight"):
            merge()
    assert_unchanged(adapted, before)
