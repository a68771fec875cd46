"""Row 28: tensor parallelism keeps equal and transposed sites; other ties are refused before
anything is changed.

The processes are those of `distributed_worker.py`; here is what they must have found.
"""

import re

import pytest
from distributed_run import result

pytestmark = pytest.mark.timeout(660)

PLANS = (
    "equality rows",
    "equality rows, head first",
    "equality columns",
    "transpose",
    "transpose, decoder first",
    "transpose columns",
)


@pytest.mark.parametrize("plan", PLANS)
def test_equal_and_transposed_sites_train_as_in_one_process(plan: str) -> None:
    """Outputs, and 20 steps of Adam: a gradient counted twice would show at once."""
    for processes in (4, 2) if plan in ("equality rows", "transpose") else (2,):
        for one in result(processes, f"tensor:{plan}"):
            assert one["first"] <= 1e-14
            assert one["away"] <= 1e-12
            assert one["parameters"]
            assert one["split"]
            assert one["tied"]


@pytest.mark.parametrize(
    ("kind", "pattern"),
    [
        ("rotate", r"a.weight, b.weight would break Tie\(.*Rotate.*not equal or transposed"),
        ("palindrome", r"a.weight would break Tie\(.*Palindrome.*not equal or transposed"),
        ("part", r"a.weight\[1\], b.weight\[2\] would break Tie.*not equal or transposed"),
        ("positive", r"a.weight, b.weight would break Tie\(.*Positive"),
        ("half", r"a.weight would break Tie.*b.weight would be left whole; plan for its mod"),
        ("alias", r"holds one parameter as a.weight, b.weight.*eadem.tie\(model, 'a.weight'"),
    ],
)
def test_other_ties_are_refused_first(kind: str, pattern: str) -> None:
    for error, text in result(2, f"tensor-refused:{kind}"):
        assert error == "Unsupported"
        assert re.search(pattern, text), text
        if kind != "alias":
            assert "out of the plan, or untie it first" in text
