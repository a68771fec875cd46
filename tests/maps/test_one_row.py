"""Rows through the factors, compiled: the same as torch's products, or not at all."""

import concurrent.futures
import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import eadem
from eadem import Block, Factored, Transpose
from eadem.bind.group import LINKS
from eadem.maps import one_row, pool
from eadem.maps.factored import multiplied

pytest.importorskip("numba")


@pytest.fixture(autouse=True, params=[1, 2, 5], ids=["1 thread", "2 threads", "5 threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def layer(phi, outputs=40, inputs=27, bias=True):
    model = nn.ModuleList([nn.Linear(inputs, outputs, bias=bias)])
    eadem.tie(model, {"0.weight": phi}, start="empty")
    with torch.no_grad():
        eadem.ties(model)[0].theta.normal_()
    return model


MAPS = {
    "rows": Factored(9, "rows", torch.randperm(40, generator=torch.Generator())[:9].tolist()),
    "columns": Factored(9),
    "rows of the transpose": Transpose() @ Factored(9, "rows", (3, 1, 26, 4, 9, 8, 20, 21, 5)),
    "columns of the transpose": Transpose() @ Factored(9, "columns", range(20, 29)),
    "the full rank": Factored(27),
    "rank one": Transpose() @ Factored(1, "rows"),
}


def held(model):
    return held_of(model[0])


def held_of(module):
    return module.__dict__[LINKS]["weight"].held


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(27,), (1, 27), (1, 1, 27)])
def test_it_is_what_torch_multiplies(name, bias, shape):
    model = layer(MAPS[name], bias=bias)
    with torch.no_grad():
        x = torch.randn(shape)
        found = model[0](x)
        _, _, factors, _, one, _ = held(model)
        assert one is not None
        assert torch.equal(found, one(x, model[0].bias))
        assert found.shape == (*shape[:-1], 40)
        assert torch.allclose(
            found, multiplied(factors, x, model[0].bias), rtol=1e-4, atol=1e-4
        )
        assert torch.allclose(
            found, nn.functional.linear(x, model[0].weight, model[0].bias), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 27), (700, 27), (3, 5, 27), (1, 3, 3, 27)])
def test_of_many_rows_it_picks_and_places(name, bias, shape, monkeypatch):
    model = layer(MAPS[name], bias=bias)
    real, seen = one_row.OneRow._many, []
    monkeypatch.setattr(one_row.OneRow, "_many", lambda *a: seen.append(real(*a)) or seen[-1])
    with torch.no_grad():
        x = torch.randn(shape)
        found = model[0](x)
        assert found is seen[0]
        wanted = nn.functional.linear(x, model[0].weight, model[0].bias)
        assert found.shape == wanted.shape
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("rows", [1, 130])
def test_wide_layers_are_divided_among_threads(side, turned, rows):
    phi = Factored(77, side, torch.randperm(200, generator=torch.Generator())[:77].tolist())
    model = layer(Transpose() @ phi if turned else phi, 301, 211)
    with torch.no_grad():
        x = torch.randn(rows, 211)
        wanted = nn.functional.linear(x, model[0].weight, model[0].bias)
        found = model[0](x)
        assert held(model)[-2](x, model[0].bias) is not None
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("rows", [1, 700])
def test_where_torch_has_other_threads_it_multiplies(rows, threads, monkeypatch):
    monkeypatch.setattr(pool, "_calls", lambda: None)
    pool.table.cache_clear()
    one_row._pool.cache_clear()
    try:
        model = layer(MAPS["columns"])
        with torch.no_grad():
            x = torch.randn(rows, 27)
            found = model[0](x)
            assert (held(model)[-2](x, model[0].bias) is None) == (threads > 1)
            assert torch.allclose(found, eadem.twin(model)[0](x), rtol=1e-4, atol=1e-4)
    finally:
        pool.table.cache_clear()
        one_row._pool.cache_clear()


def test_two_callers_at_once_do_not_meet():
    model = layer(MAPS["rows"])
    inputs = [torch.randn(1 if i % 2 else 600, 27) for i in range(8)]
    with torch.no_grad():
        wanted = [model[0](x) for x in inputs]

    def run(x):
        with torch.no_grad():
            return [model[0](x) for _ in range(50)]

    with concurrent.futures.ThreadPoolExecutor(4) as workers:
        for all_of_them, y in zip(workers.map(run, inputs), wanted, strict=True):
            assert all(torch.equal(found, y) for found in all_of_them)


