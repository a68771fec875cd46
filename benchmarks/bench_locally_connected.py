"""LocallyConnected2d against the best forms known in plain torch.

The peer "bmm" is NHWC, padded, a strided view of all patches, and one `baddbmm` with a weight
of [positions, k·k·C, out]; "einsum" is `F.unfold` and an einsum. Each runs eagerly, with a
bias, kernel 3, padding 1, on the same numbers. A step is forward and backward; "first layer"
is a step whose input needs no gradient. With "NHWC" the input and the output's gradient lie
in memory as the bmm form likes them best (channels_last), else in the order of axes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))

from eadem.nn import LocallyConnected2d
from timing import Row, paired, row, table

#: (batch, channels in, channels out, side)
SIZES = [(32, 3, 16, 32), (8, 16, 16, 32), (32, 16, 16, 16), (1, 16, 16, 32)]
KERNEL = 3
LIMIT = 1.05


def bmm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight (positions, k·k·C, out), bias (positions, 1, out)."""
    pad = KERNEL // 2
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    batch, rows, columns, channels = x.shape
    high, wide = rows - KERNEL + 1, columns - KERNEL + 1
    b, r, c, _ = x.stride()
    size, strides = (high, wide, batch, KERNEL, KERNEL, channels), (r, c, b, r, c, 1)
    patches = x.as_strided(size, strides).reshape(high * wide, batch, -1)
    out = torch.baddbmm(bias, patches, weight)
    return out.view(high, wide, batch, -1).permute(2, 3, 0, 1)


def einsum(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """weight (positions, C·k·k, out), bias (out, positions)."""
    patches = F.unfold(x, KERNEL, padding=KERNEL // 2)  # (batch, C·k·k, positions)
    out = torch.einsum("bkp,pko->bop", patches, weight) + bias
    return out.view(x.shape[0], -1, *x.shape[2:])


class Form(nn.Module):
    """A peer as the layer that one would write around it: the same call, the same look-ups."""

    def __init__(self, function: Callable[..., Tensor], weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight, self.bias)


def _leaf(value: Tensor) -> Tensor:
    """A parameter in the layer's own memory where the order allows: its place is worth 5 %."""
    return value.detach().contiguous()


def peers(layer: LocallyConnected2d) -> dict[str, Form]:
    """The two peers with the layer's own values."""
    places = layer.weight.shape[0] * layer.weight.shape[1]
    out = layer.out_channels
    ordered = layer.weight.permute(0, 1, 4, 2, 3, 5)
    return {
        "bmm": Form(
            bmm,
            _leaf(layer.weight.reshape(places, -1, out)),
            _leaf(layer.bias.reshape(places, 1, out)),
        ),
        "F.unfold + einsum": Form(
            einsum,
            _leaf(ordered.reshape(places, -1, out)),
            _leaf(layer.bias.reshape(places, out).t()),
        ),
    }


def _evaluate(f: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            f()

    return run


def _step(f: Callable[[], Tensor], leaves: list[Tensor], grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        f().backward(grad)

    return run


def compare(size: tuple[int, int, int, int], rounds: int, nhwc: bool) -> list[Row]:
    """The rows of one size."""
    batch, channels, out, side = size
    torch.manual_seed(0)
    layer = LocallyConnected2d(channels, out, side, KERNEL, padding=KERNEL // 2)
    form = torch.channels_last if nhwc else torch.contiguous_format
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=form)
    grad = torch.randn(batch, out, side, side).contiguous(memory_format=form)
    own = list(layer.parameters())
    rows = []
    for peer, form_of in peers(layer).items():
        parameters = list(form_of.parameters())
        if nhwc and peer != "bmm":
            continue
        limit = LIMIT
        for what in ("evaluation", "first layer's step", "step"):
            given = x.clone().requires_grad_(what == "step")

            def ours(given: Any = given) -> Tensor:
                return layer(given)

            def theirs(f: Any = form_of, given: Any = given) -> Tensor:
                return f(given)

            with torch.no_grad():
                torch.testing.assert_close(ours(), theirs(), rtol=1e-4, atol=1e-4)
            if what == "evaluation":
                pair = _evaluate(ours), _evaluate(theirs)
            else:
                extra = [given] if what == "step" else []
                pair = (
                    _step(ours, own + extra, grad),
                    _step(theirs, parameters + extra, grad),
                )
            name = f"{size}{', NHWC' * nhwc}: {what}"
            rows.append(row(name, peer, paired(*pair, rounds, pairs=10), limit))
    return rows


def rows(rounds: int = 9) -> list[Row]:
    """All sizes, in both orders of memory."""
    return [r for nhwc in (False, True) for size in SIZES for r in compare(size, rounds, nhwc)]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(int(sys.argv[1]))
    print(table(rows()))
