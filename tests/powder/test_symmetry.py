"""Ties derived from a space group, against gemmi's symmetry and averages over operations."""

from fractions import Fraction

import gemmi
import numpy as np
import pytest
import torch

import eadem
from eadem.bind import free_vector, resolved
from eadem.errors import Unsupported
from eadem.powder import Atom, Phase, SpaceGroup
from eadem.powder.constraints import _declare, cell_relations
from eadem.powder.symmetry import CELL, solve

#: Fifty settings: all crystal systems and lattices, both rhombohedral axes, three unique axes.
GROUPS = """
P 1|P -1|C -1|P 1 2 1|P 1 1 21|C 1 2 1|P 1 m 1|A 1 1 a|P 1 2/m 1|P 1 21/c 1|C 1 2/c 1
|I 1 2/a 1|B 2/b 1 1|P 2 2 2|P 21 21 21|C 2 2 21|F 2 2 2|P m m 2|P n a 21|P m m m|P n m a
|C m c m|F d d d:2|I b a m|P 4|I 41|P -4|P 4/m m m|I 41/a m d:1|P 42/m n m|I -4 2 d|P 3
|R 3:H|R -3:R|P 3 1 m|P 3 m 1|P -3 1 m|R -3 m:H|R -3 m:R|P 6|P 63/m|P 6 2 2|P -6 2 m
|P 63/m m c|P 2 3|F -4 3 m|P 4 3 2|F m -3 m|F d -3 m:2|I a -3 d
""".replace("\n", "").split("|")
CELLS = {
    "triclinic": (5.1, 6.3, 7.2, 81.0, 97.0, 103.0),
    "orthorhombic": (5.1, 6.3, 7.2, 90.0, 90.0, 90.0),
    "tetragonal": (5.1, 5.1, 7.2, 90.0, 90.0, 90.0),
    "hexagonal": (5.1, 5.1, 7.2, 90.0, 90.0, 120.0),
    "trigonal": (5.1, 5.1, 7.2, 90.0, 90.0, 120.0),
    "cubic": (5.1, 5.1, 5.1, 90.0, 90.0, 90.0),
}
VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))


def cell_of(group):
    """A cell with the group's symmetry and no more."""
    found = gemmi.SpaceGroup(group)
    if found.ext == "R":
        return (5.1, 5.1, 5.1, 71.0, 71.0, 71.0)
    system = found.crystal_system_str()
    if system == "monoclinic":
        angles = [90.0] * 3
        angles["abc".index(found.monoclinic_unique_axis())] = 101.0
        return (5.1, 6.3, 7.2, *angles)
    return CELLS[system]


def points(group, seed, count=6):
    """Points of all kinds: general ones, brought to the fixed points of random operations."""
    rng = np.random.default_rng(seed)
    operations = list(gemmi.SpaceGroup(group).operations())
    found = []
    for _ in range(count):
        x = rng.uniform(0, 1, 3)
        for _ in range(rng.integers(0, 3)):
            op = operations[rng.integers(len(operations))]
            r, t = np.array(op.rot) / op.DEN, np.array(op.tran) / op.DEN
            shift = rng.integers(-1, 2, 3)
            # the nearest x with r·x + t = x + shift, where there is one
            a, b = r - np.eye(3), shift - t
            step = np.linalg.lstsq(a, b - a @ x, rcond=None)[0]
            if np.allclose(a @ (x + step), b, atol=1e-9):
                x = x + step
        found.append(tuple(x % 1))
    return found


