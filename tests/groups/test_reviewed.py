"""Groups at their edges: empty parts, files that lie, generators that are none."""

import time

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.errors import (
    GroupError,
    NoEquivariantMap,
    NotARepresentation,
    RecordError,
    ShapeError,
)
from eadem.groups import Cyclic, Dihedral, Orbit, Symmetric, generated, lie, so
from eadem.groups.group import rotation
from eadem.groups.orbits import components
from eadem.groups.signed import Signed


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


def apply_form(form, group=("Cyclic", 4), size=4, out=("regular", 1)):
    model = nn.Linear(size, 4, bias=False)
    eadem.apply(model, recorded(list(group), form, list(out), (4, size)))
    return model.weight.detach()


def peak_of(call):
    """Bytes that a call allocates at most, and what it returns or raises."""
    import tracemalloc

    tracemalloc.start()
    try:
        call()
    except RecordError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


@pytest.mark.parametrize("exponent", [10**12 + 1, 10**12 - 1, -1, -3])
def test_exponents_of_a_recorded_subgroup_count_modulo_the_order(exponent):
    form = ["quotient", 1, [[0, exponent]]]  # of odd exponent: r itself, so all of C4
    assert apply_form(form, size=1).shape == (4, 1)
    assert Cyclic(4).quotient(((0, exponent),)).size == 1
    assert Cyclic(6).quotient(((0, -2),)).size == 2


def test_words_that_add_nothing_to_a_subgroup_cost_nothing():
    D4 = Dihedral(4)
    every = D4.quotient(*D4.words())
    assert every.size == 1
    assert D4.quotient("r^2", "r^6", "s").size == 2


@pytest.mark.parametrize(
    "empty",
    [
        ["tensor", ["trivial", 10**9], ["trivial", 0]],
        ["copies", 0, ["trivial", 10**12]],
        ["copies", 10**9, ["sum", ["trivial", 0], ["sign", 0, -1]]],
        ["dual", ["copies", 0, ["regular", 10**12]]],
    ],
)
def test_parts_of_no_size_take_no_memory(empty):
    form = ["sum", ["regular", 1], empty]
    assert peak_of(lambda: apply_form(form)) < 2**24
    assert apply_form(form).norm() > 0


def test_given_matrices_in_a_huge_sum_are_checked_on_their_own():
    turn = array(np.array([[[0.0, -1.0], [1.0, 0.0]]]))
    form = ["sum", ["given", turn], ["trivial", 10**9]]
    assert peak_of(lambda: apply_form(form)) < 2**24
    with pytest.raises(RecordError, match="no image for each"):
        apply_form(["given", turn], ("Dihedral", 4), 2)
    with pytest.raises(RecordError):
        apply_form(["given", 5], size=2)


@pytest.mark.parametrize("m", [1.5, "1", None, True, -1])
def test_recorded_copies_are_whole_numbers(m):
    with pytest.raises(RecordError):
        apply_form(["regular", m])


def test_a_listed_group_is_bounded_in_bytes():
    random = np.random.default_rng(0)
    a, b = random.permutation(2000), random.permutation(2000)
    perms = array(np.stack([a, b]), "int64")
    group = ("Generated", perms, 1_000_000)
    start = time.perf_counter()
    assert peak_of(lambda: apply_form(["regular", 1], group)) < 2**29
    assert time.perf_counter() - start < 10
    with pytest.raises(GroupError, match="do not close"):
        _ = generated(a, b, limit=1_000_000).order


def test_a_long_dihedral_group_of_matrices_is_checked_along_its_edges():
    n = 4000
    g = generated(rotation(2 * np.pi / n), np.diag([1.0, -1.0]))
    assert g.order == 2 * n
    start = time.perf_counter()
    V = g.representation(rotation(6 * np.pi / n), np.diag([1.0, -1.0]))
    with pytest.raises(NotARepresentation, match="fails by"):
        g.representation(rotation(np.pi / n), np.diag([1.0, -1.0]))
    assert g.sign(1, [1, -1]).size == 1
    with pytest.raises(NotARepresentation, match="break the relation"):
        generated(rotation(2 * np.pi / 3), np.diag([1.0, -1.0])).sign(1, [-1, 1])
    assert time.perf_counter() - start < 5
    assert eadem.Equivariant(V, V).bind((2, 2)).rank == 1


