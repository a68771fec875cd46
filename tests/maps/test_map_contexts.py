"""Maps made or first used in one torch context work in every other."""

import pickle

import pytest
import torch

from eadem.maps import (
    Affine,
    Fixed,
    Gather,
    LinearMap,
    Palindrome,
    Positive,
    Scale,
    Subspace,
    Toeplitz1d,
)
from eadem.maps.constant import Constant
from eadem.maps.index import Index

MAPS = [
    (lambda: Gather(torch.tensor([1, 0, -1, 1])), (4,)),
    (lambda: Fixed(torch.tensor([1.0, 2.0])), (2,)),
    (lambda: Subspace(torch.eye(3)[:, :2]), (3,)),
    (lambda: Palindrome(odd=True) @ Affine(2.0, 1.0), (5,)),
    (lambda: Toeplitz1d(4, 3, padding=1) @ Scale(0.5), (4, 4)),
    (lambda: Positive() @ Gather(torch.tensor([0, 0])), (2,)),
]


@pytest.mark.parametrize(("make", "shape"), MAPS)
def test_a_map_made_in_inference_mode_trains_outside(make, shape):
    with torch.inference_mode():
        phi = make().bind(shape)
        phi.expand(torch.ones(phi.in_shape))
    theta = torch.ones(phi.in_shape, requires_grad=True)
    value = phi.expand(theta) ** 2
    if value.requires_grad:
        value.sum().backward()
        assert theta.grad is not None


@pytest.mark.parametrize(("make", "shape"), MAPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_map_first_used_inside_a_transform_works_outside(make, shape, dtype):
    phi = make().bind(shape)
    theta = torch.ones((2, *phi.in_shape), dtype=dtype)
    torch.vmap(torch.func.grad(lambda t: (phi.expand(t) ** 2).sum()))(theta)
    assert phi.expand(theta[0]).dtype == dtype
    if isinstance(phi, LinearMap):
        assert phi.adjoint(torch.ones(shape, dtype=dtype)).dtype == dtype


def test_constants_made_inside_a_transform_carry_nothing_away():
    constant = Constant(torch.ones(2, dtype=torch.float64))

    def f(x):
        return x * constant.on(x.device, x.dtype)

    torch.func.vjp(f, torch.ones(2))
    kept = constant.on(torch.device("cpu"), torch.float32)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)


@pytest.mark.parametrize(("make", "shape"), MAPS)
def test_the_meta_device(make, shape):
    phi = make().bind(shape)
    value = phi.expand(torch.ones(phi.in_shape, device="meta"))
    assert value.is_meta
    assert tuple(value.shape) == shape


def test_a_pickled_gather_holds_its_index_once():
    index = torch.arange(10_000).flip(0)
    phi = Gather(index).bind((10_000,))
    phi.expand(torch.zeros(10_000))
    assert len(pickle.dumps(phi)) < 1.1 * 8 * 10_000 + 5_000


def test_a_bound_gather_keeps_the_shape_it_was_bound_to():
    phi = Gather([0, 3]).bind((2,), in_shape=(2, 3))
    assert phi.bind((2,)).in_shape == (2, 3)
    assert (Scale(2.0) @ phi).bind((2,)).in_shape == (2, 3)
    assert (Scale(2.0) @ Gather([0, 3])).bind((2,), in_shape=(2, 2)).in_shape == (2, 2)
    assert pickle.loads(pickle.dumps(phi)).in_shape == (2, 3)


def test_an_index_after_an_empty_one():
    outer = Index(torch.tensor([-1, -1]), 0, shift=torch.tensor([1.0, 2.0]))
    inner = Index(torch.tensor([], dtype=torch.int64), 3)
    composed = outer.after(inner)
    assert composed.size == 3
    assert composed.expand(torch.zeros(3)).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_rank_and_lift_of_extreme_scales(scale):
    phi = (Scale(scale) @ Palindrome()).bind((4,))
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert phi.rank == 2
    torch.testing.assert_close(phi.lift(phi.expand(theta)), theta)
