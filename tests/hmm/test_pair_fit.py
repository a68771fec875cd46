"""Baum–Welch under ties: every step gains, and the M-step is the general solver's."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import eadem
from eadem.bind import free_vector, resolved
from eadem.errors import TieConflict, Unsupported
from eadem.hmm import DNA, PROTEIN, PairHMM
from eadem.hmm.pair_mstep import MStep, _Closed
from eadem.maps import Affine, Fixed, Positive, Scale
from eadem.maps.dense import Dense
from eadem.solvers import m_step

sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_pair import random_model

#: Ties of one model; any of them may be declared together with any others.
TIES = {
    "insert": lambda m: eadem.tie(m, "insert_x", "insert_y", start="mean"),
    "open": lambda m: eadem.tie(m, "gap_open[0]", "gap_open[1]", start="mean"),
    "extend": lambda m: eadem.tie(m, "gap_extend[0]", "gap_extend[1]", start="mean"),
    "diagonal": lambda m: eadem.tie(m, *(f"match[{a}, {a}]" for a in range(4)), start="mean"),
    "rows": lambda m: eadem.tie(m, "match[0]", "match[3]", start="mean"),
    "purines": lambda m: eadem.tie(m, "insert_x[0]", "insert_x[2]", start="mean"),
    "across": lambda m: eadem.tie(m, "insert_x[1]", "insert_y[3]", start="mean"),
    "crossed": lambda m: eadem.tie(m, "match[0, 1]", "insert_y[0]", start="mean"),
    "gaps": lambda m: eadem.tie(
        m, {"gap_open[0]": Scale(0.5), "gap_open[1]": Scale(1.0)}, start="mean"
    ),
    "affine": lambda m: eadem.tie(
        m, {"gap_extend[0]": Scale(1.0), "gap_extend[1]": Affine(0.5, 0.2)}, start="mean"
    ),
    "fixed": lambda m: eadem.tie(m, "end", via=Fixed(0.02)),
}


def normalised(model):
    """The model with its distributions brought back to a sum of one, as ties may move them."""
    plan = resolved(model)
    sums = torch.zeros(3, plan.out_shape[0], dtype=torch.float64)
    for row, name in enumerate(("match", "insert_x", "insert_y")):
        sums[row, plan.slices[name]] = 1.0
    theta = free_vector(model).detach()
    off = 1.0 - sums @ plan.expand(theta)
    pulled = sums @ plan.dense()
    return theta + torch.linalg.pinv(pulled) @ off


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)
@given(ties=st.sets(st.sampled_from(sorted(TIES))), seed=st.integers(0, 1000))
def test_no_step_loses(ties, seed):
    model = random_model(seed=seed)
    pairs, _ = random_model(seed=seed + 1, gaps=(0.05, 0.1)).sample(4, random_state=seed)
    try:
        with eadem.plan(model):
            for name in sorted(ties):
                TIES[name](model)
    except TieConflict:
        assume(False)  # as Same and Scale on one pair
    eadem.bind.set_free_vector(model, normalised(model))
    assume(all(bool((p > 1e-6).all()) for p in values(model).values()))
    model.fit(pairs, n_iter=6, tol=0.0)
    history = model.monitor_.history
    assert all(b > a for a, b in itertools.pairwise(history))
    found = values(model)
    for name in ("match", "insert_x", "insert_y"):
        assert float(found[name].sum()) == pytest.approx(1.0, abs=1e-9)
    if "open" in ties and "gaps" not in ties:
        assert found["gap_open"][0] == found["gap_open"][1]
    assert model.score(pairs) == pytest.approx(history[-1], rel=1e-12)


def values(model):
    return {
        n: getattr(model, n).detach()
        for n in ("match", "insert_x", "insert_y", "gap_open", "gap_extend", "end")
    }


@pytest.mark.parametrize("ties", [(), ("insert", "open"), ("diagonal",), ("rows", "purines")])
def test_the_closed_form_is_the_general_solution(ties):
    model = random_model(seed=3)
    for name in ties:
        TIES[name](model)
    eadem.bind.set_free_vector(model, normalised(model))
    plan = MStep(model)
    rng = np.random.default_rng(0)
    counts = rng.gamma(2.0, size=len(plan.phi))
    closed = [p for p in plan.pieces if isinstance(p, _Closed)]
    assert closed
    theta = plan.step(counts)
    found = plan.phi @ theta + plan.shift
    sums = np.zeros((3, len(plan.phi)))
    for row, name in enumerate(("match", "insert_x", "insert_y")):
        sums[row, plan.slices[name]] = 1.0
    _, s, right = np.linalg.svd(sums @ plan.phi)
    basis = right[int((s > 1e-9).sum()) :].T
    whole = Dense(torch.from_numpy(plan.phi @ basis), torch.from_numpy(plan.values()))
    whole = whole.bind((len(plan.phi),))
    z = m_step(whole, torch.from_numpy(counts), torch.zeros(basis.shape[1]).double())
    np.testing.assert_allclose(found, whole.expand(z).numpy(), rtol=1e-7)


def test_symmetric_is_four_ties():
    model = PairHMM(DNA, symmetric=True)
    pairs, _ = random_model(seed=5).sample(12, random_state=0)
    model.fit(pairs, n_iter=20)
    found = values(model)
    assert torch.equal(found["match"], found["match"].T)
    assert torch.equal(found["insert_x"], found["insert_y"])
    apart = PairHMM(DNA).fit(pairs, n_iter=20)
    both = PairHMM(DNA).fit([*pairs, *((y, x) for x, y in pairs)], n_iter=20)
    for name, value in found.items():
        torch.testing.assert_close(value, values(both)[name], rtol=1e-6, atol=1e-9)
    assert apart.score(pairs) > model.score(pairs)


def test_a_fit_finds_what_was_sampled():
    truth = random_model(seed=6, gaps=(0.05, 0.1))
    pairs, _ = truth.sample(400, random_state=1)
    model = PairHMM(DNA).fit(pairs, n_iter=200, tol=1e-8)
    assert model.monitor_.converged
    assert model.score(pairs) > truth.score(pairs)
    for name, value in values(truth).items():
        torch.testing.assert_close(values(model)[name], value, rtol=0.25, atol=0.015)
    slopes = torch.autograd.grad(model.log_density(pairs).sum(), list(model.parameters()))
    named = dict(zip((n for n, _ in model.named_parameters()), slopes, strict=True))
    match, inside = named["match"].numpy(), values(model)["match"].numpy() > 1e-3
    assert match.max() == pytest.approx(match[inside].min(), rel=1e-3)  # one multiplier
    assert abs(float(named["gap_open"][0])) < 1e-3 * match.max()


def test_frozen_and_long_alphabets():
    model = PairHMM(PROTEIN, symmetric=True)
    dict(model.named_parameters())["match"].requires_grad_(False)
    held = model.match.detach().clone()
    pairs, _ = PairHMM(PROTEIN).sample(6, random_state=2)
    model.fit(pairs, n_iter=4)
    assert torch.equal(model.match.detach(), held)
    assert len(model.monitor_.history) == 5


def test_non_linear_ties_are_refused():
    model = PairHMM(DNA)
    eadem.tie(model, "end", via=Positive())
    with pytest.raises(Unsupported, match="non-linear"):
        model.fit([("ACGT", "ACT")])
