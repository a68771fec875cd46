"""What every process does: `torchrun --nproc-per-node 4 distributed_worker.py FOLDER`.

Each case is a function that all processes call; it returns plain data (largest differences
from one process, messages of refusals), which process 0 writes into FOLDER. The tests say what
these must be. First come the cases of four processes; then the four part, and each pair takes
every other case of two processes.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import distributed_hmm
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_models import BRANCHES, Deep, branches, deep
from lifecycle_systems import SYSTEMS, System, assert_related, assert_unchanged, snapshot
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.fsdp import fully_shard as stock_fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

import eadem
from eadem import bind
from eadem.integrations.fsdp import fully_shard
from eadem.integrations.tensor_parallel import parallelize_module
from eadem.maps.base import LinearMap
from eadem.solvers import em, least_squares

STEPS = 20
CASES: dict[str, Callable[[], Any]] = {}


def case(name: str, over: Any = None) -> Callable[[Any], Any]:
    """Register a case, or one for each item of `over`, called `name:item`."""

    def register(f: Any) -> Any:
        if over is None:
            CASES[name] = f
        else:
            for key, value in over.items():
                CASES[f"{name}:{key}"] = lambda f=f, value=value: f(value)
        return f

    return register


NAMED = {s.name: s for s in SYSTEMS}


def size() -> int:
    return dist.get_world_size()


def mine(x: Tensor) -> Tensor:
    """This process's share of a batch."""
    return x.chunk(size())[dist.get_rank()]


def whole(p: Tensor) -> Tensor:
    p = p.detach()
    return p.full_tensor() if isinstance(p, DTensor) else p


def away(model: nn.Module, other: nn.Module) -> float:
    """The largest difference of parameters, relative to the largest value of each."""
    there = dict(other.named_parameters())
    here = dict(model.named_parameters())
    assert list(here) == list(there), (list(here), list(there))
    worst = [
        (whole(p) - there[n].detach()).abs().max() / there[n].detach().abs().max()
        for n, p in here.items()
    ]
    return max(map(float, worst))


def batch(system: System, dtype: torch.dtype) -> Tensor:
    """Four different batches of the system, as one."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        x = torch.cat([system.x() for _ in range(4)])
    return x.to(dtype) if x.is_floating_point() else x


def system_model(system: System, dtype: torch.dtype) -> nn.Module:
    model = system.tied().to(dtype)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # statistics of a batch are those of its process
    return model


def loss_of(model: nn.Module, x: Tensor, *args: Any) -> Tensor:
    out = model(x, *args)
    slope = torch.linspace(0.5, 1.5, out[0].numel()).reshape(out[0].shape).to(out)
    return (
        (out * slope).float().square().mean()
        if out.dtype == torch.bfloat16
        else (out * slope).square().mean()
    )


def train(
    model: nn.Module, xs: list[Tensor], optimizer: torch.optim.Optimizer, *args: Any
) -> None:
    for x in xs:
        optimizer.zero_grad()
        loss_of(model, x, *args).backward()
        clip_grad_norm_(model.parameters(), 0.3)
        optimizer.step()


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


@functools.cache
def trained_alone(name: str, dtype: torch.dtype, steps: int) -> nn.Module:
    """What one process has after so many steps on the whole batch."""
    system = NAMED[name]
    model = system_model(system, dtype)
    train(model, [batch(system, dtype)] * steps, adam(model))
    return model


def message(f: Callable[[], Any]) -> list[str]:
    """The kind and the text of what a call raises."""
    try:
        f()
    except Exception as e:
        return [type(e).__name__, str(e)]
    return ["nothing", ""]


# FSDP2


def blocks(model: nn.Module) -> list[str]:
    return [n for n, _ in model.named_children()]


SINGLE = ("equality", "part", "subspace")
FSDP = {f"{n}-float64": (s, "float64") for n, s in NAMED.items()}
FSDP |= {f"{n}-float32": (NAMED[n], "float32") for n in SINGLE}


@case("fsdp", FSDP)
def _fsdp(given: tuple[System, str]) -> dict[str, Any]:
    system, name = given
    dtype = getattr(torch, name)
    alone, model = trained_alone(system.name, dtype, STEPS), system_model(system, dtype)
    fully_shard(model, *blocks(model), mesh=MESH)
    train(model, [mine(batch(system, dtype))] * STEPS, adam(model))
    eadem.check(model)
    sites = bind.site_values(model)
    close = [float((sites[n] - v).abs().max()) for n, v in bind.site_values(alone).items()]
    return {
        "away": away(model, alone),
        "sites": max(close),
        "counts": eadem.counts(model) == eadem.counts(alone),
        "summary": eadem.summary(model).groups == eadem.summary(alone).groups,
        "split": all(isinstance(p, DTensor) for p in model.parameters()),
        "keys": list(model.state_dict()) == list(alone.state_dict()),
    }


class _Bfloat16:
    """One process that computes as the processes do together: in bfloat16 on each share of
    the batch, gradients averaged in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.optimizer = model, adam(model)

    def step(self, x: Tensor) -> None:
        grads: dict[str, Tensor] = {}
        low = copy.deepcopy(self.model).to(torch.bfloat16)
        for share in x.chunk(size()):
            given = share.bfloat16() if share.is_floating_point() else share
            low.zero_grad()
            loss_of(low, given).backward()
            for n, p in low.named_parameters():
                assert p.grad is not None
                grads[n] = grads.get(n, 0.0) + p.grad.float() / size()
        for n, p in self.model.named_parameters():
            p.grad = grads[n]
        self.optimizer.step()


