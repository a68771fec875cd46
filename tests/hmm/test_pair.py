"""The pair HMM against all alignments of short sequences, and against logarithms."""

from __future__ import annotations

import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import eadem
from eadem.errors import ShapeError, TooLarge
from eadem.hmm import DNA, PROTEIN, Alphabet, PairHMM, SequenceError
from eadem.solvers import SolverError

sys.path.insert(0, str(Path(__file__).resolve().parent))

from pair_oracle import enumerated, in_logs, probabilities


def random_model(alphabet=DNA, seed=0, symmetric=False, gaps=(0.05, 0.12), **given):
    """A model with random probabilities."""
    rng = np.random.default_rng(seed)
    model = PairHMM(alphabet, symmetric=symmetric, **given)
    a = len(model.alphabet)
    match = rng.dirichlet(np.full(a * a, 0.6)).reshape(a, a) + 0.3 * np.eye(a) / a
    values = {
        "match": match / match.sum(),
        "insert_x": rng.dirichlet(np.full(a, 2.0)),
        "insert_y": rng.dirichlet(np.full(a, 2.0)),
        "gap_open": rng.uniform(*gaps, 2),
        "gap_extend": rng.uniform(0.2, 0.7, 2),
        "end": rng.uniform(0.01, 0.05, 1),
    }
    if symmetric:
        values["match"] = (values["match"] + values["match"].T) / 2
        values["insert_y"] = values["insert_x"]
        for name in ("gap_open", "gap_extend"):
            values[name] = np.full(2, values[name][0])
    with torch.no_grad():
        for name, value in values.items():
            getattr(model, name).copy_(torch.tensor(value))
    return model


def letters(rng, n, a=4):
    return rng.integers(0, a, n)


SHORT = [(0, 0), (1, 0), (0, 2), (1, 1), (2, 3), (4, 2), (5, 5), (6, 4)]


@pytest.mark.parametrize(("n", "m"), SHORT)
def test_likelihood_best_path_and_posterior_are_those_of_all_alignments(n, m):
    rng = np.random.default_rng(10 * n + m)
    model = random_model(seed=n + m)
    x, y = letters(rng, n), letters(rng, m)
    total, (weight, path), posterior = enumerated(probabilities(model), x, y)
    assert model.score([(x, y)]) == pytest.approx(math.log(total), abs=1e-12)
    found = model.align(x, y)
    assert (found.path, found.log_probability) == (path, pytest.approx(math.log(weight)))
    got = model.posterior(x, y)
    np.testing.assert_allclose(got.match, posterior, atol=1e-13)
    np.testing.assert_allclose(got.match.sum(1) + got.insert_x, 1, atol=1e-13)
    np.testing.assert_allclose(got.match.sum(0) + got.insert_y, 1, atol=1e-13)
    assert got.log_likelihood == pytest.approx(math.log(total), abs=1e-12)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (6, 4), (3, 6)])
@pytest.mark.parametrize("band", [1, 2])
def test_a_band_leaves_the_alignments_within_it(n, m, band):
    rng = np.random.default_rng(n + m)
    model = random_model(seed=3)
    x, y = letters(rng, n), letters(rng, m)
    total, (weight, path), posterior = enumerated(probabilities(model), x, y, band)
    assert model.score([(x, y)], band=band) == pytest.approx(math.log(total), abs=1e-12)
    found = model.align(x, y, band=band)
    assert (found.path, found.log_probability) == (path, pytest.approx(math.log(weight)))
    got = model.posterior(x, y, band=band)
    np.testing.assert_allclose(got.match.toarray(), posterior, atol=1e-13)
    mea = model.align(x, y, method="mea", band=band)
    assert mea.accuracy == pytest.approx(sum(posterior[i, j] for i, j in mea.pairs))


def test_expected_accuracy_is_the_greatest_of_all_alignments():
    from pair_oracle import paths

    rng = np.random.default_rng(4)
    model = random_model(seed=5)
    x, y = letters(rng, 5), letters(rng, 6)
    posterior = model.posterior(x, y).match

    def accuracy(path):
        i = j = 0
        total = 0.0
        for s in path:
            total += posterior[i, j] if s == "M" else 0.0
            i, j = i + (s != "Y"), j + (s != "X")
        return total

    found = model.align(x, y, method="mea")
    assert found.accuracy == pytest.approx(max(map(accuracy, paths(5, 6))))
    assert found.accuracy == pytest.approx(accuracy(found.path))
    assert found.accuracy >= accuracy(model.align(x, y).path)


def mutated(rng, x, a=4):
    """A relative of x."""
    out = []
    for c in x:
        if rng.random() < 0.05:
            continue
        out.append(rng.integers(0, a) if rng.random() < 0.2 else c)
        if rng.random() < 0.05:
            out += list(rng.integers(0, a, rng.geometric(0.4)))
    return np.array(out)


