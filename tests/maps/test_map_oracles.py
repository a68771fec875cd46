"""Values, adjoints, ranks and lifts against numpy oracles that know nothing of the maps."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from map_kinds import chains, few, linear_maps, random, views

from eadem.maps import Fixed, Subspace


def draw_theta(phi, data, dtype=torch.float64):
    rng = random(data.draw)
    return torch.as_tensor(rng.standard_normal(phi.in_shape)).to(dtype)


@few
@given(linear_maps(), st.data())
def test_values(case, data):
    phi = case.bound()
    theta = draw_theta(phi, data)
    want = torch.as_tensor(np.array(case.oracle(theta.numpy())))
    if case.exact:
        assert torch.equal(phi.expand(theta), want)
    else:
        torch.testing.assert_close(phi.expand(theta), want, rtol=1e-12, atol=1e-12)


@few
@given(views(), st.data())
def test_values_in_single_precision(case, data):
    phi = case.bound()
    theta = draw_theta(phi, data, torch.float32)
    want = torch.as_tensor(np.array(case.oracle(theta.double().numpy())))
    got = phi.expand(theta)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)


@few
@given(chains(), st.data())
def test_composed_values(case, data):
    phi = case.bound()
    theta = draw_theta(phi, data)
    want = torch.as_tensor(np.array(case.oracle(theta.numpy())))
    torch.testing.assert_close(phi.expand(theta), want, rtol=1e-12, atol=1e-12)


@few
@given(linear_maps() | chains(), st.data())
def test_adjoint_rank_gram_and_lift(case, data):
    phi = case.bound()
    A, b = case.matrix()
    values = torch.as_tensor(random(data.draw).standard_normal(phi.out_shape))
    flat = values.numpy().reshape(-1)
    np.testing.assert_allclose(phi.adjoint(values).numpy().reshape(-1), A.T @ flat, atol=1e-11)
    np.testing.assert_allclose(phi.gram().numpy(), A.T @ A, atol=1e-11)
    largest = np.linalg.norm(A, 2) if A.size else 0.0
    assert phi.rank == (np.linalg.matrix_rank(A, tol=1e-10 * largest) if largest else 0)
    inverse = np.linalg.pinv(A, rcond=1e-10) if A.size else A.T
    lifted = phi.lift(values).numpy().reshape(-1)
    np.testing.assert_allclose(lifted, inverse @ (flat - b), rtol=1e-7, atol=1e-8)


@few
@given(linear_maps(), st.data(), st.sampled_from([torch.float32, torch.float64]))
def test_lift_gives_back_copied_values_to_the_bit(case, data, dtype):
    phi = case.bound()
    index = phi.index()
    if index is None or index.shift is not None or phi.rank < index.size:
        return
    if index.scale is not None and not bool((index.scale.abs() == 1).all()):
        return
    theta = draw_theta(phi, data, dtype)
    assert torch.equal(phi.lift(phi.expand(theta)), theta)


@few
@given(linear_maps(), st.data())
def test_gradient_is_the_adjoint(case, data):
    phi = case.bound()
    theta = draw_theta(phi, data).requires_grad_()
    values = torch.as_tensor(random(data.draw).standard_normal(phi.out_shape))
    value = phi.expand(theta)
    if value.requires_grad:
        (found,) = torch.autograd.grad(value, theta, values)
        torch.testing.assert_close(found, phi.adjoint(values), rtol=1e-12, atol=1e-12)
    else:
        assert phi.rank == 0


@pytest.mark.parametrize("k", range(-4, 8))
@pytest.mark.parametrize("dims", [(0, 1), (1, 0), (-1, -2), (0, 2)])
def test_rotate_is_rot90(k, dims):
    from eadem.maps import Rotate

    site = torch.rot90(torch.randn(2, 3, 4), k, dims)
    phi = Rotate(k, dims).bind(site.shape)
    theta = phi.lift(site)
    assert torch.equal(torch.rot90(theta, k, dims), site)
    assert torch.equal(phi.forward(theta), site)


def test_constants_given_as_numbers_keep_all_their_digits():
    third = Fixed(1 / 3).bind((2,)).expand(torch.zeros(0, dtype=torch.float64))
    assert third.tolist() == [1 / 3, 1 / 3]
    listed = Fixed([0.1, 1 / 3]).bind((2,)).expand(torch.zeros(0, dtype=torch.float64))
    assert listed.tolist() == [0.1, 1 / 3]
    column = Subspace([[1 / 3], [0.1]]).bind((2,)).dense()
    assert column.reshape(-1).tolist() == [1 / 3, 0.1]
