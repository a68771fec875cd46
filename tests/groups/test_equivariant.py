"""Equivariant weights against dense algebra: dimension, equations, laws, records."""

import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.bind.group import LINKS
from eadem.errors import GroupError, NoEquivariantMap, NotARepresentation, ShapeError
from eadem.groups import (
    Cyclic,
    Dihedral,
    Equivariant,
    Octahedral,
    ReverseComplement,
    Symmetric,
    lorentz,
    so,
)
from eadem.maps.constant import alike
from eadem.testing import check_map

C2, C3, C4, C8 = (Cyclic(n) for n in (2, 3, 4, 8))
D3, D4 = Dihedral(3), Dihedral(4)
S3 = Symmetric(3)
CUBE = Octahedral()
DNA = ReverseComplement()


def hidden(group, rep, seed=0):
    """A representation in another orthonormal basis."""
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((rep.size,) * 2))[0]
    images = [basis @ rep.matrix(((s, 1),)) @ basis.T for s in range(len(group.generators))]
    return group.representation(*images)


CASES = [
    (C4.regular(1), C4.regular(2), (8, 4, 3, 3)),
    (C4.trivial(2), C4.regular(1), (4, 2, 2, 2)),
    (C4.trivial(2), C4.trivial(1), (1, 2, 3, 3)),
    (C4.sign(1), C4.regular(1) + C4.trivial(1), (5, 1, 3, 3)),
    (D4.regular(1), D4.quotient("s"), (4, 8, 3, 3)),
    (D4.regular(1), D4.regular(1), (8, 8)),
    (S3.points(2), S3.points(1) + S3.sign(1), (4, 6)),
    (DNA.bases(), DNA.regular(2), (4, 4, 5)),
    (CUBE.trivial(1), CUBE.regular(1), (24, 1, 3, 3, 3)),
    (C3.space(2), C3.regular(1) + C3.space(2).copies(2), (7, 2)),
    (hidden(D3, D3.regular()), D3.regular(), (6, 6)),
    (C4.space(2).copies(2), C4.space(2), (2, 4, 3, 3)),
    (hidden(C4, C4.regular()), hidden(C4, C4.regular(), 1), (4, 4, 2, 2)),
    (D4.regular(1), hidden(D4, D4.space(2) + D4.sign()), (3, 8, 3, 3)),
]


def nullspace(phi, shape):
    """The projector on {W : ρ_out(s) W(s⁻¹δ) ρ_in(s)⁻¹ = W for all s}, by Kronecker."""
    rows, columns, pixels = phi.parts(shape)
    equations = []
    for s in range(len(rows.group.generators)):
        w = ((s, 1),)
        inverse = np.linalg.inv(columns.matrix(w)).T
        whole = np.kron(np.kron(rows.matrix(w), inverse), pixels.matrix(w))
        equations.append(whole - np.eye(len(whole)))
    _, s, vh = np.linalg.svd(np.concatenate(equations))
    null = vh[int((s > 1e-8).sum()) :]
    return null.T @ null


@pytest.mark.parametrize(("a", "b", "shape"), CASES, ids=str)
def test_the_space_is_the_null_space(a, b, shape):
    phi = Equivariant(a, b).bind(shape)
    matrix = phi.dense().numpy()
    projector = matrix @ np.linalg.pinv(matrix)
    if math.prod(shape) <= 700:
        np.testing.assert_allclose(projector, nullspace(phi, shape), atol=1e-9)
    rows, columns, pixels = phi.parts(shape)
    product = rows.characters() * columns.characters() * pixels.characters()
    assert phi.rank == pytest.approx(product.mean())


@pytest.mark.parametrize(("a", "b", "shape"), CASES, ids=str)
def test_the_map_obeys_the_laws(a, b, shape):
    check_map(Equivariant(a, b), shape, dtypes=(torch.float64,))


@pytest.mark.parametrize(("a", "b", "shape"), CASES, ids=str)
def test_a_tie_comes_back_from_its_record(a, b, shape, tmp_path):
    def layer():
        torch.manual_seed(0)
        if len(shape) == 2:
            return nn.Linear(shape[1], shape[0])
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 3]
        return kind(shape[1], shape[0], shape[2:])

    model = layer()
    tie = eadem.tie(model, "weight", via=Equivariant(a, b))
    assert eadem.counts(model).free == tie.maps[0].bind(shape).rank + shape[0]
    eadem.save(model, tmp_path / "model.safetensors")
    again = layer()
    with torch.no_grad():
        again.weight.zero_()
    eadem.load(again, tmp_path / "model.safetensors")
    assert torch.equal(again.weight, model.weight)
    assert eadem.record(again) == eadem.record(model)
    third = layer()
    eadem.apply(third, eadem.record(model))
    torch.testing.assert_close(third.weight, model.weight)


