"""Shared plus remainder, and sums of maps: laws, and dense oracles."""

import pytest
import torch

from eadem.errors import ShapeError, TieConflict
from eadem.maps import LowRank, Near, Palindrome, Same, Scale, Subspace, Transpose
from eadem.maps.algebra import added
from eadem.maps.remainder import Factors
from eadem.maps.spec import from_spec, to_spec
from eadem.testing import check_map


@pytest.mark.parametrize(
    ("phi", "shape"),
    [
        (LowRank(1), (4, 3)),
        (LowRank(3), (4, 3)),
        (LowRank(2) @ Transpose(), (4, 3)),
        (LowRank(2), (4, 3, 2)),
        (LowRank(1) @ Palindrome(), (4, 5)),
        (Near(0.5), (4,)),
        (Near(0.0) @ Scale(-2.0), (2, 3)),
        (Factors(2), (3, 5)),
    ],
)
def test_laws(phi, shape):
    check_map(phi, shape)


def test_a_sum_of_maps_is_their_matrices_side_by_side():
    torch.manual_seed(0)
    basis = torch.randn(12, 5, dtype=torch.float64)
    parts = [Subspace(basis).bind((12,)), Scale(3.0).bind((12,))]
    both = added(parts)
    dense = torch.cat([p.dense() for p in parts], dim=1)
    assert torch.allclose(both.dense(), dense)
    w = torch.randn(12, dtype=torch.float64)
    assert torch.allclose(both.adjoint(w), dense.T @ w)
    assert torch.allclose(both.lift(w), torch.linalg.pinv(dense) @ w)
    assert both.rank == 12
    check_map(both, (12,))


def test_factors_lift_to_the_nearest_matrix_and_start_from_zero_with_gradients():
    torch.manual_seed(0)
    w = torch.randn(6, 4, dtype=torch.float64)
    phi = Factors(2).bind((6, 4))
    u, s, v = torch.linalg.svd(w, full_matrices=False)
    nearest = (u[:, :2] * s[:2]) @ v[:2]
    assert torch.allclose(phi.expand(phi.lift(w)), nearest)
    for start in (phi.lift(torch.zeros_like(w)), phi.start(torch.Generator().manual_seed(0))):
        theta = start.clone().requires_grad_()
        value = phi.expand(theta)
        assert not value.any()
        (value * w).sum().backward()
        assert float(theta.grad.norm()) > 0.1


@pytest.mark.parametrize("ranks", [(2, 2), (1, 2), (0, 2), (0, 0)])
def test_the_rank_of_the_derivative_at_deficient_factors(ranks):
    torch.manual_seed(0)
    theta = torch.randn(2, 5 + 4, dtype=torch.float64)
    theta[ranks[0] :, :5] = 0
    theta[ranks[1] :, 5:] = 0
    phi = Factors(2).bind((5, 4))
    dense = torch.func.jacrev(phi.expand)(theta).reshape(20, -1)
    assert phi.linearize(theta).rank == int(torch.linalg.matrix_rank(dense))
    assert phi.linearize(phi.general(theta, torch.Generator())).rank == 2 * (5 + 4 - 2)


def test_records_and_names():
    for phi in (LowRank(2), LowRank(2) @ Transpose(), Near(0.5) @ Scale(2.0)):
        again = from_spec(to_spec(phi))
        assert repr(again) == repr(phi)
        assert again.remainder((3, 4)).in_shape == phi.remainder((3, 4)).in_shape
    assert repr(LowRank(2) @ Transpose()) == "LowRank(rank=2) @ Transpose(dim0=-2, dim1=-1)"
    assert isinstance((LowRank(1) @ Same()).shared, Same)


def test_errors_say_what_to_do():
    for rank in (0, -1, 1.5, True):
        with pytest.raises(ShapeError, match="1 or more"):
            LowRank(rank)
    with pytest.raises(ShapeError, match="no matrix"):
        LowRank(1).bind((4,))
    with pytest.raises(ShapeError, match="more than a site"):
        LowRank(4).bind((3, 5))
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(TieConflict, match="finite weight"):
            Near(weight)
    with pytest.raises(ShapeError, match="cannot be added"):
        added([Same().bind((2,)), Same().bind((3,))])
