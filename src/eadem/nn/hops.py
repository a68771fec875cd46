"""A graph convolution with one transform for all hops and one scalar for each.

Σₖ sₖ Âᵏ X W for k = 0 … K, with Â the normalised adjacency matrix: the words that PyTorch
Geometric's `TAGConv` has with a matrix Wₖ for every hop, Σₖ Âᵏ X Wₖ, under the tie
Wₖ = sₖ W. It needs the extra `graph`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eadem.bind import tie
from eadem.errors import MissingPackage, ShapeError, Unsupported
from eadem.maps import Function

try:
    from torch_geometric.nn import MessagePassing, TAGConv
    from torch_geometric.nn.conv.gcn_conv import gcn_norm
    from torch_geometric.nn.dense.linear import Linear
    from torch_geometric.utils import spmm
except ImportError as error:
    raise MissingPackage(
        f"eadem.nn.HopConv needs the package 'torch-geometric', which cannot be imported "
        f'({error}): pip install "eadem[graph]"'
    ) from error

__all__ = ["HopConv", "tie_hops"]


class HopConv(MessagePassing):  # type: ignore[misc]
    """Σₖ sₖ Âᵏ X W + b over the hops k = 0 … `K`: one transform W, one scalar sₖ a hop.

    `lin.weight` is Wᵀ (out_channels, in_channels), `hops` the scalars (K + 1,), which start
    at 1: a `TAGConv` whose matrices start alike. Arguments and the normalisation,
    Â = D^−½ A D^−½ without self-loops, are those of PyG's `TAGConv` (Du et al.,
    arXiv:1710.10370), whose twin it is under `tie_hops`. Features are transformed before they
    travel, so a hop costs out_channels numbers an edge.

    Only the products sₖ W matter: a factor that moves from W to all sₖ changes nothing.

    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> conv = HopConv(4, 2, K=3)
    >>> conv(torch.randn(3, 4), edges).shape
    torch.Size([3, 2])
    >>> sum(p.numel() for p in conv.parameters())
    14
    >>> sum(p.numel() for p in TAGConv(4, 2, K=3).parameters())
    34
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        K: int = 3,
        bias: bool = True,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        if K < 0:
            raise ShapeError(f"HopConv: K is the number of hops, 0 or more, not {K}")
        kwargs.setdefault("aggr", "add")
        super().__init__(**kwargs)
        self.in_channels, self.out_channels, self.K = in_channels, out_channels, K
        self.normalize = normalize
        self.lin = Linear(in_channels, out_channels, bias=False)
        self.hops = nn.Parameter(torch.empty(K + 1))
        if bias:
            self.bias = nn.Parameter(torch.empty(out_channels))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W as `TAGConv` draws one of its own, every scalar 1, the bias zero."""
        super().reset_parameters()
        self.lin.reset_parameters()
        nn.init.ones_(self.hops)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(
        self, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Tensor:
        """Features (nodes, in_channels) → (nodes, out_channels).

        `edge_index` is (2, edges), or a sparse adjacency matrix, transposed.
        """
        if self.normalize:
            edge_index, edge_weight = gcn_norm(
                edge_index,
                edge_weight,
                x.size(self.node_dim),
                improved=False,
                add_self_loops=False,
                flow=self.flow,
                dtype=x.dtype,
            )
        return self.travel(self.lin(x), edge_index, edge_weight)

    def travel(
        self, transformed: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None
    ) -> Tensor:
        """Σₖ sₖ Âᵏ H + b of features H = X W that are transformed already, over edges whose
        weights are normalised already: K travels, by Horner's rule.
        """
        *nearer, last = self.hops.unbind()
        out = last * transformed
        for scalar in reversed(nearer):
            out = self.propagate(edge_index, x=out, edge_weight=edge_weight)
            out = out + scalar * transformed
        return out if self.bias is None else out + self.bias

    def message(self, x_j: Tensor, edge_weight: Tensor | None) -> Tensor:
        """What an edge carries."""
        return x_j if edge_weight is None else edge_weight.view(-1, 1) * x_j

    def message_and_aggregate(self, adj_t: Any, x: Tensor) -> Tensor:
        """All edges at once, where the adjacency matrix is a sparse one."""
        found: Tensor = spmm(adj_t, x, reduce=self.aggr)
        return found

    def per_hop(self) -> TAGConv:
        """The same function as a `TAGConv`: a matrix for every hop, tied (see `tie_hops`).

        `eadem.untie` or `eadem.twin` then give every hop its own.
        """
        made: dict[str, Any] = {"K": self.K, "normalize": self.normalize}
        made |= {"aggr": self.aggr, "flow": self.flow, "bias": self.bias is not None}
        conv = TAGConv(self.in_channels, self.out_channels, **made).to(self.hops)
        if self.bias is not None:
            with torch.no_grad():
                conv.bias.copy_(self.bias)
        with torch.no_grad():
            start = torch.cat([self.hops, self.lin.weight.reshape(-1)])
        tie_hops(conv, start=start)
        return conv.train(self.training)

    def __repr__(self) -> str:
        return f"HopConv({self.in_channels}, {self.out_channels}, K={self.K})"


@dataclass(frozen=True)
class _Hop:
    """θ = (s₀ … s_K, W) → sₖ W, of `shape` (out, in)."""

    k: int
    hops: int
    shape: tuple[int, int]

    def __call__(self, theta: Tensor) -> Tensor:
        return theta[self.k] * theta[self.hops :].reshape(self.shape)


@dataclass(frozen=True)
class _Alone:
    """W → a θ that gives it, every scalar one."""

    hops: int

    def __call__(self, values: Tensor) -> Tensor:
        return torch.cat([values.new_ones(self.hops), values.reshape(-1)])


def tie_hops(conv: TAGConv, start: Tensor | None = None) -> None:
    """Tie the matrices of a `TAGConv` to Wₖ = sₖ W: one transform, one scalar a hop.

    θ is (s₀ … s_K, W), flat, and lies in `lins.0.weight`. `start` is its value; without it, W
    and s are the best of rank one for the matrices as they are (the first pair of singular
    vectors of the stacked, flattened matrices), s of mean 1 where that can be. The
    tie is one of `eadem.tie` by `eadem.Function`, so counts, tests and twins know it:
    of its (K + 1) + in · out numbers one is free to move between s and W and not counted.

    Raises Unsupported for anything but a `TAGConv` whose sizes are known.

    >>> import eadem
    >>> conv = TAGConv(4, 2, K=3)
    >>> tie_hops(conv)
    >>> eadem.counts(conv).free, eadem.counts(conv).expanded
    (13, 34)
    """
    if not isinstance(conv, TAGConv) or any(
        isinstance(lin.weight, nn.UninitializedParameter) for lin in conv.lins
    ):
        raise Unsupported(
            f"tie_hops takes a TAGConv whose sizes are known, not {type(conv).__name__}"
        )
    hops, shape = len(conv.lins), tuple(conv.lins[0].weight.shape)
    size = (hops + shape[0] * shape[1],)
    theta = _nearest(conv) if start is None else start
    if tuple(theta.shape) != size:
        raise ShapeError(
            f"tie_hops: start must hold {hops} scalars and then {shape} numbers, {size} in "
            f"all, not {tuple(theta.shape)}"
        )
    maps = {
        f"lins.{k}.weight": Function(_Hop(k, hops, shape), _Alone(hops), in_shape=size)
        for k in range(hops)
    }
    tied = tie(conv, maps)
    with torch.no_grad():  # one site alone cannot say what the scalars of the others are
        tied.theta.copy_(theta)


@torch.no_grad()
def _nearest(conv: TAGConv) -> Tensor:
    """The (s, W) whose products are nearest to the matrices in the sum of squares."""
    rows = torch.stack([lin.weight.reshape(-1) for lin in conv.lins])
    left, size, right = torch.linalg.svd(rows, full_matrices=False)
    mean = left[:, 0].mean()
    scale = mean if abs(mean) > 1e-3 else torch.ones_like(mean)
    return torch.cat([left[:, 0] / scale, right[0] * size[0] * scale])
