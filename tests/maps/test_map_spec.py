"""A map as plain data: it comes back, and reading it imports and runs nothing."""

import json
import sys

import pytest
import torch

from eadem.errors import RecordError
from eadem.maps import Fixed, Function, Gather, LinearMap, Positive, Scale, Transpose
from eadem.maps.spec import from_spec, importable, to_spec


def halved(theta):
    return theta / 2


class Mine(LinearMap):
    def forward(self, theta):
        return theta


def test_the_form():
    spec = to_spec(Scale(2.0) @ Transpose())
    assert spec == {
        "kind": "LinearComposed",
        "args": {
            "outer": {"kind": "Scale", "args": {"c": 2.0}},
            "inner": {"kind": "Transpose", "args": {"dim0": -2, "dim1": -1}},
        },
    }
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec


def test_a_bound_map_and_an_unbound_one_have_one_record():
    phi = Scale(2.0) @ Transpose()
    assert to_spec(phi.bind((2, 3))) == to_spec(phi)


def test_tensors_stay_tensors():
    index = torch.tensor([1, 0])
    assert torch.equal(to_spec(Gather(index))["args"]["index"], index)
    assert torch.equal(from_spec(to_spec(Gather(index))).positions, index)


def test_infinities_are_json():
    spec = to_spec(Fixed(float("-inf")))
    assert json.loads(json.dumps(spec, allow_nan=False)) == spec
    assert from_spec(spec).value == float("-inf")


def test_functions_go_by_name():
    assert to_spec(Function(halved))["args"]["f"] == {"function": f"{__name__}:halved"}
    assert from_spec(to_spec(Function(halved))).f is halved
    assert from_spec(to_spec(Function(torch.exp, torch.log))).inverse is torch.log
    assert importable(lambda t: t) is None


def test_own_kinds_go_by_module_and_name():
    assert to_spec(Mine())["kind"] == f"{__name__}:Mine"
    assert type(from_spec(to_spec(Mine()))) is Mine


def test_a_class_defined_twice_is_the_later_one():
    def define():
        class Again(LinearMap):
            def forward(self, theta):
                return theta

        return Again

    first, second = define(), define()
    assert to_spec(first()) == to_spec(second())
    assert type(from_spec(to_spec(first()))) is second


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"kind": "Transpoze", "args": {}}, "Transpose"),
        ({"kind": "antigravity:Fly", "args": {}}, "import antigravity first"),
        ({"kind": "torch:Tensor", "args": {}}, "look for it in torch"),
        ({"kind": "LinearMap", "args": {}}, "base class"),
        ({"kind": "IndexMap", "args": {}}, "base class"),
        ({"kind": "Scale", "args": {"d": 1.0}}, "unfit arguments"),
        ({"kind": "Scale", "args": {"c": 0.0}}, "unfit arguments"),
        ({"kind": "Flip", "args": {}}, "unfit arguments"),
        ({"kind": "Scale"}, "recorded as"),
        ({"kind": 3, "args": {}}, "recorded as"),
        ([], "recorded as"),
        ({"kind": "Scale", "args": {"c": {"odd": 1}}}, "no version records"),
        ({"kind": "Function", "args": {"f": {"function": "os:system"}}}, "own library"),
        ({"kind": "Function", "args": {"f": {"function": "builtins:eval"}}}, "own library"),
        ({"kind": "Function", "args": {"f": {"function": "antigravity2:f"}}}, "import anti"),
        ({"kind": "Function", "args": {"f": {"function": "torch:Tensor"}}}, "no such function"),
        ({"kind": "Function", "args": {"f": {"function": "torch:os.system"}}}, "no such"),
        ({"kind": "Function", "args": {"f": {"function": "torch:load"}}}, "value by value"),
        ({"kind": "Function", "args": {"f": {"function": "torch:manual_seed"}}}, "value by"),
        ({"kind": "Function", "args": {"f": {"function": "torch:diag_embed"}}}, "value by"),
    ],
)
def test_foreign_records_are_refused(spec, says):
    with pytest.raises(RecordError, match=says):
        from_spec(spec)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("f", [lambda t: t, torch.nn.Identity(), torch.load, torch.diag])
def test_what_cannot_be_recorded(f):
    with pytest.raises(RecordError, match="cannot be recorded: its f is"):
        to_spec(Function(f))


def test_a_map_inside_a_map_is_recorded_too():
    phi = Positive() @ Gather([0, 0, 1])
    again = from_spec(to_spec(phi)).bind((3,))
    theta = torch.randn(2)
    assert torch.equal(again.expand(theta), phi.bind((3,)).expand(theta))
