"""Locally connected layers against a naive loop, against convolutions, and under torch's own
transformations."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jvp, vmap

import eadem
from eadem.errors import EademError, ShapeError, Unsupported
from eadem.maps.index import Indexed
from eadem.nn import LocallyConnected1d, LocallyConnected2d

KINDS = {1: (LocallyConnected1d, nn.Conv1d), 2: (LocallyConnected2d, nn.Conv2d)}

# (in_size, in, out, kernel, other arguments)
CASES = [
    (7, 2, 3, 3, {}),
    (7, 2, 3, 3, {"padding": 1}),
    (8, 2, 3, 3, {"stride": 2, "padding": 1}),
    (9, 4, 6, 3, {"stride": 2, "dilation": 2, "padding": 2, "groups": 2}),
    (7, 3, 3, 2, {"padding": "same", "groups": 3}),
    (7, 2, 3, 3, {"padding": "valid", "bias": False}),
    (6, 2, 3, 4, {"padding": "same", "dilation": 2}),
    (6, 2, 3, 1, {}),
    (6, 2, 3, 6, {"stride": 3}),
    (7, 2, 3, 3, {"padding": 2, "padding_mode": "circular"}),
    (7, 2, 3, 3, {"padding": 2, "padding_mode": "reflect"}),
    (7, 2, 3, 4, {"padding": "same", "padding_mode": "replicate"}),
]
UNEVEN = [
    ((7, 9), 2, 3, (3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 3)}),
    ((5, 8), 4, 2, (1, 4), {"padding": "same", "groups": 2, "padding_mode": "reflect"}),
]
ALL = [(n, *case) for n in (1, 2) for case in CASES] + [(2, *case) for case in UNEVEN]


def make(n: int, size, i: int, o: int, kernel, more: dict, dtype=torch.float64):
    layer = KINDS[n][0](i, o, size, kernel, dtype=dtype, **more)
    return layer, torch.randn(3, i, *layer.in_size, dtype=dtype)


def naive(layer, x: Tensor) -> Tensor:
    """One position, one output channel at a time, as the definition reads."""
    n = len(layer.in_size)
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        pads = [(t // 2, t - t // 2) for t in totals]
    else:
        pads = [(0, 0)] * n if layer.padding == "valid" else [(p, p) for p in layer.padding]
    flat = [p for pair in reversed(pads) for p in pair]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = torch.nn.functional.pad(x, flat, mode=mode)
    out = x.new_empty(x.shape[0], layer.out_channels, *layer.out_size)
    inside = layer.in_channels // layer.groups
    per_group = layer.out_channels // layer.groups
    for position in itertools.product(*map(range, layer.out_size)):
        window = x
        for axis in range(n):
            start = position[axis] * layer.stride[axis]
            at = start + torch.arange(layer.kernel_size[axis]) * layer.dilation[axis]
            window = window.index_select(axis + 2, at)
        for o in range(layer.out_channels):
            first = (o // per_group) * inside
            kernel = layer.kernels[position][o]
            value = (window[:, first : first + inside] * kernel).flatten(1).sum(1)
            if layer.bias is not None:
                value = value + layer.bias[(*position, o)]
            out[(slice(None), o, *position)] = value
    return out


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(20)


@pytest.mark.parametrize("case", ALL, ids=str)
def test_equals_the_naive_loop(case):
    layer, x = make(*case)
    with torch.no_grad():
        expected = naive(layer, x)
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-13)
        wide = x.repeat(7, *[1] * (x.dim() - 1))  # a batch that is multiplied the other way
        torch.testing.assert_close(layer(wide)[:3], expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer(x[0]), expected[0], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(layer(x[:1])[0], expected[0], rtol=1e-12, atol=1e-13)
    assert expected.shape[2:] == layer.out_size


@pytest.mark.parametrize("batch", [1, 3, 17])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_gradients_equal_those_of_the_naive_loop(case, batch):
    layer, x = make(*case)
    x = x[:1].expand(batch, *x.shape[1:]) * torch.linspace(0.5, 1, batch, dtype=x.dtype).view(
        -1, *[1] * (x.dim() - 1)
    )
    x.requires_grad_()
    inputs = [x, *layer.parameters()]
    g = torch.randn(batch, layer.out_channels, *layer.out_size, dtype=x.dtype)
    found = torch.autograd.grad(layer(x), inputs, g)
    expected = torch.autograd.grad(naive(layer, x), inputs, g)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_from_conv_is_the_same_function(case):
    n, size, i, o, kernel, more = case
    conv = KINDS[n][1](i, o, kernel, dtype=torch.float64, **more).eval()
    layer = KINDS[n][0].from_conv(conv, size)
    x = torch.randn(2, i, *layer.in_size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=1e-12, atol=1e-13)
    assert not layer.training
    assert (layer.bias is None) == (conv.bias is None)
    with torch.no_grad():  # every position has its own copy
        before = conv.weight.clone()
        layer.kernels[(0,) * n].zero_()
        assert torch.equal(conv.weight, before)
        if max(layer.out_size) > 1:
            assert torch.equal(layer.kernels[(-1,) * n], before)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_convolution_index_ties_it_to_the_convolution(case):
    n, size, i, o, kernel, more = case
    layer = KINDS[n][0](i, o, size, kernel, dtype=torch.float64, **more)
    conv = KINDS[n][1](i, o, kernel, dtype=torch.float64, **more)
    values, pulled = {}, {}
    for name, free in conv.named_parameters():
        tie = Indexed(layer.convolution_index(name).reshape(-1), tuple(free.shape))
        tie = tie.bind(getattr(layer, name).shape)
        assert tie.rank == free.numel()
        values[name] = tie.expand(free)
        pulled[name] = tie
    x = torch.randn(2, i, *layer.in_size, dtype=torch.float64)
    out = functional_call(layer, values, (x,))
    torch.testing.assert_close(out, conv(x), rtol=1e-12, atol=1e-13)
    # the gradient of the convolution is the local one, pulled back
    at = {k: v.detach().requires_grad_() for k, v in values.items()}
    local = torch.autograd.grad(functional_call(layer, at, (x,)).square().sum(), at.values())
    own = torch.autograd.grad(conv(x).square().sum(), conv.parameters())
    for name, a, b in zip(at, local, own, strict=True):
        torch.testing.assert_close(pulled[name].adjoint(a), b, rtol=1e-11, atol=1e-11)


SMALL = [
    (1, 5, 2, 2, 2, {"stride": 2, "padding": 1}),
    (2, 3, 2, 2, 2, {"padding": 1, "groups": 2}),
    (2, 4, 1, 2, 2, {"dilation": 2, "padding": 1, "padding_mode": "circular"}),
]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck_twice(case, batch):
    layer, x = make(*case)
    x = x[:batch].requires_grad_()
    names = dict(layer.named_parameters())

    def f(x, *params):
        return functional_call(layer, dict(zip(names, params, strict=True)), (x,))

    inputs = (x, *(p.detach().requires_grad_() for p in names.values()))
    assert gradcheck(f, inputs)
    assert gradgradcheck(f, inputs)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_forward_derivative_and_hessian(case):
    layer, x = make(*case)
    params = {k: v.detach() for k, v in layer.named_parameters()}
    moved = {k: torch.randn_like(v) for k, v in params.items()}
    dx = torch.randn_like(x)

    def f(p, x):
        return functional_call(layer, p, (x,))

    def by_loop(p, x):
        twin = copy.deepcopy(layer)
        for name, value in p.items():
            delattr(twin, name)
            setattr(twin, name, value)
        return naive(twin, x)

    found = jvp(f, (params, x), (moved, dx))[1]
    torch.testing.assert_close(found, jvp(by_loop, (params, x), (moved, dx))[1])
    weight = params["weight"]

    def loss(w):
        return f({**params, "weight": w}, x).pow(3).sum()

    flat = hessian(loss)(weight).reshape(weight.numel(), -1)
    v = torch.randn(weight.numel(), dtype=weight.dtype)
    w = weight.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(w), w, create_graph=True)
    (hv,) = torch.autograd.grad(g, w, v.view_as(w))
    torch.testing.assert_close(flat @ v, hv.reshape(-1))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_per_observation(case):
    layer, x = make(*case)
    params = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p, one):
        return functional_call(layer, p, (one,)).square().sum()

    each = vmap(grad(loss), (None, 0))(params, x)
    for i, one in enumerate(x):
        for name, value in grad(loss)(params, one).items():
            torch.testing.assert_close(each[name][i], value)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_ensembles(case):
    layer, x = make(*case)
    several = {
        k: torch.stack([v.detach(), 2 * v.detach() + 1]) for k, v in layer.named_parameters()
    }

    def f(p, x):
        return functional_call(layer, p, (x,))

    out = vmap(f, (0, None))(several, x)
    both = vmap(grad(lambda p, x: f(p, x).square().sum(), (0, 1)), (0, None))(several, x)
    for i in range(2):
        one = {k: v[i] for k, v in several.items()}
        torch.testing.assert_close(out[i], f(one, x))
        expected = grad(lambda p, x: f(p, x).square().sum(), (0, 1))(one, x)
        torch.testing.assert_close({k: v[i] for k, v in both[0].items()}, expected[0])
        torch.testing.assert_close(both[1][i], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_other_dtypes(dtype, batch):
    exact = LocallyConnected2d(3, 4, 6, 3, padding=1, dtype=torch.float64)
    layer = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(batch, 3, 6, 6, dtype=dtype)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    out = layer(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact(x.double()), rtol=tolerance, atol=tolerance)
    out.sum().backward()
    assert layer.weight.grad.dtype == dtype


def test_memory_formats_and_an_empty_batch():
    layer = LocallyConnected2d(3, 4, 6, 3, padding=1)
    x = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), layer(x))
    torch.testing.assert_close(layer(x[::2]), layer(x)[::2])
    torch.testing.assert_close(layer(x.flip(0)[1:]), layer(x).flip(0)[1:])
    assert layer(x[:0]).shape == (0, 4, 6, 6)
    layer(x[:0]).sum().backward()
    assert not layer.weight.grad.any()
    twice = LocallyConnected2d(4, 2, 6, 3)
    torch.testing.assert_close(twice(layer(x)), twice(layer(x).contiguous()))


def test_meta_device_and_state_dict():
    layer = LocallyConnected2d(2, 3, (5, 4), 3, padding=1, device="meta")
    assert layer(torch.empty(2, 2, 5, 4, device="meta")).shape == (2, 3, 5, 4)
    real = LocallyConnected2d(2, 3, (5, 4), 3, padding=1)
    assert {k: tuple(v.shape) for k, v in real.state_dict().items()} == {
        "weight": (5, 4, 3, 3, 2, 3),
        "bias": (5, 4, 3),
    }
    assert all(v.is_contiguous() for v in real.state_dict().values())
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(real.state_dict())
    x = torch.randn(2, 2, 5, 4)
    assert torch.equal(layer(x), real(x))
    bare = LocallyConnected1d(2, 3, 5, 3, bias=False)
    assert list(bare.state_dict()) == ["weight"]


def test_initial_values_have_the_fan_in_of_a_convolution():
    layer = LocallyConnected2d(4, 64, 8, 3, groups=2)
    bound = (2 * 9) ** -0.5
    for p in layer.parameters():
        assert 0.95 * bound < p.abs().max() <= bound
        assert abs(float(p.detach().std()) - bound / 3**0.5) < 0.02 * bound
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


@pytest.mark.parametrize("uses", [1, 50])
def test_a_tie_starts_at_the_fan_in_of_a_kernel(uses):
    layer = LocallyConnected1d(4, 64, uses + 2, 3)
    for name in ("weight", "bias"):
        index = eadem.Gather(layer.convolution_index(name))
        eadem.tie(layer, name, via=index, start="init")
    bound = 12**-0.5  # nn.Conv1d's: four channels, three taps
    for p in layer.parameters():
        assert 0.9 * bound < p.detach().abs().max() <= bound


def test_kernels_is_a_view_in_the_order_of_a_convolution():
    layer = LocallyConnected2d(2, 4, 5, (3, 2))
    assert layer.kernels.shape == (3, 4, 4, 2, 3, 2)
    assert layer.kernels.data_ptr() == layer.weight.data_ptr()


def test_repr_says_what_differs_from_the_defaults():
    layer = LocallyConnected2d(
        2, 4, 6, 3, 1, "same", 2, groups=2, bias=False, padding_mode="circular"
    )
    assert repr(layer) == (
        "LocallyConnected2d(2, 4, in_size=(6, 6), kernel_size=(3, 3), stride=(1, 1), "
        "padding='same', dilation=(2, 2), groups=2, bias=False, padding_mode='circular')"
    )


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_export(case, grad_mode):
    layer, x = make(*case)
    with torch.set_grad_enabled(grad_mode):
        program = torch.export.export(layer, (x,))
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.slow
def test_compile_in_one_graph():
    layer = LocallyConnected2d(2, 4, 6, 3, padding=1, groups=2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for batch in (1, 20):
        x = torch.randn(batch, 2, 6, 6, requires_grad=True)
        inputs = [x, *layer.parameters()]
        found = torch.autograd.grad(compiled(x).square().sum(), inputs)
        expected = torch.autograd.grad(layer(x).square().sum(), inputs)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_cuda_equals_cpu(case, batch):
    layer, x = make(*case)
    x = torch.randn(batch, *x.shape[1:], dtype=x.dtype, requires_grad=True)
    other = copy.deepcopy(layer).cuda()
    y = x.detach().cuda().requires_grad_()
    torch.testing.assert_close(other(y).cpu(), layer(x), rtol=1e-10, atol=1e-11)
    found = torch.autograd.grad(other(y).square().sum(), [y, *other.parameters()])
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-10, atol=1e-10)


BAD = [
    ({"in_size": 2}, "does not fit"),
    ({"in_size": (5, 5, 5)}, "in_size must be one positive int or 2"),
    ({"in_size": 0}, "in_size must be"),
    ({"kernel_size": 2.5}, "kernel_size must be"),
    ({"stride": 0}, "stride must be"),
    ({"padding": -1}, "padding must be one non-negative"),
    ({"padding": "full"}, '"valid", "same" or ints'),
    ({"padding": "same", "stride": 2}, "needs stride 1"),
    ({"padding_mode": "wrap"}, "padding_mode must be one of"),
    ({"padding": 5, "padding_mode": "reflect"}, "at most 4"),
    ({"padding": 6, "padding_mode": "circular"}, "at most 5"),
    ({"groups": 3}, "groups=3 must divide in_channels=4"),
    ({"groups": 4}, "groups=4 must divide out_channels=6"),
    ({"groups": 0}, "groups must be a positive int"),
    ({"in_channels": 0}, "in_channels must be a positive int"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=str)
def test_bad_arguments(change, message):
    given = {"in_channels": 4, "out_channels": 6, "in_size": 5, "kernel_size": 3, **change}
    with pytest.raises(ShapeError, match=message):
        LocallyConnected2d(**given)


@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 6), (2, 4, 6, 6), (2, 3, 6), (3, 6, 7), (1, 2, 3, 6, 6)]
)
def test_bad_input_says_expected_and_received(shape):
    layer = LocallyConnected2d(3, 4, (6, 6), 3)
    with pytest.raises(ShapeError, match=r"expected .*3, 6, 6.*received") as error:
        layer(torch.zeros(shape))
    assert str(shape) in str(error.value)
    assert isinstance(error.value, EademError)


def test_from_conv_refuses_what_is_no_such_convolution():
    for other in (
        nn.Conv1d(2, 3, 3),
        nn.ConvTranspose2d(2, 3, 3),
        nn.Linear(2, 3),
        nn.LazyConv2d(3, 3),
    ):
        with pytest.raises(Unsupported, match="takes an initialized Conv2d"):
            LocallyConnected2d.from_conv(other, 5)
    with pytest.raises(ShapeError, match="does not fit"):
        LocallyConnected2d.from_conv(nn.Conv2d(2, 3, 3), 2)
    layer = LocallyConnected2d(2, 3, 5, 3, bias=False)
    with pytest.raises(ShapeError, match='this layer has "weight"'):
        layer.convolution_index("bias")