@case("mixed", NAMED)
def _mixed(system: System) -> dict[str, Any]:
    alone, model = (system_model(system, torch.float32) for _ in range(2))
    for m in (alone, model):
        if system.name == "kernels":
            m.norm = nn.Identity()  # its running statistics stay in float32
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(model, *blocks(model), mesh=MESH, mp_policy=policy)
    reference, optimizer = _Bfloat16(alone), adam(model)
    x = batch(system, torch.float32)
    for _ in range(STEPS):
        reference.step(x)
        optimizer.zero_grad()
        loss_of(model, mine(x)).backward()
        optimizer.step()
    dtypes = {str(p.dtype) for p in model.parameters()}
    return {"away": away(model, alone), "dtypes": sorted(dtypes)}


def _tokens() -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        return torch.randint(0, 11, (8, 3))


@functools.cache
def _deep_alone() -> Deep:
    """What one process has after four steps."""
    model = deep()
    train(model, [_tokens()] * 4, adam(model))
    return model


DEEP: dict[str, Any] = {
    "blocks": (["stack.*"], {}),
    "nested": (["stack", "stack.*", "stack.*.up", "embed"], {}),
    "kept whole": (["stack.*"], {"reshard_after_forward": False}),
    "split at once": (["stack.*"], {"reshard_after_forward": True}),
    "root": ([], {}),
    "offload": (["stack.*"], {"offload_policy": CPUOffloadPolicy(pin_memory=False)}),
    "hybrid": (["stack.*"], {"mesh": (2, 2)}),
}


@case("deep", DEEP)
def _deep(given: tuple[list[str], dict[str, Any]]) -> dict[str, Any]:
    names, options = given
    alone, model = _deep_alone(), deep()
    mesh = MESH
    if "mesh" in options:  # replicas of shards
        mesh = init_device_mesh("cpu", options["mesh"], mesh_dim_names=("copy", "part"))
    fully_shard(model, *names, **{**options, "mesh": mesh})
    watched = model.stack[1]
    watched.look = {"down": model.stack[0].down, "own": model.stack[2].own}
    train(model, [mine(_tokens())] * 4, adam(model))
    eadem.check(model)
    return {"away": away(model, alone), "sharded": watched.sharded}


@case("deep-checkpointed")
def _deep_checkpointed() -> float:
    model = deep(checkpointed=True)
    fully_shard(model, "stack.*", mesh=MESH)
    train(model, [mine(_tokens())] * 4, adam(model))
    return away(model, _deep_alone())


