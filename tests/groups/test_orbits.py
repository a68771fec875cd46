"""Orbits of signed permutations, against the null space of (ρ(g) − 1)."""

import numpy as np
import pytest
import torch

import eadem
from eadem.errors import GroupError, NoEquivariantMap, ShapeError
from eadem.groups import Cyclic, Dihedral, Orbit, Symmetric, orbits
from eadem.groups.signed import Signed
from eadem.testing import check_map


@pytest.mark.parametrize("rounds", [0, 1, orbits.ROUNDS])
@pytest.mark.parametrize("seed", range(40))
def test_the_space_is_what_all_generators_fix(seed, rounds, monkeypatch):
    monkeypatch.setattr(orbits, "ROUNDS", rounds)
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    images = []
    for _ in range(rng.integers(1, 4)):
        sign = np.where(rng.random(size) < 0.85, 1, -1).astype(np.int8)
        images.append(Signed(rng.permutation(size), sign if rng.random() < 0.7 else None))
    moved = np.concatenate([i.matrix() - np.eye(size) for i in images])
    _, s, vh = np.linalg.svd(moved)
    null = vh[int((s > 1e-9).sum()) :]
    orbit, sign, count = orbits.components(images)
    assert count == len(null)
    basis = np.zeros((size, count))
    live = orbit >= 0
    basis[np.flatnonzero(live), orbit[live]] = 1.0 if sign is None else sign[live]
    projector = basis @ np.linalg.inv(basis.T @ basis) @ basis.T
    np.testing.assert_allclose(projector, null.T @ null, atol=1e-9)
    first = [int(np.flatnonzero(orbit == k)[0]) for k in range(count)]
    assert first == sorted(first)
    assert all(basis[f, k] == 1 for k, f in enumerate(first))


def test_a_long_cycle_is_one_orbit():
    size = 5000
    for step in (1, -1, 7):
        image = Signed(np.roll(np.arange(size), step))
        assert orbits.components([image])[2] == 1
    sign = np.ones(size, dtype=np.int8)
    sign[17] = -1
    assert orbits.components([Signed(np.roll(np.arange(size), 1), sign)])[2] == 0


def test_the_map_obeys_the_laws():
    C4, D4, S3 = Cyclic(4), Dihedral(4), Symmetric(3)
    check_map(Orbit(C4, C4.grid((3, 3))), (3, 3))
    check_map(Orbit(D4, D4.grid((4, 4)) * D4.sign()), (4, 4))
    check_map(Orbit(S3, S3.points() * S3.points()), (3, 3))
    check_map(Orbit(C4, C4.regular() + C4.sign(2) + C4.trivial(3)), (9,))


def test_orbits_are_exact_to_the_bit():
    C4 = Cyclic(4)
    layer = torch.nn.Linear(25, 25)
    eadem.tie(layer, "weight", via=Orbit(C4, C4.grid((5, 5)) * C4.grid((5, 5))))
    weight = layer.weight.reshape(5, 5, 5, 5)
    turned = torch.rot90(torch.rot90(weight, 1, (0, 1)), 1, (2, 3))
    assert torch.equal(weight, turned)
    assert eadem.counts(layer).free == 169 - 12 + 25


def test_a_weight_of_pairs_of_points_has_two_free_values():
    S24 = Symmetric(24)
    phi = Orbit(S24, S24.points() * S24.points()).bind((24, 24))
    assert phi.rank == 2  # deep sets: a·1 + b·11ᵀ
    weight = phi.forward(torch.tensor([1.0, 2.0]))
    assert torch.equal(weight, 2 * torch.ones(24, 24) - torch.eye(24))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            lambda: Orbit(Cyclic(2), Cyclic(2).sign()).bind((1,)),
            NoEquivariantMap,
            "its own negative",
        ),
        (lambda: Orbit(Cyclic(2), Cyclic(3).regular()), GroupError, "no representation of"),
        (
            lambda: Orbit(Cyclic(3), Cyclic(3).space(2)).bind((2,)),
            GroupError,
            "use Equivariant",
        ),
        (
            lambda: Orbit(Cyclic(3), Cyclic(3).regular()).bind((4,)),
            ShapeError,
            "acts on 3 entries",
        ),
    ],
)
def test_what_is_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
