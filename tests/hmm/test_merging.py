"""Ties that merge states leave other values without a meaning: no verdict is given of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import eadem
from eadem.evidence import EvidenceError
from eadem.hmm import CategoricalHMM, GaussianHMM, PoissonHMM

COUNT, LENGTH = 60, 20


def density(hmm, batch):
    frames = batch.reshape(-1, batch.shape[2])
    return hmm.log_density(frames, [batch.shape[1]] * len(batch))


def fitted(hmm, *ties, data):
    for pair in ties:
        eadem.tie(hmm, *pair, start="mean")
    hmm.fit(data.reshape(-1, data.shape[2]).numpy(), [LENGTH] * COUNT)
    return hmm


def asked(hmm, data, **given):
    return eadem.score_test(hmm, density, data, information="outer", **given)


def symbols(n):
    return torch.from_numpy(np.random.default_rng(0).integers(0, n, (COUNT, LENGTH, 1)))


def points():
    rng = np.random.default_rng(1)
    where = 3.0 * rng.integers(0, 2, (COUNT, LENGTH, 1))
    return torch.from_numpy(where + rng.normal(size=(COUNT, LENGTH, 2)))


def emissions(*states):
    return tuple(f"emissionprob[{k}]" for k in states)


# An aggregated chain with n and m states of two looks has 2nm identified moves (Fredkin &
# Rice, J. Appl. Prob. 23, 208, 1986), of K(K−1) that it has.
@pytest.mark.parametrize(("states", "merged", "lost"), [(2, (0, 1), 3), (3, (0, 1), 2)])
def test_states_with_one_emission_are_refused(states, merged, lost):
    data = symbols(4)
    hmm = fitted(
        CategoricalHMM(states, n_features=4, random_state=0, n_iter=30),
        emissions(*merged),
        data=data,
    )
    with pytest.raises(EvidenceError, match=rf"tell of {lost} of the .* Fix or tie"):
        asked(hmm, data)
    wide = fitted(CategoricalHMM(states, n_features=4, random_state=0, n_iter=30), data=data)
    given = (hmm, wide, density, data)
    for test in (eadem.wald_test, eadem.likelihood_ratio_test):
        with pytest.raises(EvidenceError, match="merges states"):
            test(*given, information="outer")
    found = eadem.compare({"one": hmm, "two": wide}, density, data, information="outer")
    assert found.rows[0].ratio is None
    assert any("one, not tested against two" in n for n in found.notes)


def test_what_has_no_meaning_may_be_fixed():
    data = symbols(4)
    hmm = fitted(
        CategoricalHMM(2, n_features=4, random_state=0, n_iter=30),
        emissions(0, 1),
        data=data,
    )
    for name in ("startprob", "transmat"):
        getattr(hmm, name).requires_grad_(False)
    assert asked(hmm, data).df == 3


def test_a_chain_that_keeps_merged_states_apart_is_judged():
    """0 → 1 → 2 → 0 with 0 and 2 alike: where it is, is told by what came before."""
    data = symbols(3)
    hmm = CategoricalHMM(3, n_features=3, init_params="", params="te", n_iter=30)
    hmm.startprob_ = [0.4, 0.3, 0.3]
    hmm.transmat_ = [[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.5, 0.0, 0.5]]
    hmm.emissionprob_ = [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]
    for i, j in ((0, 2), (1, 0), (2, 1)):
        eadem.tie(hmm, f"transmat[{i}, {j}]", via=eadem.Fixed(0.0))
    hmm.startprob.requires_grad_(False)
    fitted(hmm, emissions(0, 2), data=data)
    assert asked(hmm, data, release="emissionprob[2]").df == 2


@pytest.mark.parametrize(
    ("kind", "ties", "refused"),
    [
        ("diag", [("means[0]", "means[1]")], False),
        ("diag", [("means[0]", "means[1]"), ("covars[0]", "covars[1]")], True),
        ("full", [("means[0]", "means[1]"), ("covars[0]", "covars[1]")], True),
        ("tied", [("means[0]", "means[1]")], True),
        ("spherical", [("covars[0]", "covars[1]")], False),
    ],
)
def test_gaussian_states_merge_when_nothing_tells_them_apart(kind, ties, refused):
    data = points()
    hmm = GaussianHMM(
        3, n_features=2, covariance_type=kind, random_state=0, n_iter=10, min_covar=1e-2
    )
    fitted(hmm, *ties, data=data)
    if refused:
        with pytest.raises(EvidenceError, match="merges states"):
            asked(hmm, data)
    else:
        assert asked(hmm, data).df == (1 if kind == "spherical" else 2)


def test_rates_and_moves():
    data = symbols(9)
    rates = PoissonHMM(3, n_features=1, random_state=0, n_iter=10)
    with pytest.raises(EvidenceError, match="tell of 2 of the 11"):
        asked(fitted(rates, ("lambdas[0]", "lambdas[1]"), data=data), data)
    moves = PoissonHMM(3, n_features=1, random_state=0, n_iter=10)
    assert asked(fitted(moves, ("transmat[0, 1]", "transmat[1, 0]"), data=data), data).df == 1


def test_a_model_within_a_model_is_looked_at():
    data = symbols(4)
    whole = nn.ModuleDict(
        {k: CategoricalHMM(2, n_features=4, random_state=0, n_iter=30) for k in "ab"}
    )
    for hmm in whole.values():
        fitted(hmm, data=data)
    eadem.tie(whole, "a.emissionprob", "b.emissionprob", start="mean")

    def both(model, batch):
        return density(model["a"], batch[:, :10]) + density(model["b"], batch[:, 10:])

    assert eadem.score_test(whole, both, data, information="outer").df > 0
    eadem.tie(whole, "a.emissionprob[0]", "a.emissionprob[1]", start="mean")
    with pytest.raises(EvidenceError, match="tell of 6 of the"):
        eadem.score_test(whole, both, data, information="outer")
