"""Positive and Bounded keep their promise at the ends of every dtype; Function finds θ."""

import pytest
import torch

from eadem.maps import Bounded, Function, Positive

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WIDE = [-1e4, -700.0, -50.0, -1.0, 0.0, 1.0, 50.0, 700.0, 1e4]


@pytest.mark.parametrize("dtype", DTYPES)
def test_positive_neither_overflows_nor_vanishes(dtype):
    phi = Positive().bind((len(WIDE),))
    theta = torch.tensor(WIDE, dtype=dtype, requires_grad=True)
    value = phi.expand(theta)
    assert value.dtype == dtype
    assert bool(((value > 0) & value.isfinite()).all())
    (first,) = torch.autograd.grad(value.sum(), theta, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), theta)
    assert bool((first.isfinite() & (first >= 0)).all())
    assert bool(second.isfinite().all())
    assert bool(phi.lift(value.detach()).isfinite().all())


def test_positive_is_the_softplus():
    theta = torch.linspace(-30, 60, 400, dtype=torch.float64)
    want = torch.logaddexp(theta, torch.zeros_like(theta))
    torch.testing.assert_close(
        Positive().bind((400,)).expand(theta), want, rtol=1e-14, atol=1e-15
    )


@pytest.mark.parametrize("value", [1e-300, 1e-30, 1e-3, 1.0, 19.9, 20.1, 1e5, 1e300])
def test_positive_lifts_every_size(value):
    phi = Positive().bind(())
    value = torch.tensor(value, dtype=torch.float64)
    torch.testing.assert_close(phi.expand(phi.lift(value)), value, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lo", "hi"), [(0.1, 0.3), (-2.0, 5.0), (1e3, 1e3 + 1)])
def test_bounded_stays_inside(dtype, lo, hi):
    phi = Bounded(lo, hi).bind((len(WIDE),))
    value = phi.expand(torch.tensor(WIDE, dtype=dtype))
    low, high = (torch.tensor(x, dtype=dtype) for x in (lo, hi))
    assert value.dtype == dtype
    assert bool(((value >= low) & (value <= high)).all())


def test_elementwise_maps_say_so():
    assert Positive().elementwise
    assert Bounded(0, 1).elementwise
    assert not Function(torch.exp).elementwise


def test_function_uses_its_inverse():
    phi = Function(torch.exp, inverse=torch.log).bind((2,))
    values = torch.tensor([0.1, 3.0], dtype=torch.float64)
    assert torch.equal(phi.lift(values), values.log())


def test_function_without_inverse_finds_the_nearest_values():
    def line(theta):
        return theta[0] * torch.arange(5.0, dtype=theta.dtype) + theta[1].exp()

    phi = Function(line, in_shape=(2,)).bind((5,))
    theta = torch.tensor([0.7, -1.0], dtype=torch.float64)
    torch.testing.assert_close(phi.lift(phi.expand(theta)), theta)
    noisy = phi.expand(theta) + torch.tensor([0.1, -0.2, 0.1, 0.05, -0.1], dtype=torch.float64)
    nearest = phi.lift(noisy)
    slope = phi.linearize(nearest).adjoint(noisy - phi.expand(nearest))
    assert float(slope.abs().max()) < 1e-8
