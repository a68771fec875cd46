"""Rows 25 to 28: exported, and run in two processes."""

from __future__ import annotations

import io
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import oracle
from .oracle import Reference, Stopped, event, judge, worst
from .rows import Case, Row, kept, said
from .subjects import FIVE, Subject, read
from .verdict import Outcome, Verdict, short
from .ways import EADEM, Way

__all__ = ["ROWS"]


# 25: exported


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
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
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


# two processes


Work = Callable[[int, Way, Subject], Outcome]


def _member(rank: int, path: str, work: Work, way: Way, subject: Subject, answer: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{path}",
            rank=rank,
            world_size=2,
            timeout=timedelta(seconds=40),
        )
        outcome = work(rank, way, subject)
        dist.barrier()
        dist.destroy_process_group()
    except Stopped as error:
        outcome = oracle.stopped(error, way is EADEM)
    except Exception as error:
        outcome = said(Verdict.RAISES, short(f"{type(error).__name__}: {error}"))
    answer.send(outcome)


def _pair(work: Work) -> Callable[[Way, Subject], Outcome]:
    """The same work in two processes over gloo; the worse of the two outcomes."""

    def probe(way: Way, subject: Subject) -> Outcome:
        context = multiprocessing.get_context("fork")
        with tempfile.TemporaryDirectory() as folder:
            args = (f"{folder}/meet", work, way, subject)
            ends = [context.Pipe(duplex=False) for _ in range(2)]
            members = [
                context.Process(target=_member, args=(i, *args, ends[i][1])) for i in range(2)
            ]
            for m in members:
                m.start()
            found = [mine.recv() for mine, _ in ends]
            for m in members:
                m.join(5)
                m.kill()
        return worst(found)

    return probe


def _batch(subject: Subject, rank: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(20 + rank)
        return subject.x()


_PARTIAL: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "equality": lambda m, x: m.hidden(m.embed(x)),
    "transpose": lambda m, x: m.encode(x),
    "kernels": lambda m, x: m.k0(x),
}


def _partly(subject: Subject) -> Callable[..., Tensor]:
    """A forward pass that can leave the later sites unused; every untied parameter is used."""

    def use(model: nn.Module, x: Tensor, skip: bool = False) -> Tensor:
        if not skip or subject.name not in _PARTIAL:
            return subject.call(model, x)
        out = _PARTIAL[subject.name](model, x)
        for name, _ in subject.untied().named_parameters():
            if name not in subject.sites:
                owner, _, leaf = name.rpartition(".")
                out = out + 0 * getattr(model.get_submodule(owner), leaf).sum()
        return out

    return use


def _wholly(subject: Subject) -> Callable[..., Tensor]:
    return lambda model, x, skip=False: subject.call(model, x)


