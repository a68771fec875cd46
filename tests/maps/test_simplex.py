"""Rows that sum to one: the laws of a linear map, against the dense projector."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eadem.errors import ShapeError
from eadem.maps.simplex import SumToOne

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(shapes, st.data())
def test_laws_of_a_linear_map(shape, data):
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    bound = SumToOne(dim).bind(shape)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 999)))
    theta = torch.randn(bound.in_shape, generator=generator, dtype=torch.float64)
    grad = torch.randn(bound.out_shape, generator=generator, dtype=torch.float64)
    value = bound.expand(theta)
    torch.testing.assert_close(value.sum(dim), torch.ones_like(value.sum(dim)))
    left, right = (bound.forward(theta) * grad).sum(), (theta * bound.adjoint(grad)).sum()
    assert abs(float(left - right)) <= 1e-12 * max(1.0, float(grad.norm()))
    torch.testing.assert_close(bound.lift(value), theta)
    torch.testing.assert_close(bound.gram(), bound.dense().T @ bound.dense())
    if theta.numel():
        assert bound.rank == int(torch.linalg.matrix_rank(bound.dense()))
    else:
        assert bound.rank == 0


def test_lift_is_the_nearest_point_on_the_simplex_plane():
    values = torch.tensor([[0.5, 0.7, 0.1]], dtype=torch.float64)
    bound = SumToOne().bind((1, 3))
    nearest = bound.expand(bound.lift(values))
    torch.testing.assert_close(nearest, values - 0.1)


def test_it_is_differentiable_and_batches():
    bound = SumToOne(0).bind((4, 2))
    theta = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bound.expand, (theta,))
    many = torch.randn(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        torch.func.vmap(bound.forward)(many), torch.stack([bound.forward(t) for t in many])
    )


def test_float32_keeps_its_dtype():
    bound = SumToOne().bind((2, 3))
    assert bound.expand(torch.zeros(2, 2)).dtype == torch.float32


def test_a_missing_axis_is_a_shape_error():
    with pytest.raises(ShapeError, match="axis 2"):
        SumToOne(2).bind((3, 3))
