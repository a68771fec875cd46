"""Equivariant matrices by irreducible parts, against the basis of the whole space."""

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.errors import GroupError, NoEquivariantMap, ShapeError
from eadem.groups import Cyclic, Dihedral, Equivariant, Symmetric, basis, generated
from eadem.testing import check_map

I = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])
J = np.array([[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]])
GROUPS = [
    Cyclic(1),
    Cyclic(2),
    Cyclic(5),
    Cyclic(6),
    Dihedral(3),
    Symmetric(4),
    generated(I, J),
]


def hidden(rep, seed=0):
    """The representation in another orthonormal basis."""
    turn = np.linalg.qr(np.random.default_rng(seed).standard_normal((rep.size,) * 2))[0]
    each = range(len(rep.group.generators))
    return rep.group.representation(*[turn @ rep.matrix(((s, 1),)) @ turn.T for s in each])


@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_the_space_is_that_of_the_dense_basis(group, monkeypatch):
    a = hidden(group.regular() + group.trivial(2))
    b = hidden(group.regular(2) + group.trivial(1), 1)
    shape = (b.size, a.size)
    dense = Equivariant(a, b).bind(shape).dense()
    monkeypatch.setattr(basis, "DENSE", 0)
    phi = Equivariant(a, b).bind(shape)
    matrix = phi.dense()
    assert phi.rank == dense.shape[1] == matrix.shape[1]
    eye = torch.eye(phi.rank, dtype=torch.float64)
    torch.testing.assert_close(matrix.T @ matrix, eye, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix @ matrix.T, dense @ dense.T, rtol=0, atol=1e-9)


@pytest.mark.parametrize("group", [Cyclic(5), generated(I, J)], ids=str)
def test_the_map_obeys_the_laws(group, monkeypatch):
    monkeypatch.setattr(basis, "DENSE", 0)
    a, b = hidden(group.regular()), hidden(group.regular(), 1)
    check_map(Equivariant(a, b), (a.size, a.size), dtypes=(torch.float64,))


def test_quaternions_commute_with_four_dimensions(monkeypatch):
    monkeypatch.setattr(basis, "DENSE", 0)
    q = generated(I, J)
    rep = hidden(q.representation(I, J))
    phi = Equivariant(rep, rep).bind((4, 4))
    assert phi.rank == 4
    left = phi.forward(torch.tensor([0.3, -1.0, 0.5, 2.0], dtype=torch.float64))
    right = phi.forward(torch.tensor([1.0, 0.2, -0.7, 0.1], dtype=torch.float64))
    product = left @ right
    torch.testing.assert_close(phi.forward(phi.adjoint(product)), product)
    assert (left @ right - right @ left).abs().max() > 0.1


def test_a_side_of_512_comes_back_from_its_record(tmp_path):
    C8 = Cyclic(8)
    a, b = hidden(C8.regular(64)), hidden(C8.regular(64), 1)
    torch.manual_seed(0)
    layer = nn.Linear(512, 512, bias=False).double()
    via = Equivariant(a, b)
    eadem.tie(layer, "weight", via=via)
    assert eadem.counts(layer).free == 512 * 64
    weight = layer.weight.detach()
    left, right = torch.from_numpy(b.images[0]), torch.from_numpy(a.images[0])
    assert (left @ weight - weight @ right).abs().max() < 1e-12 * 512
    eadem.save(layer, tmp_path / "layer.safetensors")
    again = nn.Linear(512, 512, bias=False).double()
    eadem.load(again, tmp_path / "layer.safetensors")
    assert torch.equal(again.weight, weight)


def test_what_is_refused(monkeypatch):
    monkeypatch.setattr(basis, "DENSE", 0)
    C3 = Cyclic(3)
    turned = hidden(C3.space(2))
    with pytest.raises(NoEquivariantMap):
        Equivariant(C3.trivial(2), turned).bind((2, 2))
    phi = Equivariant(turned, turned)
    phi.bind((2, 2))
    arguments = phi.arguments()
    ((shape, left, right, layout, commutant),) = arguments["bases"]
    short = ((shape, left[:, :1], right, layout, commutant),)
    with pytest.raises(ShapeError, match="do not fit"):
        Equivariant.from_arguments(arguments | {"bases": short}).bind((2, 2))
    wrong = ((shape, left + 0.1, right, layout, commutant),)
    with pytest.raises(GroupError, match="equivariant only to"):
        Equivariant.from_arguments(arguments | {"bases": wrong}).bind((2, 2))
