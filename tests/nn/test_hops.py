"""The shared-hop convolution against PyG's layer of a matrix per hop, and dense algebra."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

import eadem
from eadem.errors import MissingPackage, ShapeError, Unsupported

pytest.importorskip("torch_geometric")

from torch_geometric.nn import TAGConv

from eadem.nn import HopConv, tie_hops

N = 9


@pytest.fixture
def edges():
    pairs = torch.randint(N, (2, 20))
    return torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1)


def dense(edges, weight=None):
    """D^−½ A D^−½, with A[target, source]."""
    a = torch.zeros(N, N, dtype=torch.float64)
    weight = torch.ones(edges.shape[1], dtype=torch.float64) if weight is None else weight
    a.index_put_((edges[1], edges[0]), weight, accumulate=True)
    root = a.sum(1).pow(-0.5).nan_to_num(posinf=0.0)
    return root[:, None] * a * root


def made(K=3, **more):
    conv = HopConv(5, 4, K=K, **more).double()
    with torch.no_grad():
        for p in conv.parameters():
            p.copy_(torch.randn(p.shape))
    return conv


@pytest.mark.parametrize("K", [0, 1, 4])
def test_the_formula(edges, K):
    conv, x = made(K), torch.randn(N, 5, dtype=torch.float64)
    a, h = dense(edges), x @ conv.lin.weight.T
    want = sum(s * torch.linalg.matrix_power(a, k) @ h for k, s in enumerate(conv.hops))
    torch.testing.assert_close(conv(x, edges), want + conv.bias, rtol=1e-12, atol=1e-12)


def test_weighted_edges_and_those_taken_as_they_are(edges):
    conv, x = made(2, bias=False), torch.randn(N, 5, dtype=torch.float64)
    weight = torch.rand(edges.shape[1], dtype=torch.float64)
    for normalize in (True, False):
        conv.normalize = normalize
        a = dense(edges, weight)
        if not normalize:
            a = torch.zeros_like(a).index_put_((edges[1], edges[0]), weight, accumulate=True)
        h = x @ conv.lin.weight.T
        want = conv.hops[0] * h + conv.hops[1] * a @ h + conv.hops[2] * a @ a @ h
        torch.testing.assert_close(conv(x, edges, weight), want, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse:UserWarning")
def test_a_sparse_adjacency_matrix(edges):
    conv, x = made(), torch.randn(N, 5, dtype=torch.float64)
    ones = torch.ones(edges.shape[1], dtype=torch.float64)
    a = torch.sparse_coo_tensor(edges.flip(0), ones, (N, N), check_invariants=True)
    found = conv(x, a.coalesce().to_sparse_csr())
    torch.testing.assert_close(found, conv(x, edges), rtol=1e-12, atol=1e-12)


def test_equals_the_tied_layer_of_pyg(edges):
    """Outputs, and the gradient of θ = (s, W) that φᵀ pulls back."""
    conv, x = made(), torch.randn(N, 5, dtype=torch.float64)
    tied = conv.per_hop()
    assert isinstance(tied, TAGConv)
    out, want = tied(x, edges), conv(x, edges)
    torch.testing.assert_close(out, want, rtol=1e-12, atol=1e-12)
    out.square().sum().backward()
    want.square().sum().backward()
    (theta,) = [p for n, p in tied.named_parameters() if n != "bias"]
    mine = torch.cat([conv.hops.grad, conv.lin.weight.grad.reshape(-1)])
    torch.testing.assert_close(theta.grad, mine, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(tied.bias.grad, conv.bias.grad, rtol=1e-11, atol=1e-11)


def test_equals_matrices_that_scales_tie(edges):
    """The same by an equality of the transform, with the scalars as constants."""
    conv, x = made(), torch.randn(N, 5, dtype=torch.float64)
    stock = TAGConv(5, 4, K=3).double()
    maps = {f"lins.{k}.weight": eadem.Scale(s) for k, s in enumerate(conv.hops.tolist())}
    eadem.tie(stock, maps, start=conv.lin.weight.detach())
    with torch.no_grad():
        stock.bias.copy_(conv.bias)
    torch.testing.assert_close(stock(x, edges), conv(x, edges), rtol=1e-12, atol=1e-12)


def test_counts():
    conv = HopConv(30, 7, K=5)
    assert sum(p.numel() for p in conv.parameters()) == 30 * 7 + 6 + 7
    tied = conv.per_hop()
    assert eadem.counts(tied).free == 30 * 7 + 6 + 7 - 1
    assert eadem.counts(eadem.twin(tied)).free == 6 * 30 * 7 + 7


def test_the_twin_may_leave_the_tie(edges):
    tied, x = made().per_hop(), torch.randn(N, 5, dtype=torch.float64)
    free = eadem.twin(tied)
    torch.testing.assert_close(free(x, edges), tied(x, edges), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        free.lins[2].weight.add_(1.0)
    assert (free(x, edges) - tied(x, edges)).abs().max() > 0.1


def test_tying_a_trained_layer_takes_the_nearest_products():
    """Where the matrices are products they stay; where not, no products are nearer."""
    conv = made()
    stock = eadem.twin(conv.per_hop())
    before = [lin.weight.detach().clone() for lin in stock.lins]
    tie_hops(stock)
    for lin, was in zip(stock.lins, before, strict=True):
        torch.testing.assert_close(lin.weight.detach(), was, rtol=1e-10, atol=1e-10)
    other = TAGConv(5, 4, K=3).double()
    rows = torch.stack([lin.weight.detach().reshape(-1).clone() for lin in other.lins])
    tie_hops(other)
    found = torch.stack([lin.weight.detach().reshape(-1) for lin in other.lins])
    rest = torch.linalg.svdvals(rows)[1:].square().sum()
    assert (found - rows).square().sum() == pytest.approx(float(rest), rel=1e-10)


def test_starts_as_the_mean_over_hops():
    conv = HopConv(5, 4, K=3)
    assert torch.equal(conv.hops.detach(), torch.ones(4))
    assert torch.equal(conv.bias.detach(), torch.zeros(4))
    twice = copy.deepcopy(conv)
    twice.reset_parameters()
    assert not torch.equal(twice.lin.weight, conv.lin.weight)
    assert repr(conv) == "HopConv(5, 4, K=3)"


def test_sizes_found_on_first_use(edges):
    conv = HopConv(-1, 4)
    assert conv(torch.randn(N, 6), edges).shape == (N, 4)
    assert conv.lin.weight.shape == (4, 6)


def test_what_cannot_be():
    with pytest.raises(ShapeError, match="0 or more, not -1"):
        HopConv(2, 2, K=-1)
    with pytest.raises(Unsupported, match="takes a TAGConv"):
        tie_hops(nn.Linear(2, 2))
    with pytest.raises(Unsupported, match="sizes are known"):
        tie_hops(TAGConv(-1, 2))
    with pytest.raises(ShapeError, match=r"4 scalars and then \(2, 3\) numbers"):
        tie_hops(TAGConv(3, 2), start=torch.zeros(4))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "eadem.nn.hops")
    monkeypatch.delattr(eadem.nn, "hops", raising=False)
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(MissingPackage, match=r'pip install "eadem\[graph\]"'):
        _ = eadem.nn.HopConv
    with pytest.raises(AttributeError, match="no attribute 'Hop'"):
        _ = eadem.nn.Hop
