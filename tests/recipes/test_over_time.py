"""The recipes heartbeat, spoken and market: quick runs, and their pieces on their own."""

import json

import pytest
import torch
from torch import nn

import eadem
from eadem.nn import LocallyConnected1d
from eadem.recipes import _heartbeats, heartbeat, run
from eadem.recipes import _over_time as over


def there(read):
    """What `read` reads; without its package the test is skipped, with the line to get it."""
    try:
        return read()
    except eadem.MissingPackage as missing:
        pytest.skip(str(missing))


def quick(name, folder):
    out = run(name, out=folder / name, quick=True)
    assert (out / "report.html").stat().st_size > 8_000
    return json.loads((out / "metrics.json").read_text())


def test_heartbeat(tmp_path):
    there(heartbeat.record)
    metrics = quick("heartbeat", tmp_path)
    (claim,) = metrics["claims"]
    assert claim["id"] == "C27"
    assert claim["holds"], claim["measured"]
    paired = metrics["tasks"]["anywhere"]["paired"]
    least = min(part["pvalue"] for part in metrics["evidence"]["at the beat"][0])
    assert paired["mean"] > 2 * paired["error"]
    assert least < 0.01 < min(p["pvalue"] for p in metrics["evidence"]["anywhere"][0])
    assert metrics["parameters"] == {"shared": 13, "unshared": 36 * 13}
    assert 60 < metrics["beats"] < 100  # a minute of a heart at rest


def test_spoken(tmp_path):
    from eadem.recipes import spoken

    there(lambda: spoken.utterances(0))
    metrics = quick("spoken", tmp_path)
    (claim,) = metrics["claims"]
    assert claim["holds"], claim["measured"]
    one = (spoken.FEATURES * spoken.TAPS + 1) * spoken.WIDTH
    head = (spoken.WIDTH + 1) * spoken.DIGITS
    assert metrics["parameters"] == {"shared": one + head, "unshared": 20 * one + head}
    words = spoken.utterances(0)
    assert words.windows.shape == (3000, 13, 24)
    assert words.answers.bincount().tolist() == [300] * 10
    assert not torch.equal(words.answers, spoken.utterances(1).answers)


def test_market(tmp_path):
    from eadem.recipes import market

    series = there(market.returns)
    assert len(series) == 2783
    metrics = quick("market", tmp_path)
    (claim,) = metrics["claims"]
    paired = claim["measured"]
    assert claim["holds"] == all(p["mean"] > 2 * p["error"] for p in paired.values())
    data = market.months(series, "size")
    assert len(data) == 2783 - 20
    torch.testing.assert_close(data.windows[3, 0], series[3:23])
    assert float(data.answers[3]) == pytest.approx(float((series[23].abs() + 0.1).log()))
    ups = market.months(series, "sign")
    assert int(ups.answers[3]) == int(series[23] > 0)


def test_a_constant_answer():
    from eadem.recipes import market

    windows = torch.zeros(4, 2, 20)
    learned = over.Data(windows, torch.tensor([0, 1, 1, 1]))
    test = over.Data(windows, torch.tensor([1, 1, 0, 0]))
    want = nn.functional.cross_entropy(torch.tensor([[0.25, 0.75]] * 4).log(), test.answers)
    assert market.constant(learned, test, "sign") == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_tied_is_a_convolution(pool):
    model = over.both(3, 2, 12, 4, 5, 3, pool=pool)["shared"]
    conv = nn.Conv1d(2, 4, 5)
    with torch.no_grad():
        conv.weight.copy_(model.filters.kernels[0])
        conv.bias.copy_(model.filters.bias[0])
    x = torch.randn(6, 2, 12)
    found = conv(x).relu()
    found = found.amax(2) if pool == "max" else found.mean(2)
    torch.testing.assert_close(model(x), model.head(found), rtol=1e-5, atol=1e-6)