def test_the_declaration_of_the_issue():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 8, 3, padding=1).double()
    via = Equivariant(C4.regular(1), C4.regular(2))
    eadem.tie(conv, "weight", via=via)
    eadem.tie(conv, "bias", via=via)
    assert eadem.counts(conv).free == 72 + 2
    x = torch.randn(2, 4, 7, 7, dtype=torch.float64)

    def turn(v):
        fibres = torch.rot90(v, 1, (-2, -1)).unflatten(1, (-1, 4)).roll(1, 2)
        return fibres.flatten(1, 2)

    away = (conv(turn(x)) - turn(conv(x))).abs().max()
    assert away < 1e-12
    conv(x).square().sum().backward()
    assert tuple(dict(conv.named_parameters())["weight"].grad.shape) == (72,)


@pytest.mark.parametrize(
    ("group", "k", "dimension", "escnn"),
    [(C4, 3, 36, 24), (C4, 5, 100, None), (D4, 3, 72, 48)],
)
def test_the_whole_pixel_exact_space(group, k, dimension, escnn):
    n = group.order
    phi = Equivariant(group.regular(1), group.regular(1)).bind((n, n, k, k))
    assert phi.rank == dimension == n * k * k
    assert escnn is None or escnn < dimension


def test_the_sum_of_blocks_is_the_whole():
    a = C4.regular(2) + C4.trivial(1) + C4.sign(2)
    b = C4.sign(1) + C4.regular(1) + C4.trivial(2)
    whole = Equivariant(a, b).bind((b.size, a.size, 3, 3))
    at_once = eadem.Orbit(C4, b * a * C4.grid((3, 3))).bind(whole.out_shape)
    theta = torch.arange(1.0, whole.rank + 1)
    assert torch.equal(whole.forward(theta), at_once.forward(theta))


def test_the_canonical_basis_does_not_depend_on_seeds(monkeypatch):
    from eadem.groups import invariants

    a, b = hidden(D3, D3.regular()), D3.space(2).copies(2)
    first = Equivariant(a, b).bind((4, 6)).dense()
    made = np.random.default_rng
    monkeypatch.setattr(invariants.np.random, "default_rng", lambda s: made(s + 100))
    torch.manual_seed(123)
    again = Equivariant(a, b).bind((4, 6)).dense()
    torch.testing.assert_close(first, again, rtol=0, atol=1e-10)


def test_lie_algebras():
    v = so(3).vector()
    cross = Equivariant(v * v, v).bind((3, 9))
    assert cross.rank == 1
    x, y = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = cross.forward(torch.ones(1, dtype=torch.float64))
    got = weight @ torch.outer(x, y).reshape(-1)
    want = torch.linalg.cross(x, y)
    torch.testing.assert_close(got.abs() / got.norm(), want.abs() / want.norm())
    w = lorentz().vector()
    scalar = Equivariant(w * w, lorentz().trivial()).bind((1, 16))
    metric = scalar.forward(torch.ones(1, dtype=torch.float64)).reshape(4, 4)
    wanted = torch.diag(torch.tensor([1.0, -1, -1, -1], dtype=torch.float64))
    torch.testing.assert_close(metric / metric[0, 0], wanted)
    assert Equivariant(w * w, w * w).bind((16, 16)).rank == 4
    u = so(2).vector()
    assert Equivariant(u, u).bind((2, 2)).rank == 2
    check_map(Equivariant(v * v, v.copies(2)), (6, 9), dtypes=(torch.float64,))


def test_matrices_that_are_not_orthogonal():
    change = np.array([[1.0, 2.0], [0.0, 1.0]])
    skewed = C4.representation(change @ C4.space(2).matrix(((0, 1),)) @ np.linalg.inv(change))
    phi = Equivariant(skewed, C4.space(2)).bind((2, 2))
    assert phi.rank == 2
    r, s = torch.from_numpy(C4.space(2).matrix(((0, 1),))), skewed.images[0]
    weight = phi.forward(torch.tensor([0.3, -1.2], dtype=torch.float64))
    torch.testing.assert_close(r @ weight, weight @ torch.from_numpy(s))


@pytest.mark.parametrize("group", [C8, Dihedral(8)])
def test_interpolated_filters_are_copies_of_the_first(group):
    phi = Equivariant(group.trivial(1), group.regular(1)).bind((group.order, 1, 5, 5))
    theta = torch.randn(phi.in_shape, dtype=torch.float64)
    weight = phi.forward(theta).reshape(-1, 5, 5)
    assert torch.equal(weight[0], theta.reshape(5, 5))
    for k in range(4):
        torch.testing.assert_close(weight[2 * k], torch.rot90(theta.reshape(5, 5), k))
        torch.testing.assert_close(weight[2 * k + 1], torch.rot90(weight[1], k))
    assert 0.1 < phi.error < 1
    smooth = torch.exp(-((torch.arange(-4.0, 5) / 3) ** 2)).double()
    disc = torch.outer(smooth, smooth)[None, None]
    wide = Equivariant(group.trivial(1), group.regular(1)).bind((group.order, 1, 9, 9))
    turned = wide.forward(disc)
    # a round filter turns into itself, up to the error of linear interpolation, h²f″/8
    assert (turned - disc).abs().max() < 2 * (2 / 9) / 8


