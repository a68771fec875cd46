"""What is odd but legal, and what is refused: empty batches, fixed values, no observation."""

import math
import pickle

import pytest
import torch
from torch import nn

import eadem
from eadem import evidence
from eadem.errors import EademError
from eadem.evidence import EvidenceError
from eadem.groups import Cyclic


class Pair(nn.Module):
    """Two means of n values."""

    def __init__(self, n=2, **kind):
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.zeros(n, **kind)) for _ in range(2))


def pair(n=2, **kind):
    model = Pair(n, **kind)
    eadem.tie(model, "a", "b")
    return model


def density(model, x):
    """Unit normal, (n, 2, values)."""
    return -0.5 * (x - torch.stack([model.a, model.b])).square().sum((1, 2))


def means(model, x):
    return torch.stack([model.a, model.b]).expand(len(x), 2, -1)


@pytest.fixture
def seen():
    torch.manual_seed(0)
    return torch.randn(12, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize("information", ["observed", "outer", means])
def test_an_empty_batch_among_others_says_nothing(seen, information):
    whole = evidence.score_test(pair(), density, seen, information=information)
    cut = evidence.score_test(
        pair(), density, [seen[:5], seen[:0], seen[5:]], information=information
    )
    assert cut.statistic == pytest.approx(whole.statistic, rel=1e-12)
    assert cut.robust.statistic == pytest.approx(whole.robust.statistic, rel=1e-12)


def test_a_density_that_one_batch_has_no_parameter_in_counts_as_flat(seen):
    def partly(model, batch):
        x, used = batch
        return density(model, x) if used else torch.zeros(len(x), dtype=torch.float64)

    found = evidence.score_test(pair(), partly, [(seen, True), (seen, False)])
    alone = evidence.score_test(pair(), density, seen)
    assert found.statistic == pytest.approx(alone.statistic, rel=1e-12)
    assert found.robust.statistic == pytest.approx(alone.robust.statistic, rel=1e-12)


def test_a_tie_that_fixes_everything_is_tested_against_nothing_free(seen):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2))
    eadem.tie(model, "w", via=eadem.Fixed(torch.zeros(2)))
    x = seen[:, 0]
    found = evidence.score_test(model, lambda m, x: -0.5 * (x - m.w).square().sum(1), x)
    assert found.df == 2
    assert found.statistic == pytest.approx(len(x) * float(x.mean(0).square().sum()), rel=1e-12)


def test_a_score_test_is_pickled_with_its_table(seen):
    found = evidence.score_test(pair(), density, seen)
    again = pickle.loads(pickle.dumps(found))
    assert str(again.table()) == str(found.table())
    assert again.again("a").statistic == found.again("a").statistic


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda m, x: evidence.score_test(m, density, x, 3), "release=3; name sites"),
        (lambda m, x: evidence.score_test(m, density, x).again(3), "release=3; name sites"),
        (lambda m, x: evidence.score_test(m, density, x, x[0] * torch.nan), "one row for each"),
        (
            lambda m, x: evidence.score_test(m, density, x, torch.full((4, 1), torch.nan)),
            "`release` is not finite",
        ),
        (
            lambda m, x: evidence.score_test(m, density, x, cluster="ab"),
            "number of its cluster",
        ),
        (lambda m, x: evidence.score_test(m, density, x[:0]), "holds no observation"),
        (lambda m, x: evidence.score_test(nn.ReLU(), density, x), "no values that data"),
        (lambda m, x: evidence.score_test(pair(0), density, x), "no values that data"),
        (lambda m, x: evidence.score_test(3, density, x), r"nn\.Module"),
        (lambda m, x: evidence.score_test(m.to("meta"), density, x), "meta device"),
        (
            lambda m, x: evidence.score_test(m, density, x, information=lambda m, x: None),
            "gave a NoneType",
        ),
        (lambda m, x: evidence.wald_test(m, pair().to("meta"), density, x), "meta device"),
    ],
)
def test_what_a_score_test_cannot_be_made_of_is_said(seen, asked, said):
    with pytest.raises(EademError, match=said):
        asked(pair(), seen)