@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([0.5, 0.5]),
        np.array([[2.0]]),
        np.diag([0.5, 2.0]),
        rotation(1e-7),
        np.array([[1 + 4e-7]]),
        np.array([[1.0, 1e-8], [0.0, 1.0]]),
        np.array([[1.0, 1e4], [0.0, 1.0]]),
    ],
)
def test_matrices_of_infinite_order_generate_no_group(matrix):
    with pytest.raises(GroupError):
        _ = generated(matrix).order


def test_finite_matrix_groups_are_still_found():
    assert generated(rotation(2 * np.pi / 7)).order == 7
    skew = np.array([[1.0, 30.0], [0.0, 1.0]])
    turned = skew @ rotation(2 * np.pi / 5) @ np.linalg.inv(skew)
    assert generated(turned).order == 5
    assert generated(-np.eye(3)).order == 2


def test_numbers_that_overflow_are_no_representation():
    C4 = Cyclic(4)
    for image in ([[1e100]], [[1e300]], np.full((2, 2), np.inf), np.full((2, 2), np.nan)):
        with pytest.raises(NotARepresentation):
            C4.representation(np.array(image))
    with pytest.raises(NotARepresentation, match="real"):
        C4.representation(np.array([[1j]]))


def test_a_lie_algebra_has_neither_signs_nor_permutations():
    with pytest.raises(NotARepresentation, match="no signs"):
        so(3).sign(1)
    with pytest.raises(GroupError):
        _ = so(3) * Cyclic(2)
    boost = so(2).representation([1, 0])  # a generator: the matrix, not an element
    assert not boost.exact
    assert eadem.Equivariant(boost, boost).bind((2, 2)).rank == 2


def standard(n):
    """The reflections' representation of Symmetric(n), orthonormal, of size n − 1."""
    S = Symmetric(n)
    frame = np.linalg.qr(np.c_[np.ones(n), np.eye(n)[:, : n - 1]])[0][:, 1:].T
    points = S.points()
    return S.representation(*[frame @ points.matrix(((i, 1),)) @ frame.T for i in (0, 1)])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6])
def test_the_chain_and_the_classes_of_a_symmetric_group_are_all_of_it(n):
    import itertools

    S = Symmetric(n)
    points = S.points()
    words = (tuple(itertools.chain(*w)) for w in itertools.product(*S.chain))
    found = {tuple(points.image(w).place.tolist()) for w in words}
    assert found == set(itertools.permutations(range(n)))
    words, sizes = S.classes
    assert sizes.sum() == S.order
    by_table = super(Symmetric, S).classes if n > 1 else S.classes
    assert sorted(sizes.tolist()) == sorted(by_table[1].tolist())
    sums = [(points.class_characters() ** p) @ sizes for p in (1, 2, 3)]
    np.testing.assert_allclose(sums, [(points.characters() ** p).sum() for p in (1, 2, 3)])


def test_conjugacy_classes_of_a_listed_group():
    g = generated([1, 2, 3, 4, 0], [0, 1, 3, 4, 2])  # the alternating group of 5 points
    assert sorted(g.classes[1].tolist()) == [1, 12, 12, 15, 20]


def test_large_symmetric_groups_need_no_list_of_elements():
    V = standard(8)
    start = time.perf_counter()
    assert eadem.Equivariant(V, V).bind((7, 7)).rank == 1
    assert eadem.Equivariant(V, V * V).bind((49, 7)).rank == 1
    assert time.perf_counter() - start < 4


def test_a_group_of_permutations_knows_its_own_points():
    random = np.random.default_rng(0)
    perms = [random.permutation(30) for _ in range(2)]
    V = generated(*perms).representation(*perms)
    assert eadem.Orbit(V.group, V).bind((30,)).rank == 1


