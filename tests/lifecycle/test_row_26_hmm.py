"""Hidden Markov models whose sequences are spread over processes: one fit, the same for all."""

from __future__ import annotations

import pytest
from distributed_hmm import MODELS
from distributed_run import result

pytestmark = pytest.mark.timeout(660)
CASES = [*(f"hmm:{name}" for name in MODELS), "hmm-several", "hmm-pairs"]


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_processes_take_the_steps_of_one(case, processes):
    found = result(processes, case)
    assert len({f["bits"] for f in found}) == 1
    for f in found:
        assert f["moved"] > 1
        # Quasi-Newton steps magnify what rounding leaves different.
        gradient = case == "hmm:gradient"
        assert f["theta"] < (1e-5 if gradient else 1e-12)
        assert f["history"] < (1e-7 if gradient else 1e-13)


@pytest.mark.parametrize("processes", [2, 4])
def test_starts_are_drawn_once_and_set_ones_must_agree(processes):
    found = result(processes, "hmm-starts")
    assert len({f["drawn"] for f in found}) == 1
    assert all("start from different free values" in f["refused"] for f in found)
    assert all("n_features" in f["features"] for f in found)
