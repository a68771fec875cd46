"""The ties of a pair HMM under test: counted by rank, and the verdicts of three tests agree."""

from __future__ import annotations

import pytest
import torch

import eadem
from eadem.hmm import DNA, PROTEIN, PairHMM


@pytest.mark.parametrize(("alphabet", "a"), [(DNA, 4), (PROTEIN, 20), ("AB", 2)])
def test_free_values_are_counted_by_rank(alphabet, a):
    assert eadem.counts(PairHMM(alphabet)).free == a * a - 1 + 2 * (a - 1) + 5
    both = eadem.counts(PairHMM(alphabet, symmetric=True))
    assert both.free == a * (a + 1) // 2 - 1 + (a - 1) + 3
    model = PairHMM(alphabet)
    eadem.tie(model, "insert_x", "insert_y")
    assert eadem.counts(model).free == a * a - 1 + (a - 1) + 5


@pytest.fixture(scope="module")
def fits():
    truth = PairHMM("AB", symmetric=True)
    with torch.no_grad():
        dict(truth.named_parameters())["end"].fill_(0.02)
        truth.gap_open.fill_(0.06)
    pairs, _ = truth.sample(300, random_state=5)
    tied, apart = PairHMM("AB", symmetric=True), PairHMM("AB")
    for model in (tied, apart):
        model.fit(pairs, n_iter=500, tol=1e-9)
    return tied, apart, pairs


def test_score_and_likelihood_ratio_agree(fits):
    tied, apart, pairs = fits
    score = eadem.score_test(tied, PairHMM.log_density, [pairs])
    ratio = eadem.likelihood_ratio_test(tied, apart, PairHMM.log_density, [pairs])
    wald = eadem.wald_test(tied, apart, PairHMM.log_density, [pairs])
    assert score.df == ratio.df == wald.df == 4
    assert score.statistic == pytest.approx(ratio.statistic, rel=0.15)
    assert wald.statistic == pytest.approx(ratio.statistic, rel=0.15)
    assert ratio.statistic == pytest.approx(2 * (apart.score(pairs) - tied.score(pairs)))
    assert min(score.pvalue, ratio.pvalue, wald.pvalue) > 1e-3
    alone = eadem.score_test(tied, PairHMM.log_density, pairs, information="outer")
    at_once = eadem.score_test(tied, PairHMM.log_density, [pairs], information="outer")
    assert alone.statistic == pytest.approx(at_once.statistic, rel=1e-9)


def test_a_wrong_tie_is_found(fits):
    _, _, pairs = fits
    skewed = [(x[: 2 * len(x) // 3], y) for x, y in pairs]
    model = PairHMM("AB", symmetric=True).fit(skewed, n_iter=500, tol=1e-9)
    found = eadem.score_test(model, PairHMM.log_density, [skewed], information="outer")
    assert found.pvalue < 1e-10
    rows = {r.name: r for r in found.table().rows if r.kind == "tie"}
    assert rows["gap_extend[0], gap_extend[1]"].pvalue < 1e-6