def test_the_free_values_of_a_model_without_parameters_are_none():
    assert eadem.bind.free_vector(nn.ReLU()).shape == (0,)
    with pytest.raises(EvidenceError, match="no values"):
        evidence.example_gradients(nn.ReLU(), density, torch.zeros(3, 2, 2))


def spectrum_of(*left, right, n=10):
    """The spectrum of n equal samples, of rank one."""
    one = torch.outer(torch.tensor(left), torch.tensor(right)).double()
    return evidence.spectrum(one.expand(n, *one.shape))


@pytest.mark.parametrize("side", [4, 70])
def test_samples_of_exactly_one_direction_have_rank_one(side):
    found = spectrum_of(*[1.0] * side, right=[1.0, 2.0] * (side // 2))
    assert found.rank == 1


@pytest.mark.parametrize("side", [4, 70])
def test_a_mean_whose_rows_sum_to_zero_has_a_spectrum(side):
    found = spectrum_of(*[1.0, -1.0] * (side // 2), right=[1.0, -1.0] * (side // 2))
    assert found.rank == 1
    assert found.values[0] == pytest.approx(side, rel=1e-12)


@pytest.mark.parametrize("shape", [(10, 4, 4), (10, 70, 70), (10, 0, 4), (10, 4, 0)])
def test_samples_that_are_zero_or_empty_have_rank_zero(shape):
    assert evidence.spectrum(torch.zeros(shape)).rank == 0


@pytest.mark.parametrize("given", [{"level": 2}, {"level": 0.0}, {"flips": 0}, {"most": -1}])
def test_a_spectrum_says_what_its_level_and_flips_may_be(given):
    with pytest.raises(EvidenceError, match="between 0 and 1"):
        evidence.spectrum(torch.ones(10, 2, 2), **given)


def test_means_that_are_not_finite_are_refused():
    with pytest.raises(EvidenceError, match="not all finite"):
        evidence.mean_test(torch.full((5, 2), torch.nan))


def test_a_site_mean_test_needs_no_free_value(seen):
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2))
    eadem.tie(model, "w", via=eadem.Fixed(torch.zeros(2)))
    found = evidence.site_mean_test(
        model, lambda m, x: -0.5 * (x - m.w).square().sum(1), seen[:, 0]
    )
    assert found["joint"].entries == 2


def relaxed(*shape, device="cpu", **given):
    model = nn.ParameterList(
        [nn.Parameter(torch.zeros(shape, device=device)) for _ in range(2)]
    )
    eadem.tie(model, "*")
    return evidence.relax(model, "1", **given)


def test_a_remainder_without_values_or_on_meta_is_taken_back():
    assert relaxed(3, 0, penalty=1.0).tie() == 0.0
    assert math.isnan(relaxed(3, 2, rank=1, device="meta").tie())


def test_what_relax_is_given_is_checked():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    eadem.tie(model, "*.weight")
    batches = [torch.randn(3, 4) for _ in range(8)]
    with pytest.raises(eadem.Unsupported, match="give the optimizer"):
        evidence.relax(model, "1.weight", 1, optimizer=[3])
    with pytest.raises(eadem.Unsupported, match="give the optimizer"):
        evidence.relax(model, "1.weight", 1, optimizer=3)
    with pytest.raises(EvidenceError, match="no gradient"):
        evidence.relax(model, "1.weight", loss=lambda m, b: torch.zeros(()), batches=batches)
    assert evidence.relaxed(model) == []


def test_elements_at_which_nothing_is_compared_have_no_error():
    x = torch.randn(1, 4, dtype=torch.float64)
    found = evidence.certify(lambda v: v * torch.arange(4.0), evidence.Shifts(-1, margin=1), x)
    assert found.tried == 4
    assert [e for (e,), _ in found.errors] == [
        0,
        1,
        3,
    ]  # two apart, no inner place meets another
    assert all(error >= 0 for _, error in found.errors)
    assert found.compared == (2 + 1 + 0 + 1) / 16


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda x: evidence.certify(nn.ReLU(), 3, x), "group=3; give a group"),
        (lambda x: evidence.certify(nn.ReLU(), Cyclic(4), x.to("meta")), "meta device"),
        (lambda x: evidence.certify(lambda v: v > 0, Cyclic(4), x), "truth values"),
        (lambda x: evidence.certify(nn.ReLU(), Cyclic(4), x, tolerance=-1.0), "0 or more"),
        (lambda x: evidence.certify(nn.ReLU(), Cyclic(4), x, tolerance=math.nan), "0 or more"),
        (lambda x: evidence.certify(lambda v: v / 0, Cyclic(4), x), "value at 1 is not finite"),
        (lambda x: evidence.Shifts(()), "names no axis"),
        (lambda x: evidence.Shifts(-1, margin=-1), "`margin` is -1"),
        (lambda x: evidence.Shifts((-2, -1), size=(2, -1)), "`size` is"),
        (lambda x: evidence.Shifts(-1, stride=0), "`stride` is 0; it is 1 or more"),
    ],
)
def test_a_certificate_says_what_it_cannot_be_made_of(asked, said):
    with pytest.raises(EvidenceError, match=said):
        asked(torch.randn(1, 2, 4, 4))


