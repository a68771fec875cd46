"""The shipped harness holds for every kind, composed ones and non-linear ones included."""

import pytest
import torch
from hypothesis import given
from map_kinds import chains, few, linear_maps

from eadem.maps import (
    Affine,
    Bounded,
    Flip,
    Function,
    Gather,
    LinearMap,
    Palindrome,
    Positive,
    Scale,
    Subspace,
)
from eadem.maps.algebra import Blocks, LinearBlocks, LinearStack, Stack
from eadem.maps.simplex import SumToOne
from eadem.testing import check_map


@few
@given(linear_maps())
def test_linear_kinds(case):
    check_map(case.phi, case.shape)


@few
@given(chains())
def test_composed_maps(case):
    check_map(case.phi, case.shape, dtypes=(torch.float64,))


def cubic(theta):
    return theta**3 + theta


def symmetric(theta):
    """A 2 × 2 matrix from its three free entries, and non-linear in them."""
    a, b, c = theta.exp().unbind()
    return torch.stack([torch.stack([a, b]), torch.stack([b, c])])


BASIS = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]])


@pytest.mark.parametrize(
    ("phi", "shape"),
    [
        (Positive(), (2, 3)),
        (Positive(), ()),
        (Positive(), (0,)),
        (Bounded(-1.0, 2.5), (4,)),
        (Function(torch.exp), (2, 2)),
        (Function(cubic), (3,)),
        (Function(symmetric, in_shape=(3,)), (2, 2)),
        (Affine(2.0, 1.0) @ Positive(), (3,)),
        (Positive() @ Palindrome(), (5,)),
        (Bounded(0.0, 1.0) @ Subspace(BASIS), (3,)),
        (Flip(0) @ Positive() @ Gather([0, 1, 1]), (3,)),
    ],
    ids=repr,
)
def test_non_linear_kinds(phi, shape):
    check_map(phi, shape)


@pytest.mark.parametrize("kind", [LinearBlocks, LinearStack])
def test_several_linear_maps(kind):
    parts = (Scale(2.0).bind((3,)), Gather([0, -1, 2]).bind((3,)), Subspace(BASIS.T).bind((2,)))
    check_map(kind(parts), (8,))
    check_map(kind(parts[:2]), (6,))


def test_several_non_linear_maps():
    parts = (Positive().bind((2,)), Bounded(0.0, 3.0).bind((2,)), Flip().bind((2,)))
    check_map(Blocks(parts), (6,))
    check_map(Stack(parts), (6,))


def test_a_stack_lifts_each_value_by_the_parts_that_use_it():
    first = (Positive() @ Gather([0], in_shape=(2,))).bind((1,))
    second = (Positive() @ Gather([1], in_shape=(2,))).bind((1,))
    values = torch.tensor([0.5, 7.0], dtype=torch.float64)
    both = Stack((first, second)).bind((2,))
    torch.testing.assert_close(both.expand(both.lift(values)), values)


class Cumulative(LinearMap):
    """A user's own map: nothing but a forward."""

    def forward(self, theta):
        return theta.cumsum(-1)


@pytest.mark.parametrize("shape", [(4,), (2, 3), (0,), (1,)])
def test_a_map_of_ones_own_needs_only_a_forward(shape):
    check_map(Cumulative(), shape)
    check_map(Cumulative() @ Flip(-1), shape)
    check_map(Positive() @ Cumulative(), shape)


@pytest.mark.parametrize(("dim", "shape"), [(-1, (2, 3)), (0, (4, 2)), (-1, (1,)), (1, (2, 1))])
def test_rows_that_sum_to_one(dim, shape):
    check_map(SumToOne(dim), shape)
    phi = SumToOne(dim).bind(shape)
    total = phi.expand(torch.randn(phi.in_shape, dtype=torch.float64)).sum(dim)
    torch.testing.assert_close(total, torch.ones_like(total))
