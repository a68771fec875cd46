"""Groups at their edges: empty parts, files that lie, generators that are none."""

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.errors import NoEquivariantMap, RecordError
from eadem.groups import Cyclic, Symmetric, so
from eadem.groups.group import rotation


def kron_dimension(out_rep, in_rep):
    """The dimension of {W : A W = W B} by the null space of the Kronecker system."""
    rows = [
        np.kron(a, np.eye(in_rep.size)) - np.kron(np.eye(out_rep.size), b.T)
        for a, b in (
            (out_rep.matrix(((s, 1),)), in_rep.matrix(((s, 1),)))
            for s in range(len(out_rep.group.generators))
        )
    ]
    system = np.concatenate(rows)
    return system.shape[1] - np.linalg.matrix_rank(system)


def turns(*ks):
    C5 = Cyclic(5)
    return [C5.representation(rotation(k * 2 * np.pi / 5)) for k in ks]


def test_sums_of_given_matrices_have_the_dimension_of_their_null_space():
    R, S = turns(1, 2)
    again = turns(1)[0]
    cases = [
        (R, R + S),
        (R + S, R),
        (R + again, R + S),
        (R.dual(), S.dual() + R),
        (R.dual() + S.dual(), S + R),
        (R + S + R, R + R + S),
    ]
    for out_rep, in_rep in cases:
        phi = eadem.Equivariant(in_rep, out_rep).bind((out_rep.size, in_rep.size))
        assert phi.rank == kron_dimension(out_rep, in_rep)
        weight = phi.forward(torch.randn(phi.in_shape, dtype=torch.float64)).numpy()
        a, b = out_rep.matrix(((0, 1),)), in_rep.matrix(((0, 1),))
        np.testing.assert_allclose(a @ weight, weight @ b, atol=1e-12)


def test_a_permutation_and_a_matrix_of_the_same_numbers_are_two_representations():
    C1 = Cyclic(1)
    exact = C1.representation(([0, 1], [1, 1]))
    assert exact.form[1].shape[-1] == 2
    other = eadem.groups.Representation(C1, ("given", exact.form[1].to(torch.float64)))
    assert exact != other


def test_parts_between_which_only_zero_is_equivariant_leave_the_others():
    v, one = so(3).vector(), so(3).trivial(1)
    with pytest.raises(NoEquivariantMap):
        eadem.Equivariant(v, one).bind((1, 3))
    assert eadem.Equivariant(v, v + one).bind((4, 3)).rank == 1
    assert eadem.Equivariant(v, v + so(3).trivial(2)).bind((5,)).rank == 2
    skew = np.array([[1.0, 0.7], [0.0, 1.0]])
    S3 = Symmetric(3)
    turn = rotation(2 * np.pi / 3)
    images = [skew @ m @ np.linalg.inv(skew) for m in (np.diag([1.0, -1.0]), turn)]
    V = S3.representation(*images)
    assert not V.orthogonal
    with pytest.raises(NoEquivariantMap):
        eadem.Equivariant(V, S3.trivial(1)).bind((1, 2))
    assert eadem.Equivariant(V, V + S3.trivial(2)).bind((4, 2)).rank == 1
    empty = S3.trivial(0)
    assert eadem.Equivariant(V + empty * V, V).bind((2, 2)).rank == 1


def recorded(group, in_rep, out_rep, shape, bases=()):
    """A record of one Equivariant tie, as a file would have it."""
    args = {"group": group, "in_rep": in_rep, "out_rep": out_rep, "space": None}
    args["bases"] = [[list(shape), *b] for b in bases]
    tie = {"sites": ["weight"], "map": {"kind": "Equivariant", "args": args}}
    sites = {"weight": list(shape)}
    return {"format": "eadem", "version": 1, "sites": sites, "ties": [[tie]]}


def array(values, dtype="float64"):
    values = np.asarray(values)
    flat = values.reshape(-1).tolist()
    return {"array": {"dtype": dtype, "shape": list(values.shape), "values": flat}}


PLANE = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0]]) / np.sqrt(2)
IDENTITY = np.eye(2)
COMMUTANT = np.stack([np.eye(2), [[0.0, -1.0], [1.0, 0.0]]]).reshape(-1) / np.sqrt(2)


def apply_bases(*arrays):
    model = nn.Linear(2, 2, bias=False)
    space = ["space", 2]
    eadem.apply(model, recorded(["Cyclic", 3], space, space, (2, 2), [arrays]))
    return model


def layout(*rows):
    return array(np.array(rows), "int64")


@pytest.mark.parametrize(
    "arrays",
    [
        [array(PLANE)],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2, 2]), array(COMMUTANT)],
    ],
)
def test_stored_bases_that_are_whole_are_used(arrays):
    weight = apply_bases(*arrays).weight.detach()
    assert weight.norm() > 0
    turn = torch.tensor(rotation(2 * np.pi / 3), dtype=torch.float32)
    torch.testing.assert_close(turn @ weight, weight @ turn)


@pytest.mark.parametrize(
    "arrays",
    [
        [array(np.zeros((4, 2)))],
        [array(np.zeros((4, 0)))],
        [array(PLANE[:, :1])],
        [array(3 * PLANE)],
        [array(np.eye(4) * 1e-12)],
        [array(np.eye(4))],
        [array(np.eye(4)[:, :2])],
        [array(PLANE, "float32")],
        [array(np.zeros((2, 2))), array(IDENTITY), layout([1, 1, 2, 2]), array(COMMUTANT)],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2, 1]), array(COMMUTANT[:4])],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2, 2]), array(2 * COMMUTANT)],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2, -2]), array(COMMUTANT)],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2]), array(COMMUTANT)],
        [array(IDENTITY), array(IDENTITY), layout([1, 1, 2**31, 2]), array(COMMUTANT)],
    ],
)
def test_stored_bases_that_are_not_orthonormal_or_not_all_are_refused(arrays):
    with pytest.raises(RecordError):
        apply_bases(*arrays)
