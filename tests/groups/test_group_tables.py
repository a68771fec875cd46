"""Groups against their definitions: orders, relations, tables, and generators that are none."""

import itertools
import math

import numpy as np
import pytest

from eadem.errors import GroupError, NotARepresentation, TooLarge
from eadem.groups import (
    Cyclic,
    Dihedral,
    Octahedral,
    ReverseComplement,
    Symmetric,
    generated,
    lie,
    lorentz,
    so,
)

QUATERNION_I = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]])
QUATERNION_J = np.array([[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]])

GROUPS = [
    (Cyclic(1), 1),
    (Cyclic(12), 12),
    (Dihedral(1), 2),
    (Dihedral(2), 4),
    (Dihedral(6), 12),
    (Symmetric(1), 1),
    (Symmetric(2), 2),
    (Symmetric(5), 120),
    (Cyclic(2) * Symmetric(3), 12),
    (Cyclic(2) * Cyclic(2) * Cyclic(3), 12),
    (Octahedral(), 24),
    (Octahedral(mirrors=True), 48),
    (ReverseComplement(), 2),
    (generated([1, 2, 0, 3], [1, 0, 2, 3]), 6),
    (generated(QUATERNION_I, QUATERNION_J), 8),
    (generated([[0, -1], [1, 1]]), 6),
]


@pytest.mark.parametrize(("group", "order"), GROUPS, ids=str)
def test_the_regular_representation_keeps_every_relation(group, order):
    assert group.order == order
    rep = group.regular()
    rep.check()
    assert rep.size == order
    characters = rep.characters()
    assert characters[0] == order
    assert not characters[1:].any()


@pytest.mark.parametrize(("group", "order"), GROUPS, ids=str)
def test_words_name_every_element_once(group, order):
    images = [group.regular().image(w).place for w in group.words()]
    assert [int(i[0]) for i in images] == list(range(order))
    through_the_chain = {
        tuple(group.regular().image(tuple(itertools.chain(*ws))).place)
        for ws in itertools.product(*group.chain)
    }
    assert len(through_the_chain) == order
    assert math.prod(len(level) for level in group.chain) == order


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("group", "order"), GROUPS, ids=str)
def test_the_action_in_space_keeps_every_relation(group, order, ndim):
    try:
        space = group.space(ndim)
        _ = space.images
    except GroupError as error:
        assert "space=" in str(error)  # noqa: PT017
    else:
        space.check()
        assert space.orthogonal == (order != 6 or not str(group).startswith("generated"))


def test_rotations_are_those_of_torch():
    import torch

    C4, image = Cyclic(4), torch.arange(9.0).reshape(3, 3)
    turned = C4.grid((3, 3)).images[0].apply(image.reshape(-1).numpy())
    assert np.array_equal(turned.reshape(3, 3), torch.rot90(image).numpy())
    flipped = Dihedral(4).grid((2, 3), Dihedral(4).trivial(2))
    assert np.array_equal(flipped.images[1].place, np.arange(6))
    mirror = Dihedral(1).grid((2, 3)).images[1].apply(np.arange(6.0))
    assert np.array_equal(mirror.reshape(2, 3), np.arange(6.0).reshape(2, 3)[:, ::-1])


def test_cosets_are_permuted_as_the_points_of_a_square():
    D4 = Dihedral(4)
    corners = D4.quotient("s")
    assert corners.size == 4
    corners.check()
    assert np.array_equal(corners.characters(), D4.points().characters())
    assert D4.quotient("r").size == 2
    assert D4.quotient().size == 8
    assert D4.quotient("r^2", "s", m=3).size == 6
    with pytest.raises(GroupError, match="no power of a generator"):
        D4.quotient("t")


def test_sums_products_and_duals_by_their_characters():
    D3 = Dihedral(3)
    a, b = D3.space(2), D3.sign() + D3.trivial()
    both = {"sum": a + b, "product": a * b, "dual": a.dual(), "copies": b.copies(3)}
    for rep in both.values():
        rep.check()
    x, y = a.characters(), b.characters()
    np.testing.assert_allclose(both["sum"].characters(), x + y, atol=1e-12)
    np.testing.assert_allclose(both["product"].characters(), x * y, atol=1e-12)
    np.testing.assert_allclose(both["dual"].characters(), x, atol=1e-12)
    np.testing.assert_allclose(both["copies"].characters(), 3 * y)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_characters_of_one_generator_are_its_traces(n):
    C = Cyclic(n)
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((2, 2)))[0]
    rep = C.representation(basis @ C.space(2).matrix(((0, 1),)) @ basis.T)
    traces = [np.trace(rep.matrix(w)) for w in C.words()]
    np.testing.assert_allclose(rep.characters(), traces, atol=1e-9)


def test_the_sign_of_symmetric_is_the_determinant():
    S3 = Symmetric(3)
    for word in S3.words():
        sign = S3.sign().image(word).signs()[0]
        assert sign == round(np.linalg.det(S3.points().matrix(word)))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: Cyclic(4).representation(np.eye(2) * 2),
            NotARepresentation,
            r"r\^4 = 1 fails by 15",
        ),
        (lambda: Cyclic(4).representation([1, 2, 0]), NotARepresentation, r"r\^4 = 1"),
        (
            lambda: Dihedral(3).representation(np.eye(2)),
            NotARepresentation,
            "2 images|1 images",
        ),
        (
            lambda: Dihedral(4).representation([1, 2, 3, 0], [0, 1, 2, 3]),
            NotARepresentation,
            r"\(s r\)\^2 = 1",
        ),
        (lambda: Cyclic(2).representation([0, 0]), NotARepresentation, "no permutation"),
        (lambda: Cyclic(2).representation(([1, 0], [1, 2])), NotARepresentation, "signs"),
        (lambda: Cyclic(3).sign(signs=[-1]), NotARepresentation, r"r\^3 = 1"),
        (lambda: Cyclic(0), GroupError, "whole number"),
        (lambda: generated([0, 0, 1]), GroupError, "no permutation"),
        (lambda: generated(np.zeros((2, 2))), GroupError, "not invertible"),
        (lambda: generated([1, 0], [1, 0, 2]), GroupError, "of as many points"),
        (lambda: generated([[1.0, 1.0], [0.0, 1.0]], limit=50).order, GroupError, "within 50"),
        (lambda: Symmetric(24).regular().images, TooLarge, "at most"),
        (lambda: Cyclic(4).regular() + Cyclic(2).regular(), GroupError, "different groups"),
        (lambda: so(3).regular(), GroupError, "infinite"),
        (lambda: lie([[0, 1.0], [0, 0]], [[0, 0], [1.0, 0]]), GroupError, "outside the span"),
        (lambda: so(3).representation(*[np.eye(2)] * 3), NotARepresentation, r"\[L01, L02\]"),
    ],
)
def test_what_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_lie_algebras_represent_themselves():
    for algebra in (so(2), so(3), so(4), lorentz()):
        v = algebra.vector()
        for rep in (v, v * v, v.dual(), v + algebra.trivial(2), (v * v).dual()):
            rep.check()
    metric = np.diag([1.0, -1, -1, -1])
    for x in lorentz().vector().images:
        assert np.array_equal(x.T @ metric, -metric @ x)


def test_groups_are_equal_when_given_alike():
    assert Cyclic(4) == Cyclic(4) != Cyclic(5)
    assert generated([1, 0]) == generated([1, 0])
    assert Cyclic(2) * Cyclic(3) == Cyclic(2) * Cyclic(3) != Cyclic(3) * Cyclic(2)
    assert Cyclic(4).regular(2) == Cyclic(4).regular(2) != Cyclic(4).regular(3)
