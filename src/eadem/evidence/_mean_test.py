"""Is a mean zero in far more dimensions than there are samples? For sites with many values.

The gradients that micro-batches leave at the sites are independent samples; if a tie holds,
the part of them that φᵀ throws away has mean zero. The test of Chen & Qin (Ann. Statist. 38,
2010) needs inner products of samples only, and no inverse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import norm
from torch import Tensor, nn

from eadem.evidence._clusters import Cluster, cluster_ids
from eadem.evidence._likelihood import Density, Likelihood
from eadem.evidence._release import Release, directions, trained
from eadem.evidence.score import EvidenceError
from eadem.maps.base import LinearMap, numel

__all__ = ["MeanTest", "mean_test", "site_mean_test"]


@dataclass(frozen=True)
class MeanTest:
    """A test that a mean is zero: `statistic` is standard normal if it is, large if not.

    `entries` is the dimension, `samples` their number. `effective` is tr(Σ)²/tr(Σ²), the
    number of dimensions that the samples really spread over: the normal law is that of many;
    with few, a nominal 5 % is up to 6.8 % in large samples.
    """

    statistic: float
    pvalue: float
    entries: int
    samples: int
    effective: float
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"mean test: z = {self.statistic:.4g}, p = {self.pvalue:.3g} "
        size = f"({self.entries} entries, {self.samples} samples)"
        return "\n".join([head + size, *(f"note: {n}" for n in self.notes)])


def mean_test(samples: Tensor) -> MeanTest:
    """Whether independent samples (n, p) have mean zero, one-sided (Chen & Qin 2010).

    T = Σ_{i≠j} xᵢᵀxⱼ / n(n−1), over the root of 2/(n(n−1))·tr(Σ²), the trace estimated with
    the two samples left out of the mean (their Section 3). The cost is that of the Gram
    matrix. Raises EvidenceError for fewer than four samples, or values that are not finite.

    >>> generator = torch.Generator().manual_seed(0)
    >>> noise = torch.randn(40, 1000, generator=generator, dtype=torch.float64)
    >>> mean_test(noise).pvalue > 0.05, mean_test(noise + 0.1).pvalue < 1e-6
    (True, True)
    """
    if samples.ndim != 2 or len(samples) < 4:
        raise EvidenceError(
            f"samples of shape {tuple(samples.shape)}; the mean test needs (n, p) with n ≥ 4"
        )
    if samples.is_meta or not bool(torch.isfinite(samples).all()):
        raise EvidenceError(
            "the samples are not all finite; look for the one whose loss or gradient is not"
        )
    x = samples.detach().to(torch.float64)
    return _from_gram((x @ x.T).cpu(), samples.shape[1])


def _from_gram(gram: Tensor, entries: int) -> MeanTest:
    n = len(gram)
    pairs = n * (n - 1)
    off = gram - torch.diag(gram.diagonal())
    mean = float(off.sum()) / pairs
    rows, total = gram.sum(1), gram.sum()
    # aᵢⱼ = xᵢᵀ(xⱼ − x̄₍ᵢⱼ₎), x̄₍ᵢⱼ₎ the mean of the other n − 2.
    left = gram - (rows.unsqueeze(1) - gram.diagonal().unsqueeze(1) - gram) / (n - 2)
    cross = left * left.T
    square = float(cross.sum() - cross.diagonal().sum()) / pairs
    spread = float(gram.diagonal().sum() - total / n) / (n - 1)
    if square <= 0:
        note = "the samples do not vary, so there is nothing to compare their mean with"
        nan = float("nan")
        return MeanTest(nan, nan, entries, n, nan, (note,))
    z = mean / (2 * square / pairs) ** 0.5
    return MeanTest(z, float(norm.sf(z)), entries, n, spread**2 / square)


def site_mean_test(
    model: nn.Module,
    log_density: Density,
    data: Any,
    release: Release = None,
    cluster: Cluster = None,
    *,
    samples: int = 64,
) -> dict[str, MeanTest]:
    """The mean test of Chen & Qin on site gradients of micro-batches, for large sites.

    At the tied fit the observations (clusters, where `cluster` says so) are dealt, in order,
    into `samples` micro-batches of consecutive ones; each leaves a gradient at the sites. The
    part along the release (as in `score_test`), less what the tied parameters do to make up
    for it, has mean zero if the ties hold. Returns a test by name: "joint", and every site of
    the release alone. Of the sites' information only its size, one number for each site, is
    used, from the micro-batches: exact for sites that are used alike, conservative otherwise.

    Gradients are taken and held in the model's dtype, `samples` of them; sums and products are
    in float64. Give the data in
    batches no larger than a micro-batch: each then costs one backward pass. Other arguments
    and errors are those of `score_test`; only ties by index maps are taken.

    >>> import eadem
    >>> generator = torch.Generator().manual_seed(0)
    >>> model = nn.Module()
    >>> model.a, model.b = (nn.Parameter(torch.zeros(500)) for _ in range(2))
    >>> _ = eadem.tie(model, "a", "b")
    >>> seen = torch.randn(200, 2, 500, generator=generator)
    >>> model.a.data = seen.mean((0, 1))
    >>> def log_density(model, batch):
    ...     return -0.5 * (batch - torch.stack([model.a, model.b])).square().sum((1, 2))
    >>> site_mean_test(model, log_density, seen)["joint"].pvalue > 0.05
    True
    >>> seen[:, 0] += 0.1
    >>> model.a.data = seen.mean((0, 1))
    >>> site_mean_test(model, log_density, seen)["joint"].pvalue < 1e-6
    True
    """
    first = next(model.parameters(), None)
    dtype = torch.get_default_dtype() if first is None else first.dtype
    at = Likelihood(model, log_density, data, dtype)
    ids = cluster_ids(cluster, at.n)
    clusters = int(ids.max()) + 1
    count = min(samples, clusters)
    if count < 4:
        raise EvidenceError(
            f"{clusters} independent clusters; the mean test needs four, and some dozens to be "
            "worth having"
        )
    gradients = at.sums(ids * count // clusters, count)
    slices = at.plan.slices
    moved = _moved(directions(model, release))
    _make_effective(gradients, trained(model), slices.values())
    grams, sizes = {}, {}
    for name, piece in slices.items():
        inside = moved[piece]
        if bool(inside.any()):
            own = gradients[:, piece]
            grams[name] = _gram(own if bool(inside.all()) else own[:, inside])
            sizes[name] = int(inside.sum())
    if not grams:
        raise EvidenceError("`release` moves no site; name a site of a tie")
    joint = torch.stack(list(grams.values())).sum(0)
    found = {"joint": _from_gram(joint, sum(sizes.values()))}
    return found | {name: _from_gram(gram, sizes[name]) for name, gram in grams.items()}


def _gram(rows: Tensor) -> Tensor:
    """rows·rowsᵀ in float64, a block of columns at a time."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for block in rows.split(2**16, dim=1):
        wide = block.to(torch.float64)
        total += wide @ wide.T
    return total


