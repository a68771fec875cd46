"""The recipe tied-hmm: its quick run, and its fits against counts worked out by hand."""

import json

import numpy as np
import pytest

import eadem
from eadem.recipes import _tied_hmm_models as models
from eadem.recipes import run

pytest.importorskip("numba")


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("tied-hmm", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C21"
    assert claim["holds"], claim["measured"]


def test_free_values_are_counted_by_hand(metrics):
    """Eight moves are possible in four rows, twenty-four emissions in four rows, and the start
    is held: 4 + 20 of them free; the tie takes five.
    """
    assert metrics["free"]["untied"] - metrics["free"]["tied"] == 5


def test_a_wrong_tie_costs_in_the_end(metrics):
    """With the most data the tied error is the departure's; with it true, it is not."""
    last = {
        which: {name: np.mean(list(by.values())[-1]) for name, by in at.items()}
        for which, at in metrics["errors"].items()
    }
    assert last["true"]["tied"] < last["true"]["untied"]
    assert last["wrong"]["tied"] > 0.5 * metrics["floor"]


def test_the_tied_fixed_point_pools_the_counts_of_both_states():
    """At the end of EM the shared row is the posterior-weighted frequency of both states."""
    right = models.truth()
    data = models.drawn(right, 30, 4)
    hmm = models.fitted(right, data, tied=True)
    _, posterior = hmm.score_samples(data)
    symbols = np.concatenate(data)[:, 0]
    counts = np.array([[posterior[symbols == m, k].sum() for m in range(6)] for k in (0, 2)])
    pooled = counts.sum(0) / counts.sum()
    np.testing.assert_allclose(hmm.emissionprob_[0], pooled, atol=2e-4)
    assert (hmm.emissionprob_[0] == hmm.emissionprob_[2]).all()
    assert (hmm.transmat_[models.MOVES == 0] == 0).all()
    assert eadem.counts(hmm).free == eadem.counts(models.fitted(right, data, False)).free - 5
