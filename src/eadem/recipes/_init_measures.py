"""Outputs and gradients by how often a value is used."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import eadem

__all__ = [
    "CHANNELS",
    "DRAWS",
    "FEW",
    "QUICK",
    "RATE",
    "TAPS",
    "USES",
    "Towers",
    "gradients",
    "one_step",
]

TAPS, CHANNELS, USES, QUICK = 24, 8, (1, 10, 1000), (1, 10, 100)
RATE, DRAWS, FEW = 1e-3, 20, 3


@torch.no_grad()
def one_step(model: nn.Module, kind: str, uses: int) -> float:
    """The mean square of what every use gives for white input of unit variance."""
    batch = max(8, 4000 // uses)
    if kind == "layers":
        outputs = [layer(torch.randn(batch, TAPS)) for layer in model.children()]
        return float(torch.stack(outputs).square().mean())
    x = torch.randn(batch, uses + TAPS - 1)
    return float(model(x if kind == "windows" else x.unsqueeze(1)).square().mean())


class Towers(nn.Module):
    """A filter for each of several windows."""

    def __init__(self, uses: int) -> None:
        super().__init__()
        self.each = nn.ModuleList(
            nn.Linear(TAPS, 1, bias=False, dtype=torch.float64) for _ in range(uses)
        )

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (uses, 24) → what each tower says (uses,)."""
        return torch.cat([tower(x) for tower, x in zip(self.each, windows, strict=True)])


def gradients(model: Towers, kind: str, draws: int, record: Tensor) -> dict[str, float]:
    """The root mean square of an entry of a tower's gradient (`one`) and of θ's (`whole`); the
    share of the towers' gradients that cancels; and the length of one step of SGD and Adam.
    """
    uses, theta = len(model.each), next(model.parameters())
    sums = {"one": 0.0, "whole": 0.0, "cancels": 0.0}
    steps: dict[str, float] = {"SGD": 0.0, "Adam": 0.0}
    for _ in range(draws):
        nn.init.uniform_(theta, -1 / math.sqrt(TAPS), 1 / math.sqrt(TAPS))
        model.zero_grad()
        with eadem.trace(model) as seen:
            _loss(model, kind, record).backward()
            sites = list(seen.sites.values())
        assert theta.grad is not None
        sums["one"] += float(torch.stack(sites).square().mean())
        sums["whole"] += float(theta.grad.square().mean())
        sums["cancels"] += next(iter(seen.conflict().values()))
        before = theta.detach().clone()
        for name, kind_of in (("SGD", torch.optim.SGD), ("Adam", torch.optim.Adam)):
            kind_of([theta], lr=RATE).step()
            steps[name] += float((theta.detach() - before).norm())
            with torch.no_grad():
                theta.copy_(before)
    return {
        "uses": uses,
        "one": math.sqrt(sums["one"] / draws),
        "whole": math.sqrt(sums["whole"] / draws),
        "cancels": sums["cancels"] / draws,
        **{name: total / draws for name, total in steps.items()},
    }


def _loss(model: Towers, kind: str, record: Tensor) -> Tensor:
    """A sum over the towers; on the record, of half the squared error of the next sample."""
    uses = len(model.each)
    if kind == "ecg":
        windows = record.unfold(0, TAPS + 1, 1)
        some = windows[torch.randint(len(windows) - uses + 1, (1,)) :][:uses]
        error: Tensor = model(some[:, :TAPS]) - some[:, TAPS]
        return error.square().sum() / 2
    n = 1 if kind == "same" else uses
    above, x = torch.randn(n, dtype=torch.float64), torch.randn(n, TAPS, dtype=torch.float64)
    total: Tensor = (above.expand(uses) * model(x.expand(uses, TAPS))).sum()
    return total
