"""What sharing should be worth, by formula: counts, variances, symmetries, capacities, scales.

Each function says where its formula is from. They are for planning and for putting beside a
measurement; none of them looks at a model.

>>> print(convolution((3, 3)), local((3, 3), positions=30 * 30))
Count(weights=9, biases=1) Count(weights=8100, biases=900)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from eadem.errors import OutOfRange, ShapeError
from eadem.maps.base import LinearMap, numel

__all__ = [
    "Count",
    "capacity",
    "connected",
    "convolution",
    "equivalent_solutions",
    "generalization_bound",
    "gradient_scale",
    "group_convolution",
    "initial_scale",
    "local",
    "observations_needed",
    "samples_per_parameter",
    "separable",
    "variance_ratio",
]


class Count(NamedTuple):
    """Free parameters of a layer."""

    weights: int
    biases: int

    @property
    def total(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases


def _positive(**given: float) -> None:
    for name, value in given.items():
        if not value > 0:
            raise OutOfRange(f"{name}={value}; it must be positive")


def connected(inputs: int, outputs: int, bias: bool = True) -> Count:
    """A fully connected layer: a weight for every pair.

    >>> connected(32 * 32 * 3, 32 * 32 * 3, bias=False).total
    9437184
    """
    _positive(inputs=inputs, outputs=outputs)
    return Count(inputs * outputs, outputs if bias else 0)


def convolution(
    kernel: Sequence[int], inputs: int = 1, outputs: int = 1, groups: int = 1, bias: bool = True
) -> Count:
    """A convolution, whose window is the same at all positions. With `groups`, an output
    channel sees inputs/groups channels. Raises OutOfRange where these do not divide.

    >>> convolution((3, 3), 3, 16).total
    448
    """
    _positive(kernel=min(kernel, default=1), inputs=inputs, outputs=outputs, groups=groups)
    if inputs % groups or outputs % groups:
        raise OutOfRange(
            f"groups={groups} does not divide {inputs} inputs and {outputs} outputs"
        )
    return Count(math.prod(kernel) * (inputs // groups) * outputs, outputs if bias else 0)


def local(
    kernel: Sequence[int], positions: int, inputs: int = 1, outputs: int = 1, bias: bool = True
) -> Count:
    """A locally connected layer: a window, and a bias, of its own at every position.

    >>> local((3, 3), positions=30 * 30).total // convolution((3, 3)).total
    900
    """
    _positive(positions=positions)
    shared = convolution(kernel, inputs, outputs, bias=bias)
    return Count(positions * shared.weights, positions * shared.biases)


def group_convolution(
    kernel: Sequence[int],
    order: int,
    inputs: int = 1,
    outputs: int = 1,
    lifting: bool = False,
    bias: bool = True,
) -> Count:
    """A convolution from `inputs` to `outputs` regular fields of a group of `order` elements
    that permutes the pixels of the kernel; `lifting` is one from plain channels.

    The group acts freely on pairs of an output element and whatever the kernel reads, so the
    (outputs·order)·(inputs·order)·|kernel| weights fall in orbits of `order` each: Cohen and
    Welling, "Group equivariant convolutional networks", ICML 2016. A field has one bias.

    >>> group_convolution((3, 3), order=4).weights, group_convolution((3, 3), order=8).weights
    (36, 72)
    """
    _positive(kernel=min(kernel, default=1), order=order, inputs=inputs, outputs=outputs)
    reads = inputs if lifting else inputs * order
    return Count(math.prod(kernel) * reads * outputs, outputs if bias else 0)


def samples_per_parameter(samples: int, parameters: int, uses: int = 1) -> float:
    """How many observations there are for each free value, when each sample uses it `uses`
    times and the uses are independent. Dependent uses are worth less.

    >>> samples_per_parameter(1000, parameters=10, uses=900)
    90000.0
    """
    _positive(samples=samples, parameters=parameters, uses=uses)
    return samples * uses / parameters


def variance_ratio(tie: LinearMap, information: Tensor | None = None) -> Tensor:
    """The variance of every site's estimate under a true tie, over its variance without it.

    `tie` is a bound map φ, `information` I that of the sites (n, n), by default the same for
    all and independent. At a maximum of the likelihood the covariances are φ(φᵀIφ)⁻¹φᵀ and
    I⁻¹ (Aitchison and Silvey, Ann. Math. Stat. 29, 813 (1958)); what comes back is the ratio
    of their diagonals, of `tie.out_shape`. Its mean is rank/n where I is the identity.

    Raises ShapeError where `information` is not (n, n), and torch's LinAlgError where the
    sites are not identified without the tie.

    >>> from eadem.maps import Same
    >>> from eadem.maps.algebra import stack
    >>> variance_ratio(stack([Same().bind((1,))] * 4)).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    n = numel(tie.out_shape)
    every = torch.eye(n, dtype=torch.float64)
    if information is None:
        information = every
    if tuple(information.shape) != (n, n):
        raise ShapeError(
            f"the tie has {n} values at its sites, so their information is ({n}, {n}); it has "
            f"shape {tuple(information.shape)}"
        )
    information = information.to(torch.float64)
    within = torch.stack([tie.lift(e.reshape(tie.out_shape)).reshape(-1) for e in every], 1)
    # an orthonormal basis of range(φ): the range is all that matters, and φ may be deficient
    spanned = torch.stack(
        [tie.forward(t.reshape(tie.in_shape)).reshape(-1) for t in within.T], 1
    )
    left, sizes, _ = torch.linalg.svd(spanned)
    basis = left[:, : int((sizes > 1e-9 * sizes.max().clamp(min=1e-300)).sum())]
    tied = basis @ torch.linalg.solve(basis.T @ information @ basis, basis.T)
    free = torch.linalg.inv(information)
    ratio: Tensor = tied.diagonal() / free.diagonal()
    return ratio.reshape(tie.out_shape)


