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


def test_conflict_is_what_the_projection_throws_away():
    """Against the dense projector on the range of φ."""
    model = Chain().double()
    eadem.tie(model, {"a.weight": Flip(-1), "b.weight": Affine(2.0, 0.1), "c.weight": Same()})
    x = torch.randn(7, 4, dtype=torch.float64)
    seen = backward(model, x)
    g = torch.cat([seen.sites[n].reshape(-1) for n in ("a.weight", "b.weight", "c.weight")])
    eye = torch.eye(16, dtype=torch.float64)
    flip = torch.stack([e.reshape(4, 4).flip(-1).reshape(-1) for e in eye], 1)
    phi = torch.cat([flip, 2.0 * eye, eye])
    left = g - phi @ torch.linalg.lstsq(phi, g[:, None]).solution[:, 0]
    (found,) = seen.conflict().values()
    assert found == pytest.approx(float(left @ left / (g @ g)), rel=1e-10)


@pytest.mark.parametrize(("signs", "wanted"), [((1, 1), 0.0), ((1, -1), 1.0), ((1, 0), 0.5)])
def test_conflict_at_its_ends(signs, wanted):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}).double()
    eadem.tie(model, "*.weight")
    with eadem.trace(model) as seen:
        w = torch.randn(3, 3, dtype=torch.float64)
        total = sum(s * (model[n].weight * w).sum() for s, n in zip(signs, "ab", strict=True))
        total.backward()
    assert seen.conflict() == {"a.weight": pytest.approx(wanted, abs=1e-12)}


def test_a_site_without_a_gradient_has_no_say():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}).double()
    eadem.tie(model, "*.weight")
    with eadem.trace(model) as seen:
        model["a"](torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    assert seen.conflict() == {"a.weight": pytest.approx(0.0, abs=1e-12)}


def test_steps_run_into_means_and_noise_cancels_in_them():
    model = nn.ModuleDict({"a": nn.Linear(30, 30), "b": nn.Linear(30, 30)}).double()
    eadem.tie(model, "*.weight")
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(30, 30, dtype=torch.float64, generator=generator)
    wanted, each = {n: torch.zeros(30, 30, dtype=torch.float64) for n in "ab"}, []
    with eadem.trace(model) as seen:
        for _ in range(50):
            loss = torch.zeros((), dtype=torch.float64)
            for n in "ab":
                pull = common + 3 * torch.randn(
                    30, 30, dtype=torch.float64, generator=generator
                )
                loss = loss + (model[n].weight * pull).sum()
                wanted[n] += pull / 50
            loss.backward()
            each.append(seen.step()["a.weight"])
            assert not seen.calls
    assert seen.steps == 50
    for n in "ab":
        assert close(seen.means[f"{n}.weight"], wanted[n])
    assert sum(each) / 50 == pytest.approx(9 / 20, abs=0.02)  # 9 of noise in 1 + 9, halved
    (lasting,) = seen.conflict(seen.means).values()
    assert lasting == pytest.approx((9 / 50) / (1 + 9 / 50) / 2, rel=0.15)


def test_a_checkpointed_forward_is_traced_with_its_second_reading():
    """Activation checkpointing reads the sites again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    model = Chain().double()
    eadem.tie(model, "*.weight")
    x = torch.randn(7, 4, dtype=torch.float64)
    with eadem.trace(model) as seen:
        checkpoint(model, x, use_reentrant=False).square().sum().backward()
    assert close(seen.pulled()["a.weight"], model.a.weight.grad)


def test_autocast_gradients_add_up():
    model = Chain()
    eadem.tie(model, "*.weight")
    with eadem.trace(model) as seen, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(7, 4)).float().square().sum().backward()
    total = sum(seen.sites.values())
    torch.testing.assert_close(total, model.a.weight.grad, rtol=1e-2, atol=1e-3)


def test_positions_of_a_convolution_through_its_locally_connected_twin():
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    layer = eadem.nn.LocallyConnected2d.from_conv(conv, in_size=5)
    for name in ("weight", "bias"):
        eadem.tie(layer, name, via=eadem.Gather(layer.convolution_index(name)))
    x = torch.randn(4, 2, 5, 5, dtype=torch.float64)
    with trace(layer) as seen:
        layer(x).square().sum().backward()
    conv(x).square().sum().backward()
    at = seen.sites["weight"]  # rows, columns, then kernel, channels in and out
    assert close(at.sum((0, 1)).permute(3, 2, 0, 1), conv.weight.grad)
    assert close(seen.sites["bias"].sum((0, 1)), conv.bias.grad)
    out = conv(x).detach()
    slope = (2 * out)[:, :, 2, 1]
    window = x[:, :, 1:4, 0:3]
    assert close(at[2, 1], torch.einsum("no,nikl->klio", slope, window))


def test_towers_of_a_siamese_network_add_into_one_set():
    towers = nn.ModuleList(nn.Linear(4, 3) for _ in range(2)).double()
    eadem.tie_modules(towers, "*")
    a, b = torch.randn(2, 6, 4, dtype=torch.float64)
    with trace(towers) as seen:
        (towers[0](a) - towers[1](b)).square().sum().backward()
    slope = 2 * (towers[0](a) - towers[1](b)).detach()
    assert close(seen.sites["0.weight"], slope.T @ a)
    assert close(seen.sites["1.weight"], -slope.T @ b)
    assert close(seen.sites["0.weight"] + seen.sites["1.weight"], towers[0].weight.grad)
    assert close(
        torch.cat([seen.sites[f"{i}.bias"][None] for i in (0, 1)]).sum(0), 0 * slope[0]
    )


@pytest.mark.parametrize("steps", [1, 5])
def test_steps_of_a_recurrence_are_calls_that_sum_to_its_gradient(steps):
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = nn.ModuleList(nn.RNNCell(3, 4) for _ in range(2))

        def forward(self, x):
            h = x.new_zeros(len(x), 4)
            for t in range(x.shape[1]):
                h = self.cells[t % 2](x[:, t], h)
            return h

    model, rnn = Unrolled().double(), nn.RNN(3, 4, batch_first=True).double()
    eadem.tie_modules(model, "cells.*")
    with torch.no_grad():
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(rnn, f"{name}_l0").copy_(getattr(model.cells[0], name))
    x = torch.randn(7, steps, 3, dtype=torch.float64)
    with trace(model) as seen:
        model(x).square().sum().backward()
    rnn(x)[1].square().sum().backward()
    calls = [g for i in (0, 1) for g in seen.calls.get(f"cells.{i}.weight_hh", [])]
    assert len(calls) == steps
    assert close(sum(calls), rnn.weight_hh_l0.grad)
