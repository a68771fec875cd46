"""Row 30: quantised at one site: one quantised θ for an equality, else refused first."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from lifecycle_systems import SYSTEMS, System, Tokens, assert_unchanged, snapshot
from torch import Tensor, nn
from torch.ao.quantization import (
    default_dynamic_qconfig,
    default_qconfig,
    float_qparams_weight_only_qconfig,
    prepare,
    quantize_dynamic,
)

import eadem

torchao = pytest.importorskip("torchao")
from torchao.quantization import (  # noqa: E402
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerAxis,
    quantize_,
)
from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig  # noqa: E402
from torchao.utils import TorchAOBaseTensor  # noqa: E402

# torch says of its own quantisation that it is deprecated
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]

CONFIGS = {
    "weights": Int8WeightOnlyConfig(),
    "activations": Int8DynamicActivationInt8WeightConfig(),
    "intx": IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0)),
}


class Chain(nn.Module):
    """Three linear layers of one shape, the middle one free."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


def _chain() -> Chain:
    torch.manual_seed(0)
    return Chain()


def _tokens() -> Tokens:
    torch.manual_seed(0)
    return Tokens()


def _only(*names: str) -> Callable[[nn.Module, str], bool]:
    return lambda module, name: name in names


EQUALITIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, str], Tensor]] = {
    "linear": (_chain, ("first", "last"), torch.linspace(-1, 1, 24).reshape(3, 8)),
    "embedding": (_tokens, ("embed", "head"), torch.arange(7)[None]),
}


@pytest.fixture(params=list(EQUALITIES))
def pair(
    request: pytest.FixtureRequest,
) -> tuple[nn.Module, nn.Module, tuple[str, str], Tensor]:
    """A model tied by Eadem, the same tied by hand, the two modules, and an input."""
    factory, (a, b), x = EQUALITIES[request.param]
    model, hand = factory(), factory()
    eadem.tie(model, f"{a}.weight", f"{b}.weight")
    hand.get_submodule(b).weight = hand.get_submodule(a).weight
    return model, hand, (a, b), x


def _quantised(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if isinstance(p.data, TorchAOBaseTensor)]


@pytest.mark.parametrize("config", list(CONFIGS))
@pytest.mark.parametrize("which", ["first", "second", "both", "default"])
def test_an_equality_keeps_one_quantised_weight(
    pair: tuple[nn.Module, nn.Module, tuple[str, str], Tensor], config: str, which: str
) -> None:
    model, hand, (a, b), x = pair
    chosen = {"first": (a,), "second": (b,), "both": (a, b), "default": ()}[which]
    quantize_(model, CONFIGS[config], _only(*chosen) if chosen else None)
    # by hand: one site is quantised, the other is given the very same tensor
    at, other = (b, a) if which == "second" or a == "embed" else (a, b)
    free = [n for n in ("middle", "hidden") if not chosen and hasattr(hand, n)]
    quantize_(hand, CONFIGS[config], _only(at, *free))
    hand.get_submodule(other).weight = hand.get_submodule(at).weight

    assert _quantised(model) == [f"{a}.weight", *(f"{n}.weight" for n in free)]
    assert f"{b}.weight" not in model.state_dict()
    assert model.get_submodule(a).weight is model.get_submodule(b).weight
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in hand.parameters()
    )
    assert torch.equal(model(x), hand(x))
    assert torch.equal(
        model.get_submodule(a).weight.dequantize(), hand.get_submodule(a).weight.dequantize()
    )
    eadem.check(model)
    assert len(eadem.ties(model)) == 1


def test_the_quantised_weight_is_stored_once(
    pair: tuple[nn.Module, nn.Module, tuple[str, str], Tensor],
) -> None:
    model, _, (a, b), _ = pair
    size = {}
    for name, m in (("tied", model), ("untied", eadem.twin(model))):
        quantize_(m, CONFIGS["weights"], lambda module, n: n in (a, b))
        weights = {id(p): p for p in (m.get_submodule(a).weight, m.get_submodule(b).weight)}
        size[name] = sum(
            getattr(w, part).nbytes for w in weights.values() for part in w.tensor_data_names
        )
    assert 2 * size["tied"] == size["untied"]


def test_copies_and_state_dicts_of_a_quantised_tie(
    pair: tuple[nn.Module, nn.Module, tuple[str, str], Tensor],
) -> None:
    model, _, (a, b), x = pair
    quantize_(model, CONFIGS["weights"], _only(b))
    copied = copy.deepcopy(model)
    assert copied.get_submodule(a).weight is copied.get_submodule(b).weight
    assert torch.equal(copied(x), model(x))
    eadem.check(copied)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    fresh = EQUALITIES["linear" if a == "first" else "embedding"][0]()
    eadem.tie(fresh, f"{a}.weight", f"{b}.weight")
    quantize_(fresh, CONFIGS["weights"], _only(b))
    with torch.no_grad():
        for p in fresh.parameters():
            if not isinstance(p.data, TorchAOBaseTensor):
                p.zero_()
    fresh.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(fresh(x), model(x))
    eadem.check(fresh)


def test_a_compiled_quantised_tie_agrees(
    pair: tuple[nn.Module, nn.Module, tuple[str, str], Tensor],
) -> None:
    model, _, (_, b), x = pair
    quantize_(model, CONFIGS["weights"], _only(b))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()


def test_a_configuration_by_name_at_one_site() -> None:
    model, hand = _chain(), _chain()
    eadem.tie(model, "first.weight", "last.weight")
    x = EQUALITIES["linear"][2]
    quantize_(model, FqnToConfig({"last": CONFIGS["weights"]}), filter_fn=None)
    quantize_(hand, CONFIGS["weights"], _only("first"))
    hand.last.weight = hand.first.weight
    assert torch.equal(model(x), hand(x))
    eadem.check(model)