@pytest.mark.parametrize("shape", [(8, 1, 5, 5), (8, 8, 3, 3), (8, 2, 3, 3)])
def test_interpolated_filters_obey_the_laws(shape):
    a = {1: C8.trivial(1), 8: C8.regular(1), 2: C8.sign(2)}[shape[1]]
    check_map(Equivariant(a, C8.regular(1)), shape, dtypes=(torch.float64,))


def test_pointwise_kernels_are_exact_at_any_angle():
    assert Equivariant(C8.regular(1), C8.regular(1)).bind((8, 8, 1, 1)).exact


def test_layers_that_store_their_inputs_first():
    torch.manual_seed(0)
    up = nn.ConvTranspose2d(4, 8, 2, stride=2).double()
    via = eadem.Equivariant(C4.regular(1), C4.regular(2))
    eadem.tie(up, "weight", via=eadem.Transpose(0, 1) @ via)
    eadem.tie(up, "bias", via=via)
    x = torch.randn(1, 4, 3, 3, dtype=torch.float64)

    def turn(v):
        return torch.rot90(v, 1, (-2, -1)).unflatten(1, (-1, 4)).roll(1, 2).flatten(1, 2)

    torch.testing.assert_close(up(turn(x)), turn(up(x)))
    table = nn.Embedding(4, 3).double()
    vectors = C4.space(2) + C4.trivial(1)
    eadem.tie(table, "weight", via=eadem.Transpose() @ eadem.Equivariant(C4.points(), vectors))
    turned = torch.from_numpy(vectors.matrix(((0, 1),)))
    for token in range(4):
        torch.testing.assert_close(table.weight[(token + 1) % 4], turned @ table.weight[token])


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: Equivariant(C4.trivial(), C4.sign()).bind((1, 1)),
            NoEquivariantMap,
            "only equi",
        ),
        (
            lambda: Equivariant(C3.trivial(), C3.space(2)).bind((2, 1)),
            NoEquivariantMap,
            "only equivariant map is zero",
        ),
        (lambda: Equivariant(C4.regular(), C4.regular()).bind((4, 8)), ShapeError, "of shape"),
        (
            lambda: Equivariant(C4.regular(), C4.regular()).bind((4, 4, 3, 2)),
            ShapeError,
            "sides",
        ),
        (lambda: Equivariant(C4.regular(), C2.regular()), GroupError, "different groups"),
        (lambda: Equivariant(3, C2.regular()), GroupError, "takes representations"),
        (
            lambda: Equivariant(S3.regular(), S3.regular()).bind((6, 6, 3, 3)),
            GroupError,
            "space=",
        ),
        (
            lambda: Equivariant(C8.regular(), C8.sign()).bind((1, 8, 3, 3)),
            GroupError,
            "regular",
        ),
        (
            lambda: Equivariant(so(3).vector(), so(3).vector()).bind((3, 3, 3)),
            GroupError,
            "how it moves 1 axes",
        ),
    ],
)
def test_what_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_recorded_representation_is_checked_again():
    phi = Equivariant(hidden(C4, C4.regular()), C4.regular())
    phi.bind((4, 4))
    arguments = phi.arguments()
    kind, stacked = arguments["in_rep"]
    with pytest.raises(NotARepresentation, match=r"r\^4"):
        Equivariant.from_arguments(arguments | {"in_rep": (kind, stacked * 1.01)})
    (shape, basis), *_ = arguments["bases"]
    damaged = Equivariant.from_arguments(arguments | {"bases": ((shape, basis * 1.5 + 0.1),)})
    with pytest.raises(GroupError, match="equivariant only to"):
        damaged.bind((4, 4))


def test_layers_that_are_tied_alike_hold_one_index():
    rep = C4.regular(2)
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 5))
    for i in range(3):
        eadem.tie(model, f"{i}.weight", via=Equivariant(rep, rep))
    copied = pickle.loads(pickle.dumps(model))
    links = [m.__dict__[LINKS]["weight"] for m in (*model, *copied)]
    held = [link.expression.outer.index().position.data_ptr() for link in links]
    assert held[:3] == held[3:]
    assert held[0] == held[1] != held[2]


def test_indices_that_differ_in_one_place_are_two():
    one = alike(torch.arange(1000))
    other = torch.arange(1000)
    other[3] = 0  # none of the places that an index is looked up by
    found = alike(other)
    assert found is not one
    assert torch.equal(found.master, other)
    assert alike(torch.arange(1000).view(10, 100)).master.shape == (10, 100)