def _moved(released: LinearMap) -> Tensor:
    """Which values at the sites a release moves."""
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(numel(released.in_shape), generator=generator, dtype=torch.float64) + 0.5
    return released.forward(some.reshape(released.in_shape)).reshape(-1) != 0


def _make_effective(gradients: Tensor, phi: LinearMap, sites: Iterable[slice]) -> None:
    """Make each row h, in place, h − Iφ(φᵀIφ)⁻¹φᵀh, with I one number for each site.

    The number is the mean variance of the site's gradients: entry by entry the variances
    would be too noisy, since an error of W in h − Wφᵀh adds to the trace that T is compared
    with. With I diagonal and φ an index map φᵀIφ is diagonal, and read off by pulling back.
    """
    weight = torch.empty(gradients.shape[1], dtype=torch.float64)
    for piece in sites:
        weight[piece] = _mean_variance(gradients[:, piece])
    weight = weight.clamp(min=max(float(weight.max()) * 1e-12, 1e-300))

    def within(theta: Tensor) -> Tensor:
        return phi.adjoint((weight * phi.forward(theta).reshape(-1)).reshape(phi.out_shape))

    inner = within(torch.ones(phi.in_shape, dtype=torch.float64))
    generator = torch.Generator().manual_seed(0)
    some = torch.rand(phi.in_shape, generator=generator, dtype=torch.float64)
    if not torch.allclose(within(some), inner * some, rtol=1e-9, atol=0.0):
        raise EvidenceError(
            "the mean test needs ties by index maps (equality, transposes, permutations, "
            "scales); for others release a few directions in score_test"
        )
    inner = torch.where(inner > 0, inner, 1.0)

    inner, weight = inner.to(gradients.dtype), weight.to(gradients.dtype)
    for row in gradients:
        pulled = phi.adjoint(row.reshape(phi.out_shape)) / inner
        row -= phi.forward(pulled).reshape(-1).mul_(weight)


def _mean_variance(rows: Tensor) -> float:
    """The variance over rows, averaged over columns: (Σ‖x‖² − ‖Σx‖²/n) / (n − 1)p."""
    n, p = rows.shape
    if not p:
        return 0.0
    squares = sum(float(row.norm()) ** 2 for row in rows)
    return max(squares - float(rows.sum(0).norm()) ** 2 / n, 0.0) / ((n - 1) * p)
