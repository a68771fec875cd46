"""The mean test of Chen and Qin: its formula by brute force, and on the sites of a model."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.evidence import EvidenceError, mean_test, site_mean_test


def by_hand(x):
    """T and the estimate of tr(Σ²), pair by pair, as printed in the paper."""
    n = len(x)
    t = square = 0.0
    for i, j in itertools.permutations(range(n), 2):
        rest = x[[k for k in range(n) if k not in (i, j)]].mean(0)
        t += x[i] @ x[j]
        square += (x[i] @ (x[j] - rest)) * (x[j] @ (x[i] - rest))
    return t / (n * (n - 1)), square / (n * (n - 1))


@pytest.mark.parametrize("seed", range(3))
def test_the_statistic_is_that_of_the_paper(seed):
    x = np.random.default_rng(seed).normal(size=(9, 30)) + 0.1
    t, square = by_hand(x)
    found = mean_test(torch.from_numpy(x))
    assert found.statistic == pytest.approx(t / np.sqrt(2 / (9 * 8) * square), rel=1e-10)
    assert (found.entries, found.samples) == (30, 9)


def test_the_trace_of_the_squared_covariance_is_estimated_without_bias():
    """A shifted mean, unequal variances: the average over draws is Σ λ², within its error."""
    rng = np.random.default_rng(1)
    spread = np.array([3.0, 1.0, 1.0, 0.5])
    squares = [by_hand(rng.normal(size=(6, 4)) * np.sqrt(spread) + 1.0)[1] for _ in range(1500)]
    error = np.std(squares) / np.sqrt(len(squares))
    assert abs(np.mean(squares) - (spread**2).sum()) < 4 * error


def test_effective_dimensions_are_counted():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 50, generator=generator, dtype=torch.float64)
    assert mean_test(noise).effective == pytest.approx(50, rel=0.1)
    assert mean_test(noise[:, :1] * torch.ones(50)).effective == pytest.approx(1, rel=0.2)


def test_size_and_power_at_many_entries():
    """200 draws of 40 samples × 600 entries: 5 % but for four standard errors; power."""
    generator = torch.Generator().manual_seed(3)
    level = power = 0
    for _ in range(200):
        x = torch.randn(40, 600, generator=generator, dtype=torch.float64)
        level += mean_test(x).pvalue < 0.05
        power += mean_test(x + 0.08).pvalue < 0.05
    assert abs(level / 200 - 0.05) < 4 * (0.05 * 0.95 / 200) ** 0.5
    assert power > 150


class Pair(nn.Module):
    """Two sites of means; the second is seen with `noise` times the error of the first."""

    def __init__(self, p, noise=1.0):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(p, dtype=torch.float64)) for _ in range(2))
        self.noise = noise

    def density(self, seen):
        r = seen - torch.stack([self.a, self.b])
        return -0.5 * (r[:, 0].square() + (r[:, 1] / self.noise).square()).sum(1)


def density(model, seen):
    return model.density(seen)


def fitted(seed, p=400, n=60, noise=1.0, shift=0.0, flip=False):
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(n, 2, p, generator=generator, dtype=torch.float64)
    seen[:, 1] *= noise
    seen[:, 0, : p // 2] += shift
    if flip:
        seen[:, 1] = seen[:, 1].flip(-1)
    model = Pair(p, noise)
    eadem.tie(model, {"a": eadem.Same(), "b": eadem.Flip(-1) if flip else eadem.Same()})
    second = seen[:, 1].flip(-1) if flip else seen[:, 1]
    weight = noise**-2
    with torch.no_grad():
        model.a.copy_((seen[:, 0] + weight * second).mean(0) / (1 + weight))
    return model, seen


@pytest.mark.parametrize("noise", [1.0, 3.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_true_tie_stands_and_a_false_one_falls(noise, flip):
    p_true = []
    for seed in range(60):
        model, seen = fitted(seed, noise=noise, flip=flip)
        p_true.append(site_mean_test(model, density, seen)["joint"].pvalue)
    assert sum(p < 0.05 for p in p_true) <= 9  # 3 expected; 4 standard errors above
    assert 0.3 < np.mean(p_true) < 0.7  # not conservative either
    model, seen = fitted(0, noise=noise, flip=flip, shift=0.6)
    found = site_mean_test(model, density, seen)
    assert list(found) == ["joint", "a", "b"]
    assert found["joint"].pvalue < 1e-4


def test_clusters_are_kept_whole_and_batches_do_not_matter(monkeypatch):
    model, seen = fitted(2)
    one = site_mean_test(model, density, seen, cluster=3, samples=20)
    parts = site_mean_test(model, density, list(seen.split(7)), cluster=3, samples=50)
    assert one["joint"].samples == parts["joint"].samples == 20
    assert parts["a"].statistic == pytest.approx(one["a"].statistic, rel=1e-9)
    monkeypatch.setattr("eadem.evidence._likelihood.BLOCK", 1)  # no room for single scores
    summed = site_mean_test(model, density, list(seen.split(7)), cluster=3, samples=50)
    assert summed["a"].statistic == pytest.approx(one["a"].statistic, rel=1e-9)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(EvidenceError, match="n ≥ 4"):
        mean_test(torch.ones(3, 5))
    model, seen = fitted(0)
    with pytest.raises(EvidenceError, match="3 independent clusters"):
        site_mean_test(model, density, seen, cluster=20)
    dense, (first, second) = Pair(4), torch.eye(4)[:, :2].unsqueeze(0) + torch.rand(2, 4, 2)
    eadem.tie(dense, {"a": eadem.Subspace(first), "b": eadem.Subspace(second)})
    seen = torch.randn(8, 2, 4, dtype=torch.float64) * torch.tensor([[1.0], [5.0]])
    with pytest.raises(EvidenceError, match="index maps"):
        site_mean_test(dense, density, seen)
    assert np.isnan(mean_test(torch.zeros(5, 3)).pvalue)
