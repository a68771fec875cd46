"""Row 25: ONNX files: one initializer for each θ, and the outputs of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lifecycle_systems import SYSTEMS, Tokens, assert_unchanged, snapshot
from torch import Tensor, nn
from torch.export import Dim

import eadem
from eadem.integrations.onnx import export

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

pytestmark = [
    # torch.onnx itself, on its way through copyreg and torch.utils._pytree
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    # onnxscript asks for what onnx_ir has renamed
    pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript.*"),
]

SYSTEM = {s.name: s for s in SYSTEMS}


def _initializers(path: Path) -> dict[str, tuple[int, ...]]:
    """The floating-point initializers of a file that onnx itself accepts."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.input) == 1
    found = {
        i.name: tuple(i.dims)
        for i in model.graph.initializer
        if i.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    }
    assert len(found) == len([n for n in found if n])
    return found


def _run(path: Path, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    return torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _written(model: nn.Module, x: Tensor, path: Path, **options: Any) -> None:
    shapes = ({0: Dim("batch", min=2, max=64)},)
    export(
        model, (x,), path, dynamic_shapes=shapes, verbose=False, external_data=False, **options
    )


def _sizes(found: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(s).numel() for s in found.values())


@pytest.mark.parametrize("name", [n for n in SYSTEM if n != "palindrome"])
def test_one_initializer_for_each_theta(name: str, tmp_path: Path) -> None:
    """A palindrome is what a part is: a gather."""
    system = SYSTEM[name]
    model = system.tied().eval()
    before = snapshot(model)
    path = tmp_path / "model.onnx"
    x = system.input()
    _written(model, x, path)
    found = _initializers(path)
    stored = dict(model.named_parameters())
    for name, count in system.owned.items():
        if count:
            assert found[name] == tuple(stored[name].shape)
        else:
            assert name not in found
    # nor is a site's value stored under another name: beside θ there is what was untied, the
    # basis of a dense map, and single numbers
    basis = 30 if system.name == "subspace" else 0
    assert _sizes({n: s for n, s in found.items() if s}) <= system.free + basis
    for batch in (x, torch.cat([x, x, x])):
        torch.testing.assert_close(_run(path, batch), model(batch), rtol=1e-5, atol=1e-6)
    assert_unchanged(model, before)


def test_unoptimized(tmp_path: Path) -> None:
    """The graph as torch first writes it, as `torch.onnx.export(optimize=False)` does."""
    system, path = SYSTEM["kernels"], tmp_path / "model.onnx"
    model = system.tied().eval()
    _written(model, system.input(), path, optimize=False)
    found = _initializers(path)
    assert "k0.weight" in found
    assert sum(s == (2, 1, 3, 3) for s in found.values()) == 1
    torch.testing.assert_close(_run(path, system.input()), model(system.input()))


class Large(Tokens):
    """Above the size up to which torch's optimizer computes what follows from constants."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4096, 4)
        self.head = nn.Linear(4, 4096, bias=False)


def test_torchs_own_call_keeps_a_large_theta_once(tmp_path: Path) -> None:
    model = Large().eval()
    eadem.tie(model, "embed.weight", "head.weight")
    x = torch.randint(0, 4096, (5, 3))
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False)
    found = _initializers(path)
    assert [n for n, s in found.items() if torch.Size(s).numel() == 4 * 4096] == [
        "embed.weight"
    ]
    torch.testing.assert_close(_run(path, x), model(x), rtol=1e-5, atol=1e-6)


def test_torchs_own_alias_is_one_initializer_too(tmp_path: Path) -> None:
    model = Tokens().eval()
    model.head.weight = model.embed.weight
    path = tmp_path / "model.onnx"
    x = torch.randint(0, 7, (5, 3))
    _written(model, x, path)
    assert sum(sorted(s) == [4, 7] for s in _initializers(path).values()) == 1
    torch.testing.assert_close(_run(path, x), model(x), rtol=1e-5, atol=1e-6)


def test_an_exported_program_is_refused() -> None:
    system = SYSTEM["transpose"]
    program = torch.export.export(system.tied().eval(), (system.input(),))
    with pytest.raises(eadem.Unsupported, match=r"ExportedProgram.*tied.*give the module"):
        export(program)  # type: ignore[arg-type]


def test_without_onnxscript_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SYSTEM["transpose"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(eadem.MissingPackage, match=r"eadem\[export\]"):
        export(system.tied(), (system.input(),))