def test_the_conflict_of_foreign_gradients_and_models_without_names_are_refused(seen):
    model = pair()
    with evidence.trace(model) as trace:
        density(model, seen.float()).sum().backward()
    with pytest.raises(EvidenceError, match=r"'c': \(2,\)"):
        trace.conflict({"c": torch.zeros(2)})
    with pytest.raises(EvidenceError, match=r"'a': \(3,\)"):
        trace.conflict({"a": torch.zeros(3)})
    with pytest.raises(EvidenceError, match="by name"):
        evidence.compare([model, model], density, seen)


def test_a_choice_that_is_unknown_is_an_error_of_eadem():
    model = Pair()
    with pytest.raises(eadem.OutOfRange, match="'strict'"):
        eadem.tie(model, "a", "b", start="median")
    with pytest.raises(eadem.Unsupported, match="not both"):
        eadem.tie(model, {"a": eadem.Same()}, "b", via=eadem.Same())
    with pytest.raises(eadem.Unsupported, match="needs a map"):
        eadem.tie(model, {"a": eadem.Same(), "b": "same"})
    assert eadem.ties(model) == []


def test_the_expected_information_of_a_gaussian_is_the_observed_one(seen):
    tied, untied = pair(dtype=torch.float64), Pair(dtype=torch.float64)
    with torch.no_grad():
        tied.a.copy_(seen.mean((0, 1)))
        untied.a.copy_(seen[:, 0].mean(0))
        untied.b.copy_(seen[:, 1].mean(0))
    for test in (evidence.wald_test, evidence.likelihood_ratio_test):
        observed = test(tied, untied, density, seen)
        expected = test(tied, untied, density, seen, information=means)
        assert expected.df == observed.df == 2
        assert expected.statistic == pytest.approx(observed.statistic, rel=1e-9)


def test_a_site_mean_test_of_one_site_names_it_alone(seen):
    every = evidence.site_mean_test(pair(), density, seen)
    one = evidence.site_mean_test(pair(), density, seen, release="a")
    assert set(every) == {"joint", "a", "b"}
    assert set(one) == {"joint", "a"}
    assert one["a"] == every["a"]


def test_example_gradients_are_of_the_dtype_asked_for(seen):
    wide = evidence.example_gradients(pair(), density, seen)
    narrow = evidence.example_gradients(pair(), density, seen, torch.float32)
    assert {g.dtype for g in narrow.values()} == {torch.float32}
    torch.testing.assert_close(narrow["a"], wide["a"].float())