class _Wrapped(nn.Module):
    """The tied model with the forward pass that a probe wants."""

    def __init__(self, inner: nn.Module, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.inner, self.use = inner, use

    def forward(self, *args: Any) -> Tensor:
        return self.use(self.inner, *args)


def _expected(
    subject: Subject, use: Callable[..., Tensor], skips: tuple[bool, ...]
) -> dict[str, Tensor]:
    """Where the stock class's parameters are after these steps in one process, by hand."""
    model = Reference(subject, use)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for skip in skips:
        optimizer.zero_grad()
        for rank in range(2):
            (oracle.loss(model(_batch(subject, rank), skip)) / 2).backward()
        optimizer.step()
    return {n: w.detach() for n, w in model.values().items()}


def _train(
    call: nn.Module,
    parameters: list[nn.Parameter],
    subject: Subject,
    rank: int,
    skips: tuple[bool, ...],
) -> None:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for skip in skips:
        optimizer.zero_grad()
        oracle.loss(call(_batch(subject, rank), skip)).backward()
        optimizer.step()


def _agrees(found: dict[str, Tensor], want: dict[str, Tensor], loose: float) -> Outcome:
    for name, w in want.items():
        if name not in found:
            continue
        far = float((found[name].double() - w.double()).abs().max())
        if not far <= loose * (1 + float(w.abs().max())):
            return said(Verdict.WRONG, f"{name} is {far:.2g} from one process's")
    return kept()


# 26: DDP


def _ddp(checkpointed: bool) -> Work:
    skips = (False, False, False) if checkpointed else (False, True, False)

    def work(rank: int, way: Way, subject: Subject) -> Outcome:
        plain = _wholly(subject) if checkpointed else _partly(subject)
        use = _checkpointed(plain) if checkpointed else plain
        model = way.tied(subject)
        wrapped = _Wrapped(model, use)
        with event(model):
            call = nn.parallel.DistributedDataParallel(wrapped)
            _train(call, list(call.parameters()), subject, rank, skips)
        want = _expected(subject, plain, skips)
        found = {n: read(model, n) for n in want}
        return worst([_agrees(found, want, 1e-4), judge(model, subject)])

    return work


def _checkpointed(use: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda model, x, skip: checkpoint(  # type: ignore[no-any-return]
        lambda x: use(model, x), x, use_reentrant=False
    )


# 27: FSDP2


def _fsdp(mixed: bool = False, blocks_too: bool = True) -> Work:
    def work(rank: int, way: Way, subject: Subject) -> Outcome:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy

        mesh = init_device_mesh("cpu", (2,))
        options: dict[str, Any] = {"mesh": mesh}
        if mixed:
            options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        model = way.tied(subject)
        named = dict.fromkeys(n.rpartition(".")[0] for n in subject.sites)
        blocks = [b for b in named if b and blocks_too]
        skips = (False, False, False)
        with event():
            _shard(way, model, blocks, options)
            call = _Wrapped(model, _wholly(subject))
            _train(call, list(model.parameters()), subject, rank, skips)
        want = _expected(subject, _wholly(subject), skips)
        return _gathered(way, model, subject, want, 0.03 if mixed else 1e-4)

    return work


def _shard(way: Way, model: nn.Module, blocks: list[str], options: dict[str, Any]) -> None:
    if way is EADEM:
        from eadem.integrations.fsdp import fully_shard as helper

        helper(model, *blocks, **options)
        return
    from torch.distributed.fsdp import fully_shard

    for block in blocks:
        fully_shard(model.get_submodule(block), **options)
    fully_shard(model, **options)


def _gathered(
    way: Way, model: nn.Module, subject: Subject, want: dict[str, Tensor], loose: float
) -> Outcome:
    """Values by name from the shards, and those of derived sites as a checkpoint gives them."""
    full = {
        n: p.full_tensor() if hasattr(p, "full_tensor") else p.detach()
        for n, p in model.state_dict().items()
    }
    count = sum(p.numel() for p in model.parameters())
    outcomes = [
        _agrees(
            {n: v for n, v in full.items() if n in want and v.shape == want[n].shape},
            want,
            loose,
        )
    ]
    if all(n in full and full[n].shape == want[n].shape for n in subject.sites):
        for n, w in subject.expand(subject.theta(full)).items():
            if not torch.allclose(w, full[n], atol=loose, rtol=loose):
                far = float((w - full[n]).abs().max())
                outcomes.append(said(Verdict.UNTIED, f"{n} is {far:.2g} from its owner"))
    fresh = way.tied(subject, 3)
    fresh.load_state_dict(full)
    outcomes.append(_agrees({n: read(fresh, n) for n in want}, want, loose))
    if count != subject.free():
        detail = f"{count} numbers in parameters() for {subject.free()} free ones"
        outcomes.append(said(Verdict.TWICE, detail))
    return worst(outcomes)


# 28: tensor parallelism


_STYLES = {
    "equality": {"embed": "Rowwise", "head": "Colwise"},
    "transpose": {"encoder": "Colwise", "decoder": "Rowwise"},
    "kernels": {"k0": "Colwise", "k1": "Colwise", "k2": "Colwise"},
    "part": {"": "Colwise"},
    "palindrome": {"conv": "Colwise"},
}


def _tensor_parallel(rank: int, way: Way, subject: Subject) -> Outcome:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, parallel

    styles = {
        "Rowwise": lambda: (
            parallel.RowwiseParallel(input_layouts=Replicate())
            if subject.name == "equality"
            else parallel.RowwiseParallel()
        ),
        "Colwise": lambda: (
            parallel.ColwiseParallel(output_layouts=Replicate())
            if subject.name == "equality"
            else parallel.ColwiseParallel()
        ),
    }
    plan = {n: styles[kind]() for n, kind in _STYLES[subject.name].items()}
    model = way.tied(subject)
    mesh = init_device_mesh("cpu", (2,))
    if way is EADEM:
        from eadem.integrations.tensor_parallel import parallelize_module as parallelize
    else:
        parallelize = parallel.parallelize_module
    with event(model):
        parallelize(model, mesh, plan)
    want = _one_batch(subject)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        oracle.loss(subject.call(model, _batch(subject, 0))).backward()
        optimizer.step()
    return _gathered(way, model, subject, want, 1e-4)


class _Even(nn.Module):
    """An autoencoder whose inner width two processes divide."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.decoder(torch.tanh(self.encoder(x)))
        return found


def _divisible() -> tuple[Subject, ...]:
    return tuple(replace(s, factory=_Even) if s.name == "transpose" else s for s in FIVE)


def _without_norm() -> tuple[Subject, ...]:
    """torch's BatchNorm does not take bfloat16 weights with float32 statistics."""

    def kernels() -> nn.Module:
        model = FIVE[2].factory()
        model.norm = nn.Identity()
        return model

    return tuple(replace(s, factory=kernels) if s.name == "kernels" else s for s in FIVE)


def _one_batch(subject: Subject) -> dict[str, Tensor]:
    model = Reference(subject, subject.call)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        oracle.loss(model(_batch(subject, 0))).backward()
        optimizer.step()
    return {n: w.detach() for n, w in model.values().items()}


def _not_equal_nor_transposed(subject: Subject) -> bool:
    return subject.name not in ("equality", "transpose")


ROWS = (
    Row(
        25,
        "exported, and run elsewhere",
        (
            Case("torch.export", _exported, seconds=120),
            Case("ONNX", _onnx, seconds=180, needs=("onnx", "onnxscript", "onnxruntime")),
        ),
    ),
    Row(
        26,
        "wrapped in DDP, two processes",
        (
            Case("a site unused in one step", _pair(_ddp(checkpointed=False)), seconds=120),
            Case("activation checkpointing", _pair(_ddp(checkpointed=True)), seconds=120),
        ),
    ),
    Row(
        27,
        "sharded with FSDP2, two processes",
        (
            Case("by block", _pair(_fsdp()), seconds=120),
            Case("at the root", _pair(_fsdp(blocks_too=False)), seconds=120),
            Case(
                "mixed precision", _pair(_fsdp(mixed=True)), subjects=_without_norm, seconds=120
            ),
        ),
    ),
    Row(
        28,
        "parallelised over tensors, two processes",
        (
            Case(
                "",
                _pair(_tensor_parallel),
                refusable=_not_equal_nor_transposed,
                subjects=_divisible,
                seconds=120,
            ),
        ),
    ),
)
