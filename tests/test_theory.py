"""The formulas, against modules that have the parameters, dense algebra and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

import eadem
from eadem import theory
from eadem.errors import OutOfRange
from eadem.maps.algebra import stack


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_counts_are_those_of_modules(bias, groups):
    conv = nn.Conv2d(4, 6, (3, 5), groups=groups, bias=bias)
    assert theory.convolution((3, 5), 4, 6, groups, bias).total == size(conv)
    linear = nn.Linear(7, 5, bias=bias)
    assert theory.connected(7, 5, bias).total == size(linear)


def test_a_local_layer_has_its_windows():
    layer = eadem.nn.LocallyConnected2d(2, 3, (8, 8), 3)
    assert theory.local((3, 3), 6 * 6, 2, 3).total == size(layer)


def test_local_and_shared_windows_are_the_ties_of_a_linear_layer():
    for via, wanted in (
        (eadem.Local2d(8, 3), theory.local((3, 3), 36, bias=False)),
        (eadem.Toeplitz2d(8, 3), theory.convolution((3, 3), bias=False)),
    ):
        linear = nn.Linear(64, 36, bias=False)
        eadem.tie(linear, "weight", via=via)
        assert eadem.counts(linear).free == wanted.total


def dense_ratio(phi, information):
    tied = phi @ np.linalg.pinv(phi.T @ information @ phi) @ phi.T
    return np.diag(tied) / np.diag(np.linalg.inv(information))


@pytest.mark.parametrize(
    "tie",
    [
        stack([eadem.Same().bind((3,))] * 4),
        eadem.Palindrome().bind((5,)),
        eadem.Palindrome(odd=True).bind((5,)),
        stack([eadem.Scale(2.0).bind((2,)), eadem.Same().bind((2,))]),
    ],
    ids=["equal", "palindrome", "odd", "scaled"],
)
def test_variances_are_those_of_the_dense_formula(tie):
    n = math.prod(tie.out_shape)
    thetas = torch.eye(math.prod(tie.in_shape), dtype=torch.float64)
    phi = torch.stack([tie.forward(t.reshape(tie.in_shape)).reshape(-1) for t in thetas], 1)
    root = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    information = root @ root.T + torch.eye(n, dtype=torch.float64)
    found = theory.variance_ratio(tie, information).reshape(-1)
    np.testing.assert_allclose(found, dense_ratio(phi.numpy(), information.numpy()), rtol=1e-9)
    assert bool((found <= 1 + 1e-12).all())
    assert float(theory.variance_ratio(tie).mean()) == pytest.approx(tie.rank / n)


def test_the_information_must_fit():
    with pytest.raises(eadem.ShapeError, match=r"\(4, 4\); it has shape \(3, 3\)"):
        theory.variance_ratio(eadem.Same().bind((4,)), torch.eye(3))


def test_least_squares_reaches_the_error_foretold():
    """The mean squared error over many fits, with as many observations as the formula asks."""
    features, error, noise = 5, 0.02, 1.0
    n = theory.observations_needed(noise, error, features)
    rng = np.random.default_rng(0)
    found = []
    for _ in range(400):
        x = rng.standard_normal((n, features))
        y = rng.standard_normal(n) * noise**0.5
        found.append(np.square(np.linalg.lstsq(x, y, rcond=None)[0]).mean())
    assert np.mean(found) == pytest.approx(error, rel=0.08)


def test_exchanging_units_gives_other_settings_of_one_function():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    x = torch.randn(7, 2, dtype=torch.float64)
    wanted, settings = net(x), set()
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            s, p = torch.tensor(signs, dtype=torch.float64), list(order)
            w, b = (s[:, None] * net[0].weight[p]), s * net[0].bias[p]
            v = net[2].weight[:, p] * s
            torch.testing.assert_close(torch.tanh(x @ w.T + b) @ v.T + net[2].bias, wanted)
            settings.add(tuple(w.flatten().tolist()))
    assert len(settings) == theory.equivalent_solutions(3, odd=True)


def fits(x, labels):
    """Whether some weight gives every point its label's sign, by linear programming."""
    rows = -labels[:, None] * x
    return linprog(np.zeros(x.shape[1]), rows, -np.ones(len(x)), bounds=(None, None)).success


@pytest.mark.parametrize(("points", "features"), [(4, 2), (5, 3), (6, 3)])
def test_labels_are_separated_as_often_as_counted(points, features):
    x = np.random.default_rng(1).standard_normal((points, features))
    all_labels = itertools.product((-1.0, 1.0), repeat=points)
    share = np.mean([fits(x, np.array(labels)) for labels in all_labels])
    assert share == theory.separable(points, features)


def test_the_capacity_is_where_not_all_labels_fit():
    features = 3
    h = theory.capacity(features)  # with a bias: one number more, without one
    assert theory.separable(h, features + 1) == 1.0
    assert theory.separable(h + 1, features + 1) < 1.0


def test_many_points_do_not_overflow():
    assert theory.separable(2000, 1000) == pytest.approx(0.5)
    assert theory.separable(20000, 2) < 1e-300 or theory.separable(20000, 2) == 0.0


@pytest.mark.parametrize("uses", [1, 10, 1000])
def test_the_initial_scale_does_not_know_of_reuse(uses):
    torch.manual_seed(0)
    conv = nn.Conv1d(1, 100, 25, bias=False)
    nn.init.normal_(conv.weight, std=theory.initial_scale(25))
    out = conv(torch.randn(100, 1, uses + 24))
    assert float(out.detach().var()) == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0, -1 / 9])
def test_a_sum_of_terms_of_one_correlation(correlation):
    covariance = np.full((10, 10), correlation) + (1 - correlation) * np.eye(10)
    wanted = math.sqrt(max(0.0, covariance.sum()))
    assert theory.gradient_scale(10, correlation) == pytest.approx(wanted, abs=1e-7)


def test_the_bound_shrinks_and_covers():
    bounds = [theory.generalization_bound(10, n) for n in (100, 1000, 10000)]
    assert bounds == sorted(bounds, reverse=True)
    assert theory.generalization_bound(10, 1000, 0.99) > bounds[1]


@pytest.mark.parametrize(
    "call",
    [
        lambda: theory.connected(0, 3),
        lambda: theory.convolution((3,), 3, 4, groups=2),
        lambda: theory.generalization_bound(10, 10),
        lambda: theory.gradient_scale(3, -0.9),
        lambda: theory.observations_needed(1.0, 0.0, 3),
        lambda: theory.convolution((-3, -3)),
        lambda: theory.local((3, 0), positions=4),
        lambda: theory.group_convolution((0, 3), order=4),
        lambda: theory.group_convolution((3, 3), order=4, outputs=0),
    ],
)
def test_impossible_numbers_are_refused(call):
    with pytest.raises(OutOfRange, match=r"must be|divide|more samples|correlation"):
        call()
