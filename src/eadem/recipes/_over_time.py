"""A filter at every moment of a window, one for all or each its own, and what the data say.

The layer is `eadem.nn.LocallyConnected1d`; the tie is its `convolution_index`, so that the tied
network is `nn.Conv1d`, and its twin has a filter for each moment, from the same start.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import eadem
from eadem.evidence import site_mean_test
from eadem.nn import LocallyConnected1d
from eadem.recipes._training import Advance, seeded

__all__ = ["Data", "OverTime", "both", "fit", "parts", "share_over_time"]

Loss = Callable[[Tensor, Tensor], Tensor]
BATCH, RATE = 50, 2e-3


@dataclass(frozen=True)
class Data:
    """Windows (n, channels, moments) and what is to be said of each (n,)."""

    windows: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.windows)

    def at(self, rows: Tensor | slice) -> Data:
        """Some of them."""
        return Data(self.windows[rows], self.answers[rows])


def share_over_time(layer: LocallyConnected1d, name: str = "") -> None:
    """Tie a layer's filters to one for all moments, and its biases likewise."""
    for part in ("weight", "bias"):
        if getattr(layer, part) is not None:
            eadem.tie(layer, part, via=eadem.Gather(layer.convolution_index(part)))


class OverTime(nn.Module):
    """`filters` of one width at every moment, ReLU, over all moments their greatest value
    (`pool` "max") or mean ("mean"), and a linear layer. Built tied: a `Conv1d`.
    """

    def __init__(
        self, channels: int, moments: int, width: int, taps: int, outputs: int, pool: str
    ) -> None:
        super().__init__()
        conv = nn.Conv1d(channels, width, taps)
        self.filters = LocallyConnected1d.from_conv(conv, moments)
        share_over_time(self.filters)
        self.head, self.pool = nn.Linear(width, outputs), pool

    def forward(self, windows: Tensor) -> Tensor:
        """(n, channels, moments) → (n, outputs)."""
        found = self.filters(windows).relu()
        found = found.amax(2) if self.pool == "max" else found.mean(2)
        said: Tensor = self.head(found)
        return said


def both(
    seed: int, channels: int, moments: int, width: int, taps: int, outputs: int, *, pool: str
) -> dict[str, OverTime]:
    """The tied network, and its twin with a filter for each moment."""
    with seeded(seed):
        tied = OverTime(channels, moments, width, taps, outputs, pool)
    return {"shared": tied, "unshared": eadem.twin(tied)}


def fit(
    model: nn.Module,
    data: Data,
    stop: Data,
    loss: Loss,
    seed: int,
    epochs: int,
    advance: Advance,
) -> int:
    """Adam, and the state of the lowest loss on `stop`, looked at after every epoch; returns
    that epoch.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(seed)
    lowest, best, state = float("inf"), 0, {}
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(data), generator=generator).split(BATCH):
            optimizer.zero_grad()
            part = data.at(rows)
            loss(model(part.windows), part.answers).mean().backward()
            optimizer.step()
        advance(1)
        with torch.no_grad():
            now = float(loss(model(stop.windows), stop.answers).mean())
        if now < lowest:
            lowest, best = now, epoch
            state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return best


def parts(model: OverTime, data: Data, loss: Loss) -> list[dict[str, Any]]:
    """The mean test of the tie on windows not learned from: may the filters of the first, the
    middle and the last third of the moments go their own way?
    """
    moments = model.filters.out_size[0]
    edges = [0, moments // 3, moments - moments // 3, moments]
    batches = [
        (d.windows, d.answers)
        for d in (data.at(rows) for rows in torch.arange(len(data)).chunk(64))
    ]

    def log_density(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -loss(m(batch[0]), batch[1])

    found = []
    for start, end in itertools.pairwise(edges):
        test = site_mean_test(
            model, log_density, batches, release=f"filters.weight[{start}:{end}]"
        )["joint"]
        found.append(
            {"from": start, "to": end, "statistic": test.statistic, "pvalue": test.pvalue}
        )
    return found
