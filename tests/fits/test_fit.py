"""Fits of tied blocks: what they end at and their errors, against dense algebra and scipy."""

import math

import numpy as np
import pytest
import torch
from curves import SIGMA, Decay, decays, dense, double
from scipy.optimize import least_squares as scipy_least_squares
from torch import nn

import eadem
from eadem.bind import free_vector, resolved
from eadem.fits import callables

TRUTHS = [(3.0, 0.7, 0.1), (5.0, 0.7, 0.2), (2.0, 0.7, 0.3), (4.0, 1.5, 0.0)]


def joint(sizes=(40, 40, 40, 40), **options):
    data = decays(TRUTHS, sizes)
    return eadem.Joint({f"d{i}": Decay(*each, **options) for i, each in enumerate(data)})


def unit(theta):
    return torch.stack([theta[0], torch.exp(theta[1]), theta[0] * theta[1] * 0.1])


def ties_same(model):
    eadem.tie(model, "d0.rate", "d1.rate", "d2.rate")


def ties_affine(model):
    eadem.tie(model, {"d0.rate": eadem.Same(), "d3.rate": eadem.Affine(2.0, 0.1)})
    eadem.tie(model, "d1.rate", "d2.rate")


def ties_positive(model):
    eadem.tie(model, "d0.rate", "d1.rate", "d2.rate", via=eadem.Positive(), start="mean")
    eadem.tie(model, "d3.rate", via=eadem.Bounded(0.1, 5.0))


def ties_fixed(model):
    ties_same(model)
    eadem.tie(model, "d0.floor", via=eadem.Fixed(0.1))
    model.d3.floor.requires_grad_(False)


def ties_everything(model):
    for name in ("height", "rate", "floor"):
        eadem.tie(model, f"*.{name}")


TIES = {
    f.__name__: f for f in (ties_same, ties_affine, ties_positive, ties_fixed, ties_everything)
}


@pytest.fixture(params=TIES, ids=[n.removeprefix("ties_") for n in TIES])
def tied(request):
    model = joint()
    TIES[request.param](model)
    return model


