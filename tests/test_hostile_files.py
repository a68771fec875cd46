"""Files from anywhere: a typed error and an untouched model, or a right load; nothing else."""

from __future__ import annotations

import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import eadem
from eadem.store import layout
from eadem.store.layout import TensorFile
from hostile_files import Case, Net, build, cases, judge, numbers, spoiled, state

ROUNDS = 1000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cases(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("part", range(4))
def test_spoiled_files(part: int, written: list[Case], tmp_path: Path) -> None:
    case = written[part]
    path = tmp_path / "spoiled"
    seen: Counter[str] = Counter()
    models = [build(case.stock), case.tied()]
    for seed in range(part * ROUNDS, part * ROUNDS + ROUNDS // 4):
        path.write_bytes(spoiled(case.data, seed))
        start = time.monotonic()
        try:
            with torch.random.fork_rng():
                found = judge(path, models[seed % 2])
        except Exception as error:
            raise AssertionError(f"case {part}, seed {seed}") from error
        assert time.monotonic() - start < 20, f"case {part}, seed {seed} took too long"
        seen[found] += 1
        if found == "loaded":
            models = [build(case.stock), case.tied()]
    assert seen["loaded"] > 0
    assert seen["RecordError"] > 100


# records, by hand

WIDE = "wide.weight"
SAME: dict[str, Any] = {"kind": "Same", "args": {}}


def record_of(spec: Any, site: str = WIDE, **more: Any) -> dict[str, Any]:
    """A record of one tie of one site."""
    name = site.partition("[")[0]
    shape = [16, 16] if name == WIDE else [16]
    run = {"sites": [site], "map": spec}
    return {"format": "eadem", "version": 1, "sites": {name: shape}, "ties": [[run]]} | more


def map_of(kind: str, **args: Any) -> dict[str, Any]:
    return {"kind": kind, "args": args}


def array(values: list[Any], dtype: str = "int64", shape: list[Any] | None = None) -> Any:
    about = {"dtype": dtype, "shape": [len(values)] if shape is None else shape}
    return {"array": about | {"values": values}}


def hashed(digest: str) -> Any:
    return {"array": {"dtype": "int64", "shape": [16], "sha256": digest}}


def nested_list(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


def nested(depth: int) -> Any:
    spec: Any = SAME
    for _ in range(depth):
        spec = map_of("LinearComposed", outer=SAME, inner=spec)
    return spec


HUGE = 10**12
REFUSED: dict[str, tuple[Any, str]] = {
    "unknown kind": (record_of(map_of("Nonsense")), "Nonsense"),
    "a kind of Python's": (record_of(map_of("os:system")), "os:system"),
    "a base class": (record_of(map_of("IndexMap")), "base class"),
    "a key too many": (record_of(SAME, extra=1), "extra"),
    "a key too many in a map": (record_of(SAME | {"code": "x"}), "code"),
    "shapes outside a composition": (record_of(SAME | {"shapes": [[1], [1]]}), "shapes"),
    "too deep": (record_of(nested(200)), "inside each other"),
    "too deep in lists": (
        record_of(map_of("Permute", dims=nested_list(200))),
        "inside each other",
    ),
    "not a number": (record_of(map_of("Scale", c=float("nan"))), "written as text"),
    "infinite": (record_of(map_of("Scale", c={"float": "inf"})), "unfit"),
    "a float by another word": (record_of(map_of("Scale", c={"float": "1e5"})), "float"),
    "an integer of 100 bits": (record_of(map_of("Rotate", k=1 << 100)), "64 bits"),
    "a text too long": (record_of(map_of("Scale", c="9" * 5000)), "5000 characters"),
    "a name too long": (record_of(map_of("S" * 5000)), "no name"),
    "a rank too high": (record_of(SAME, sites={WIDE: [1] * 40}), "no shape"),
    "a shape of memory": (record_of(SAME, sites={WIDE: [2**40, 2**40]}), "any memory"),
    "a negative size": (record_of(SAME, sites={WIDE: [-16, -16]}), "no shape"),
    "a size that is true": (record_of(SAME, sites={WIDE: [True, 16]}), "no shape"),
    "a site without a shape": (record_of(SAME, sites={}), "no shape"),
    "an index outside": (record_of(SAME, "wide.bias[99]"), "outside"),
    "an index that is code": (record_of(SAME, "wide.bias[__import__('os')]"), "not a site"),
    "an index of brackets": (record_of(SAME, "wide.bias[" + "(" * 3000), "not a site|damaged"),
    "an index of digits": (record_of(SAME, "wide.bias[" + "9" * 4000 + "]"), "wide.bias"),
    "a buffer": (record_of(SAME, sites={"norm.running_mean": [4], WIDE: [16, 16]}), "not have"),
    "another site's shape": (record_of(SAME, sites={"norm.running_mean": [4]}), "no shape"),
    "a gather too short": (record_of(map_of("Gather", index=array([0]), in_shape=None)), "ind"),
    "an index below −1": (
        record_of(map_of("Gather", index=array([-9] * 16), in_shape=None), "wide.bias"),
        "-9",
    ),
    "an index beyond θ": (
        record_of(map_of("Gather", index=array([9] * 16), in_shape=[4]), "wide.bias"),
        "reaches 9",
    ),
    "an index of all memory": (
        record_of(map_of("Gather", index=array([0] * 16), in_shape=[HUGE]), "wide.bias"),
        "free values",
    ),
    "an index that asks for θ of all memory": (
        record_of(map_of("Gather", index=array([HUGE] * 16), in_shape=None), "wide.bias"),
        "free values",
    ),
    "a window of all memory": (
        record_of(
            map_of("Toeplitz2d", in_size=4, kernel_size=2 * HUGE + 1, stride=1, padding=HUGE)
        ),
        "free values|window|needs",
    ),
    "a signal of all memory": (
        record_of(map_of("Local1d", in_size=HUGE, kernel_size=1, stride=1, padding=0)),
        "needs",
    ),
    "a composition that is large inside": (
        record_of(
            map_of(
                "LinearComposed",
                outer=map_of("Gather", index=array([0] * 16), in_shape=[HUGE]),
                inner=map_of("Fixed", value=0.0),
            ),
            "wide.bias",
        ),
        "free values",
    ),
    "an array of another length": (
        record_of(map_of("Gather", index=array([0], shape=[16]), in_shape=None), "wide.bias"),
        "fill no shape",
    ),
    "an array of text": (
        record_of(map_of("Fixed", value=array(["a"] * 16, "float32")), "wide.bias"),
        "no value of float32",
    ),
    "an array of fractions for integers": (
        record_of(map_of("Gather", index=array([0.5] * 16), in_shape=None), "wide.bias"),
        "no value of int64",
    ),
    "an array of no type": (
        record_of(map_of("Fixed", value=array([0] * 16, "qint8")), "wide.bias"),
        "unknown type",
    ),
    "an attribute of torch as a type": (
        record_of(map_of("Fixed", value=array([0] * 16, "save")), "wide.bias"),
        "unknown type",
    ),
    "an inline array too large": (
        record_of(map_of("Fixed", value=array([0.0] * 20_000, "float64")), "wide.bias"),
        "kept by its hash",
    ),
    "an array that is not there": (
        record_of(
            map_of(
                "Fixed", value={"array": {"dtype": "int64", "shape": [16], "sha256": "0" * 64}}
            ),
            "wide.bias",
        ),
        "hash",
    ),
    "no hash": (
        record_of(
            map_of("Fixed", value=hashed("zz")),
            "wide.bias",
        ),
        "SHA-256",
    ),
    "a function of Python's": (
        record_of(map_of("Function", f={"function": "os:system"}, inverse=None, in_shape=None)),
        "own library",
    ),
    "a function that seeds": (
        record_of(
            map_of("Function", f={"function": "torch:manual_seed"}, inverse=None, in_shape=None)
        ),
        "value by value",
    ),
    "a site twice in a tie": (
        record_of(SAME) | {"ties": [[{"sites": [WIDE, "wide.weight[:]"], "map": SAME}]]},
        "twice",
    ),
    "scales that contradict": (
        record_of(SAME, sites={"norm.weight": [4], "norm.bias": [4]})
        | {
            "ties": [
                [
                    {"sites": ["norm.weight"], "map": SAME},
                    {"sites": ["norm.bias"], "map": map_of("Scale", c=2.0)},
                ],
                [{"sites": ["norm.weight", "norm.bias"], "map": SAME}],
            ]
        },
        "do not fit",
    ),
}


@pytest.mark.parametrize("what", list(REFUSED))
def test_a_record_is_refused_before_anything_is_built(what: str, tmp_path: Path) -> None:
    found, says = REFUSED[what]
    torch.manual_seed(0)
    randomness = torch.get_rng_state()
    model = build(Net)
    before, held = state(model), numbers(model)
    start, memory = time.monotonic(), _resident()
    with pytest.raises(eadem.RecordError, match=says):
        eadem.apply(model, found)
    path = tmp_path / "x"
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        path,
        metadata={"eadem": json.dumps(found)},
    )
    with pytest.raises(eadem.RecordError):
        eadem.load(model, path)
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(numbers(model), held, strict=True))
    assert torch.equal(torch.get_rng_state(), randomness)
    assert time.monotonic() - start < 10
    assert _resident() - memory < 64 << 20


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["kind", "args", "sites", "map", "array", "float", "x", "shapes"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(
    spec=JSON,
    kind=st.sampled_from(["Same", "Flip", "Gather", "Scale", "Toeplitz2d", "Stack", "Dense"]),
    args=st.dictionaries(
        st.sampled_from(["dims", "index", "in_shape", "c", "in_size", "kernel_size", "parts"]),
        JSON,
        max_size=3,
    ),
)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_json_is_a_typed_error_or_a_tie(spec: Any, kind: str, args: dict[str, Any]) -> None:
    model = build(Net)
    before = state(model)
    for candidate in (spec, map_of(kind, **args)):
        for found in (record_of(candidate), record_of(SAME, ties=candidate)):
            refused = False
            try:
                eadem.apply(model, found)
            except eadem.RecordError:
                refused = True
            if not refused:
                eadem.check(model)
                model = build(Net)
                before = state(model)
            assert state(model) == before


# loading is whole or not at all


class Stubborn(nn.Linear):
    """A layer with loading code of its own, which raises after the layers before it."""

    error: type[BaseException] = ValueError

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        raise self.error("not today")


def layers(last: type[nn.Linear]) -> nn.Sequential:
    first = (nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv1d(1, 1, 5), nn.BatchNorm1d(4))
    return nn.Sequential(*first, last(4, 4))


def tie_layers(model: nn.Module) -> None:
    eadem.tie(model, "0.weight", "1.weight")
    eadem.tie(model, "1.bias", to="0.bias", via=eadem.Flip(0))
    eadem.tie(model, "2.weight", via=eadem.Palindrome())


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before_tied", [False, True])
def test_a_load_that_fails_half_way(
    error: type[BaseException],
    before_tied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = layers(nn.Linear)
    tie_layers(whole)
    eadem.save(whole, tmp_path / "x")
    monkeypatch.setattr(Stubborn, "error", error)
    model = layers(Stubborn)
    if before_tied:
        tie_layers(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before, held = state(model), numbers(model)
    expected = error if error is KeyboardInterrupt else eadem.RecordError
    with pytest.raises(expected, match="not today"):
        eadem.load(model, tmp_path / "x")
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(numbers(model), held, strict=True))
    assert bool(eadem.ties(model)) is before_tied
    optimizer.step()
    tie_layers(model)
    eadem.check(model)


class Sizes(TorchDispatchMode):
    """The bytes of every tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        found = func(*args, **(kwargs or {}))
        self.made += [x.nbytes for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        return found


@pytest.mark.parametrize("same", [True, False])
def test_plans_are_compared_in_little_memory(same: bool, tmp_path: Path) -> None:
    def model(first: str, second: str, index: torch.Tensor) -> nn.Module:
        net = build(Net)
        for name in ("untied", "one", "other"):
            net.register_parameter(name, nn.Parameter(torch.zeros(1 << 16)))
        eadem.tie(net, {first: eadem.Same(), second: eadem.Flip(-1)})
        eadem.tie(net, "one", "other")
        eadem.tie(net, "wide.bias", via=eadem.Gather(index))
        return net

    index = torch.arange(16)
    eadem.save(model("k0.weight", "k1.weight", index // 4), tmp_path / "x")
    net = model("k1.weight", "k0.weight", index // 4 if same else index % 4)
    with Sizes() as sizes:
        if same:  # in other words
            eadem.load(net, tmp_path / "x")
        else:
            with pytest.raises(eadem.RecordError, match="another plan"):
                eadem.load(net, tmp_path / "x")
    assert max(sizes.made) <= net.one.nbytes


@pytest.mark.parametrize("hook", ["before", "after"])
def test_a_hook_that_fails(hook: str, tmp_path: Path) -> None:
    model = layers(nn.Linear)
    tie_layers(model)
    eadem.save(model, tmp_path / "x")
    model = layers(nn.Linear)

    def fail(*args: Any) -> None:
        raise ValueError("no")

    if hook == "before":
        model[3].register_load_state_dict_pre_hook(fail)
    else:
        model[3].register_load_state_dict_post_hook(fail)
    before, held = state(model), numbers(model)
    with pytest.raises(eadem.RecordError, match="own loading code"):
        eadem.load(model, tmp_path / "x")
    assert state(model) == before
    assert all(torch.equal(a, b) for a, b in zip(numbers(model), held, strict=True))


@pytest.mark.parametrize("threads", [False, True])
def test_an_interrupt_comes_after_the_last_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    model = layers(nn.Linear)
    tie_layers(model)
    eadem.save(model, tmp_path / "x")
    fresh = layers(nn.Linear)
    calls = 0
    read = TensorFile.read

    def interrupted(self: TensorFile, at: int, into: memoryview) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        read(self, at, into)

    monkeypatch.setattr(TensorFile, "read", interrupted)
    monkeypatch.setattr(layout, "PIECE", 16 if threads else layout.PIECE)
    with pytest.raises(KeyboardInterrupt):
        eadem.load(fresh, tmp_path / "x")
    for name, value in model.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    eadem.check(fresh)


def test_a_disk_that_fails_is_found_before_the_model_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = layers(nn.Linear)
    tie_layers(model)
    eadem.save(model, tmp_path / "x")
    fresh = layers(nn.Linear)
    before = state(fresh)
    monkeypatch.setattr(layout, "_populate", lambda pages, start, length: False)
    eadem.load(fresh, tmp_path / "x")  # the other way to read works
    fresh = layers(nn.Linear)
    before, held = state(fresh), numbers(fresh)

    def read(self: TensorFile, at: int, into: memoryview) -> None:
        raise self._unread(OSError(5, "Input/output error"))

    monkeypatch.setattr(TensorFile, "read", read)
    with pytest.raises(eadem.RecordError, match="Input/output"):
        eadem.load(fresh, tmp_path / "x")
    assert state(fresh) == before
    assert all(torch.equal(a, b) for a, b in zip(numbers(fresh), held, strict=True))