@pytest.mark.parametrize(("alphabet", "size"), [(DNA, 4), (PROTEIN, 20)])
def test_likelihood_is_that_of_logarithms(alphabet, size):
    rng = np.random.default_rng(0)
    model = random_model(alphabet, seed=1)
    x = letters(rng, 90, size)
    for y in (mutated(rng, x, size), letters(rng, 70, size)):
        expected = in_logs(probabilities(model), x, y)
        assert model.score([(x, y)]) == pytest.approx(expected, rel=1e-12)
        assert model.posterior(x, y).log_likelihood == pytest.approx(expected, rel=1e-12)


def test_lost_digits_are_found_in_logarithms():
    rng = np.random.default_rng(1)
    model = random_model(seed=1)
    with torch.no_grad():
        model.gap_extend.fill_(1e-3)
    x, y = letters(rng, 200), letters(rng, 20)  # 180 insertions: about 1e-540
    expected = in_logs(probabilities(model), x, y)
    assert model.score([(x, y)]) == pytest.approx(expected, rel=1e-12)
    got = model.posterior(x, y)
    assert got.log_likelihood == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(got.match.sum(1) + got.insert_x, 1, atol=1e-10)


def test_an_insert_state_may_refuse_a_letter():
    model = random_model(seed=2)
    with torch.no_grad():
        model.insert_x.copy_(torch.tensor([0.5, 0.5, 0.0, 0.0]))
        model.insert_y.copy_(torch.tensor([0.0, 0.5, 0.5, 0.0]))
    rng = np.random.default_rng(3)
    x, y = letters(rng, 5), np.array([0, 3, 1, 2])
    total, (weight, path), posterior = enumerated(probabilities(model), x, y)
    assert model.score([(x, y)]) == pytest.approx(math.log(total), abs=1e-12)
    np.testing.assert_allclose(model.posterior(x, y).match, posterior, atol=1e-13)
    found = model.align(x, y)
    assert (found.path, found.log_probability) == (path, pytest.approx(math.log(weight)))
    assert model.score([([2, 3], [])]) == -math.inf
    with pytest.raises(SequenceError, match="no alignment"):
        model.align([2, 3], [])
    with pytest.raises(SolverError, match="pair 1"):
        model.fit([([0], [1]), ([2, 3], [])])


def test_an_ambiguous_letter_is_any_of_its_letters():
    model = random_model(seed=4)
    each = [model.score([(f"GA{a}TC", f"G{b}TC")]) for a in "AG" for b in "ACGT"]
    assert model.score([("GARTC", "GNTC")]) == pytest.approx(
        np.logaddexp.reduce(each), abs=1e-12
    )
    assert model.score([("garuc", "gntc")]) == model.score([("GARTC", "GNTC")])


def test_the_gradient_is_count_over_probability():
    rng = np.random.default_rng(6)
    model = random_model(seed=6)
    pairs = [("GATNACA", "GATTRA"), *((letters(rng, 8), letters(rng, 7)) for _ in range(2))]
    names = [n for n, _ in model.named_parameters()]

    def total(*values):
        data = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, data, (pairs,))

    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(total, values, eps=1e-6, atol=1e-6, rtol=1e-7)
    assert torch.autograd.gradgradcheck(total, values, eps=1e-6, atol=1e-5, rtol=1e-6)
    (slope,) = torch.autograd.grad(total(*values).sum(), values[:1])
    posterior = [model.posterior(x, y).match.sum() for x, y in pairs]
    assert float((slope * values[0]).detach().sum()) == pytest.approx(sum(posterior))


def test_swapping_changes_nothing_under_both_ties():
    rng = np.random.default_rng(7)
    x = letters(rng, 300)
    pairs = [(x, mutated(rng, x)), (letters(rng, 120), letters(rng, 40))]
    swapped = [(y, x) for x, y in pairs]
    both = random_model(seed=7, symmetric=True)
    for band in (None, 60):
        a, b = both.log_density(pairs, band), both.log_density(swapped, band)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    u, v = both.posterior(*pairs[0]), both.posterior(*swapped[0])
    np.testing.assert_allclose(u.match, v.match.T, atol=1e-10)
    np.testing.assert_allclose(u.insert_x, v.insert_y, atol=1e-10)
    both.fit(pairs, n_iter=3)
    assert both.score(pairs) == pytest.approx(both.score(swapped), abs=1e-10)
    alone = random_model(seed=7)
    eadem.tie(alone, "insert_x", "insert_y")
    eadem.tie(alone, "gap_open[0]", "gap_open[1]")
    eadem.tie(alone, "gap_extend[0]", "gap_extend[1]")
    assert abs(alone.score(pairs) - alone.score(swapped)) > 1e-3


def test_insertions_alone_do_not_notice_a_swap_under_the_insert_tie():
    model = random_model(seed=8)
    for name in ("gap_open", "gap_extend"):
        eadem.tie(model, f"{name}[0]", f"{name}[1]")
    eadem.tie(model, "insert_x", "insert_y")
    x = "GATTACA"
    assert model.score([(x, "")]) == pytest.approx(model.score([("", x)]), abs=1e-12)