@case("deep-accumulated")
def _deep_accumulated() -> float:
    """Two backwards to a step, the first without communication."""
    alone, model = deep(), deep()
    fully_shard(model, "stack.*", mesh=MESH)
    one, several = adam(alone), adam(model)
    for _ in range(4):
        one.zero_grad()
        several.zero_grad()
        for last in (False, True):
            assert isinstance(model, FSDPModule)
            model.set_requires_gradient_sync(last)
            loss_of(alone, _tokens().roll(int(last), 1)).backward()
            loss_of(model, mine(_tokens().roll(int(last), 1))).backward()
        clip_grad_norm_(alone.parameters(), 0.3)
        clip_grad_norm_(model.parameters(), 0.3)
        one.step()
        several.step()
    return away(model, alone)


@case("deep-evaluated")
def _deep_evaluated() -> float:
    """Evaluations without gradients between the steps do not leave old values behind."""
    alone, model = deep(), deep()
    fully_shard(model, "stack.*", mesh=MESH, reshard_after_forward=False)
    one, several = adam(alone), adam(model)
    worst = 0.0
    for _ in range(3):
        with torch.no_grad():
            worst = max(worst, float((model(_tokens()) - alone(_tokens())).abs().max()))
        train(alone, [_tokens()], one)
        train(model, [mine(_tokens())], several)
    return max(worst, away(model, alone))


@case("deep-aliased")
def _deep_aliased() -> float:
    """A parameter that the model itself holds in two blocks, never declared a tie."""

    def built() -> Deep:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = Deep().double()
        model.head.weight = model.embed.weight
        model.stack[3].own.bias = model.stack[1].own.bias
        return model

    alone, model = built(), built()
    fully_shard(model, "embed", "stack.*", mesh=MESH)
    train(alone, [_tokens()] * 4, adam(alone))
    train(model, [mine(_tokens())] * 4, adam(model))
    return away(model, alone)


@case("deep-meta")
def _deep_meta() -> float:
    """Sharded on `meta`, then given storage and values."""
    alone = deep()
    with torch.device("meta"):
        model = Deep().double()
    eadem.apply(model, eadem.record(alone))
    fully_shard(model, "stack.*", mesh=MESH)
    model.to_empty(device="cpu")
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, alone.state_dict(), options=options)
    train(model, [mine(_tokens())] * 4, adam(model))
    return away(model, _deep_alone())


@case("written", NAMED)
def _written(system: System) -> dict[str, Any]:
    """A write at a computed site of a sharded model reaches θ, and the relation holds."""
    model = system_model(system, torch.float64)
    fully_shard(model, *blocks(model), mesh=MESH)
    torch.manual_seed(7)
    moved = []
    for name in system.sites:
        module, _, attr = name.rpartition(".")
        before = bind.site_values(model)[name].clone()
        value = getattr(model.get_submodule(module), attr)
        if not isinstance(value, DTensor):
            nn.init.uniform_(value, 0.1, 0.9)
            moved.append(bool((bind.site_values(model)[name] != before).any()))
    assert_related(_plain(model, system), system)
    return {"moved": moved}


def _plain(model: nn.Module, system: System) -> nn.Module:
    """An unsharded stock model with the values at the sites."""
    stock = system.stock().double()
    values = bind.site_values(model)
    with torch.no_grad():
        for n, p in stock.named_parameters():
            p.copy_(values[n])
    return stock


@case("stock-fsdp", NAMED)
def _stock_fsdp(system: System) -> dict[str, list[str]]:
    """Torch's own fully_shard on blocks that share a tie, and on the whole model."""

    def apart() -> None:
        model = system.tied()
        for child in model.children():
            stock_fully_shard(child, mesh=MESH)
        stock_fully_shard(model, mesh=MESH)
        loss_of(model, system.input()).backward()

    def together() -> None:
        model = system.tied()
        stock_fully_shard(model, mesh=MESH)
        loss_of(model, system.input()).backward()

    return {"apart": message(apart), "together": message(together)}


@case("refused-sharded")
def _refused() -> dict[str, list[str]]:
    model = NAMED["kernels"].tied()
    fully_shard(model, "*", mesh=MESH)
    before = snapshot(model)
    full = {n: v.clone() for n, v in NAMED["kernels"].stock().state_dict().items()}
    options = StateDictOptions(full_state_dict=True)
    every = {
        "tie": message(lambda: eadem.tie(model, "k0.bias", "k1.bias")),
        "untie": message(lambda: eadem.untie(model)),
        "twin": message(lambda: eadem.twin(model)),
        "materialize": message(lambda: eadem.materialize(model)),
        "save": message(lambda: eadem.save(model, FOLDER / "refused.safetensors")),
        "again": message(lambda: fully_shard(model, "k0", mesh=MESH)),
        "full sites": message(lambda: set_model_state_dict(model, full, options=options)),
    }
    same = {k: before[k] for k in ("identity", "keys", "types", "grad", "hooks")}
    now = snapshot(model)
    assert {k: now[k] for k in same} == same
    return every


