"""Row 34: modules that keep their own references, and modules that a tie refuses."""

import copy
import pickle
from collections.abc import Callable, Iterator
from unittest.mock import patch

import pytest
import torch
from lifecycle_systems import assert_unchanged, snapshot, value
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import eadem

Tie = Callable[[nn.Module], object]


class Two(nn.Module):
    """Two recurrent layers, one after the other."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        width = 6 if options.get("bidirectional") else 3
        self.a = kind(3, 3, batch_first=True, **options)
        self.b = kind(width, 3, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)[0])[0]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.MultiheadAttention(8, 2, batch_first=True)
        self.b = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x, x, x, need_weights=False)[0]
        return x + self.b(x, x, x, need_weights=False)[0]


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def _pose(name: str, *maps: eadem.LinearMap) -> Tie:
    names = ("a", "b")
    return lambda m: eadem.tie(
        m, {f"{n}.{name}": phi for n, phi in zip(names, maps, strict=True)}
    )


SAME_HH: Tie = lambda m: eadem.tie(m, "*.weight_hh_l0")  # noqa: E731
PALINDROME: Tie = lambda m: eadem.tie(  # noqa: E731
    m, "*.weight_hh_l0", via=eadem.Palindrome(dim=0)
)
SCALED: Tie = _pose("weight_hh_l0", eadem.Same(), eadem.Scale(-0.5))
FLIPPED: Tie = _pose("weight_hh_l0", eadem.Same(), eadem.Flip(0))
REVERSE: Tie = lambda m: eadem.tie(  # noqa: E731
    m, "a.weight_hh_l0", "a.weight_hh_l0_reverse", "b.weight_hh_l0_reverse"
)
IN_PROJ: Tie = lambda m: eadem.tie(m, "*.in_proj_weight")  # noqa: E731
OUT_PROJ: Tie = lambda m: eadem.tie(m, "*.out_proj.weight")  # noqa: E731
IN_FLIP: Tie = _pose("in_proj_weight", eadem.Same(), eadem.Flip(0))
IN_PARTS: Tie = lambda m: eadem.tie(m, "a.in_proj_weight[:8]", "a.in_proj_weight[8:16]")  # noqa: E731
LAYERS: Tie = lambda m: eadem.tie_modules(m, "layers.*")  # noqa: E731
ACROSS: Tie = lambda m: eadem.tie(  # noqa: E731
    m, "layers.*.linear2.weight", to="layers.0.linear1.weight", via=eadem.Transpose()
)
PROJECTIONS: Tie = lambda m: eadem.tie(m, "layers.*.self_attn.in_proj_weight")  # noqa: E731

CASES: dict[str, tuple[Callable[[], nn.Module], Tie, tuple[int, ...]]] = {
    "lstm-same": (lambda: Two(nn.LSTM), SAME_HH, (2, 4, 3)),
    "lstm-palindrome": (lambda: Two(nn.LSTM), PALINDROME, (2, 4, 3)),
    "lstm-scaled": (lambda: Two(nn.LSTM), SCALED, (2, 4, 3)),
    "lstm-flipped": (lambda: Two(nn.LSTM), FLIPPED, (2, 4, 3)),
    "lstm-both-ways": (lambda: Two(nn.LSTM, bidirectional=True), REVERSE, (2, 4, 3)),
    "gru-same": (lambda: Two(nn.GRU), SAME_HH, (2, 4, 3)),
    "gru-palindrome": (lambda: Two(nn.GRU), PALINDROME, (2, 4, 3)),
    "rnn-flipped": (lambda: Two(nn.RNN), FLIPPED, (2, 4, 3)),
    "attention-in": (Attention, IN_PROJ, (2, 4, 8)),
    "attention-out": (Attention, OUT_PROJ, (2, 4, 8)),
    "attention-flip": (Attention, IN_FLIP, (2, 4, 8)),
    "attention-parts": (Attention, IN_PARTS, (2, 4, 8)),
    "encoder-layers": (_encoder, LAYERS, (2, 4, 8)),
    "encoder-across": (_encoder, ACROSS, (2, 4, 8)),
    "encoder-projections": (_encoder, PROJECTIONS, (2, 4, 8)),
}

Built = tuple[nn.Module, nn.Module, Tensor]


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Iterator[Built]:
    """A tied model, the stock model to compare with, and an input."""
    factory, tie, shape = CASES[request.param]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, stock = factory(), factory()
        x = torch.randn(shape)
    tie(model)
    yield model, stock, x
    eadem.check(model)


def follow(model: nn.Module, stock: nn.Module) -> nn.Module:
    """The stock model with what is read at the tied one's sites."""
    stock.to(next(model.parameters()).dtype).train(model.training)
    with torch.no_grad():
        for name, p in stock.named_parameters():
            p.copy_(value(model, name))
    return stock


def close(found: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)


def edit(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.9).add_(0.01)


