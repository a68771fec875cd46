"""Traced site and call gradients: C05 (their sum is θ.grad) over kinds of tie."""

import pytest
import torch
from torch import nn

import eadem
from eadem.evidence import EvidenceError, trace
from eadem.maps import Affine, Flip, Same, Transpose


def backward(model, x):
    model.zero_grad()
    with trace(model) as seen:
        model(x).square().sum().backward()
    return seen


def close(a, b):
    return float((a - b).norm()) <= 1e-12 * float(b.norm())


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 3), nn.Linear(3, 5)

    def forward(self, x):
        return self.decoder(torch.tanh(self.encoder(x)))


class Chain(nn.Module):
    """Three square layers, the first used twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(torch.tanh(self.a(x)))))))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def by_hand(model, names, x):
    """The gradients at the sites of the untied twin."""
    twin = eadem.twin(model)
    twin(x).square().sum().backward()
    found = dict(twin.named_parameters())
    return {n: found[n].grad for n in names}


@pytest.mark.parametrize(
    ("model", "declare", "names"),
    [
        (
            Autoencoder,
            lambda m: eadem.tie(m, "decoder.weight", to="encoder.weight", via=Transpose()),
            ["encoder.weight", "decoder.weight"],
        ),
        (
            Chain,
            lambda m: eadem.tie(m, "*.weight"),
            ["a.weight", "b.weight", "c.weight"],
        ),
        (
            Chain,
            lambda m: eadem.tie(
                m, {"a.weight": Flip(-1), "b.weight": Affine(2.0, 0.1), "c.weight": Same()}
            ),
            ["a.weight", "b.weight", "c.weight"],
        ),
        (
            Chain,
            lambda m: eadem.tie(m, "a.weight[0]", "a.weight[2]", "c.weight[1]"),
            ["a.weight", "c.weight"],
        ),
    ],
    ids=["transpose", "equal", "maps", "parts"],
)
def test_site_gradients_add_up_to_the_gradient_of_theta(model, declare, names):
    model = model().double()
    declare(model)
    x = torch.randn(7, 5 if isinstance(model, Autoencoder) else 4, dtype=torch.float64)
    seen = backward(model, x)
    assert set(seen.sites) == set(names)
    for name, grad in by_hand(model, names, x).items():
        assert close(seen.sites[name], grad)
    parameters = dict(model.named_parameters())
    pulled = seen.pulled()
    assert pulled
    for name, grad in pulled.items():
        assert close(grad, parameters[name].grad)


def test_calls_of_one_site_add_up_to_it():
    model = Chain().double()
    eadem.tie(model, "*.weight")
    x = torch.randn(7, 4, dtype=torch.float64)
    seen = backward(model, x)
    assert [len(seen.calls[n]) for n in ("a.weight", "b.weight", "c.weight")] == [2, 1, 1]
    total = torch.stack([g for each in seen.calls.values() for g in each]).sum(0)
    assert close(total, model.a.weight.grad)
    first, second = seen.calls["a.weight"]
    assert not close(first, second)
    h = torch.tanh(model.a(x)).detach().requires_grad_()
    out = model.c(torch.tanh(model.b(torch.tanh(model.a(h)))))
    (at_h,) = torch.autograd.grad(out.square().sum(), h)
    earlier = (at_h * (1 - h.detach() ** 2)).T @ x
    assert close(first, earlier)


def test_two_backward_passes_add_up():
    model = Chain().double()
    eadem.tie(model, "*.weight")
    x = torch.randn(3, 4, dtype=torch.float64)
    with trace(model) as seen:
        for _ in range(2):
            model(x).sum().backward()
    assert close(seen.pulled()["a.weight"], model.a.weight.grad)
    assert len(seen.calls["b.weight"]) == 2


def test_cosines_compare_where_gradients_are_added():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, False), "b": nn.Linear(3, 3, False)}).double()
    eadem.tie(model, "b.weight", to="a.weight", via=Transpose())
    x, y = torch.randn(2, 4, 3, dtype=torch.float64)
    with trace(model) as seen:
        # y·(a x) and x·(b y) have the same gradient in θ, transposed at the sites
        ((y * model["a"](x)).sum() + (x * model["b"](y)).sum()).backward()
    assert seen.cosines() == {("a.weight", "b.weight"): pytest.approx(1.0, abs=1e-12)}
    assert seen.norms()["a.weight"] == pytest.approx(seen.norms()["b.weight"])
    assert "+1.00" in str(seen)
    assert "a.weight" in str(seen)


def test_evaluation_is_not_recorded_and_the_model_is_left_as_it_was():
    model = Chain().double()
    eadem.tie(model, "*.weight")
    x = torch.randn(3, 4, dtype=torch.float64)
    before = model(x)
    with trace(model) as seen, torch.no_grad():
        assert torch.equal(model(x), before)
    assert seen.sites == {}
    assert seen.pulled() == {}
    assert "no gradient" in str(seen)
    model(x).sum().backward()
    assert seen.sites == {}


def test_an_error_in_the_block_leaves_the_model_as_it_was():
    model = Chain().double()
    eadem.tie(model, "*.weight")
    with pytest.raises(ZeroDivisionError), trace(model):
        raise ZeroDivisionError
    x = torch.randn(3, 4, dtype=torch.float64)
    model(x).sum().backward()
    assert model.a.weight.grad is not None


def test_a_model_without_ties_is_refused():
    with pytest.raises(EvidenceError, match="no ties"), trace(Chain()):
        pass
