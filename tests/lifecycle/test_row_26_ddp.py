"""Row 26: DistributedDataParallel, without `find_unused_parameters`, where a step leaves a tied
site out; with activation checkpointing. Always equal to one process on the whole batch.

The processes are those of `distributed_worker.py`; here is what they must have found.
"""

import re

import pytest
from distributed_models import BRANCHES
from distributed_run import result
from lifecycle_systems import SYSTEMS

pytestmark = pytest.mark.timeout(660)

#: Of float64, after 20 steps of Adam.
ROUNDING = 1e-12


@pytest.mark.parametrize("name", [s.name for s in SYSTEMS])
def test_equals_one_process(name: str) -> None:
    free = next(s.free for s in SYSTEMS if s.name == name)
    for one in result(2, f"ddp:{name}"):
        assert one["away"] <= ROUNDING
        assert one["free"] == free


def test_four_processes_equal_one() -> None:
    for one in result(4, "ddp:kernels"):
        assert one["away"] <= ROUNDING
    for one in result(4, "ddp-unused:kernels"):
        assert max(one.values()) <= ROUNDING


@pytest.mark.parametrize("kind", BRANCHES)
def test_a_site_left_out_of_a_step_still_trains(kind: str) -> None:
    """Sites come and go from step to step; plainly, and with every layer checkpointed."""
    for one in result(2, f"ddp-unused:{kind}"):
        assert set(one) == {"None", "False"}
        assert max(one.values()) <= ROUNDING


def test_the_untied_model_is_stopped_by_such_a_step() -> None:
    """What the tie is relied on for: torch refuses the same steps of the stock model."""
    for kind, text in result(2, "ddp-stock"):
        assert kind == "RuntimeError"
        assert re.search("Expected to have finished reduction", text)


@pytest.mark.parametrize("kind", BRANCHES)
def test_reentrant_checkpointing(kind: str) -> None:
    """Torch asks for `static_graph=True` where a parameter is in two reentrant segments."""
    assert max(result(2, f"ddp-reentrant:{kind}")) <= ROUNDING


@pytest.mark.parametrize("kind", BRANCHES)
def test_gradients_accumulated_without_communication(kind: str) -> None:
    assert max(result(2, f"ddp-accumulated:{kind}")) <= ROUNDING