def test_layers_with_one_basis_multiply_by_it_once(monkeypatch, threads):
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(27, n) for n in (8, 5, 11))

        def forward(self, x):
            return [part(x) for part in self.parts]

    model, at, maps = Three(), 0, {}
    whole = Factored(6, "rows", (3, 1, 26, 4, 9, 8))
    for i, part in enumerate(model.parts):
        maps[f"parts.{i}.weight"] = Transpose() @ Block(at, 24, 1) @ whole
        at += part.out_features
    eadem.tie(model, maps)
    halves, real = [], one_row.OneRow.half
    monkeypatch.setattr(one_row.OneRow, "half", lambda *a: halves.append(1) or real(*a))
    with torch.no_grad():
        x = torch.randn(1, 27)
        for got, expected in zip(model(x), eadem.twin(model)(x), strict=True):
            assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert len(halves) == 1
        assert (real(held_of(model.parts[0])[-2], x) is None) == (threads > 1)
        assert all(
            y.shape == (2, n) for y, n in zip(model(x.expand(2, -1)), (8, 5, 11), strict=True)
        )


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 27),
        torch.randn(27, 2).t(),
        torch.randn(0, 27),
        torch.randn(1, 54)[:, ::2],
        torch.randn(1, 1, 1, 27),
        nn.Parameter(torch.randn(1, 27)),
    ],
    ids=["two rows", "turned", "none", "every other", "four axes", "a parameter"],
)
def test_other_inputs_are_torchs(x):
    model = layer(MAPS["rows"])
    with torch.no_grad():
        found = model[0](x)
        assert held(model)[-2](x, model[0].bias) is None
        assert torch.allclose(found, eadem.twin(model)[0](x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(27, 1), (1, 26), (26,)])