def test_a_configuration_by_name_at_both_sites_is_refused() -> None:
    model = _chain()
    eadem.tie(model, "first.weight", "last.weight")
    before = snapshot(model)
    both = FqnToConfig(dict.fromkeys(["middle", "first", "last"], CONFIGS["weights"]))
    with pytest.raises(eadem.Unsupported, match=r"(?s)once more at 'last'.*Name one"):
        quantize_(model, both, filter_fn=None)
    assert_unchanged(model, before)


def _modules(system: System) -> set[str]:
    return {name.rpartition(".")[0] for name in system.sites}


OTHERS = [s for s in SYSTEMS if s.name not in ("equality", "part")]


@pytest.mark.parametrize("system", OTHERS, ids=lambda s: s.name)
@pytest.mark.parametrize("site", [0, -1], ids=["first", "last"])
def test_other_maps_are_refused_first(system: System, site: int) -> None:
    model = system.tied()
    at = system.sites[site].rpartition(".")[0]
    before, out = snapshot(model), model.eval()(system.input())

    def chosen(module: nn.Module, name: str) -> bool:
        # the free layers are met first or last, and none of them may be quantised either
        return name == at or (isinstance(module, nn.Linear) and name not in _modules(system))

    with pytest.raises(eadem.Unsupported, match=r"(?s)quantising.*tie.*eadem\.untie|compute"):
        quantize_(model, CONFIGS["weights"], chosen)
    assert_unchanged(model, before)
    assert torch.equal(model(system.input()), out)
    eadem.check(model)


def test_the_way_out_of_a_refusal() -> None:
    system = next(s for s in SYSTEMS if s.name == "transpose")
    model = system.tied()
    eadem.untie(model, "decoder.weight")
    quantize_(model, CONFIGS["weights"])
    assert _quantised(model) == ["encoder.weight", "decoder.weight"]


def test_sites_that_are_not_chosen_are_left_alone(system: System) -> None:
    model = system.tied()
    quantize_(
        model,
        CONFIGS["weights"],
        lambda m, n: isinstance(m, nn.Linear) and n not in _modules(system),
    )
    assert not {n.rpartition(".")[0] for n in _quantised(model)} & _modules(system)
    eadem.check(model)


def test_a_module_that_cannot_read_the_quantised_weight_refuses() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight.square().sum()

    model = nn.Sequential(nn.Linear(8, 8), Norm())
    eadem.tie(model, "0.weight", "1.weight")
    before = snapshot(model)
    with pytest.raises(eadem.Unsupported, match=r"(?s)'0.weight'.*'1.weight'.*cannot compute"):
        quantize_(model, CONFIGS["weights"])
    assert_unchanged(model, before)


def test_a_configuration_that_replaces_modules_is_refused() -> None:
    model = _chain()
    eadem.tie(model, "first.weight", "last.weight")
    before = snapshot(model)
    config = QATConfig(
        weight_config=IntxFakeQuantizeConfig(torch.int8, "per_channel"), step="prepare"
    )
    with pytest.raises(eadem.Unsupported, match=r"(?s)replaces the module 'first'.*twin"):
        quantize_(model, config)
    assert_unchanged(model, before)


LINEAR = [s for s in SYSTEMS if s.name in ("equality", "transpose")]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("system", LINEAR, ids=lambda s: s.name)
def test_torchs_own_dynamic_quantisation_is_refused(system: System, inplace: bool) -> None:
    model = system.tied()
    before = snapshot(model)
    for chosen in (None, {nn.Linear}, {system.sites[-1].rpartition(".")[0]}):
        with pytest.raises(eadem.Unsupported, match=r"(?s)tied.*torchao.*eadem\.twin"):
            quantize_dynamic(model, chosen, dtype=torch.qint8, inplace=inplace)
    assert_unchanged(model, before)
    assert not any(hasattr(m, "qconfig") for m in model.modules())
    quantize_dynamic(eadem.twin(model), {nn.Linear})


def test_torchs_dynamic_quantisation_of_free_layers_keeps_the_tie(system: System) -> None:
    model = system.tied()
    free = {
        n
        for n, m in model.named_modules()
        if type(m) is nn.Linear and n not in _modules(system)
    }
    done = quantize_dynamic(model, free, dtype=torch.qint8)
    assert all(type(done.get_submodule(n)) is not nn.Linear for n in free)
    eadem.check(done)
    assert len(eadem.ties(done)) == len(eadem.ties(model))


def test_torchs_static_quantisation_is_refused() -> None:
    model = next(s for s in SYSTEMS if s.name == "kernels").tied()
    model.qconfig = default_qconfig
    with pytest.raises(eadem.Unsupported, match=r"(?s)'k0.weight'.*tied.*torchao"):
        prepare(model.eval())
    tokens = next(s for s in SYSTEMS if s.name == "equality").tied()
    tokens.embed.qconfig = float_qparams_weight_only_qconfig
    with pytest.raises(eadem.Unsupported, match=r"(?s)'embed.weight'.*tied.*torchao"):
        prepare(tokens.eval())
    tokens.embed.qconfig = None
    tokens.hidden.qconfig = default_dynamic_qconfig
    prepare(tokens)


def test_torchs_graph_quantisation_is_refused(system: System) -> None:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    model = system.tied().eval()
    before = snapshot(model)
    with pytest.raises(eadem.Unsupported, match=r"(?s)tied.*eadem\.twin"):
        prepare_fx(model, get_default_qconfig_mapping(), (system.input(),))
    assert_unchanged(model, before)
