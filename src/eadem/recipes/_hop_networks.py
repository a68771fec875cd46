"""Graph networks of two layers on papers' words, and how they are trained.

The layers are PyG's and `eadem.nn.HopConv`. Words are sparse, so the first layer transforms
them before they travel, which for a polynomial of the adjacency matrix is the same function;
products with sparse matrices have a backward pass that does not transpose them anew.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch_geometric.nn import APPNP, GCNConv, TAGConv

from eadem.nn import HopConv
from eadem.recipes._citations import Papers, papers
from eadem.recipes._training import Advance, seeded

__all__ = ["HOPS", "KINDS", "WIDTH", "Graph", "Network", "Setting", "Trained", "graph", "train"]

KINDS = ("hop", "tag", "gcn", "appnp")
WIDTH, HOPS = 16, 3
EPOCHS, PATIENCE, EVERY = 200, 20, 2


class _Product(torch.autograd.Function):
    """matrix @ dense, given the transposed matrix too."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, turned: Tensor, dense: Tensor) -> Tensor:
        ctx.turned = turned
        found: Tensor = matrix @ dense
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.turned @ grads[0].contiguous()


def _compressed(rows: Tensor, columns: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
    """A sparse matrix by rows, from entries in the order of rows."""
    counts = torch.bincount(rows, minlength=size[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    with warnings.catch_warnings():  # torch calls every such matrix a beta feature
        warnings.filterwarnings("ignore", "Sparse", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


class Graph:
    """Papers, ready to learn from: `plain` and `looped` are D^−½ A D^−½, the latter with a
    link from every paper to itself; both are symmetric.
    """

    def __init__(self, papers: Papers, dtype: torch.dtype = torch.float32) -> None:
        self.papers = papers
        n = len(papers.labels)
        self._values = papers.values.to(dtype)
        size = (n, papers.words)
        self._words = _compressed(papers.rows, papers.columns, self._values, size)
        self._turn = torch.argsort(papers.columns, stable=True)
        self._turned = _compressed(
            papers.columns[self._turn],
            papers.rows[self._turn],
            self._values[self._turn],
            size[::-1],
        )
        loops = torch.arange(n).expand(2, n)
        self.plain = _normalised(papers.links, n, dtype)
        self.looped = _normalised(torch.cat([papers.links, loops], 1), n, dtype)

    def times(self, dense: Tensor, kept: Tensor | None = None) -> Tensor:
        """The words @ `dense`, each entry times its number in `kept`."""
        words, turned = self._words, self._turned
        if kept is not None:
            values = self._values * kept
            words = _with_values(words, values)
            turned = _with_values(turned, values.index_select(0, self._turn))
        found: Tensor = _Product.apply(words, turned, dense)  # type: ignore[no-untyped-call]
        return found

    def dropped(self, share: float, generator: torch.Generator) -> Tensor:
        """Factors 0 or 1/(1 − share) for the words' entries."""
        return _mask(self._values, share, generator)


def _with_values(matrix: Tensor, values: Tensor) -> Tensor:
    return torch.sparse_csr_tensor(
        matrix.crow_indices(),
        matrix.col_indices(),
        values,
        matrix.shape,
        check_invariants=False,
    )


def _normalised(links: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    links = links[:, torch.argsort(links[0] * n + links[1])]
    root = torch.bincount(links[0], minlength=n).to(dtype).clamp(min=1).rsqrt()
    return _compressed(links[0], links[1], root[links[0]] * root[links[1]], (n, n))


def _mask(like: Tensor, share: float, generator: torch.Generator) -> Tensor:
    # Fifteen drawn bits an entry take a third of the time of a drawn float.
    drawn = torch.empty(like.shape, dtype=torch.int16).random_(generator=generator)
    return (drawn >= round(share * 2**15)).to(like).div_(1 - share)


class _Symmetric:
    """For a layer of PyG whose adjacency matrix is its own transpose."""

    def message_and_aggregate(self, adj_t: Tensor, x: Tensor) -> Tensor:
        found: Tensor = _Product.apply(adj_t, adj_t, x)  # type: ignore[no-untyped-call]
        return found


class _Hop(_Symmetric, HopConv):
    pass


class _Tag(_Symmetric, TAGConv):  # type: ignore[misc]
    pass


class _Gcn(_Symmetric, GCNConv):  # type: ignore[misc]
    pass


class _Appnp(_Symmetric, APPNP):  # type: ignore[misc]
    pass


class Network(nn.Module):
    """Words → WIDTH → classes, by two layers of one `kind`; for "appnp" two linear layers and
    then ten travels with a return of 0.1 (J. Gasteiger et al., arXiv:1810.05997).
    """

    def __init__(self, kind: str, words: int, classes: int) -> None:
        super().__init__()
        self.kind = kind
        layers: dict[str, Any] = {
            "hop": lambda i, o: _Hop(i, o, K=HOPS, normalize=False),
            "tag": lambda i, o: _Tag(i, o, K=HOPS, normalize=False),
            "gcn": lambda i, o: _Gcn(i, o, normalize=False),
            "appnp": nn.Linear,
        }
        self.first, self.second = layers[kind](words, WIDTH), layers[kind](WIDTH, classes)
        self.last = _Appnp(K=10, alpha=0.1, normalize=False) if kind == "appnp" else None

    def forward(
        self, graph: Graph, share: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Scores (papers, classes); with a generator `share` of words and units is dropped."""
        links = graph.plain if self.kind in ("hop", "tag") else graph.looped
        kept = None if generator is None else graph.dropped(share, generator)
        hidden = first(self.first, graph, links, kept).relu()
        if generator is not None:
            hidden = hidden * _mask(hidden, share, generator)
        if self.last is None:
            found: Tensor = self.second(hidden, links)
        else:
            found = self.last(self.second(hidden), links)
        return found


def first(layer: nn.Module, graph: Graph, links: Tensor, kept: Tensor | None = None) -> Tensor:
    """What `layer` makes of the words, transformed before they travel."""
    if isinstance(layer, HopConv):
        return layer.travel(graph.times(layer.lin.weight.t(), kept), links)
    out: Tensor
    if isinstance(layer, TAGConv):
        weights = torch.cat([lin.weight for lin in layer.lins]).t()
        *nearer, out = graph.times(weights, kept).chunk(len(layer.lins), 1)
        for here in reversed(nearer):
            out = here + layer.propagate(links, x=out, edge_weight=None)
    elif isinstance(layer, GCNConv):
        out = graph.times(layer.lin.weight.t(), kept)
        out = layer.propagate(links, x=out, edge_weight=None)
    else:
        out = graph.times(layer.get_parameter("weight").t(), kept)
    return out + layer.get_parameter("bias")


@dataclass(frozen=True)
class Setting:
    """What is tuned: the share that is dropped, the weight decay and Adam's rate."""

    dropout: float
    decay: float
    rate: float


@dataclass(frozen=True)
class Trained:
    """Accuracies at the epoch of the lowest validation loss, and that network's hop weights
    (of each layer, so that their sizes add up to one), if it has any.
    """

    validation: float
    test: float
    epoch: int
    hops: tuple[tuple[float, ...], ...] = field(default=())


def train(
    kind: str, graph: Graph, setting: Setting, seed: int, advance: Advance, epochs: int = EPOCHS
) -> Trained:
    """Adam on the cross-entropy of the labelled papers, until the validation loss, looked at
    every other epoch, has not fallen for PATIENCE of them. Weight decay
    is for matrices and biases, not for a hop's scalar.
    """
    data = graph.papers
    with seeded(seed):
        network = Network(kind, data.words, data.classes)
    generator = torch.Generator().manual_seed(seed)
    named = dict(network.named_parameters())
    hops = [named.pop(name) for name in list(named) if name.endswith("hops")]
    groups: list[dict[str, Any]] = [{"params": list(named.values())}]
    if hops:
        groups.append({"params": hops, "weight_decay": 0.0})
    optimizer = torch.optim.Adam(
        groups,
        lr=setting.rate,
        weight_decay=setting.decay,
        foreach=True,
    )
    lowest, best = float("inf"), Trained(0.0, 0.0, 0)
    for epoch in range(1, epochs + 1):
        optimizer.zero_grad()
        scores = network(graph, setting.dropout, generator)
        cross_entropy(scores[data.train], data.labels[data.train]).backward()
        optimizer.step()
        advance(1)
        if epoch % EVERY:
            continue
        with torch.no_grad():
            scores = network(graph)
        loss = float(cross_entropy(scores[data.validation], data.labels[data.validation]))
        if loss < lowest:
            right = scores.argmax(1) == data.labels
            validation, test = (
                float(right[part].double().mean()) for part in (data.validation, data.test)
            )
            lowest, best = loss, Trained(validation, test, epoch, _weights(network))
        elif epoch - best.epoch >= PATIENCE:
            advance(epochs - epoch)
            break
    return best


def _weights(network: Network) -> tuple[tuple[float, ...], ...]:
    layers = (network.first, network.second) if network.kind == "hop" else ()
    each = [layer.get_parameter("hops").detach() for layer in layers]
    return tuple(tuple((s / s.abs().sum()).tolist()) for s in each)


def graph(name: str, seed: int) -> Graph:
    """A set, ready to learn from; only the split of Cora follows the seed."""
    return _kept(name, seed if name == "cora" else 0)


@functools.lru_cache(maxsize=16)
def _kept(name: str, seed: int) -> Graph:
    return Graph(papers(name, seed))
