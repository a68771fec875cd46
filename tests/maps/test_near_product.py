"""Layers that share a matrix but for a remainder of low rank multiply without building it."""

import copy
import io

import pytest
import torch
from torch import nn

import eadem
from eadem import LowRank, Same, Transpose
from eadem.bind.group import LINKS, Link


def _three(*maps: eadem.Map, bias: bool = True, turned: bool = False) -> nn.Module:
    """Three layers of one width whose weights are tied by these maps, at general values."""
    torch.manual_seed(0)
    flips = [isinstance(m, LowRank) and isinstance(m.shared, Transpose) for m in maps]
    sizes = [(5, 7) if f else (7, 5) for f in flips]
    if turned:
        from transformers.pytorch_utils import Conv1D

        model = nn.ModuleList([Conv1D(o, i) for i, o in sizes])
    else:
        model = nn.ModuleList([nn.Linear(i, o, bias=bias) for i, o in sizes])
    eadem.tie(model, {f"{i}.weight": m for i, m in enumerate(maps)})
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape))
    return model


CASES = {
    "one shared, two near": (Same(), LowRank(2), LowRank(1)),
    "all near a common one": (LowRank(2), LowRank(1), LowRank(3)),
    "transposed": (Same(), LowRank(2), LowRank(1) @ Transpose()),
}


@pytest.mark.parametrize("turned", [False, True], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("case", CASES)
def test_the_output_and_the_gradients_are_those_of_the_weight(case: str, turned: bool) -> None:
    if turned:
        pytest.importorskip("transformers")
    model = _three(*CASES[case], turned=turned).double()
    near = [i for i, m in enumerate(CASES[case]) if isinstance(m, LowRank)]
    for i in near:
        layer = model[i]
        weight = layer.weight.detach()
        x = torch.randn(2, 3, weight.shape[0 if turned else 1], dtype=torch.float64)
        wanted = x @ (weight if turned else weight.T) + layer.bias
        torch.testing.assert_close(layer(x), wanted, rtol=0, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(layer(x[0, 0]), wanted[0, 0], rtol=0, atol=1e-12)
        thetas = list(model.parameters())
        found = torch.autograd.grad(layer(x).sin().sum(), thetas, allow_unused=True)
        value = x @ (layer.weight if turned else layer.weight.mT) + layer.bias
        hand = torch.autograd.grad(value.sin().sum(), thetas, allow_unused=True)
        for a, b in zip(found, hand, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_the_weight_is_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _three(LowRank(2), LowRank(1), LowRank(3))
    links = [layer.__dict__[LINKS]["weight"] for layer in model]
    built: list[str] = []
    plain = Link.of

    def of(self: Link, thetas: list[torch.Tensor]) -> torch.Tensor:
        built.append(self.key)
        return plain(self, thetas)

    monkeypatch.setattr(Link, "of", of)
    x = torch.randn(4, 7)
    for layer in model:
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)
    assert built == []
    assert links[0].compute().shape == (5, 7)  # reading the weight builds it
    assert built == ["0.weight"]


def test_a_shared_matrix_that_is_picked_from_fewer_values_is_built() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(6, 6) for _ in range(3)])
    at = torch.arange(36).view(6, 6) // 2
    eadem.tie(model, {"0.weight": eadem.Gather(at), "1.weight": LowRank(1) @ eadem.Gather(at)})
    assert model[1].__dict__[LINKS]["weight"].factors is None
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape))
    x = torch.randn(3, 6)
    wanted = x @ model[1].weight.T + model[1].bias
    torch.testing.assert_close(model[1](x), wanted)


def test_copies_pickles_compiled_and_other_values_multiply_alike() -> None:
    model = nn.Sequential(*_three(LowRank(2), LowRank(1), LowRank(3))[:1], nn.ReLU())
    whole = _three(LowRank(2), LowRank(1), LowRank(3))
    x = torch.randn(3, 7)
    wanted = [layer(x) for layer in whole]
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(whole), again):
        for layer, value in zip(other, wanted, strict=True):
            torch.testing.assert_close(layer(x), value)
    assert type(again[0].__dict__[LINKS]["weight"].factors).__name__ == "NearProduct"
    torch.compiler.reset()
    found = torch.compile(whole[1], fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(found, wanted[1])
    state = {k: 2 * v for k, v in whole.state_dict().items()}
    given = torch.func.functional_call(whole[1], {"bias": state["1.bias"]}, (x,))
    torch.testing.assert_close(given, wanted[1] + whole[1].bias)
    assert len(model) == 2


def test_under_autocast_and_half_precision() -> None:
    model = _three(Same(), LowRank(2), LowRank(1))
    x = torch.randn(3, 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model[1](x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), model[1](x), rtol=0.1, atol=0.2)
    model.bfloat16()
    assert model[1](x.bfloat16()).dtype == torch.bfloat16