def test_values_are_those_of_scipy_and_errors_those_of_dense_algebra(tied):
    given = callables(tied)
    oracle = scipy_least_squares(
        given.residual, given.start, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )  # its Jacobian by finite differences: independent of ours
    fit = eadem.least_squares(tied)
    assert fit.converged, fit.message
    assert fit.chi2 == pytest.approx(2 * oracle.cost, rel=1e-9)
    free = ~torch.tensor([not p.requires_grad for p in tied.parameters()])
    np.testing.assert_allclose(fit.theta[free], oracle.x, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(free_vector(tied), fit.theta)

    j, r = dense(tied)
    plan = resolved(tied)
    phi = plan.linearize(fit.theta).dense()[:, free]
    inner = phi.T @ j.T @ j @ phi
    assert fit.dof == len(r) - phi.shape[1]
    assert fit.reduced_chi2 == pytest.approx(float(r @ r) / fit.dof, rel=1e-9)
    covariance = phi @ torch.linalg.inv(inner) @ phi.T * fit.reduced_chi2  # φ Cov φᵀ
    for name, error in fit.stderr.items():
        at = plan.slices[name]
        torch.testing.assert_close(
            error.reshape(-1), covariance[at, at].diagonal().sqrt(), rtol=1e-6, atol=1e-12
        )
    names = ["d3.rate", "d0.rate", "d1.*"]
    at = torch.cat(
        [torch.arange(plan.slices[n].start, plan.slices[n].stop) for n in (
            "d3.rate", "d0.rate", "d1.height", "d1.rate", "d1.floor")]
    )  # fmt: skip
    torch.testing.assert_close(
        fit.covariance(names), covariance[at][:, at], rtol=1e-6, atol=1e-12
    )
    own = torch.linalg.inv(inner) * fit.reduced_chi2
    torch.testing.assert_close(fit.covariance()[free][:, free], own, rtol=1e-6, atol=1e-12)
    scale = own.diagonal().rsqrt()
    torch.testing.assert_close(
        fit.correlation[free][:, free], own * scale * scale[:, None], rtol=1e-6, atol=1e-9
    )


def test_a_function_tie_of_local_rank_two_on_three_sites():
    model = joint()
    eadem.tie(model, "d0.floor", "d1.floor", start="mean")
    t = eadem.tie(
        model,
        {"d0.rate": eadem.Function(lambda t: t[0] + 0 * t[1], in_shape=(2,)),
         "d1.rate": eadem.Function(lambda t: t[0] * torch.exp(t[1]), in_shape=(2,)),
         "d3.rate": eadem.Function(lambda t: t[0] + t[1] ** 2, in_shape=(2,))},
        start=double([0.7, 0.3]),
    )  # fmt: skip
    fit = eadem.least_squares(model)
    assert fit.converged
    a, b = t.theta.detach().reshape(-1)
    found = [float(fit.values[f"d{i}.rate"]) for i in (0, 1, 3)]
    np.testing.assert_allclose(found, [a, a * torch.exp(b), a + b**2], rtol=1e-12)
    j, _ = dense(model)
    plan = resolved(model)
    phi = plan.linearize(fit.theta).dense()
    covariance = phi @ torch.linalg.inv(phi.T @ j.T @ j @ phi) @ phi.T * fit.reduced_chi2
    at = [plan.slices[f"d{i}.rate"].start for i in (0, 1, 3)]
    errors = [float(fit.stderr[f"d{i}.rate"]) for i in (0, 1, 3)]
    np.testing.assert_allclose(errors, covariance[at, at].sqrt(), rtol=1e-6)


def test_known_errors_and_information_criteria():
    model = joint()
    known = eadem.least_squares(model, absolute_sigma=True)
    other = eadem.least_squares(model)
    ratio = math.sqrt(other.reduced_chi2)
    for name, error in known.stderr.items():
        torch.testing.assert_close(other.stderr[name], error * ratio, rtol=1e-6, atol=0)
    n, k = 160, 12
    assert (known.size, known.free) == (n, k)
    assert known.aic == pytest.approx(known.chi2 + 2 * k)
    assert other.aic == pytest.approx(n * math.log(other.chi2 / n) + 2 * k)
    assert other.bic == pytest.approx(n * math.log(other.chi2 / n) + k * math.log(n))


def test_shapes_may_differ_and_buffers_hold_data_too():
    model = joint((40, 25, 40, 10), buffers=True)
    ties_same(model)
    fit = eadem.least_squares(model)
    other = joint((40, 25, 40, 10))
    ties_same(other)
    assert fit.chi2 == pytest.approx(eadem.least_squares(other).chi2, rel=1e-12)
    assert {n: len(r) for n, r in fit.residuals.items()} == {
        "d0": 40,
        "d1": 25,
        "d2": 40,
        "d3": 10,
    }
    together = torch.cat([fit.residuals[n] for n in model])
    torch.testing.assert_close(together, model.residual().detach())


class Through(nn.Module):
    """A block around a module that other blocks hold too."""

    def __init__(self, inner, x, y):
        super().__init__()
        self.inner, self.x, self.y = inner, x, y
        self.scale = nn.Parameter(double(1.0))

    def residual(self):
        return (self.y - self.scale * torch.exp(-self.inner.weight[0, 0] * self.x)) / SIGMA


def test_a_module_that_two_blocks_hold_is_one_set_of_values():
    data = decays([(3.0, 0.7, 0.0), (5.0, 0.7, 0.0)], (30, 30))
    inner = nn.Linear(1, 1, bias=False).double()
    model = eadem.Joint({n: Through(inner, *d) for n, d in zip("ab", data, strict=True)})
    fit = eadem.least_squares(model)
    assert fit.converged
    assert fit.free == 3
    assert inner.weight.item() == pytest.approx(0.7, abs=0.02)
    apart = eadem.Joint(
        {n: Through(nn.Linear(1, 1, bias=False).double(), *d)
         for n, d in zip("ab", data, strict=True)}
    )  # fmt: skip
    eadem.tie(apart, "*.inner.weight")
    again = eadem.least_squares(apart)
    assert again.chi2 == pytest.approx(fit.chi2, rel=1e-10)
    torch.testing.assert_close(again.stderr["a.scale"], fit.stderr["a.scale"])


class Branching(Decay):
    """What vmap cannot follow: a choice by the values."""

    def residual(self):
        found = super().residual()
        return found if float(self.rate.detach()) < 10 else 2 * found


class Lists(nn.Module):
    """Data in a list, which batches do not look into."""

    def __init__(self, x, y):
        super().__init__()
        self.data = [x, y]
        self.slope = nn.Parameter(double(0.0))

    def residual(self):
        return self.data[1] - self.slope * self.data[0]


def test_blocks_that_cannot_be_batched_are_fitted_one_by_one():
    data = decays(TRUTHS, (20, 20, 20, 20))
    slow = eadem.Joint({f"d{i}": Branching(*d) for i, d in enumerate(data)})
    fast = eadem.Joint({f"d{i}": Decay(*d) for i, d in enumerate(data)})
    for model in (slow, fast):
        ties_same(model)
    a, b = eadem.least_squares(slow), eadem.least_squares(fast)
    torch.testing.assert_close(a.theta, b.theta, rtol=1e-7, atol=1e-9)
    x = double([1.0, 2.0, 3.0])
    lists = eadem.Joint({"a": Lists(x, 2 * x), "b": Lists(x, 3 * x)})
    fit = eadem.least_squares(lists)
    assert [float(v) for v in fit.values.values()] == pytest.approx([2.0, 3.0])


def test_many_small_blocks_share_one_value_as_a_dense_fit_has_it():
    g = torch.Generator().manual_seed(4)
    truths = [(float(h), 0.9, 0.1) for h in 2 + 3 * torch.rand(70, generator=g)]
    data = decays(truths, [12] * 70)
    model = eadem.Joint({f"d{i}": Decay(*d) for i, d in enumerate(data)})
    eadem.tie(model, "*.rate")
    eadem.tie(model, "*.floor")
    fit = eadem.least_squares(model)
    assert fit.converged
    j, r = dense(model)
    phi = resolved(model).linearize(fit.theta).dense()
    jacobian = j @ phi
    assert float((jacobian.T @ r).norm()) < 1e-6 * float(jacobian.norm() * r.norm())
    inverse = torch.linalg.inv(jacobian.T @ jacobian) * fit.reduced_chi2
    error = (phi @ inverse @ phi.T).diagonal().sqrt()
    torch.testing.assert_close(
        torch.cat([e.reshape(-1) for e in fit.stderr.values()]), error, rtol=1e-7, atol=0
    )


class _Once(torch.autograd.Function):
    """sin, with a forward derivative and one backward."""

    @staticmethod
    def forward(x):
        return torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, dx):
        return torch.cos(ctx.saved_tensors[0]) * dx

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return torch.cos(ctx.saved_tensors[0]) * g

    @staticmethod
    def vmap(info, dims, x):
        return _Once.apply(x), dims[0]


class Waves(nn.Module):
    """The sine of many slopes; `sine` computes it."""

    def __init__(self, n, points, sine):
        super().__init__()
        self.x = torch.linspace(0, 1, points, dtype=torch.float64)
        self.sine = sine
        self.b = nn.Parameter(torch.linspace(-1, 1, n, dtype=torch.float64))

    def residual(self):
        n = len(self.b)
        powers = self.x.unsqueeze(1) ** torch.arange(n, dtype=torch.float64)
        return self.sine(powers @ self.b) - self.x


@pytest.mark.parametrize("columns", [3, 30])
@pytest.mark.parametrize("sine", [torch.sin, _Once.apply], ids=["torch", "once"])
def test_every_road_to_a_jacobian_gives_the_same(columns, sine):
    model = Waves(columns, 200, sine)
    given = eadem.fits.callables(model)
    j, _ = dense(Waves(columns, 200, torch.sin))
    assert torch.allclose(torch.as_tensor(given.jacobian(given.start)), j, rtol=1e-13)