# distributed checkpoints: four processes write, two go on


def _resumable(system: System) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = system_model(system, torch.float64)
    fully_shard(model, *blocks(model), mesh=MESH)
    return model, adam(model)


@case("checkpoint-save", NAMED)
def _checkpoint_save(system: System) -> list[str]:
    model, optimizer = _resumable(system)
    x = batch(system, torch.float64)
    train(model, [mine(x)] * 3, optimizer)
    state, moments = get_state_dict(model, optimizer)
    where = FOLDER / f"{size()}-{system.name}"
    dcp.save({"model": state, "optimizer": moments}, checkpoint_id=where)
    return list(state)


@case("checkpoint-load", NAMED)
def _checkpoint_load(system: System) -> float:
    """What the other number of processes wrote, trained on; against one process throughout."""
    model, optimizer = _resumable(system)
    state, moments = get_state_dict(model, optimizer)
    dcp.load({"model": state, "optimizer": moments}, checkpoint_id=FOLDER / f"4-{system.name}")
    set_state_dict(model, optimizer, model_state_dict=state, optim_state_dict=moments)
    train(model, [mine(batch(system, torch.float64))] * 3, optimizer)
    return away(model, trained_alone(system.name, torch.float64, 6))


@case("checkpoint-gathered", NAMED)
def _checkpoint_gathered(system: System) -> dict[str, Any]:
    """A full state dict: into an unsharded tied model, and from one process to all."""
    model, _ = _resumable(system)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    other = system_model(system, torch.float64)
    worst = -1.0
    if dist.get_rank() == 0:
        with torch.no_grad():
            for p in other.parameters():
                p.add_(1.0)
        other.load_state_dict(state)
        worst = away(system_model(system, torch.float64), other)
        eadem.save(other, FOLDER / f"gathered-{size()}-{system.name}.safetensors")
        state = {k: v + 0.25 if v.is_floating_point() else v for k, v in state.items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)
    moved = [
        float((whole(p) - q.detach() - 0.25).abs().max())
        for p, q in zip(
            model.parameters(), system_model(system, torch.float64).parameters(), strict=True
        )
    ]
    return {"loaded": worst, "moved": max(moved)}


# DDP


def _branch_steps() -> list[tuple[Tensor, str]]:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        xs = torch.randn(STEPS, 8, 4, dtype=torch.float64)
    uses = ("abc", "ab", "a", "ca", "ba")
    return [(x, uses[i % len(uses)]) for i, x in enumerate(xs)]


def _train_branches(model: nn.Module, share: Callable[[Tensor], Tensor], fixed: bool) -> None:
    optimizer = adam(model)
    for x, use in _branch_steps():
        train(model, [share(x)], optimizer, "abc" if fixed else use)


@functools.cache
def _branches_alone(kind: str, fixed: bool) -> nn.Module:
    model = branches(kind)
    _train_branches(model, lambda x: x, fixed)
    return model


@case("ddp", NAMED)
def _ddp(system: System) -> dict[str, Any]:
    model = system_model(system, torch.float64)
    wrapped = DistributedDataParallel(model)
    train(wrapped, [mine(batch(system, torch.float64))] * STEPS, adam(wrapped))
    eadem.check(wrapped)
    alone = trained_alone(system.name, torch.float64, STEPS)
    return {"away": away(model, alone), "free": eadem.counts(wrapped).free}


@case("ddp-unused", {k: k for k in BRANCHES})
def _ddp_unused(kind: str) -> dict[str, float]:
    """Sites left out of some steps; plainly, and with each layer checkpointed."""
    alone = _branches_alone(kind, fixed=False)
    found = {}
    for reentrant in (None, False):
        model = branches(kind)
        model.reentrant = reentrant
        _train_branches(DistributedDataParallel(model), mine, fixed=False)
        found[str(reentrant)] = away(model, alone)
    return found


