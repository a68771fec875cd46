"""Matrices of low rank without redundant numbers: laws, oracles, and layers that use them."""

import copy
import pickle

import pytest
import torch
from torch import nn

import eadem
from eadem import Block, Factored, Transpose
from eadem.bind.group import Link
from eadem.errors import ShapeError
from eadem.maps.spec import from_spec, to_spec
from eadem.testing import check_map


@pytest.mark.parametrize(
    ("phi", "shape"),
    [
        (Factored(1), (4, 3)),
        (Factored(3), (4, 3)),
        (Factored(2, "rows"), (4, 3)),
        (Factored(2, pivots=(4, 1)), (3, 5)),
        (Factored(2, "rows", (3, 1)), (4, 6)),
        (Transpose() @ Factored(2, "rows", (3, 1)), (3, 6)),
        (Transpose() @ Block(1, 6) @ Factored(2), (3, 4)),
    ],
)
def test_laws(phi, shape):
    check_map(phi, shape)


@pytest.mark.parametrize(("phi", "shape"), [(Block(2, 7), (3, 4)), (Block(1, 5, 1), (3, 4))])
def test_laws_of_blocks(phi, shape):
    check_map(phi, shape)


@pytest.mark.parametrize("side", ["columns", "rows"])
def test_the_lift_is_the_nearest_matrix_of_that_rank(side):
    torch.manual_seed(0)
    w = torch.randn(6, 9, dtype=torch.float64)
    phi = Factored(4, side, (5, 0, 3, 2)).bind((6, 9))
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    nearest = (u[:, :4] * s[:4]) @ v[:4]
    theta = phi.lift(w)
    assert theta.shape == (4 * (6 + 9 - 4),)
    assert torch.allclose(phi.expand(theta), nearest, atol=1e-12)
    assert phi.linearize(theta).rank == theta.numel()
    x = torch.randn(2, 3, 9, dtype=torch.float64)
    assert torch.allclose(phi.product(theta, x), x @ nearest.T, atol=1e-12)


def test_full_rank_is_the_matrix_itself():
    w = torch.randn(3, 5)
    phi = Factored(3).bind((3, 5))
    assert phi.in_shape == (15,)
    assert torch.allclose(phi.expand(phi.lift(w)), w, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="rank 4 is more"):
        Factored(4).bind((3, 5))
    with pytest.raises(ShapeError, match="2 different pivots"):
        Factored(2, pivots=(1, 1))
    with pytest.raises(ShapeError, match="has pivot 7"):
        Factored(2, pivots=(1, 7)).bind((3, 5))
    with pytest.raises(ShapeError, match="'columns' or 'rows'"):
        Factored(2, "diagonals")
    with pytest.raises(ShapeError, match="beyond"):
        Block(3, 5).bind((3, 2))