def test_both_start_alike_and_only_one_may_differ_by_moment():
    models = over.both(3, 2, 12, 4, 5, 3, pool="max")
    x = torch.randn(6, 2, 12)
    torch.testing.assert_close(models["shared"](x), models["unshared"](x))
    assert eadem.counts(models["shared"]).free == 4 * 11 + 15
    assert eadem.counts(models["unshared"]).free == 8 * 4 * 11 + 15


def test_a_fit_keeps_its_best_state():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, 12, generator=generator)
    data = over.Data(x, (x[:, 0].amax(1) > 1.5).long())

    def loss(scores, answers):
        return nn.functional.cross_entropy(scores, answers, reduction="none")

    model = over.both(0, 2, 12, 4, 5, 2, pool="max")["shared"]
    seen = []

    def watch(steps):
        with torch.no_grad():
            seen.append(float(loss(model(x), data.answers).mean()))

    best = over.fit(model, data, data, loss, 0, 5, watch)
    with torch.no_grad():
        assert float(loss(model(x), data.answers).mean()) == pytest.approx(min(seen))
    assert seen[best - 1] == min(seen)


KERNEL = torch.tensor([1.0, -1.0, 0.5, 0.0, 0.0])


def _steady(alike):
    """Answers that are the mean over moments of one filter's output, or of two halves'."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(1000, 1, 12, generator=generator)
    found = x.squeeze(1).unfold(1, 5, 1) @ KERNEL
    if not alike:
        found[:, found.shape[1] // 2 :] *= -1
    noise = 0.1 * torch.randn(1000, generator=generator)
    return over.Data(x, found.relu().mean(1) + noise)


def test_the_mean_test_tells_a_true_tie_from_a_false_one():
    """At the true filter, where it is the true one and where half of the moments turn it."""

    def loss(said, answers):
        return (said.squeeze(1) - answers).square()

    model = over.OverTime(1, 12, 1, 5, 1, "mean")
    with torch.no_grad():
        for values, value in (
            (model.filters.kernels, KERNEL),
            (model.filters.bias, 0.0),
            (model.head.weight, 1.0),
            (model.head.bias, 0.0),
        ):
            values.copy_(torch.as_tensor(value).expand_as(values))
    least = {
        alike: min(part["pvalue"] for part in over.parts(model, _steady(alike), loss))
        for alike in (True, False)
    }
    assert least[False] < 1e-3 < least[True]


def test_least_squares_against_lstsq():
    signal = torch.randn(400, dtype=torch.float64)
    cut = heartbeat.windows(signal, torch.arange(0, 300, 3))
    found = heartbeat.filters(cut)
    at = 7
    assert torch.equal(cut[0][2, at, :-1], signal[6 + at : 6 + at + heartbeat.TAPS])
    assert cut[1][2, at] == signal[6 + at + heartbeat.TAPS - 1 + _heartbeats.AHEAD]
    ridge = heartbeat.RIDGE**0.5 * torch.eye(heartbeat.TAPS + 1, dtype=torch.float64)
    zeros = torch.zeros(heartbeat.TAPS + 1, dtype=torch.float64)
    want = torch.linalg.lstsq(
        torch.cat([cut[0][:, at], ridge]), torch.cat([cut[1][:, at], zeros])
    ).solution
    torch.testing.assert_close(found["unshared"][at], want)
    flat = torch.cat([cut[0].flatten(0, 1), ridge]), torch.cat([cut[1].flatten(), zeros])
    torch.testing.assert_close(found["shared"][0], torch.linalg.lstsq(*flat).solution)


def test_folds_do_not_touch():
    signal = torch.zeros(1000, dtype=torch.float64)
    first = heartbeat.starts(signal, "anywhere")
    for fold in range(heartbeat.FOLDS):
        learned, tested = _heartbeats.fold_of(signal, first, fold)
        assert len(learned) > 0
        assert len(tested) > 0
        apart = (learned[:, None] - tested[None]).abs().min()
        assert apart >= heartbeat.WINDOW


def test_sharing_over_time_without_biases():
    layer = LocallyConnected1d(1, 2, in_size=6, kernel_size=3, bias=False)
    over.share_over_time(layer)
    assert eadem.counts(layer).free == 6
