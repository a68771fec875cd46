"""C01–C05 on actual layers: counts, matrices, certificates and traces.

Every predicate is the text given with its claim; the thresholds in it are the constants that
decide.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

import eadem
from eadem.evidence import Certificate, Shifts, certify, trace
from eadem.recipes import Context
from eadem.recipes._digits import Digits

__all__ = ["layer_claims"]

ROUNDING = 1e-12
BROKEN = 1e-2


def layer_claims(context: Context, test: Digits, advance: Callable[[int], object]) -> None:
    """Check C01 to C05 in float64 on the CPU, on digits where input is needed."""
    images = test.images[:8].cpu().double().reshape(-1, 1, 28, 28)
    labels = test.labels[:8].cpu()
    checks: list[Callable[[], None]] = [
        lambda: _c01(context),
        lambda: _c02(context),
        lambda: _c03(context, images),
        lambda: _c04(context, images[:1]),
        lambda: _c05(context, images, labels),
    ]
    for check in checks:
        check()
        advance(1)


def _channelwise(channels: int, positions: int) -> eadem.Gather:
    """One bias for each channel, at all of its positions."""
    return eadem.Gather(torch.arange(channels).repeat_interleave(positions))


def _tied_convolution(
    layer: nn.Linear, window: eadem.Toeplitz2d, start: Tensor | Literal["first"]
) -> None:
    channels = window.channels(tuple(layer.weight.shape))[0]
    eadem.tie(layer, "weight", via=window, start=start)
    eadem.tie(layer, "bias", via=_channelwise(channels, layer.out_features // channels))


def _relative(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest magnitude of b."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max())


def _c01(context: Context) -> None:
    unshared, shared = nn.Linear(32 * 32, 30 * 30), nn.Linear(32 * 32, 30 * 30)
    eadem.tie(unshared, "weight", via=eadem.Local2d(32, 3))
    _tied_convolution(shared, eadem.Toeplitz2d(32, 3), "first")
    measured = {
        "unshared": eadem.counts(unshared).free,
        "shared": eadem.counts(shared).free,
        "stock_convolution": eadem.counts(nn.Conv2d(1, 1, 3)).free,
        "expanded": eadem.counts(shared).expanded,
    }
    context.claim(
        "C01",
        "A 3×3 filter on a 32×32 image, with valid output 30×30, has 9,000 parameters when "
        "every position has its own and 10 when it is shared: 900 times fewer.",
        "unshared = 9,000, shared = 10 and nn.Conv2d(1, 1, 3) = 10, counted on the modules",
        {"unshared": 9000, "shared": 10, "stock_convolution": 10},
        measured,
        (measured["unshared"], measured["shared"], measured["stock_convolution"])
        == (9000, 10, 10),
    )


def _c02(context: Context) -> None:
    side = 32 * 32
    with torch.device("meta"):  # counted, never filled: the larger layer alone takes 200 MB
        layers = {
            "fully_connected_3_to_3": nn.Linear(3 * side, 3 * side, bias=False),
            "convolution_3_to_16": nn.Conv2d(3, 16, 3, padding=1),
            "fully_connected_3_to_16": nn.Linear(3 * side, 16 * side, bias=False),
            "convolution_3_to_3": nn.Conv2d(3, 3, 3, padding=1),
        }
    measured = {name: eadem.counts(layer).free for name, layer in layers.items()}
    expected = {
        "fully_connected_3_to_3": 9_437_184,
        "convolution_3_to_16": 448,
        "fully_connected_3_to_16": 50_331_648,
        "convolution_3_to_3": 84,
    }
    context.claim(
        "C02",
        "A fully connected layer from 32·32·3 to 32·32·3 needs 9,437,184 weights; a 3×3 "
        "convolution from 3 to 16 channels needs 448 parameters. Like for like: 50.3 million "
        "against 448, and 9.4 million against 84.",
        "the four counts of the modules are equal to the expected ones",
        expected,
        measured,
        measured == expected,
    )


def _c03(context: Context, images: Tensor) -> None:
    errors, free = [], []
    for stride, padding, channels in ((1, 0, 2), (1, 1, 1), (2, 2, 3)):
        stock = nn.Conv2d(1, channels, 5, stride=stride, padding=padding).double()
        wanted = stock(images).flatten(1)
        window = eadem.Toeplitz2d(28, 5, stride=stride, padding=padding)
        layer = nn.Linear(28 * 28, wanted.shape[1]).double()
        _tied_convolution(layer, window, stock.weight.detach())
        with torch.no_grad():
            assert stock.bias is not None
            layer.bias.copy_(stock.bias.repeat_interleave(layer.out_features // channels))
        errors.append(_relative(layer(images.flatten(1)), wanted))
        free.append(eadem.counts(layer).free == sum(p.numel() for p in stock.parameters()))
    varies = _toeplitz_spread(eadem.Toeplitz2d(12, 3))
    context.claim(
        "C03",
        "A convolution is a fully connected layer whose matrix is doubly block Toeplitz: "
        "constant along its diagonals.",
        f"for three convolutions (strides 1 and 2, paddings 0, 1 and 2) the tied nn.Linear "
        f"and nn.Conv2d differ by ≤ {ROUNDING:g} relative in float64 on 8 digits and have "
        "equally many free parameters; the matrix varies by exactly 0 along its diagonals, "
        "within blocks and across blocks",
        {"error": ROUNDING, "free_equal": True, "variation_along_diagonals": 0.0},
        {
            "error": max(errors),
            "free_equal": all(free),
            "variation_along_diagonals": varies,
        },
        max(errors) <= ROUNDING and all(free) and varies == 0.0,
    )


def _toeplitz_spread(window: eadem.Toeplitz2d) -> float:
    """How far M[(i, j), (k, l)] is from a function of (k − i, l − j) alone."""
    layer = nn.Linear(144, 100, bias=False).double()
    eadem.tie(layer, "weight", via=window, start="init")
    matrix = layer.weight.detach().reshape(10, 10, 12, 12)
    down = matrix[1:, :, 1:, :] - matrix[:-1, :, :-1, :]
    across = matrix[:, 1:, :, 1:] - matrix[:, :-1, :, :-1]
    return float(torch.maximum(down.abs().max(), across.abs().max()))


def _c04(context: Context, image: Tensor) -> None:
    digit = image[..., 8:20, 8:20].contiguous()  # 12 × 12: all 144 shifts are tried
    every = Shifts((-2, -1))
    circular = nn.Conv2d(1, 4, 3, padding=1, padding_mode="circular").double()
    layers = {"Toeplitz2d": nn.Linear(144, 4 * 144), "Local2d": nn.Linear(144, 4 * 144)}
    for name, layer in layers.items():
        layer.double()
        window = getattr(eadem, name)(12, 3, padding=1)
        eadem.tie(layer, "weight", via=window, start="init")
    eadem.tie(layers["Toeplitz2d"], "bias", via=_channelwise(4, 144))

    def plane(name: str) -> Callable[[Tensor], Tensor]:
        return lambda x: layers[name](x.flatten(1)).reshape(-1, 4, 12, 12)

    inside = Shifts((-2, -1), margin=1)
    found: dict[str, Certificate] = {
        "circular": certify(circular, every, digit),
        "maximum": certify(
            lambda x: circular(x).amax((-2, -1)), every, digit, kind="invariance"
        ),
        "zero_padding_interior": certify(plane("Toeplitz2d"), inside, digit),
        "zero_padding_everywhere": certify(plane("Toeplitz2d"), every, digit),
        "unshared_interior": certify(plane("Local2d"), inside, digit),
    }
    error = {name: c.relative for name, c in found.items()}
    exact = max(error[n] for n in ("circular", "maximum", "zero_padding_interior"))
    lost = min(error[n] for n in ("zero_padding_everywhere", "unshared_interior"))
    context.claim(
        "C04",
        "Sharing over positions gives translation equivariance, and a global maximum over "
        "positions makes it invariance.",
        f"over all 144 cyclic shifts of a 12×12 piece of a digit, float64, one set of weights: "
        f"with circular padding equivariant, after a global maximum invariant, and with zero "
        f"padding equivariant in the interior (a margin of 1 at each border is not compared), "
        f"each to ≤ {ROUNDING:g} relative; with zero padding on the whole output, and without "
        f"sharing, the error is ≥ {BROKEN:g}",
        {"shared": ROUNDING, "padding_or_unshared": BROKEN},
        error | {"shifts": found["circular"].tried},
        exact <= ROUNDING and lost >= BROKEN and found["circular"].tried == 144,
    )


def _c05(context: Context, images: Tensor, labels: Tensor) -> None:
    three = nn.Sequential(
        OrderedDict(
            [
                ("into", nn.Linear(784, 32)),
                ("a", nn.Linear(32, 32)),
                ("b", nn.Linear(32, 32)),
                ("c", nn.Linear(32, 32)),
                ("out", nn.Linear(32, 10)),
            ]
        )
    ).double()
    layers = eadem.tie(three, "a.weight", "b.weight", "c.weight")
    with trace(three) as seen:
        nn.functional.cross_entropy(three(images.flatten(1)), labels).backward()
    parts = torch.stack([seen.sites[f"{name}.weight"] for name in "abc"])
    grad = layers.theta.grad
    assert grad is not None

    window = eadem.Toeplitz2d(28, 5, stride=2)
    conv = nn.Sequential(nn.Linear(784, 2 * 144), nn.Tanh(), nn.Linear(2 * 144, 10)).double()
    positions = eadem.tie(conv, "0.weight", via=window, start="init")
    with trace(conv) as seen:
        nn.functional.cross_entropy(conv(images.flatten(1)), labels).backward()
    site = seen.sites["0.weight"].reshape(2, 12, 12, 28, 28)
    windows = site.new_zeros(2, 5, 5)
    for i in range(12):
        for j in range(12):
            windows += site[:, i, j, 2 * i : 2 * i + 5, 2 * j : 2 * j + 5]
    shared = positions.theta.grad
    assert shared is not None

    measured = {
        "sum_of_3_sites": _relative(parts.sum(0), grad),
        "sum_of_144_positions": _relative(windows.reshape(-1), shared.reshape(-1)),
        "mean_of_3_sites": _relative(parts.mean(0), grad),
        "nearest_single_site": min(_relative(part, grad) for part in parts),
    }
    sums = max(measured["sum_of_3_sites"], measured["sum_of_144_positions"])
    others = min(measured["mean_of_3_sites"], measured["nearest_single_site"])
    context.claim(
        "C05",
        "The gradient of a shared parameter is the sum of its sites' gradients: not their "
        "mean, and not one of them.",
        f"traced site gradients, float64, cross-entropy of 8 digits: over three equal layers "
        f"and over the 144 positions of a convolution the sum differs from the parameter's "
        f"gradient by ≤ {ROUNDING:g} relative; the mean and every single site by ≥ {BROKEN:g}",
        {"sum": ROUNDING, "mean_or_single": BROKEN},
        measured,
        sums <= ROUNDING and others >= BROKEN,
    )