def test_trains_as_the_stock_module_with_summed_gradients(case: Built) -> None:
    model, stock, x = case
    plan = eadem.bind.resolved(model)
    for _ in range(3):
        follow(model, stock)
        model.zero_grad()
        stock.zero_grad()
        out = model(x)
        close(out, stock(x))
        (out * torch.linspace(0, 1, out.numel()).reshape(out.shape)).sum().backward()
        want = stock(x)
        (want * torch.linspace(0, 1, out.numel()).reshape(out.shape)).sum().backward()
        grads = {n: p.grad for n, p in stock.named_parameters()}
        pulled = plan.adjoint(plan.cat(grads))
        close(torch.cat([p.grad.reshape(-1) for p in model.parameters()]), pulled)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad


def test_evaluates_as_the_stock_module_between_edits(case: Built) -> None:
    model, stock, x = case
    model.eval()
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            close(model(x), follow(model, stock)(x))
        edit(model)
        with mode():
            close(model(x), follow(model, stock)(x))


def test_survives_copies_pickles_and_casts(case: Built) -> None:
    model, stock, x = case
    for step in (
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m.double(),
        lambda m: m.float(),
    ):
        model = step(model)
        edit(model)
        close(
            model(x.to(next(model.parameters()))).float(),
            follow(model, stock)(x.to(next(model.parameters()))).float(),
        )
        model.eval()
        with torch.no_grad():
            wide = x.to(next(model.parameters()))
            close(model(wide).float(), follow(model, stock)(wide).float())
        model.train()


def test_state_dict_round_trip(case: Built) -> None:
    model, stock, x = case
    other = copy.deepcopy(model)
    edit(other)
    model.load_state_dict(other.state_dict())
    close(model(x), other(x))
    close(model(x), follow(model, stock)(x))
    plain = eadem.materialize(model)
    assert list(plain) == list(stock.state_dict())
    stock.load_state_dict(plain)
    close(stock.eval()(x), model.eval()(x))


def test_flatten_parameters_keeps_the_tie() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, stock = Two(nn.LSTM), Two(nn.LSTM)
    SAME_HH(model)
    x = torch.randn(2, 4, 3)
    for rnn in (model.a, model.b):
        rnn.flatten_parameters()
        assert len(rnn.all_weights[0]) == 4
        assert len(rnn._flat_weights) == 4
    edit(model)
    close(model(x), follow(model, stock)(x))


@pytest.mark.parametrize("tie", [LAYERS, ACROSS, PROJECTIONS])
def test_the_fused_encoder_path_is_taken_and_right(tie: Tie) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, stock = _encoder().eval(), _encoder().eval()
    tie(model)
    x = torch.randn(2, 4, 8)
    real = torch._transformer_encoder_layer_fwd
    with torch.no_grad(), patch("torch._transformer_encoder_layer_fwd", wraps=real) as spy:
        found = model(x)
        calls = spy.call_count
        close(found, follow(model, stock)(x))
        assert calls == 2
        edit(model)
        close(model(x), follow(model, stock)(x))


def test_the_fused_attention_path_is_right() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, stock = Attention().eval(), Attention().eval()
    IN_PROJ(model)
    x = torch.randn(2, 4, 8)
    real = torch._native_multi_head_attention
    with torch.no_grad(), patch("torch._native_multi_head_attention", wraps=real) as spy:
        found = model(x)
        assert spy.call_count == 2
        close(found, follow(model, stock)(x))


def test_lazy_modules_are_refused() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 3))
    types = [type(m) for m in model]
    with pytest.raises(eadem.Unsupported, match=r"(?i)lazy"):
        eadem.tie(model, "*.weight")
    assert [type(m) for m in model] == types
    model(torch.randn(2, 3))
    eadem.tie(model, "*.weight")
    assert len(list(model.parameters())) == 3


@pytest.mark.parametrize(
    "parametrize",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
    ids=lambda f: f.__name__,
)
def test_foreign_parametrizations_are_refused(
    parametrize: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(nn.Linear(3, 3), parametrize(nn.Linear(3, 3)))
    before = snapshot(model)
    with pytest.raises(eadem.Unsupported, match=r"(?i)parametri[sz]"):
        eadem.tie(model, "0.weight", "1.weight")
    assert_unchanged(model, before)


def test_a_parametrization_elsewhere_is_no_obstacle() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3), nn.Linear(3, 3), parametrizations.weight_norm(nn.Linear(3, 3))
    )
    eadem.tie(model, "0.weight", "1.weight")
    model(torch.randn(2, 3)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Half(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w / 2


@pytest.mark.parametrize("where", ["0", "1"])
def test_a_parametrization_registered_after_the_tie(where: str) -> None:
    """Refused, found by check, or right: never a silent untying."""
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    eadem.tie(model, {"0.weight": eadem.Same(), "1.weight": eadem.Transpose()})
    module = model.get_submodule(where)
    try:
        nn.utils.parametrize.register_parametrization(module, "weight", Half())
    except (eadem.EademError, ValueError, KeyError):
        eadem.check(model)
        return
    with pytest.raises(eadem.TieBroken):
        eadem.check(model)