@case("ddp-reentrant", {k: k for k in BRANCHES})
def _ddp_reentrant(kind: str) -> float:
    """Torch's older checkpointing, which DDP takes for a graph that does not change."""
    model = branches(kind)
    model.reentrant = True
    _train_branches(DistributedDataParallel(model, static_graph=True), mine, fixed=True)
    return away(model, _branches_alone(kind, fixed=True))


@case("ddp-accumulated", {k: k for k in BRANCHES})
def _ddp_accumulated(kind: str) -> float:
    alone, model = branches(kind), branches(kind)
    wrapped = DistributedDataParallel(model)
    one, several = adam(alone), adam(model)
    for x, use in _branch_steps():
        one.zero_grad()
        several.zero_grad()
        loss_of(alone, x).backward()
        loss_of(alone, x.flip(0), use).backward()
        with wrapped.no_sync():
            loss_of(wrapped, mine(x)).backward()
        loss_of(wrapped, mine(x.flip(0)), use).backward()
        one.step()
        several.step()
    return away(model, alone)


@case("ddp-stock")
def _ddp_stock() -> list[str]:
    """The untied model: the layers that a step leaves out stop DDP."""
    model = DistributedDataParallel(branches("equality", tied=False))
    return message(lambda: _train_branches(model, mine, fixed=False))


# tensor parallelism


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(x))))


