"""Training a tied model by hand: the oracle that optimizers, clipping and averages meet.

θ are plain parameters, the sites a dense matrix times them, and the model is the stock one,
given its sites by `functional_call`. So torch's own autograd forms φᵀ of the site gradients,
and any of torch's tools can be run on θ and on the tied model alike.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lifecycle_systems import System, value
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

import eadem


class ByHand(nn.Module):
    """The function of `system.tied().double()`, with parameters of the same shapes."""

    def __init__(self, system: System, seed: int = 0) -> None:
        super().__init__()
        model = system.tied(seed).double()
        self.positive = system.name == "positive"
        self.names = [n for n, _ in model.named_parameters()]
        self.theta = nn.ParameterList(p.detach().clone() for p in model.parameters())
        self.stock = system.stock(seed).double()
        self.shapes = {n: p.shape for n, p in self.stock.named_parameters()}
        self.register_buffer("dense", self._matrix(system))
        for p in self.stock.parameters():
            p.requires_grad_(False)

    def _matrix(self, system: System) -> Tensor:
        """What each free value is at every site, found by setting it to one."""
        model = system.stock().double()
        if self.positive:
            eadem.tie(model, "conv.weight", "other.weight")
        else:
            system.tie(model)
        columns = []
        for p in model.parameters():
            for i in range(p.numel()):
                for q in model.parameters():
                    q.data.zero_()
                p.data.view(-1)[i] = 1.0
                columns.append(torch.cat([value(model, n).reshape(-1) for n in self.shapes]))
        return torch.stack(columns, dim=1)

    def sites(self) -> dict[str, Tensor]:
        pieces = [
            softplus(p) if self.positive and n == "conv.weight" else p
            for n, p in zip(self.names, self.theta, strict=True)
        ]
        flat = self.dense @ torch.cat([p.reshape(-1) for p in pieces])
        sizes = [s.numel() for s in self.shapes.values()]
        parts = zip(self.shapes.items(), flat.split(sizes), strict=True)
        return {n: w.reshape(shape) for (n, shape), w in parts}

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.stock, self.sites(), (x,))

    def parameters(self, recurse: bool = True) -> Iterable[nn.Parameter]:
        """θ alone, in the order of the tied model's parameters."""
        return iter(self.theta)


def pair(system: System, seed: int = 0) -> tuple[nn.Module, ByHand]:
    """A tied model in float64 and the same trained by hand."""
    return system.tied(seed).double(), ByHand(system, seed)


def assert_same(model: nn.Module, hand: ByHand, tolerance: float = 1e-9) -> None:
    """The free values agree."""
    found = [p.detach() for p in model.parameters()]
    torch.testing.assert_close(
        found, [p.detach() for p in hand.theta], rtol=tolerance, atol=tolerance
    )


def batches(system: System, n: int) -> list[Tensor]:
    """Inputs, one unlike the other."""
    found = []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(n):
            x = system.x()
            found.append(x.double() if x.is_floating_point() else x)
    return found


def objective(model: nn.Module, x: Tensor) -> Tensor:
    """A loss whose gradient has no symmetry that a wrong sum could hide behind."""
    out = model(x)
    away = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).reshape(out.shape)
    return (out - away).square().mean()
