"""Row 25: exported, and run elsewhere."""

from __future__ import annotations

import importlib.util
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .oracle import event, judge
from .rows import Case, Row, kept, said
from .subjects import FIVE, Subject, read
from .verdict import Outcome, Verdict
from .ways import EADEM, Way

__all__ = ["ROWS"]


def _exported(way: Way, subject: Subject) -> Outcome:
    """torch.export, saved and loaded: one stored tensor, and all of it in use."""
    model, x = way.tied(subject).eval(), subject.input()
    stream = io.BytesIO()
    with event(model):
        torch.export.save(torch.export.export(model, (x,)), stream)
    stream.seek(0)
    program = torch.export.load(stream)
    held = {n: p for n, p in program.state_dict.items() if isinstance(p, nn.Parameter)}
    storages = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() // 4 for p in held.values()
    }
    loaded = program.module()
    far = float((loaded(x) - model(x)).abs().max())
    if far > 1e-5:
        return said(Verdict.WRONG, f"the outputs are {far:.2g} away")
    if sum(storages.values()) != subject.free():
        stored = sum(storages.values())
        return said(
            Verdict.TWICE, f"{stored} numbers are stored for {subject.free()} free ones"
        )
    return judge(model, subject)


def _onnx(way: Way, subject: Subject) -> Outcome:
    """Initializers that hold each free value once, and the outputs of onnxruntime."""
    import onnx
    import onnxruntime

    model, x = way.tied(subject).eval(), subject.input()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        with event(model):
            _onnx_export(way)(model, (x,), path, verbose=False)
        graph = onnx.load(path).graph
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    far = float((torch.from_numpy(found) - model(x)).detach().abs().max())
    if far > 1e-5:
        return said(Verdict.WRONG, f"onnxruntime's outputs are {far:.2g} away")
    stored = [tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    sites = [tuple(read(model, n).shape) for n in subject.sites]
    if len(sites) > 1:
        same_size = sorted(sites[0])
        copies = [s for s in stored if sorted(s) == same_size]
        if len(copies) > 1:
            return said(
                Verdict.TWICE, f"{len(copies)} initializers of shape {copies[0]} for one θ"
            )
    return kept()


def _onnx_export(way: Way) -> Any:
    """Eadem's own export where there is one, else torch's."""
    if way is EADEM and importlib.util.find_spec("eadem.integrations.onnx") is not None:
        from eadem.integrations.onnx import export

        return export
    return torch.onnx.export


class _Tokens(nn.Module):
    """An embedding and an output layer of more numbers than torch folds in a graph (8192)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(300, 32)
        self.head = nn.Linear(32, 300, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.embed(x)))
        return found


class _Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(300, 32)
        self.decoder = nn.Linear(32, 300)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.decoder(torch.tanh(self.encoder(x)))
        return found


def _large() -> tuple[Subject, ...]:
    return (
        replace(FIVE[0], factory=_Tokens),
        replace(FIVE[1], factory=_Autoencoder, x=lambda: torch.randn(5, 300)),
    )


ROWS = (
    Row(
        25,
        "exported, and run elsewhere",
        (
            Case("torch.export", _exported, seconds=120),
            Case("ONNX", _onnx, seconds=180, needs=("onnx", "onnxscript", "onnxruntime")),
            Case(
                "ONNX, above 8192 numbers",
                _onnx,
                subjects=_large,
                seconds=180,
                needs=("onnx", "onnxscript", "onnxruntime"),
            ),
        ),
    ),
)
