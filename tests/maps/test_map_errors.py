"""Bad arguments give typed errors that say what to do."""

import math

import pytest
import torch

from eadem.errors import EademError, ShapeError, TieConflict, TooLarge, Unsupported
from eadem.maps import (
    Affine,
    Bounded,
    Fixed,
    Flip,
    Function,
    Gather,
    Palindrome,
    Permute,
    Positive,
    Rotate,
    Same,
    Scale,
    Subspace,
    Transpose,
)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Gather([0, -2]), ShapeError, "holds -2"),
        (lambda: Gather([0.5]), Unsupported, "must hold integers"),
        (lambda: Gather([True, False]), Unsupported, "must hold integers"),
        (lambda: Gather([[0], [1, 2]]), Unsupported, "nested lists"),
        (lambda: Gather("abc"), Unsupported, "nested lists"),
        (lambda: Gather([0, 5], in_shape=(2, 2)), ShapeError, "reaches 5"),
        (lambda: Gather([0, 1]).bind((2, 1)), ShapeError, "reshape the index"),
        (lambda: Gather([0, 5]).bind((2,), in_shape=(2, 2)), ShapeError, "index 5"),
        (
            lambda: Gather([0, 1], (2,)).bind((2,), in_shape=(3,)),
            ShapeError,
            "takes θ of shape",
        ),
        (lambda: Fixed("x"), Unsupported, "must be a number"),
        (lambda: Fixed(1j), Unsupported, "real"),
        (lambda: Fixed(torch.zeros(3)).bind((2,)), ShapeError, "cannot fill"),
        (lambda: Palindrome(2).bind((3, 3)), ShapeError, "needs axis 2"),
        (lambda: Palindrome().bind(()), ShapeError, "0 axes"),
        (lambda: Transpose().bind((3,)), ShapeError, "needs axis"),
        (lambda: Permute((0, 0)).bind((2, 2)), ShapeError, "once"),
        (lambda: Flip(3).bind((2, 2)), ShapeError, "needs axis 3"),
        (lambda: Rotate(1, (0, 0)).bind((2, 2)), ShapeError, "must differ"),
        (lambda: Scale(0.0), ShapeError, "Fixed"),
        (lambda: Affine(math.nan), ShapeError, "finite"),
        (lambda: Subspace(torch.zeros(4, 2)).bind((3,)), ShapeError, r"\(3, k\)"),
        (lambda: Subspace(torch.tensor(1.0)), ShapeError, "shape"),
        (lambda: Subspace(torch.tensor([[math.nan]])), ShapeError, "NaN"),
        (lambda: Bounded(2, 1), TieConflict, "lo < hi"),
        (lambda: Bounded(0, math.inf), TieConflict, "Positive"),
        (lambda: Function(3), Unsupported, "callable"),
        (lambda: Same().in_shape, ShapeError, "not bound"),
        (lambda: Transpose().bind((2, 3), in_shape=(2, 3)), ShapeError, "joins these shapes"),
        (
            lambda: Gather(torch.zeros(5000, dtype=torch.int64), (5000,)).bind((5000,)).gram(),
            TooLarge,
            "5000²",
        ),
    ],
)
def test_bad_arguments(make, error, says):
    with pytest.raises(error, match=says) as caught:
        make()
    assert isinstance(caught.value, EademError)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_positive_lifts_only_positive_values(bad):
    with pytest.raises(TieConflict, match="above 0; 1 values"):
        Positive().bind((2,)).lift(torch.tensor([1.0, bad]))


@pytest.mark.parametrize("bad", [0.0, 1.0, 2.0, math.nan])
def test_bounded_lifts_only_values_inside(bad):
    with pytest.raises(TieConflict, match="strictly between"):
        Bounded(0, 1).bind((2,)).lift(torch.tensor([0.5, bad]))


def test_function_of_another_shape():
    phi = Function(torch.sum).bind((3,))
    with pytest.raises(ShapeError, match="in_shape"):
        phi.expand(torch.ones(3))


def test_function_that_gauss_newton_cannot_invert():
    phi = Function(lambda t: t / 0.0).bind((3,))
    with pytest.raises(Unsupported, match="inverse"):
        phi.lift(torch.ones(3))
