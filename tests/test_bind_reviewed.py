"""Ways in which values went astray once: each must stay right, or be refused in time."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.func import functional_call

import eadem


@pytest.mark.parametrize("via", [eadem.Same(), eadem.Transpose(), eadem.Rotate(1)], ids=str)
@pytest.mark.parametrize("names", [["1"], ["0", "1"], ["1", "0"]], ids="".join)
@pytest.mark.parametrize(
    "kind", [torch.Tensor.clone, nn.Parameter], ids=["tensor", "parameter"]
)
def test_functional_call_with_a_site_changes_nothing(
    via: eadem.Map, names: list[str], kind: type
) -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    eadem.tie(model, "1.weight", to="0.weight", via=via)
    held, theta = model[0].weight.detach().clone(), model[0].weight
    given = {f"{n}.weight": kind(torch.randn(3, 3)) for n in names}
    before = {n: v.detach().clone() for n, v in given.items()}
    with pytest.raises(eadem.TieBroken, match=r"'1\.weight', which is tied.*0\.weight.*twin"):
        functional_call(model, given, (torch.ones(1, 3),))
    assert model[0].weight is theta
    assert torch.equal(theta, held)
    for n, v in given.items():
        assert torch.equal(v, before[n])


def test_functional_call_with_a_whole_site_where_theta_is_smaller() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 5))
    eadem.tie(model, "0.weight", via=eadem.Palindrome())
    x = torch.randn(1, 2, 9)
    with pytest.raises(eadem.TieBroken, match=r"shape \(12,\).*given shape \(2, 2, 5\)"):
        functional_call(model, eadem.materialize(model), (x,))
    torch.testing.assert_close(functional_call(model, model.state_dict(), (x,)), model(x))


def test_two_reads_before_two_writes() -> None:
    model = nn.Sequential(nn.Conv1d(2, 2, 5))
    eadem.tie(model, "0.weight", via=eadem.Palindrome())
    first, second = model[0].weight[0], model[0].weight[1]
    with torch.no_grad():
        first.zero_()
        second.fill_(1.0)
    assert model[0].weight[0].eq(0).all()
    assert model[0].weight[1].eq(1).all()


def test_a_read_held_over_a_step_is_brought_in_line() -> None:
    model = nn.Sequential(nn.Conv1d(1, 1, 5, bias=False))
    eadem.tie(model, "0.weight", via=eadem.Palindrome())
    held = model[0].weight
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.tensor([1.0, 2.0, 3.0]).reshape(p.shape))
        held[0, 0, 0] = 7.0
    assert model[0].weight.flatten().tolist() == [7.0, 2.0, 3.0, 2.0, 7.0]


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_values_that_are_not_finite(odd: float) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    eadem.tie(model, "*.weight")
    state = eadem.materialize(model)
    state["0.weight"], state["1.weight"] = torch.ones(2, 2), torch.full((2, 2), 5.0)
    state["1.weight"][0, 0] = odd
    with pytest.raises(eadem.TieConflict, match="disagree"):
        model.load_state_dict(state)
    state["0.weight"] = state["1.weight"].clone()
    model.load_state_dict(state)  # the same, if useless
    torch.testing.assert_close(model[0].weight, state["1.weight"], equal_nan=True)


def test_the_mean_of_complex_values() -> None:
    model = nn.Sequential(*[nn.Linear(2, 2, dtype=torch.complex64) for _ in range(2)])
    mean = (model[0].weight + model[1].weight).detach() / 2
    eadem.tie(model, "*.weight", start="mean")
    torch.testing.assert_close(model[0].weight.detach(), mean)


def test_threads_that_tie_and_copy_models_of_their_own() -> None:
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
                eadem.tie(model, "*.weight")
                torch.optim.SGD(copy.deepcopy(model).parameters(), lr=0.1).step()
                eadem.untie(model)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failed


def test_groups_with_options_that_are_tensors() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 6))
    eadem.tie(model, "0.bias[0:3]", "1.bias[3:6]")
    groups = [{"params": [p], "mask": torch.ones(2)} for p in model.parameters()]
    eadem.check_optimizers(model, torch.optim.SGD(groups, lr=0.1))
    groups[0]["mask"] = torch.zeros(2)
    for group in groups[1:]:
        group["mask"] = torch.ones(2)
    groups[1]["mask"] = torch.zeros(2)
    with pytest.raises(eadem.TieBroken, match="split"):
        eadem.check_optimizers(model, torch.optim.SGD(groups, lr=0.1))
