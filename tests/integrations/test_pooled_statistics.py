"""Solvers over several processes: expected counts and normal equations are pooled through the
tie before they travel, and every process finds what one finds with all the data.
"""

import re

import pytest
from distributed_run import result

pytestmark = pytest.mark.timeout(660)


@pytest.mark.parametrize("processes", [4, 2])
def test_em_equals_one_process(processes: int) -> None:
    every = result(processes, "pooled-em")
    for one in every:
        assert one["values"] <= 1e-14
        assert one["likelihood"] <= 1e-10
        assert one["gradient"] <= 1e-12
        assert one["iterations"][0] == one["iterations"][1] > 5
        # six faces that are free to differ, the log-likelihood and a flag; twelve sites
        assert set(one["sent"]) == {8}
    assert len({one["bits"] for one in every}) == 1


@pytest.mark.parametrize("processes", [4, 2])
def test_least_squares_equals_one_process(processes: int) -> None:
    every = result(processes, "pooled-least-squares:decays")
    for one in every:
        assert one["converged"]
        assert one["values"] <= 1e-12
        assert one["chi2"] <= 1e-12
        assert one["information"] <= 1e-12
    assert len({one["bits"] for one in every}) == 1


@pytest.mark.parametrize("processes", [4, 2])
def test_a_joint_fit_of_shared_out_data_is_that_of_all_the_data(processes: int) -> None:
    every = result(processes, "pooled-joint")
    for one in every:
        assert one["converged"]
        assert one["counts"] == [0, 0]
        assert one["values"] <= 1e-11
        assert one["stderr"] <= 1e-10
        assert one["covariance"] <= 1e-10
        assert one["chi2"] <= 1e-12
        assert one["profile"] <= 1e-7
        assert (
            one["notes"][0]
            == one["notes"][1]
            == ["held by a bound, without a standard error: b2.rate"]
        )
        assert "gathered" in one["refused"]["test"]
        assert "one process" in one["refused"]["loss"]
        assert "different free values" in one["refused"]["start"]
    assert sum(one["own"] for one in every) == 3 * 37
    assert len({one["bits"] for one in every}) == 1


@pytest.mark.parametrize("processes", [4, 2])
def test_what_travels_keeps_the_accuracy_of_the_jacobian(processes: int) -> None:
    """A degree-9 polynomial: the condition of its Jacobian is 10⁷, and of the normal equations
    10¹⁴, which would leave two figures.
    """
    every = result(processes, "pooled-least-squares:powers")
    for one in every:
        assert one["values"] <= 1e-5
    assert len({one["bits"] for one in every}) == 1


@pytest.mark.parametrize("processes", [4, 2])
def test_what_is_wrong_in_one_process_is_refused_in_all(processes: int) -> None:
    for one in result(processes, "pooled-refused"):
        for what, pattern in (
            ("start", "processes start from different free values.*broadcast"),
            ("counts", "counts must be finite and not negative"),
            ("residual", "residual is not finite"),
        ):
            kind, text = one[what]
            assert kind == "SolverError"
            assert re.search(pattern, text)