class Mirror(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(9, 7)
        self.decoder = nn.Linear(7, 9)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(torch.tanh(self.encoder(x)))


def _words() -> nn.Module:
    model = Words()
    eadem.tie(model, "head.weight", to="embed.weight")
    return model


def _mirror() -> nn.Module:
    model = Mirror()
    eadem.tie(model, "decoder.weight", to="encoder.weight", via=eadem.Transpose())
    return model


def _columns() -> ColwiseParallel:
    return ColwiseParallel(output_layouts=Replicate())


def _inner() -> ColwiseParallel:
    return ColwiseParallel(use_local_output=False)


PLANS: dict[str, Any] = {
    "equality rows": (
        _words,
        {"embed": RowwiseParallel(input_layouts=Replicate()), "head": _columns()},
    ),
    "equality rows, head first": (
        _words,
        {"head": _columns(), "embed": RowwiseParallel(input_layouts=Replicate())},
    ),
    "equality columns": (_words, {"embed": _columns(), "head": _columns()}),
    "transpose": (_mirror, {"encoder": _inner(), "decoder": RowwiseParallel()}),
    "transpose, decoder first": (
        _mirror,
        {"decoder": RowwiseParallel(), "encoder": _inner()},
    ),
    "transpose columns": (_mirror, {"encoder": _columns(), "decoder": _columns()}),
}


@case("tensor", PLANS)
def _tensor(given: tuple[Callable[[], nn.Module], dict[str, Any]]) -> dict[str, Any]:
    built, plan = given
    torch.manual_seed(9)
    alone = built().double()
    model = copy.deepcopy(alone)
    for n, _ in model.named_children():
        plan = plan if n in plan else {**plan, n: _columns()}
    parallelize_module(model, MESH, plan)
    x = torch.randint(0, 11, (4, 3)) if isinstance(alone, Words) else torch.randn(4, 9).double()
    with torch.no_grad():
        first = float((model(x) - alone(x)).abs().max())
    train(alone, [x] * STEPS, adam(alone))
    train(model, [x] * STEPS, adam(model))
    eadem.check(model)
    tied = next(iter(eadem.ties(model)))
    relation = [whole(tied.value(s)) for s in tied.sites]
    if "transpose" in str(tied).lower():
        relation[0] = relation[0].t()
    return {
        "first": first,
        "away": away(model, alone),
        "parameters": len(list(model.parameters())) == len(list(alone.parameters())),
        "split": isinstance(tied.theta, DTensor),
        "tied": bool(torch.equal(relation[0], relation[1])),
    }


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def _alias(m: Two) -> None:
    m.b.weight = m.a.weight


TWO: dict[str, Any] = {
    "rotate": lambda m: eadem.tie(m, {"a.weight": eadem.Same(), "b.weight": eadem.Rotate(1)}),
    "palindrome": lambda m: eadem.tie(m, "a.weight", via=eadem.Palindrome(dim=-1)),
    "part": lambda m: eadem.tie(m, "a.weight[1]", "b.weight[2]"),
    "positive": lambda m: eadem.tie(m, "a.weight", "b.weight", via=eadem.Positive()),
    "half": lambda m: eadem.tie(m, "a.weight", "b.weight"),
    "alias": _alias,
}


@case("tensor-refused", {k: (k, f) for k, f in TWO.items()})
def _tensor_refused(given: tuple[str, Any]) -> list[str]:
    """Refused before anything is changed."""
    kind, tie = given
    model = Two()
    if kind == "positive":
        with torch.no_grad():
            for p in model.parameters():
                p.abs_().add_(0.1)
    tie(model)
    before = snapshot(model)
    plan = {"a": _columns()} if kind == "half" else {"*": _columns()}
    found = message(lambda: parallelize_module(model, MESH, plan))
    assert_unchanged(model, before)
    return found


# pooled statistics


@dataclass(frozen=True, eq=False)
class Dice(LinearMap):
    """Two dice, (2, 6): u = point + null·θ, and each face is a u."""

    face: Tensor
    null: Tensor
    point: Tensor

    def infer(self, out_shape: tuple[int, ...]) -> tuple[int, ...]:
        return (self.null.shape[1],)

    def forward(self, theta: Tensor) -> Tensor:
        return (self.null @ theta)[self.face].reshape(self.out_shape)

    @property
    def offset(self) -> Tensor:
        return self.point[self.face].reshape(self.out_shape)


def _dice() -> Dice:
    """Tied: four faces within the first die, two more across both."""
    face = torch.tensor([0, 1, 1, 1, 1, 2, 0, 3, 4, 4, 5, 2])
    sums = torch.zeros(2, 6, dtype=torch.float64)
    sums[0].index_add_(0, face[:6], torch.ones(6, dtype=torch.float64))
    sums[1].index_add_(0, face[6:], torch.ones(6, dtype=torch.float64))
    null = torch.linalg.svd(sums).Vh[2:].T.contiguous()
    return Dice(face, null, torch.full((6,), 1 / 6, dtype=torch.float64)).bind((2, 6))


def _rolls() -> Tensor:
    """How often each face fell, in eight rounds with one die or the other."""
    generator = torch.Generator().manual_seed(10)
    rounds = [
        torch.multinomial(torch.tensor(w), 40, replacement=True, generator=generator)
        for w in [[3.0, 1, 1, 1, 1, 2], [3.0, 5, 2, 2, 1, 2]] * 4
    ]
    return torch.stack([torch.bincount(r, minlength=6) for r in rounds]).double()


def _e_step(rolls: Tensor) -> Callable[[Tensor], tuple[float, Tensor]]:
    """Which die each round was, and the counts expected of both."""

    def step(p: Tensor) -> tuple[float, Tensor]:
        joint = rolls @ p.log().T + math.log(0.5)  # (rounds, dice)
        evidence = joint.logsumexp(1, keepdim=True)
        return float(evidence.sum()), (joint - evidence).exp().T @ rolls

    return step


@contextmanager
def _traffic() -> Iterator[list[int]]:
    """How many numbers each sum over the processes sends."""
    sent: list[int] = []
    stock = dist.all_to_all_single

    def counted(received: Tensor, given: Tensor, **options: Any) -> Any:
        sent.append(given.numel())
        return stock(received, given, **options)

    dist.all_to_all_single = counted
    try:
        yield sent
    finally:
        dist.all_to_all_single = stock


@case("pooled-em")
def _pooled_em() -> dict[str, Any]:
    plan = _dice()
    start = torch.tensor([0.01, -0.02, 0.03, 0.01], dtype=torch.float64)
    alone = em(plan, _e_step(_rolls()), start)
    with _traffic() as sent:
        own = em(plan, _e_step(mine(_rolls())), start, group=dist.group.WORLD)
    return {
        "values": float((alone.values - own.values).abs().max()),
        "likelihood": abs(alone.objective - own.objective),
        "gradient": float((alone.gradient / own.gradient - 1).abs().max()),
        "iterations": [alone.iterations, own.iterations],
        "bits": own.theta.numpy().tobytes().hex(),
        "sent": sent[:-1],  # the last is the gradient at the sites, once
    }


case("hmm", distributed_hmm.MODELS)(distributed_hmm.model_case)
case("hmm-several")(distributed_hmm.several)
case("hmm-pairs")(distributed_hmm.pairs)
case("hmm-starts")(distributed_hmm.starts)


def _decays(share: Callable[[Tensor], Tensor]) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """Two decays with one rate: heights 3 and 5, rate 0.7, and some noise."""
    x = torch.linspace(0, 4, 24, dtype=torch.float64)
    noise = 0.05 * torch.sin(7 * x)
    first, second = 3 * torch.exp(-0.7 * x) + noise, 5 * torch.exp(-0.7 * x) - noise
    x, first, second = share(x), share(first), share(second)

    def residual(w: Tensor) -> Tensor:
        return torch.cat(
            [first - w[0] * torch.exp(-w[1] * x), second - w[2] * torch.exp(-w[3] * x)]
        )

    return eadem.Gather(torch.tensor([0, 1, 2, 1])).bind((4,)), residual


def _powers(share: Callable[[Tensor], Tensor]) -> tuple[Any, Callable[[Tensor], Tensor]]:
    """A polynomial of degree 9: its normal equations, multiplied out, are singular in
    float64.
    """
    x = share(torch.linspace(0, 1, 40, dtype=torch.float64))
    basis = torch.stack([x**k for k in range(10)], 1)
    return eadem.Same().bind((10,)), lambda w: torch.exp(x) - basis @ w


FITS: dict[str, Any] = {
    "decays": (_decays, [1.0, 0.1, 1.0]),
    "powers": (_powers, [0.0] * 10),
}


@case("pooled-least-squares", FITS)
def _pooled_least_squares(given: tuple[Any, list[float]]) -> dict[str, Any]:
    problem, start = given
    theta = torch.tensor(start, dtype=torch.float64)
    alone = least_squares(*problem(lambda x: x), theta)
    own = least_squares(*problem(mine), theta, group=dist.group.WORLD)
    assert alone.information is not None
    assert own.information is not None
    return {
        "values": float(((alone.values - own.values) / alone.values).abs().max()),
        "chi2": abs(alone.objective / own.objective - 1),
        "information": float(
            (alone.information - own.information).abs().max() / alone.information.abs().max()
        ),
        "converged": own.converged,
        "bits": own.theta.numpy().tobytes().hex(),
    }


class Decay(nn.Module):
    """A decay observed at x: heights and a floor of its own."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.y = x, y
        for name, value in (("height", 1.0), ("rate", 0.5), ("floor", 0.0)):
            start = torch.tensor(value, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(start))

    def residual(self) -> Tensor:
        model = self.height * torch.exp(-self.rate * self.x) + self.floor
        return (self.y - model) / 0.05


def _joint(share: Callable[[Tensor], Tensor]) -> eadem.Joint:
    """Three decays; one positive rate for two of them, one floor for all."""
    x = torch.linspace(0, 4, 37, dtype=torch.float64)
    blocks = {}
    for i, (height, rate) in enumerate(((3.0, 0.7), (5.0, 0.7), (2.0, 1.6))):
        y = height * torch.exp(-rate * x) + 0.1 + 0.05 * torch.sin(11 * (x + i))
        blocks[f"b{i}"] = Decay(share(x).clone(), share(y).clone())
    joint = eadem.Joint(blocks)
    eadem.tie(joint, "b0.rate", "b1.rate", via=eadem.Positive())
    eadem.tie(joint, "*.floor")
    return joint


@case("pooled-joint")
def _pooled_joint() -> dict[str, Any]:
    one, own = _joint(lambda x: x), _joint(mine)
    alone = eadem.least_squares(one, bounds={"b2.rate": (0, 1.55)})
    fit = eadem.least_squares(own, bounds={"b2.rate": (0, 1.55)}, group=dist.group.WORLD)
    names = ["b0.height", "b1.rate", "b2.floor"]
    wanted, found = alone.covariance(names), fit.covariance(names)
    ends = [f.profile("b1.rate") for f in (alone, fit)]
    largest = max(float(e) for e in alone.stderr.values())
    refused = {}
    for what, attempt in (
        ("test", fit.score_test),
        (
            "loss",
            lambda: eadem.least_squares(own, loss="huber", group=dist.group.WORLD),
        ),
    ):
        try:
            attempt()
        except eadem.EademError as error:
            refused[what] = str(error)
    with torch.no_grad():
        own.b0.height += dist.get_rank()
    try:
        eadem.least_squares(own, group=dist.group.WORLD)
    except eadem.EademError as error:
        refused["start"] = str(error)
    return {
        "converged": fit.converged,
        "counts": [fit.size - alone.size, fit.dof - alone.dof],
        "values": max(float((fit.values[n] - v).abs()) for n, v in alone.values.items()),
        "stderr": max(float((fit.stderr[n] - e).abs()) for n, e in alone.stderr.items())
        / largest,
        "covariance": float((found - wanted).abs().max() / wanted.abs().max()),
        "chi2": abs(fit.chi2 / alone.chi2 - 1),
        "profile": abs(ends[0].low / ends[1].low - 1) + abs(ends[0].high / ends[1].high - 1),
        "own": sum(r.numel() for r in fit.residuals.values()),
        "notes": [list(alone.notes), list(fit.notes)],
        "bits": fit.theta.numpy().tobytes().hex(),
        "refused": refused,
    }


@case("pooled-refused")
def _pooled_refused() -> dict[str, list[str]]:
    """What is wrong in one process is refused in every one, so that none waits for another."""
    plan, zero = _dice(), torch.zeros(4, dtype=torch.float64)
    first = dist.get_rank() == 0

    def negative(p: Tensor) -> tuple[float, Tensor]:
        return 0.0, torch.full((2, 6), -1.0 if first else 1.0, dtype=torch.float64)

    def infinite(w: Tensor) -> Tensor:
        return w / (0.0 if first else 1.0)

    group = dist.group.WORLD
    step, one = _e_step(mine(_rolls())), torch.ones(1, dtype=torch.float64)
    return {
        "start": message(lambda: em(plan, step, zero + 0.01 * first, group=group)),
        "counts": message(lambda: em(plan, negative, zero, group=group)),
        "residual": message(
            lambda: least_squares(eadem.Same().bind((1,)), infinite, one, group=group)
        ),
    }


#: What four processes do, and what two leave to them.
FOUR = (
    *("fsdp:*-float64", "fsdp:part-float32", "mixed:equality", "mixed:kernels"),
    *("deep:nested", "deep:hybrid", "deep-checkpointed", "ddp:kernels", "ddp-unused:kernels"),
    *("tensor:equality rows", "tensor:transpose", "checkpoint-save:*", "pooled-*", "hmm*"),
)
ONLY_FOUR = ("checkpoint-save:*", "deep:hybrid")


def asked(name: str) -> bool:
    """Whether this number of processes is to do a case."""
    if size() == 4:
        return any(fnmatch(name, pattern) for pattern in FOUR)
    return not any(fnmatch(name, pattern) for pattern in ONLY_FOUR)


def run(names: list[str], out: Path) -> None:
    found = {}
    for name in names:
        torch.manual_seed(0)
        try:
            one = CASES[name]()
        except Exception:
            one = {"traceback": f"{name}, process {dist.get_rank()}\n{traceback.format_exc()}"}
        every: list[Any] = [None] * size()
        dist.all_gather_object(every, one)
        found[name] = every
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))


@contextmanager
def group(**options: Any) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", timeout=timedelta(seconds=60), **options)
    try:
        yield init_device_mesh("cpu", (size(),))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    FOLDER = Path(sys.argv[1])
    with group() as MESH:
        run([n for n in CASES if asked(n)], FOLDER / "found-4-.json")
    pair, rank = divmod(int(os.environ["RANK"]), 2)
    store = dist.FileStore(str(FOLDER / f"pair-{pair}"), 2)
    with group(store=store, rank=rank, world_size=2) as MESH:
        run([n for n in CASES if asked(n)][pair::2], FOLDER / f"found-2-{pair}.json")