def trio(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict({n: nn.Linear(6, m) for n, m in (("q", 6), ("k", 2), ("v", 4))})


def tied(seed=0):
    model = trio(seed)
    whole = Factored(4, pivots=(5, 1, 2, 0))
    maps = {"q.weight": Block(0, 12), "k.weight": Block(6, 12), "v.weight": Block(8, 12)}
    t = eadem.tie(model, {n: b @ whole for n, b in maps.items()})
    return model, t


def test_sites_of_several_sizes_share_one_factor():
    stock, (model, t) = trio(), tied()
    w = torch.cat([stock[n].weight for n in "qkv"])
    u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
    nearest = ((u[:, :4] * s[:4]) @ v[:4]).float()
    held = torch.cat([model[n].weight for n in "qkv"])
    assert torch.allclose(held, nearest, atol=1e-5)
    assert next(n for n, _ in model.named_parameters()) == "q.weight"
    assert t.theta.shape == (4 * (12 + 6 - 4),)
    assert eadem.counts(model).free == 4 * 14 + 12
    assert "q.weight" in str(eadem.summary(model))
    assert "Factored" in str(eadem.explain(model, "k.weight"))
    assert max(t.residual.values()) > 0.01


def test_layers_multiply_by_their_factors(monkeypatch):
    model, _ = tied()
    x = torch.randn(5, 6)
    expected = {n: x @ model[n].weight.T + model[n].bias for n in "qkv"}
    built = []
    monkeypatch.setattr(Link, "of", lambda self, thetas: built.append(self.key))
    found = {n: model[n](x) for n in "qkv"}
    assert not built
    for n in "qkv":
        assert torch.allclose(found[n], expected[n], atol=1e-5)
    assert type(model["q"]).__name__ == "Linear"
    assert isinstance(model["q"], nn.Linear)


@pytest.mark.parametrize("side", ["columns", "rows"])
def test_without_gradients_the_factors_are_those_of_now(side):
    """Written to, replaced, moved to another format; in several dimensions; under vmap."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5))
    t = eadem.tie(model, {"0.weight": Factored(3, side, (4, 0, 2))})
    x = torch.randn(2, 3, 6)

    def check():
        with torch.no_grad():
            given = x.to(model[0].bias.dtype)
            expected = given @ model[0].weight.T + model[0].bias
            assert torch.allclose(model(given), expected, atol=1e-5)
            assert torch.allclose(model(given[0, 0]), expected[0, 0], atol=1e-5)
            assert torch.allclose(torch.vmap(model)(given), expected, atol=1e-5)

    check()
    with torch.no_grad():
        t.theta.mul_(2)
    check()
    t.theta.data = torch.randn_like(t.theta)
    check()
    model.double()
    check()
    model.load_state_dict({k: torch.randn_like(v) for k, v in model.state_dict().items()})
    check()


def test_gradients_through_factors_are_those_through_the_weight():
    model, t = tied()
    model = model.double()
    x = torch.randn(5, 6, dtype=torch.float64)
    loss = sum((model[n](x) ** 2).sum() for n in "qkv")
    by_factors = torch.autograd.grad(loss, t.theta)[0]
    whole = sum(((x @ model[n].weight.T + model[n].bias) ** 2).sum() for n in "qkv")
    by_weight = torch.autograd.grad(whole, t.theta)[0]
    assert torch.allclose(by_factors, by_weight, atol=1e-10)


def test_saved_loaded_copied_pickled_untied(tmp_path):
    model, _ = tied()
    x = torch.randn(3, 6)
    expected = {n: model[n](x) for n in "qkv"}
    eadem.save(model, tmp_path / "m.safetensors")
    again = trio(1)
    eadem.load(again, tmp_path / "m.safetensors")
    pickled = pickle.loads(pickle.dumps(model))
    for other in (again, copy.deepcopy(model), pickled):
        eadem.check(other)
        for n in "qkv":
            assert torch.equal(other[n](x), expected[n])
    plain = trio(2)
    plain.load_state_dict(eadem.materialize(model))
    eadem.untie(again, "k.weight")
    for other in (plain, again, eadem.twin(model)):
        for n in "qkv":
            assert torch.allclose(other[n](x), expected[n], atol=1e-5)


def test_a_transposed_layer_multiplies_by_its_factors():
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    model = nn.ModuleDict({"c": conv1d(6, 8)})
    nn.init.normal_(model["c"].bias)
    eadem.tie(model, {"c.weight": Transpose() @ Factored(3, "rows")})
    x = torch.randn(2, 5, 8)
    found, built = model["c"](x), x @ model["c"].weight + model["c"].bias
    assert torch.allclose(found, built, atol=1e-5)
    assert model["c"].weight.shape == (8, 6)
    assert eadem.counts(model).stored == 3 * (6 + 8 - 3) + 6


def test_the_spec_goes_round():
    spec = to_spec(Block(2, 6) @ Factored(2, pivots=(1, 0)))
    phi = from_spec(spec).bind((2, 4))
    assert repr(phi.inner) == "Factored(2, pivots=<2 columns>)"
    assert phi.in_shape == (2 * (6 + 4 - 2),)


@pytest.mark.parametrize("conv", [False, True])
@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
def test_every_way_to_multiply_is_that_of_the_weight(conv, side, across, gradients):
    """Linear and Conv1D, pivots on either side, the matrix or its transpose: values, and the
    gradients of θ, of the input and of the bias."""
    torch.manual_seed(0)
    if conv:
        pytest.importorskip("transformers")
        from transformers.pytorch_utils import Conv1D

        layer = Conv1D(5, 7).double()
        nn.init.normal_(layer.bias)
    else:
        layer = nn.Linear(7, 5).double()
    model = nn.ModuleDict({"c": layer})
    phi = Factored(3, side, (4, 0, 2))
    t = eadem.tie(model, {"c.weight": Transpose() @ phi if across else phi})
    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)

    def whole():
        w = model["c"].weight
        return x @ (w if conv else w.T) + model["c"].bias

    assert model["c"].__dict__["_eadem_sites"]["weight"].factors is not None
    with torch.set_grad_enabled(gradients):
        assert torch.allclose(model["c"](x), whole(), atol=1e-12)
    over = (t.theta, x, model["c"].bias)
    got = torch.autograd.grad((model["c"](x) ** 2).sum(), over)
    expected = torch.autograd.grad((whole() ** 2).sum(), over)
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


class Attention(nn.Module):
    """Three layers that read one input, and what may happen between them."""

    def __init__(self, layers, between=lambda x: x):
        super().__init__()
        self.layers, self.between = layers, between

    def forward(self, x):
        found = []
        for name in "qkv":
            found.append(self.layers[name](x))
            x = self.between(x)
        return torch.cat(found, -1)


def counted(monkeypatch):
    import eadem.bind.product as used

    made, real = [], used.picked
    monkeypatch.setattr(used, "picked", lambda *a: made.append(1) or real(*a))
    return made


def test_a_factor_that_layers_share_is_read_once_for_one_input(monkeypatch):
    made = counted(monkeypatch)
    layers = trio()
    model = Attention(layers)
    whole = Factored(4, "rows", (5, 1, 2, 0))
    at = {"q": 0, "k": 6, "v": 8}
    t = eadem.tie(
        model,
        {f"layers.{n}.weight": Transpose() @ Block(i, 12, 1) @ whole for n, i in at.items()},
    )

    def check(x, times):
        expected = torch.cat([x @ layers[n].weight.T + layers[n].bias for n in "qkv"], -1)
        made.clear()
        with torch.no_grad():
            assert torch.allclose(model(x), expected, atol=1e-5)
        assert len(made) == times

    x = torch.randn(2, 5, 6)
    check(x, 1)
    with torch.no_grad():
        t.theta.mul_(2)
    check(x, 1)
    model.between = lambda x: x.clone()
    check(x, 3)
    model.between = lambda x: x
    with torch.inference_mode():
        expected = torch.cat([x @ layers[n].weight.T + layers[n].bias for n in "qkv"], -1)
        assert torch.allclose(model(x), expected, atol=1e-5)


def test_a_shared_half_is_made_anew_where_the_input_or_θ_is_written_to(monkeypatch):
    made = counted(monkeypatch)
    model = Attention(trio())
    whole = Factored(4, "rows", (5, 1, 2, 0))
    at = {"q": 0, "k": 6, "v": 8}
    t = eadem.tie(
        model,
        {f"layers.{n}.weight": Transpose() @ Block(i, 12, 1) @ whole for n, i in at.items()},
    )
    for change in (lambda x: x.mul_(2), lambda x: t.theta.mul_(2) is None or x):
        model.between = change
        x = torch.randn(5, 6)
        made.clear()
        with torch.no_grad():
            before, held = x.clone(), t.theta.clone()
            found = model(x)
            assert len(made) == 3
            x.copy_(before)
            t.theta.copy_(held)
            for i, n in enumerate("qkv"):
                first = (0, 6, 8)[i]
                layer = model.layers[n]
                assert torch.allclose(
                    found[:, first : first + layer.out_features],
                    x @ layer.weight.T + layer.bias,
                    atol=1e-4,
                )
                x = change(x)


def test_layers_outside_a_forward_of_the_model_keep_nothing(monkeypatch):
    made = counted(monkeypatch)
    model, _ = tied()
    x = torch.randn(5, 6)
    with torch.no_grad():
        found = model["q"](x)
        assert torch.allclose(found, x @ model["q"].weight.T + model["q"].bias, atol=1e-5)
    assert not made


def test_a_twin_made_in_inference_mode_can_be_used_there():
    model = nn.Sequential(nn.Linear(6, 5))
    eadem.tie(model, {"0.weight": Factored(2)})
    x = torch.randn(3, 6)
    with torch.inference_mode():
        twin = eadem.twin(model)
        assert torch.allclose(twin(x), model(x), atol=1e-5)
        y = model(x)
        assert torch.allclose(eadem.untie(model)(x), y, atol=1e-5)
    twin(x).sum().backward()
    assert twin[0].weight.grad is not None
