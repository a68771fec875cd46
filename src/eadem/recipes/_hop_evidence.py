"""The verdict on one transform for all hops, in a model whose likelihood has one maximum.

A multinomial logistic regression on 16 principal components of the words: Σₖ Âᵏ X Wₖ + b with
Wₖ = sₖ W. Labels are taken as independent, given words and links, of one another.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.nn import TAGConv

import eadem
from eadem.evidence import ScoreTest
from eadem.nn import HopConv
from eadem.recipes._hop_networks import HOPS, Graph

__all__ = ["Hopped", "drawn", "fitted", "hopped", "judged", "summary", "verdict"]

COMPONENTS = 16


@dataclass(frozen=True)
class Hopped:
    """Features after every hop (papers, hops + 1, components) and labels, of linked papers."""

    features: Tensor
    labels: Tensor

    @property
    def classes(self) -> int:
        """The number of subjects."""
        return int(self.labels.max()) + 1


def hopped(graph: Graph) -> Hopped:
    """Principal components of the words, each of variance one, before and after each hop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        left = torch.svd_lowrank(_centred(graph), q=COMPONENTS, niter=4)[0].double()
    x = left * math.sqrt(len(left))
    hops = [x]
    for _ in range(HOPS):
        hops.append(graph.plain.double() @ hops[-1])
    linked = graph.papers.links[0].unique()
    return Hopped(torch.stack(hops, 1)[linked], graph.papers.labels[linked])


def _centred(graph: Graph) -> Tensor:
    words = graph.papers.features()
    return words - words.mean(0)


def scores(model: nn.Module, features: Tensor) -> Tensor:
    """What a `TAGConv` makes of features that have travelled already."""
    layers: Any = model.lins
    bias: Any = model.bias
    found: Tensor = sum(lin(features[:, k]) for k, lin in enumerate(layers)) + bias
    return found


def fitted(data: Hopped) -> TAGConv:
    """The tied model at its maximum likelihood, float64, by L-BFGS."""
    torch.manual_seed(0)
    model = HopConv(COMPONENTS, data.classes, K=HOPS).double().per_hop()
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=600,
        history_size=30,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(scores(model, data.features), data.labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return model


def verdict(model: TAGConv, data: Hopped) -> ScoreTest:
    """The score test of the tie, with the expected information of the labels."""

    def log_density(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -cross_entropy(scores(m, batch[0]), batch[1], reduction="none")

    def root(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return 2 * (scores(m, batch[0]).log_softmax(1) / 2).exp()

    batch = (data.features, data.labels)
    return eadem.score_test(model, log_density, batch, information=root)


@torch.no_grad()
def drawn(model: TAGConv, data: Hopped, generator: torch.Generator) -> Hopped:
    """Labels drawn from a tied model, so that the tie is true of them."""
    shares = scores(model, data.features).softmax(1)
    labels = torch.multinomial(shares, 1, generator=generator).squeeze(1)
    return Hopped(data.features, labels)


def summary(model: TAGConv, data: Hopped, found: ScoreTest) -> dict[str, Any]:
    """The joint verdict and each hop's, the fitted scalars (their sizes adding up to one), and
    the nats a paper that a matrix for every hop would gain by the test's estimate.
    """
    theta = eadem.ties(model)[0].theta
    scalars = theta[: HOPS + 1].detach()
    hops = [
        {"site": r.name, "statistic": r.statistic, "df": r.df, "pvalue": r.robust_pvalue}
        for r in found.table().rows
        if r.kind == "site"
    ]
    robust = found.robust or found
    return {
        "papers": len(data.labels),
        "statistic": found.statistic,
        "df": found.df,
        "pvalue": found.pvalue,
        "robust": robust.pvalue,
        "gain": found.statistic / 2 / len(data.labels),
        "scalars": (scalars / scalars.abs().sum() * scalars.sum().sign()).tolist(),
        "hops": hops,
    }


def judged(graph: Graph, draws: int, seed: int) -> dict[str, Any]:
    """The verdict on the labels as they are, and on `draws` of which the tie is true."""
    data = hopped(graph)
    model = fitted(data)
    found = summary(model, data, verdict(model, data))
    generator = torch.Generator().manual_seed(seed)
    true = [drawn(model, data, generator) for _ in range(draws)]
    found["true"] = [verdict(fitted(d), d).pvalue for d in true]
    return found
