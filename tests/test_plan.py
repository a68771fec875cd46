"""A resolved plan against the definition: the set of W that every declaration allows."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import eadem
from eadem._plan import Declaration, Entry, Plan, Site, resolve
from eadem.maps import LinearMap
from plan_oracle import (
    AffineSet,
    assert_same_set,
    brute_force,
    coordinates,
    of_plan,
    part_of,
)

Shapes = dict[str, tuple[int, ...]]

#: Sites and the parts of them that are a 2 × 2 block, so that any map joins any two.
SHAPES: Shapes = {
    "a": (2, 2),
    "b": (2, 2),
    "m.c": (3, 2, 2),
    "m.d": (4, 2),
    "e": (2, 4),
    "free": (3,),
}
BLOCKS = (
    "a",
    "b",
    "m.c[0]",
    "m.c[2]",
    "m.d[0:2]",
    "m.d[1:3]",
    "m.d[::2]",
    "e[:, ::2]",
    "e[:, 1:3]",
)


def declare(
    *entries: tuple[str, LinearMap], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Declaration:
    """A tie of sites as a user writes them."""
    known = SHAPES if shapes is None else shapes
    sites = [Site.at(t, known) if "[" in t else Site(t) for t, _ in entries]
    return Declaration(tuple(Entry(s, phi) for s, (_, phi) in zip(sites, entries, strict=True)))


SIGNED: list[LinearMap] = [
    eadem.Same(),
    eadem.Transpose(),
    eadem.Flip(0),
    eadem.Flip(-1),
    eadem.Rotate(1),
    eadem.Rotate(-1) @ eadem.Flip(0),
    eadem.Scale(-1.0),
]
SCALED: list[LinearMap] = [
    *SIGNED,
    eadem.Scale(2.0),
    eadem.Scale(-0.5) @ eadem.Rotate(2),
    eadem.Affine(1.0, 0.5),
    eadem.Affine(-2.0, 1.0) @ eadem.Transpose(),
]
GATHERED: list[LinearMap] = [
    *SIGNED[:3],
    eadem.Gather(torch.tensor([[0, 1], [1, 2]])) @ eadem.Gather(torch.arange(3)),
    eadem.Gather(torch.tensor([[2, 0], [1, 0]])),
    eadem.Gather(torch.tensor([[0, -1], [1, 2]])),
]
MIXED_BASIS = torch.tensor(
    [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, -1.0, 2.0]], dtype=torch.float64
)


def plans(maps: list[LinearMap], most: int = 4) -> st.SearchStrategy[list[Declaration]]:
    """Lists of declarations; maps that do not share a θ shape are kept apart."""
    square = [m for m in maps if m.bind((2, 2)).in_shape == (2, 2)]
    short = [m for m in maps if m.bind((2, 2)).in_shape == (3,)]
    kinds = [st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(square)), min_size=1)]
    if short:
        kinds.append(
            st.lists(st.tuples(st.sampled_from(BLOCKS), st.sampled_from(short)), min_size=1)
        )
    one = st.one_of(kinds).map(lambda found: declare(*found[:4]))
    return st.lists(one, min_size=1, max_size=most)


def collapsed(want: AffineSet, declarations: list[Declaration]) -> tuple[bool, bool]:
    """Whether a whole parameter is left without freedom, and whether a declared part is."""
    at = coordinates(SHAPES)
    moves = want.basis.abs().sum(1) > 1e-8
    whole = any(not bool(moves[where.reshape(-1)].any()) for where in at.values())
    part = any(
        not bool(moves[part_of(at[e.site.name], e.site).reshape(-1)].any())
        for d in declarations
        for e in d.entries
    )
    return whole, part


def check(declarations: list[Declaration]) -> Plan | None:
    """The plan equals the brute-force set, or is refused where it must be."""
    want = brute_force(SHAPES, declarations)
    if want is None:
        with pytest.raises(eadem.TieConflict):
            resolve(SHAPES, declarations)
        return None
    whole, part = collapsed(want, declarations)
    said = any(
        bool((e.map.bind((2, 2)).index().position < 0).any())  # a Gather that says zero
        for d in declarations
        for e in d.entries
        if e.map.bind((2, 2)).index() is not None
    )
    if whole and not said:
        with pytest.raises(eadem.TieConflict):
            resolve(SHAPES, declarations)
        return None
    try:
        plan = resolve(SHAPES, declarations)
    except eadem.TieConflict:
        assert part, "refused, but the set is neither empty nor a collapse"
        return None
    assert tuple(plan.names) == tuple(SHAPES)
    assert dict(plan.shapes) == SHAPES
    assert plan.out_shape == (sum(math.prod(s) for s in SHAPES.values()),)
    assert plan.rank == want.dimension
    assert_same_set(of_plan(plan), want)
    return plan


@settings(max_examples=150, derandomize=True, deadline=None)
@given(plans(SIGNED))
def test_signed_permutations(declarations: list[Declaration]) -> None:
    check(declarations)


@settings(max_examples=150, derandomize=True, deadline=None)
@given(plans(SCALED))
def test_scales_and_offsets(declarations: list[Declaration]) -> None:
    check(declarations)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(plans(GATHERED))
def test_gathers(declarations: list[Declaration]) -> None:
    check(declarations)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(plans(GATHERED, most=2), st.sampled_from(BLOCKS), st.sampled_from(BLOCKS))
def test_dense_maps_among_index_maps(
    declarations: list[Declaration],
    first: str,
    second: str,
) -> None:
    phi = eadem.Subspace(MIXED_BASIS)
    check([*declarations, declare(*((s, phi) for s in dict.fromkeys((first, second))))])


@settings(max_examples=60, derandomize=True, deadline=None)
@given(plans(SCALED, most=3), st.randoms(use_true_random=False))
def test_order_of_declaration_does_not_matter(
    declarations: list[Declaration], shuffler: random.Random
) -> None:
    shuffled = [
        Declaration(tuple(shuffler.sample(d.entries, len(d.entries)))) for d in declarations
    ]
    shuffler.shuffle(shuffled)
    try:
        want = resolve(SHAPES, declarations)
    except eadem.TieConflict:
        with pytest.raises(eadem.TieConflict):
            resolve(SHAPES, shuffled)
        return
    found = resolve(SHAPES, shuffled)
    assert_identical(found, want)


def assert_identical(found: Plan, want: Plan) -> None:
    """The same coordinates of θ, not only the same set."""
    assert tuple(found.names) == tuple(want.names)
    assert found.in_shape == want.in_shape
    theta = torch.linspace(-1, 2, found.in_shape[0], dtype=torch.float64)
    torch.testing.assert_close(found.expand(theta), want.expand(theta), rtol=1e-12, atol=1e-12)
    g = torch.linspace(-1, 2, found.out_shape[0], dtype=torch.float64)
    torch.testing.assert_close(found.adjoint(g), want.adjoint(g), rtol=1e-12, atol=1e-12)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(plans(SCALED, most=3))
def test_a_plan_is_a_linear_map(declarations: list[Declaration]) -> None:
    try:
        plan = resolve(SHAPES, declarations)
    except eadem.TieConflict:
        return
    generator = torch.Generator().manual_seed(len(declarations))
    theta = torch.randn(plan.in_shape, generator=generator, dtype=torch.float64)
    g = torch.randn(plan.out_shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(plan.forward(theta) @ g, theta @ plan.adjoint(g))
    assert plan.in_shape == (plan.rank,)
    torch.testing.assert_close(plan.lift(plan.expand(theta)), theta)
    off = g - plan.expand(plan.lift(g))
    torch.testing.assert_close(plan.adjoint(off), torch.zeros_like(theta))
    parts = plan.split(g)
    assert {n: tuple(v.shape) for n, v in parts.items()} == SHAPES
    torch.testing.assert_close(plan.cat(parts), g, rtol=0, atol=0)


def test_no_declaration_leaves_everything_free() -> None:
    plan = resolve(SHAPES, [])
    assert plan.rank == plan.in_shape[0] == plan.out_shape[0] == 4 + 4 + 12 + 8 + 8 + 3
    theta = torch.arange(39.0, dtype=torch.float64)
    torch.testing.assert_close(plan.expand(theta), theta, rtol=0, atol=0)


def test_a_declaration_twice_is_once() -> None:
    one = declare(("a", eadem.Same()), ("b", eadem.Rotate(1)))
    assert_identical(resolve(SHAPES, [one, one]), resolve(SHAPES, [one]))


def test_a_site_twice_in_one_declaration() -> None:
    """W = θ and W = θᵀ for one θ: W is symmetric."""
    plan = check([declare(("a", eadem.Same()), ("a", eadem.Transpose()))])
    assert plan is not None
    assert plan.rank == 39 - 1


def test_the_two_ends_of_a_chain() -> None:
    declarations = [
        declare(("a", eadem.Same()), ("b", eadem.Scale(2.0))),
        declare(("b", eadem.Same()), ("m.c[1]", eadem.Transpose())),
        declare(("m.c[1]", eadem.Affine(3.0, 1.0)), ("m.c[2]", eadem.Same())),
    ]
    plan = check(declarations)
    assert plan is not None
    w = plan.split(plan.expand(torch.randn(plan.in_shape, dtype=torch.float64)))
    torch.testing.assert_close(w["b"], 2 * w["a"], rtol=0, atol=0)
    torch.testing.assert_close(w["m.c"][1], 2 * w["a"].T, rtol=0, atol=0)
    torch.testing.assert_close(w["m.c"][2], (w["m.c"][1] - 1) / 3)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_cycle_of_rotations_is_its_orbits(order: tuple[int, ...]) -> None:
    """Round a cycle with a quarter turn: the block is what a quarter turn leaves alone."""
    declarations = [
        declare(("a", eadem.Same()), ("b", eadem.Same())),
        declare(("b", eadem.Same()), ("m.c[0]", eadem.Same())),
        declare(("m.c[0]", eadem.Same()), ("m.c[2]", eadem.Same())),
        declare(("m.c[2]", eadem.Rotate(1)), ("a", eadem.Same())),
    ]
    plan = check([declarations[i] for i in order])
    assert plan is not None
    w = plan.split(plan.expand(torch.randn(plan.in_shape, dtype=torch.float64)))
    torch.testing.assert_close(w["a"], torch.rot90(w["a"]), rtol=0, atol=0)


def test_a_cycle_with_a_sign() -> None:
    """Antisymmetry: the diagonal is zero by the relation itself, the rest is free."""
    plan = check([declare(("a", eadem.Same()), ("a", eadem.Scale(-1.0) @ eadem.Transpose()))])
    assert plan is not None
    a = plan.split(plan.expand(torch.randn(plan.in_shape, dtype=torch.float64)))["a"]
    torch.testing.assert_close(a, -a.T, rtol=0, atol=0)
    assert float(a[0, 1].abs()) > 0


def test_a_cycle_with_a_fixed_point() -> None:
    """W = 2θ + 1 and W = θ, with a turn: nothing is left but the point −1: refused."""
    with pytest.raises(eadem.TieConflict):
        resolve(SHAPES, [declare(("a", eadem.Same()), ("a", eadem.Affine(2.0, 1.0)))])


def test_a_cycle_with_an_offset_is_a_contradiction() -> None:
    """W = θ and W = θ + 1."""
    with pytest.raises(eadem.TieConflict) as caught:
        resolve(
            SHAPES,
            [
                declare(("a", eadem.Same()), ("b", eadem.Same())),
                declare(("b", eadem.Affine(1.0, 1.0)), ("a", eadem.Same())),
            ],
        )
    assert "a" in str(caught.value)
    assert "b" in str(caught.value)


def test_cycles_are_compared_with_a_tolerance() -> None:
    """0.1·3·(1/0.3) is one only up to rounding: no contradiction and no collapse."""
    plan = resolve(
        SHAPES,
        [
            declare(("a", eadem.Same()), ("b", eadem.Scale(0.1))),
            declare(("b", eadem.Same()), ("m.c[0]", eadem.Scale(3.0))),
            declare(("m.c[0]", eadem.Scale(0.3)), ("a", eadem.Same())),
        ],
    )
    assert plan.rank == 39 - 8


def test_same_and_twice_on_one_pair_is_a_conflict() -> None:
    with pytest.raises(eadem.TieConflict, match="a"):
        resolve(
            SHAPES,
            [
                declare(("a", eadem.Same()), ("b", eadem.Same())),
                declare(("a", eadem.Same()), ("b", eadem.Scale(2.0))),
            ],
        )


def test_two_fixed_values_are_a_conflict() -> None:
    with pytest.raises(eadem.TieConflict, match="a"):
        resolve(SHAPES, [declare(("a", eadem.Fixed(1.0))), declare(("a", eadem.Fixed(2.0)))])


def test_fixed_and_fixed_elsewhere() -> None:
    """The same constant twice is no conflict, and reaches along a chain."""
    plan = resolve(
        SHAPES,
        [
            declare(("a", eadem.Fixed(1.5))),
            declare(("a", eadem.Fixed(1.5))),
            declare(("a", eadem.Same()), ("b", eadem.Affine(2.0, -1.0))),
        ],
    )
    assert plan.rank == 39 - 8
    w = plan.split(plan.expand(torch.zeros(plan.in_shape, dtype=torch.float64)))
    torch.testing.assert_close(w["a"], torch.full((2, 2), 1.5, dtype=torch.float64))
    torch.testing.assert_close(w["b"], torch.full((2, 2), 2.0, dtype=torch.float64))


def test_fixed_zero_where_somebody_said_so_is_legal() -> None:
    declarations = [
        declare(("a", eadem.Fixed(0.0))),
        declare(("a", eadem.Same()), ("b", eadem.Same())),
        declare(("a", eadem.Same()), ("b", eadem.Scale(2.0))),
    ]
    plan = resolve(SHAPES, declarations)
    assert plan.rank == 39 - 8


def test_fixed_part_of_a_site() -> None:
    plan = resolve({"w": (3, 2)}, [declare(("w[1]", eadem.Fixed(2.0)), shapes={"w": (3, 2)})])
    assert plan.rank == 4
    w = plan.split(plan.expand(torch.zeros(4, dtype=torch.float64)))["w"]
    torch.testing.assert_close(w[1], torch.full((2,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(w[0], torch.zeros(2, dtype=torch.float64))


def test_odd_antisymmetric_filter_keeps_its_legal_zero() -> None:
    plan = resolve({"w": (2, 5)}, [declare(("w", eadem.Palindrome(dim=-1, odd=True)))])
    assert plan.rank == 4
    w = plan.split(plan.expand(torch.ones(4, dtype=torch.float64)))["w"]
    torch.testing.assert_close(w, -w.flip(-1), rtol=0, atol=0)
    assert bool((w[:, 2] == 0).all())


def test_intersection_of_two_structures_on_one_site() -> None:
    shapes: Shapes = {"w": (3, 3)}
    declarations = [
        declare(("w", eadem.Palindrome(dim=0))),
        declare(("w", eadem.Palindrome(dim=1))),
        declare(("w", eadem.Same()), ("w", eadem.Transpose())),
    ]
    for order in itertools.permutations(declarations):
        plan = resolve(shapes, list(order))
        assert plan.rank == 3
        want = brute_force(shapes, list(order))
        assert want is not None
        assert_same_set(of_plan(plan), want)


def test_intersection_of_two_subspaces() -> None:
    shapes: Shapes = {"w": (4,)}
    p = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 2]], dtype=torch.float64)
    q = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    declarations = [declare(("w", eadem.Subspace(p))), declare(("w", eadem.Subspace(q)))]
    plan = resolve(shapes, declarations)
    want = brute_force(shapes, declarations)
    assert want is not None
    assert plan.rank == want.dimension == 2
    assert_same_set(of_plan(plan), want)


def test_equal_subspaces_from_different_columns_intersect_to_one_plan() -> None:
    """Coefficients are of the canonical basis, which depends on the subspace alone."""
    shapes: Shapes = {"w": (4,), "v": (4,)}
    same = declare(("w", eadem.Subspace(torch.eye(4, dtype=torch.float64))))
    mix = torch.tensor([[2.0, 1.0, 0.5], [0.0, 1.0, -1.0], [0.0, 0.0, 3.0]]).double()
    found = [
        resolve(shapes, [declare(("w", eadem.Subspace(b))), same])
        for b in (MIXED_BASIS, MIXED_BASIS @ mix)
    ]
    assert_identical(*found)


def test_a_redundant_basis_counts_its_rank() -> None:
    basis = torch.tensor([[1.0, 2.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]).double()
    plan = resolve({"w": (3,)}, [declare(("w", eadem.Subspace(basis)))])
    assert plan.rank == 1


def test_scalars() -> None:
    shapes: Shapes = {"s": (), "t": (), "v": (2,)}
    declarations = [
        declare(("s", eadem.Same()), ("t", eadem.Affine(2.0, 1.0))),
        declare(("s", eadem.Same()), ("v[1]", eadem.Same()), shapes=shapes),
    ]
    plan = resolve(shapes, declarations)
    want = brute_force(shapes, declarations)
    assert want is not None
    assert plan.rank == 2
    assert_same_set(of_plan(plan), want)
    w = plan.split(plan.expand(torch.tensor([3.0, 4.0], dtype=torch.float64)))
    assert w["s"].shape == ()
    assert float(w["t"]) == 2 * float(w["s"]) + 1


def test_empty_sites() -> None:
    shapes: Shapes = {"w": (0, 3), "v": (0, 3), "u": (2,)}
    plan = resolve(shapes, [declare(("w", eadem.Same()), ("v", eadem.Same()))])
    assert plan.rank == 2
    w = plan.split(plan.expand(torch.ones(plan.in_shape, dtype=torch.float64)))
    assert w["v"].shape == (0, 3)


def test_overlapping_parts_of_one_tensor() -> None:
    """A window tied to the window one further on: everything is one value."""
    shapes: Shapes = {"w": (6,)}
    declarations = [declare(("w[:5]", eadem.Same()), ("w[1:]", eadem.Same()), shapes=shapes)]
    plan = resolve(shapes, declarations)
    assert plan.rank == 1
    torch.testing.assert_close(
        plan.expand(torch.tensor([2.0], dtype=torch.float64)), torch.full((6,), 2.0).double()
    )


def test_shapes_that_a_map_cannot_join() -> None:
    for declaration in (
        declare(("a", eadem.Same()), ("free", eadem.Same())),
        declare(("a", eadem.Same()), ("m.c", eadem.Same())),
        declare(("free", eadem.Transpose())),
        declare(("m.d", eadem.Transpose()), ("m.d", eadem.Same())),
        declare(("a", eadem.Gather(torch.zeros(3, dtype=torch.int64)))),
    ):
        with pytest.raises(eadem.ShapeError):
            resolve(SHAPES, [declaration])


def test_unknown_sites_are_named_with_the_nearest() -> None:
    with pytest.raises(eadem.NoSuchSite, match=r"m\.c"):
        resolve(SHAPES, [declare(("m.cc", eadem.Same()))])


def test_the_message_of_a_conflict_shows_both_paths() -> None:
    with pytest.raises(eadem.TieConflict) as caught:
        resolve(
            SHAPES,
            [
                declare(("a", eadem.Same()), ("b", eadem.Same())),
                declare(("b", eadem.Same()), ("m.c[0]", eadem.Same())),
                declare(("m.c[0]", eadem.Affine(1.0, 2.0)), ("a", eadem.Same())),
            ],
        )
    text = str(caught.value)
    assert "m.c" in text
    assert "a" in text


def test_a_dense_intersection_above_the_limit_is_refused() -> None:
    big = 5000
    basis = torch.ones(big, 1, dtype=torch.float64)
    shapes: Shapes = {"w": (big,)}
    one = declare(("w", eadem.Subspace(basis)))
    two = declare(("w", eadem.Subspace(torch.arange(1.0, big + 1).double()[:, None])))
    with pytest.raises((eadem.TooLarge, eadem.TieConflict)):
        resolve(shapes, [one, two])


def test_owners_are_the_first_places_in_the_order_of_the_shapes() -> None:
    """θ starts with what `a` holds: its own values, in its own order, with scale one."""
    declarations = [declare(("m.c[0]", eadem.Scale(2.0)), ("a", eadem.Transpose()))]
    plan = resolve(SHAPES, declarations)
    theta = torch.arange(1.0, plan.in_shape[0] + 1, dtype=torch.float64)
    w = plan.split(plan.expand(theta))
    torch.testing.assert_close(w["a"].reshape(-1), theta[:4], rtol=0, atol=0)
    torch.testing.assert_close(w["b"].reshape(-1), theta[4:8], rtol=0, atol=0)
    torch.testing.assert_close(w["m.c"][0], 2 * w["a"].T, rtol=0, atol=0)
    torch.testing.assert_close(w["m.c"][1:].reshape(-1), theta[8:16], rtol=0, atol=0)


def test_index_plans_are_bitwise_exact() -> None:
    plan = resolve(SHAPES, [declare(("a", eadem.Rotate(1)), ("b", eadem.Transpose()))])
    theta = torch.randn(plan.in_shape, dtype=torch.float32)
    w: dict[str, Tensor] = plan.split(plan.expand(theta))
    assert w["a"].dtype == torch.float32
    torch.testing.assert_close(torch.rot90(w["a"], -1), w["b"].T, rtol=0, atol=0)
    torch.testing.assert_close(plan.lift(plan.expand(theta)), theta, rtol=0, atol=0)


def test_two_thousand_equal_sites() -> None:
    shapes = {f"l{i}.w": (4, 4) for i in range(2000)}
    plan = resolve(shapes, [declare(*((n, eadem.Same()) for n in shapes))])
    assert plan.rank == 16
    chain = list(itertools.pairwise(shapes))
    plan = resolve(
        shapes, [declare((a, eadem.Same()), (b, eadem.Scale(-1.0))) for a, b in chain]
    )
    assert plan.rank == 16
    w = plan.split(plan.expand(torch.ones(16, dtype=torch.float64)))
    assert float(w["l1999.w"][0, 0]) == -1.0
    assert float(w["l1998.w"][0, 0]) == 1.0


def test_whole_sites_that_contradict_show_the_ties_between_them() -> None:
    def joined(a: str, b: str, phi: eadem.Map) -> Declaration:
        return Declaration((Entry(Site(a), eadem.Same()), Entry(Site(b), phi)))

    declared = [
        joined("a", "b", eadem.Same()),
        joined("b", "c", eadem.Same()),
        joined("a", "c", eadem.Affine(1.0, 2.0)),
    ]
    with pytest.raises(eadem.TieConflict) as caught:
        resolve({"a": (2,), "b": (2,), "c": (2,)}, declared)
    assert all(str(d) in str(caught.value) for d in declared)