def test_a_row_of_another_length_is_refused_as_ever(shape):
    model = layer(MAPS["columns"])
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError)):
        model[0](torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_numbers_are_torchs(dtype):
    model = layer(MAPS["rows"]).to(dtype)
    with torch.no_grad():
        found = model[0](torch.randn(1, 27, dtype=dtype))
        assert held(model)[-2] is None
        assert found.dtype is dtype


def test_numbers_that_are_none_are_seen():
    model = layer(MAPS["rows of the transpose"])
    with torch.no_grad():
        for bad in (float("nan"), float("inf")):
            x = torch.randn(1, 27)
            x[0, 5] = bad
            assert not model[0](x).isfinite().any()


@pytest.mark.parametrize(
    "bias",
    [
        torch.randn(1),
        torch.randn(1, 40),
        torch.randn(80)[::2],
        torch._neg_view(torch.randn(40)),
    ],
    ids=["one", "two axes", "every other", "negated"],
)
def test_other_biases_are_torchs(bias):
    model = layer(MAPS["rows"])
    model[0].bias = nn.Parameter(bias, requires_grad=False)
    x = torch.randn(1, 27)
    with torch.no_grad():
        expected = nn.functional.linear(x, model[0].weight, model[0].bias)
        assert torch.allclose(model[0](x), expected, rtol=1e-4, atol=1e-4)


def test_a_bias_of_another_length_is_refused():
    model = layer(MAPS["rows"])
    model[0].bias = nn.Parameter(torch.randn(39))
    with torch.no_grad(), pytest.raises(RuntimeError, match="39"):
        model[0](torch.randn(1, 27))


@pytest.mark.parametrize(
    "change",
    [torch._neg_view, torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr],
    ids=["negated", "sparse", "compressed rows"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_inputs_that_are_stored_otherwise(change):
    model = layer(MAPS["rows"])
    x = change(torch.randn(1, 27))
    with torch.no_grad():
        expected = nn.functional.linear(x.to_dense(), model[0].weight, model[0].bias)
        found = model[0](x)
        assert torch.allclose(found.to_dense(), expected, rtol=1e-4, atol=1e-4)
        assert model[0](torch._efficientzerotensor((1, 27))).shape == (1, 40)


class Own(torch.Tensor):
    """A tensor of a class of one's own."""


def test_tensors_that_wrap_others():
    model = layer(MAPS["rows"])
    x = torch.randn(1, 27)
    with torch.no_grad():
        want = model[0](x)
        own = model[0](x.as_subclass(Own))
        assert type(own) is Own
        assert torch.allclose(own.as_subclass(torch.Tensor), want, rtol=1e-4, atol=1e-4)
        wrapped = torch._to_functional_tensor(x)
        found = model[0](wrapped)
        assert torch._is_functional_tensor(found)
        torch._sync(found)
        inside = torch._from_functional_tensor(found)
        assert torch.allclose(inside, want, rtol=1e-4, atol=1e-4)


def test_tangents_and_graphs_go_through_it():
    model = layer(MAPS["rows"])
    x = torch.randn(1, 27)
    with torch.no_grad():
        y = model[0](x)
        with forward_ad.dual_level():
            dual = model[0](forward_ad.make_dual(x, torch.ones_like(x)))
            tangent = forward_ad.unpack_dual(dual).tangent
        weight = model[0].weight
        assert torch.allclose(tangent, weight.sum(1)[None], rtol=1e-4, atol=1e-4)
        given = torch.randn(1, 27)
        for found in (
            make_fx(model[0], pre_dispatch=True)(given),
            torch.compile(model[0], backend="eager", fullgraph=True),
            torch.export.export(model[0], (given,), strict=True).module(),
        ):
            assert torch.allclose(found(x), y, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model[0], backend="eager", fullgraph=True)
    compiled(x).sum().backward()
    assert eadem.ties(model)[0].theta.grad is not None


def test_factors_that_change_their_steps_are_followed():
    model = layer(MAPS["rows"])
    theta = eadem.ties(model)[0].theta
    x, two = torch.randn(1, 27), torch.randn(2 * theta.numel())
    with torch.no_grad():
        for given in (two[: theta.numel()], two[::2], two[: theta.numel()]):
            theta.data = given
            expected = nn.functional.linear(x, model[0].weight, model[0].bias)
            assert torch.allclose(model[0](x), expected, rtol=1e-4, atol=1e-4)


def test_it_stands_back_for_who_watches():
    model = layer(MAPS["rows"])
    x = torch.randn(1, 27)
    with torch.no_grad():
        model[0](x)
        one = held(model)[-2]
        assert one(x, None) is not None
        with FlopCounterMode(display=False) as counted:
            model[0](x)
        assert counted.get_total_flops() == 2 * 9 * (27 + 40 - 9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # shapes are compared as the model is read
            traced = torch.jit.trace(model[0], x)
        y = torch.randn(1, 27)
        next(model.parameters()).mul_(1.5)
        assert torch.allclose(traced(y), model[0](y), rtol=1e-4, atol=1e-4)


def test_values_that_move_are_followed():
    model = layer(MAPS["rows"])
    x = torch.randn(1, 27)
    with torch.no_grad():
        model[0](x)
        theta = eadem.ties(model)[0].theta
        theta.data = torch.randn_like(theta)
        expected = nn.functional.linear(x, model[0].weight, model[0].bias)
        assert torch.allclose(model[0](x), expected, rtol=1e-4, atol=1e-4)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            theirs = eadem.ties(other)[0].theta
            theirs.zero_()
            assert torch.equal(other[0](x), other[0].bias[None])
        assert torch.allclose(model[0](x), expected, rtol=1e-4, atol=1e-4)


def test_without_numba_torch_multiplies(monkeypatch):
    monkeypatch.setitem(sys.modules, "eadem.maps._row_kernels", None)
    monkeypatch.delattr(eadem.maps, "_row_kernels", raising=False)
    one_row._kernels.cache_clear()
    try:
        model = layer(MAPS["rows"])
        x = torch.randn(1, 27)
        with torch.no_grad():
            found = model[0](x)
            assert held(model)[-2] is None
            assert torch.allclose(found, eadem.twin(model)[0](x), rtol=1e-4, atol=1e-4)
    finally:
        one_row._kernels.cache_clear()


def test_where_numba_is_told_to_compile_nothing_torch_multiplies():
    code = (
        "import torch, eadem\n"
        "torch.set_num_threads(1)\n"
        "model = torch.nn.Sequential(torch.nn.Linear(27, 40))\n"
        "eadem.tie(model, {'0.weight': eadem.Factored(9)})\n"
        "x = torch.randn(1, 27)\n"
        "with torch.no_grad():\n"
        "    assert torch.allclose(model(x), eadem.twin(model)(x), rtol=1e-3, atol=1e-3)\n"
    )
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