C4 = Cyclic(4)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: generated("abc"), GroupError),
        (lambda: generated(None), GroupError),
        (lambda: generated(np.array([[1j]])), GroupError),
        (lambda: lie("a"), GroupError),
        (lambda: lie(np.full((2, 2), np.nan)), GroupError),
        (lambda: lie(), GroupError),
        (lambda: C4.regular("a"), GroupError),
        (lambda: C4.regular(1.5), GroupError),
        (lambda: C4.sign(1, ["a"]), NotARepresentation),
        (lambda: C4.quotient(5), GroupError),
        (lambda: C4.representation("a"), NotARepresentation),
        (lambda: C4.regular() + 3, GroupError),
        (lambda: C4.regular() * 3, GroupError),
        (lambda: Orbit(C4, 3), GroupError),
        (lambda: Orbit(3, C4.regular()), GroupError),
        (
            lambda: eadem.tie(
                nn.Conv2d(4, 4, 3),
                "weight",
                via=eadem.Equivariant(C4.regular(), C4.regular(), C4.trivial(3)),
            ),
            ShapeError,
        ),
    ],
)
def test_what_is_refused_by_name(make, error):
    with pytest.raises(error):
        make()


def test_representations_are_made_on_the_cpu_under_any_default_device():
    with torch.device("meta"):
        rep = C4.representation(np.eye(2))
        assert rep.exact
        assert len(rep.images[0]) == 2


def slow_orbits(images):
    """Orbits by a search from each entry in turn: (entry's orbit or −1, sign)."""
    size = len(images[0])
    orbit, sign, count = np.full(size, -2), np.ones(size, dtype=int), 0
    for start in range(size):
        if orbit[start] != -2:
            continue
        found, queue, zero = {start: 1}, [start], False
        for at in queue:
            for image in images:
                to, s = int(image.place[at]), int(image.signs()[at]) * found[at]
                if to not in found:
                    found[to] = s
                    queue.append(to)
                zero |= found[to] != s
        for entry, s in found.items():
            orbit[entry], sign[entry] = (-1 if zero else count), s
        count += not zero
    return orbit, sign, count


@pytest.mark.parametrize("seed", range(12))
def test_orbits_of_long_and_short_cycles_agree_with_a_search(seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 400))
    images = []
    for _ in range(int(random.integers(1, 4))):
        place = np.roll(np.arange(n), 1) if seed % 3 == 0 else np.arange(n)
        moved = random.choice(n, size=min(n, [n, 40, 5][seed % 3]), replace=False)
        place[np.sort(moved)] = place[moved]
        sign = random.choice([1, -1], size=n, p=[0.98, 0.02]).astype(np.int8)
        images.append(Signed(place.astype(np.int64), sign if seed % 2 else None))
    orbit, sign, count = components(images)
    slow, signs, many = slow_orbits(images)
    assert count == many
    np.testing.assert_array_equal(orbit, slow)
    if sign is not None:
        live = orbit >= 0
        np.testing.assert_array_equal(sign[live], signs[live])


def test_the_orbits_of_a_site_are_found_once(monkeypatch):
    calls = []

    def counted(images):
        calls.append(len(images))
        return components(images)

    monkeypatch.setattr("eadem.groups.orbit.components", counted)
    C = Cyclic(6)
    phi = Orbit(C, C.points() * C.points())
    for _ in range(2):
        phi.bind((6, 6)).ready()
    assert calls == [1]


def test_negative_exponents_are_inverses():
    D5 = Dihedral(5)
    for rep in (D5.regular(), D5.space(2), D5.points() * D5.sign()):
        back = rep.matrix(((0, -2), (1, -1)))
        np.testing.assert_allclose(
            back @ rep.matrix(((1, 1), (0, 2))), np.eye(rep.size), atol=1e-12
        )


def test_products_are_checked_factor_by_factor():
    g = generated([1, 2, 0], [1, 0, 2]) * Cyclic(4)
    turn, flip, one = rotation(2 * np.pi / 3), np.diag([1.0, -1.0]), np.eye(2)
    V = g.representation(turn, flip, -one)
    assert eadem.Equivariant(V, V).bind((2, 2)).rank == 1
    for images, says in (
        ((turn, flip, rotation(np.pi / 2)), "fails"),
        ((turn, flip, rotation(1.0)), r"r\^4 = 1"),
        ((flip, flip, one), "g1"),
    ):
        with pytest.raises(NotARepresentation, match=says):
            g.representation(*images)
    with pytest.raises(NotARepresentation, match="break the relation"):
        (Cyclic(4) * Cyclic(3)).sign(1, [1, -1])
