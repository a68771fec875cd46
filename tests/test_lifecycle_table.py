"""The judge behind docs/guide/lifecycle-table.md, on models whose verdict is known."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import eadem
from lifecycle import oracle
from lifecycle.page import page, problems
from lifecycle.run import Found, Job, jobs
from lifecycle.subjects import FIVE, Subject
from lifecycle.table import rows
from lifecycle.verdict import Outcome, Verdict
from lifecycle.ways import ALIAS, EADEM, PARAMETRIZE, VIEW

EQUALITY, TRANSPOSE = FIVE[:2]


def _untied() -> nn.Module:
    """Sites that agree, in parameters of their own."""
    model = EQUALITY.stock()
    model.load_state_dict(EQUALITY.agreeing())
    return model


def _stale() -> nn.Module:
    """An alias whose output layer goes on with the first value."""
    model = ALIAS.tied(EQUALITY)
    kept = model.head.weight.detach().clone()
    model.head.forward = lambda x: x @ kept.t()
    return model


def _half_trained() -> nn.Module:
    """An alias whose embedding passes no gradient on."""
    model = ALIAS.tied(EQUALITY)
    model.embed.register_forward_hook(lambda m, args, out: out.detach())
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], Subject, Verdict]] = {
    "alias": (lambda: ALIAS.tied(EQUALITY), EQUALITY, Verdict.KEPT),
    "view": (lambda: VIEW.tied(TRANSPOSE), TRANSPOSE, Verdict.TWICE),
    "view, cast": (lambda: VIEW.tied(TRANSPOSE).double(), TRANSPOSE, Verdict.UNTIED),
    "untied": (_untied, EQUALITY, Verdict.UNTIED),
    "stale": (_stale, EQUALITY, Verdict.STALE),
    "half a gradient": (_half_trained, EQUALITY, Verdict.WRONG),
    "no site": (lambda: nn.Linear(2, 2), EQUALITY, Verdict.RAISES),
}


@pytest.mark.parametrize("case", list(CASES))
def test_a_known_model_has_its_verdict(case: str) -> None:
    model, subject, verdict = CASES[case]
    assert oracle.judge(model(), subject).verdict is verdict


@pytest.mark.parametrize("subject", FIVE, ids=lambda s: s.name)
@pytest.mark.parametrize("way", [EADEM, PARAMETRIZE], ids=lambda w: w.key)
def test_ways_that_can_say_a_tie_keep_it(way: object, subject: Subject) -> None:
    assert oracle.judge(way.tied(subject), subject) == Outcome(Verdict.KEPT)


def test_other_values_than_wanted_are_wrong() -> None:
    model = EADEM.tied(EQUALITY)
    assert oracle.judge(model, EQUALITY, want=EQUALITY.values(0)).verdict is Verdict.KEPT
    assert oracle.judge(model, EQUALITY, want=EQUALITY.values(1)).verdict is Verdict.WRONG


@pytest.mark.parametrize(
    ("error", "touched", "by_eadem", "verdict"),
    [
        (eadem.Unsupported("no"), False, True, Verdict.REFUSED),
        (eadem.Unsupported("no"), True, True, Verdict.RAISES),
        (RuntimeError("two parameters are shared"), False, True, Verdict.RAISES),
        (RuntimeError("two parameters are shared"), False, False, Verdict.REFUSED),
        (RuntimeError("size mismatch"), False, False, Verdict.RAISES),
        (AttributeError("no shared thing"), False, False, Verdict.RAISES),
    ],
)
def test_a_refusal_speaks_of_the_tie_and_changes_nothing(
    error: Exception, touched: bool, by_eadem: bool, verdict: Verdict
) -> None:
    model = ALIAS.tied(EQUALITY)

    def happens() -> None:
        with oracle.event(model):
            if touched:
                model.embed.weight.data.add_(1.0)
            raise error

    with pytest.raises(oracle.Stopped) as caught:
        happens()
    assert oracle.stopped(caught.value, by_eadem).verdict is verdict


def test_the_expected_step_is_that_of_a_model_tied_by_hand() -> None:
    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TRANSPOSE.stock()

        def forward(self, x: Tensor) -> Tensor:
            m = self.inner
            hidden = torch.tanh(m.encoder(x))
            return hidden @ m.encoder.weight.t().t() + m.decoder.bias

    hand = Hand().double()
    expected = oracle.expected_step(VIEW.tied(TRANSPOSE), TRANSPOSE, lr=0.1, decay=0.0)
    oracle.loss(hand(TRANSPOSE.input().double())).backward()
    moved = hand.inner.encoder.weight - 0.1 * hand.inner.encoder.weight.grad
    torch.testing.assert_close(expected["encoder.weight"], moved.detach())
    torch.testing.assert_close(expected["decoder.weight"], moved.detach().t())


def test_every_row_is_there_once() -> None:
    assert [r.number for r in rows()] == list(range(1, 41))


def test_the_page_tells_what_was_found() -> None:
    def found(way: str, declaration: str, outcome: Outcome, allowed: bool = True) -> Found:
        return Found(Job(1, 0, way, 0), declaration, "the model", "", outcome, allowed)

    given = [
        found("eadem", "equality", Outcome(Verdict.KEPT)),
        found("eadem", "transpose", Outcome(Verdict.UNTIED, "far | away"), allowed=False),
        found("alias", "equality", Outcome(Verdict.KEPT)),
        found("alias", "kernels", Outcome(Verdict.NOT_APPLICABLE, "cannot say it")),
    ]
    text = page(given)
    (line,) = [t for t in text.splitlines() if t.startswith("| 1 |")]
    assert "✗ **untied**<br><small>transpose. far &#124; away</small><br>✓ **kept**" in line
    assert "cannot say it" not in line
    assert problems(given) == ["row 1 the model (transpose): untied: far | away"]


def test_every_probe_is_listed() -> None:
    named = {(j.row, j.way) for j in jobs([1])}
    assert named == {(1, way.key) for way in (EADEM, ALIAS, VIEW, PARAMETRIZE)}