def test_threads_and_batches_change_nothing():
    model = random_model(seed=9)
    pairs, _ = model.sample(9, random_state=1)
    alone = torch.cat([model.log_density([p]) for p in pairs])
    torch.testing.assert_close(alone, model.log_density(pairs), rtol=0, atol=0)
    assert model.log_density(pairs[0]).shape == (1,)
    many = random_model(seed=9, threads=2)
    torch.testing.assert_close(alone, many.log_density(pairs), rtol=0, atol=0)
    a, b = model.fit(pairs, n_iter=3), many.fit(pairs, n_iter=3)
    assert a.monitor_.history == pytest.approx(b.monitor_.history, rel=1e-13)


def test_samples_are_from_the_model():
    model = random_model(seed=11)
    pairs, aligned = model.sample(3000, random_state=0)
    steps = Counter(pairwise("".join("M" + a.path + "E" for a in aligned)))
    out = {s: sum(steps[s, to] for to in "MXYE") for s in "MXY"}
    assert steps["X", "Y"] == steps["Y", "X"] == 0
    for k, s in enumerate("XY"):
        opened, extended = steps["M", s] / out["M"], steps[s, s] / out[s]
        assert opened == pytest.approx(float(model.gap_open[k].detach()), rel=0.1)
        assert extended == pytest.approx(float(model.gap_extend[k].detach()), rel=0.1)
    assert pairs == [(a.x, a.y) for a in aligned]
    counts = np.zeros((4, 4))
    for a in aligned:
        for i, j in a.pairs:
            counts["ACGT".index(a.x[i]), "ACGT".index(a.y[j])] += 1
    np.testing.assert_allclose(counts / counts.sum(), model.match.detach(), atol=0.01)
    again, _ = model.sample(3000, random_state=0)
    assert again == pairs


def test_a_sample_knows_its_probability():
    model = random_model(seed=12)
    _, aligned = model.sample(5, random_state=2)
    for a in aligned:
        assert a.log_probability <= model.align(a.x, a.y).log_probability + 1e-9
        assert a.log_probability <= model.score([(a.x, a.y)]) + 1e-9


def test_long_pairs_in_a_band():
    rng = np.random.default_rng(13)
    model = random_model(seed=13, gaps=(0.01, 0.02))
    x = letters(rng, 6000)
    y = mutated(rng, x)
    narrow, wide = (model.score([(x, y)], band=b) for b in (150, 300))
    assert narrow == pytest.approx(wide, rel=1e-9)
    found = model.align(x, y, band=150)
    assert found.path.count("M") > 5000
    assert found.log_probability < narrow
    assert model.posterior(x, y, band=150).match.sum() == pytest.approx(
        len(x) - model.posterior(x, y, band=150).insert_x.sum(), abs=1e-8
    )
    with pytest.raises(TooLarge, match="band"):
        model.posterior(np.zeros(30_000, int), np.zeros(30_000, int))


def test_proteins_start_from_blosum62():
    model = PairHMM(PROTEIN)
    match, q = model.match.detach().numpy(), model.insert_x.detach().numpy()
    scores = 2 * np.log2(match / np.outer(q, q))
    at = PROTEIN.letters.index
    known = {"AA": 4, "WW": 11, "CC": 9, "WC": -2, "IL": 2, "DE": 2, "KR": 2, "PF": -4, "YF": 3}
    for (a, b), value in known.items():
        assert round(scores[at(a), at(b)]) == value
    np.testing.assert_allclose(model.insert_y.detach().numpy(), q, rtol=1e-12)
    assert model.align("HEAGAWGHEE", "PAWHEAE").path.count("M") == 7


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda m: m.score([("ACGT", "AC"), ("AC!T", "A")]), SequenceError, "x of pair 1.*'!'"),
        (lambda m: m.score([("ACGT", "AC-T")]), SequenceError, "y of pair 0.*position 2.*gaps"),
        (lambda m: m.score([([0, 15], [1])]), SequenceError, "15 at position 1"),
        (lambda m: m.score([([0.5], [1])]), SequenceError, "float64"),
        (lambda m: m.score(["ACGT"]), SequenceError, "pair 0 is str"),
        (lambda m: m.score([("A", "A")], band=0), ShapeError, "band=0"),
        (lambda m: m.align("A", "A", method="best"), ShapeError, "method='best'"),
        (lambda m: m.fit([]), SequenceError, "no pairs"),
    ],
)
def test_bad_input_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call(PairHMM(DNA))


def test_bad_alphabets_and_values_are_refused():
    with pytest.raises(SequenceError, match="each once"):
        PairHMM("AAB")
    with pytest.raises(SequenceError, match="are not letters"):
        Alphabet("AB", {"N": "ABC"})
    model = PairHMM("ab")
    with torch.no_grad():
        model.gap_open.fill_(0.6)
    with pytest.raises(SolverError, match="negative"):
        model.score([("ab", "a")])
    with torch.no_grad():
        model.gap_open.fill_(0.1)
        model.insert_x.fill_(0.4)
    with pytest.raises(SolverError, match=r"insert_x adds up to 0[.]8"):
        model.fit([("ab", "a")])