def stabiliser(group, x, g):
    """Rotations of the operations that keep a point, by gemmi's operations."""
    found = []
    for op in gemmi.SpaceGroup(group).operations():
        away = np.array(op.apply_to_xyz(list(x))) - x
        away -= np.round(away)
        if away @ g @ away < 1e-6:
            found.append(np.array(op.rot) // op.DEN)
    return found


def projector_rank(matrices):
    """Dimension of the invariants, and the projector on them: the mean of the matrices."""
    mean = np.mean(matrices, axis=0)
    return round(np.trace(mean)), mean


def on_tensors(r):
    """S → R S Rᵀ on the six entries of a symmetric tensor."""
    columns = []
    for i, j in VOIGT:
        s = np.zeros((3, 3))
        s[i, j] = s[j, i] = 1
        moved = r @ s @ r.T
        columns.append([moved[k, l] for k, l in VOIGT])
    return np.array(columns).T


def spans(basis, mean):
    """Whether the columns are invariant and as many as the projector's rank."""
    rank = round(np.trace(mean))
    assert basis.shape[1] == rank
    assert rank == 0 or np.linalg.matrix_rank(basis) == rank
    np.testing.assert_allclose(mean @ basis, basis, atol=1e-9)


def jacobian(phase, site):
    """Of the values at a site by all free values, dense."""
    plan = resolved(phase)
    theta = free_vector(phase)
    everything = torch.autograd.functional.jacobian(plan.expand, theta).detach()
    return everything[plan.slices[site]].numpy()


@pytest.mark.parametrize("group", GROUPS)
def test_a_phase_is_as_free_as_gemmi_and_the_average_over_operations_say(group):
    cell = cell_of(group)
    unit = gemmi.UnitCell(*cell)
    g = np.array(unit.metric_tensor().as_mat33().tolist())
    where = points(group, seed=len(group) + ord(group[-1]))
    u = (0.01, 0.012, 0.014, 0.001, 0.002, 0.003)
    atoms = [Atom(f"C{i}", "C", x, u) for i, x in enumerate(where)]
    phase = Phase(cell, group, atoms, tolerance=1e-3)
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup_hm = unit, group
    small.determine_and_set_spacegroup("1")
    small.setup_cell_images()
    by_xyz = jacobian(phase, "xyz").reshape(len(where), 3, -1)
    by_u = jacobian(phase, "u_aniso").reshape(len(where), 6, -1)
    free = 0
    for i, x in enumerate(where):
        rotations = stabiliser(group, np.array(x), g)
        coincide = small.cell.is_special_position(gemmi.Fractional(*x), 1e-3)
        order = phase.special[i].order
        assert order == coincide + 1 == len(rotations)
        distinct = np.unique(np.array(rotations), axis=0)
        rank, mean = projector_rank(distinct)
        spans(_independent(by_xyz[i]), mean)
        tensors, of_tensors = projector_rank([on_tensors(r) for r in distinct])
        spans(_independent(by_u[i]), of_tensors)
        free += rank + tensors
        kept = phase.special[i].point
        away = np.array(kept) - np.array(x)
        assert away @ g @ away < 1e-12
    # metric tensors: gemmi's rotations act on them by R⁻¹
    rotations = [np.array(op.rot) // op.DEN for op in gemmi.SpaceGroup(group).operations()]
    metrics, _ = projector_rank([on_tensors(np.linalg.inv(r)) for r in rotations])
    assert eadem.counts(phase).free == free + metrics + len(where)  # and the occupancies
    np.testing.assert_allclose(phase.cell.detach().numpy(), cell, rtol=1e-14)


def _independent(columns):
    """An orthonormal basis of what the columns span."""
    left, size, _ = np.linalg.svd(columns)
    return left[:, : int((size > 1e-9).sum())]


@pytest.mark.parametrize("group", GROUPS)
def test_a_tensor_at_a_point_of_full_symmetry_is_as_gemmi_has_it(group):
    ours = SpaceGroup.of(group)
    alone = SpaceGroup(
        ours.name, tuple(_at_origin(op) for op in ours.operations), ours.centring
    )
    theirs = np.array(gemmi.adp_symmetry_constraints(gemmi.SpaceGroup(group))).T
    space = alone.position((0.0, 0.0, 0.0), cell_of(group)).displacement()
    assert space.dimension == theirs.shape[1]
    both = np.concatenate([space.basis(), theirs], axis=1)
    assert np.linalg.matrix_rank(both, tol=1e-6) == space.dimension


def _at_origin(op):
    return type(op)(op.rotation, (op.shift[0] * 0,) * 3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "group", ["P 63/m m c", "R -3 m:R", "P 1 1 21", "F m -3 m", "P 4/m m m"]
)
def test_cells_that_the_ties_allow_have_the_groups_symmetry(group, seed):
    phase = Phase(cell_of(group), group, [Atom("C", "C", (0.11, 0.23, 0.37))])
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in phase.named_parameters():
            if name == "cell":
                p += 0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype)
    found = gemmi.UnitCell(*phase.cell.tolist())
    assert found.is_compatible_with_spacegroup(gemmi.SpaceGroup(group))


def test_settings_of_gemmis_table_have_simple_cell_relations():
    for group in list(gemmi.spacegroup_table())[::7]:
        ours = SpaceGroup.of(group)
        assert 6 - len(cell_relations(ours)) == ours.metrics().dimension


def test_a_setting_whose_cell_has_no_simple_relations_is_refused():
    body = SpaceGroup.of("I 4/m m m")
    # the primitive cell of a body-centred tetragonal lattice
    to = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
    moved = []
    for op in body.operations:
        r = np.linalg.inv(to) @ np.array(op.rotation) @ to
        rows = tuple(tuple(int(v) for v in row) for row in np.round(r))
        moved.append(type(op)(rows, op.shift))
    primitive = SpaceGroup("I 4/m m m, primitive", tuple(moved), ((0 * op.shift[0],) * 3,))
    with pytest.raises(Unsupported, match="conventional setting"):
        cell_relations(primitive)


def test_a_wyckoff_position_is_written_as_the_tables_write_it():
    hexagonal = SpaceGroup.of("P 63/m m c")
    cell = cell_of("P 63/m m c")
    cases = {
        (0.12, 0.24, 0.25): "x, 2x, 1/4",
        (0.12, 0.24, 0.1): "x, 2x, z",
        (1 / 3, 2 / 3, 0.1): "1/3, 2/3, z",
        (0.0, 0.0, 0.25): "0, 0, 1/4",
    }
    for point, text in cases.items():
        assert hexagonal.position(point, cell).text == text
    assert SpaceGroup.of("F d -3 m:2").position(
        (0.1, 0.1, 0.1), [8.0] * 3 + [90.0] * 3
    ).text == ("x, x, x")


def test_an_atom_near_a_special_position_is_moved_there_and_one_farther_stays():
    near = Phase([5.0] * 3 + [90.0] * 3, "P m -3 m", [Atom("C", "C", (0.003, 0.3333, 0.5))])
    np.testing.assert_allclose(near.xyz.detach()[0], [0.0, 0.3333, 0.5], atol=1e-12)
    assert near.special[0].order == 4
    assert abs(near.special[0].moved - 0.015) < 1e-12
    apart = Phase([5.0] * 3 + [90.0] * 3, "P m -3 m", [Atom("C", "C", (0.03, 0.3333, 0.5))])
    assert apart.special[0].order == 2
    third = Phase(
        [5.0, 5.0, 7.0, 90, 90, 120], "P 63/m m c", [Atom("C", "C", (0.3333, 0.6667, 0.25))]
    )
    assert third.xyz.detach()[0].tolist() == [1 / 3, 2 / 3, 0.25]


def test_a_cell_that_contradicts_the_group_is_refused():
    with pytest.raises(Unsupported, match="symmetry of 'F m -3 m'"):
        Phase([5.0, 5.2, 5.0, 90, 90, 90], "F m -3 m", [Atom("C", "C", (0, 0, 0))])
    with pytest.raises(Unsupported, match="no space group is called"):
        Phase([5.0] * 3 + [90] * 3, "Q 7", [Atom("C", "C", (0, 0, 0))])


def test_the_names_of_the_relations():
    relations = cell_relations(SpaceGroup.of("R -3 m:R"))
    assert {CELL[i]: CELL[j] for i, (j, _) in relations.items()} == {
        "b": "a",
        "c": "a",
        "beta": "alpha",
        "gamma": "alpha",
    }


def test_a_plane_that_no_single_coordinate_follows_is_a_tie_too():
    half = Fraction(1, 2)
    phase = Phase([5.0, 6.0, 7.0, 80, 95, 100], "P 1", [Atom("C", "C", (0.1, 0.2, 0.9))])
    plane = solve([[1, 1, -1]], [-half], 3)  # z = x + y + 1/2
    assert plane.written("xyz") == "x, y, x+y+1/2"
    _declare(phase, "xyz[0]", [f"xyz[0, {j}]" for j in range(3)], plane)
    assert eadem.counts(phase).free == 6 + 2 + 1 + 1
    x, y, z = phase.xyz.detach()[0].tolist()
    assert abs(z - x - y - 0.5) < 1e-12


def test_equations_that_contradict_each_other_have_no_solution():
    assert solve([[1, 0], [1, 0]], [0, 1], 2) is None