def observations_needed(noise: float, error: float, features: int, uses: int = 1) -> int:
    """Observations after which least squares knows `features` coefficients to a mean squared
    error of `error` each, from inputs of unit variance and noise of variance `noise`, when
    every observation uses the coefficients `uses` times.

    The covariance is noise/(N − features − 1) for N = observations·uses independent Gaussian
    rows: the mean of the inverse Wishart distribution (Anderson, *An Introduction to
    Multivariate Statistical Analysis*, 3rd ed., lemma 7.7.1).

    >>> a, b = (observations_needed(1.0, 1.318e-4, features=25, uses=u) for u in (1, 784))
    >>> a, b
    (7614, 10)
    """
    _positive(noise=noise, error=error, features=features, uses=uses)
    return math.ceil((noise / error + features + 1) / uses)


def equivalent_solutions(units: int, odd: bool = False) -> int:
    """How many settings of a layer's parameters give the same function by exchanging its
    units: units!, and 2^units times as many where the activation is odd (tanh), so that a
    unit's signs can be turned: Sussmann, Neural Networks 5, 589 (1992). Scales that trade
    between layers, as with ReLU, are directions, not settings, and are not counted.

    >>> equivalent_solutions(3), equivalent_solutions(3, odd=True)
    (6, 48)
    """
    _positive(units=units)
    return math.factorial(units) * (2**units if odd else 1)


def capacity(features: int) -> int:
    """The Vapnik–Chervonenkis dimension of a threshold on a linear function of `features`
    numbers, with a bias: features + 1 (Vapnik, *Statistical Learning Theory*, 1998).

    A filter of k taps whose outputs are averaged over all positions before the threshold is a
    linear function of k numbers, the averaged windows, however long the input is; unshared
    filters followed by the same head are one of as many numbers as there are in the input.

    >>> capacity(5)
    6
    """
    _positive(features=features)
    return features + 1


def separable(points: int, features: int) -> float:
    """The chance that random labels of points in general position are separated by a
    threshold on a linear function of `features` numbers, without a bias: 2^(1−n) times the
    sum of (n−1 choose i) for i < features (Cover, IEEE Trans. Electronic Computers 14, 326
    (1965)). One half at points = 2·features.

    >>> separable(10, 5), separable(5, 5)
    (0.5, 1.0)
    """
    _positive(points=points, features=features)
    ways = sum(math.comb(points - 1, i) for i in range(min(features, points)))
    share: float = 2 * ways / 2**points
    return share


def generalization_bound(capacity: int, samples: int, confidence: float = 0.95) -> float:
    """What the test error may exceed the training error by, at most, with this confidence, for
    a class of VC dimension `capacity`: √((h(ln(2n/h) + 1) + ln(4/η))/n) (Vapnik 1998, ch. 4).
    A bound on the worst case: above 1 it says nothing.

    Raises OutOfRange unless samples > capacity and 0 < confidence < 1.

    >>> round(generalization_bound(10, 10000), 3)
    0.095
    """
    _positive(capacity=capacity, samples=samples)
    if samples <= capacity or not 0 < confidence < 1:
        raise OutOfRange(
            f"the bound wants more samples ({samples}) than the capacity ({capacity}) and a "
            f"confidence between 0 and 1 ({confidence})"
        )
    h, n, eta = capacity, samples, 1 - confidence
    return math.sqrt((h * (math.log(2 * n / h) + 1) + math.log(4 / eta)) / n)


def initial_scale(fan_in: int, gain: float = 1.0) -> float:
    """The standard deviation of initial weights that keeps the variance of a layer's output
    that of its input: gain/√fan_in, with gain √2 before a ReLU (Glorot and Bengio, AISTATS
    2010; He et al., ICCV 2015). How often a weight is reused does not enter: each output is a
    sum over its own fan-in.

    >>> initial_scale(25), initial_scale(25, gain=2**0.5) ** 2
    (0.2, 0.08)
    """
    _positive(fan_in=fan_in, gain=gain)
    return gain / math.sqrt(fan_in)


def gradient_scale(uses: int, correlation: float = 0.0) -> float:
    """The standard deviation of a shared value's gradient over that of one use: the sum of
    `uses` terms of one variance, each pair with this correlation: √(m + m(m − 1)ρ).

    Raises OutOfRange where no such terms exist (ρ below −1/(m − 1), or above 1).

    >>> gradient_scale(900), gradient_scale(900, correlation=1.0)
    (30.0, 900.0)
    """
    _positive(uses=uses)
    square = uses + uses * (uses - 1) * correlation
    if correlation > 1 or square < -1e-9 * uses:
        raise OutOfRange(
            f"no {uses} terms have a correlation of {correlation} in every pair; it lies "
            f"between {-1 / max(1, uses - 1):.4g} and 1"
        )
    return math.sqrt(max(0.0, square))
