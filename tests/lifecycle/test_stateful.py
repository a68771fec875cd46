"""Random sequences of what happens to a model: after each event the ties hold.

The reference is kept beside the model in float64: the free values f and the dense W = R f + c
of `stateful_oracle`. Every event says what it does to f; what the model reads at its sites
and computes must then be what the reference says. EADEM_LIVES sets how many sequences are run.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from lifecycle_systems import assert_unchanged, snapshot
from stateful_oracle import Dense, Rule, solve
from torch import Tensor, nn
from torch.func import functional_call

import eadem


class Small(nn.Module):
    """Three square layers and a bare parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4, bias=False)
        self.c = nn.Linear(4, 4, bias=False)
        self.v = nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        return self.norm(self.c(h) * self.v[:4] + self.v[2:])


def same(t: Any) -> Any:
    return t


TIES: dict[str, tuple[Callable[[nn.Module], Any], Rule]] = {
    "equality": (
        lambda m: eadem.tie(m, "a.weight", "b.weight"),
        Rule((4, 4), (("a.weight", ..., same), ("b.weight", ..., same))),
    ),
    "transpose": (
        lambda m: eadem.tie(m, "c.weight", to="b.weight", via=eadem.Transpose()),
        Rule((4, 4), (("b.weight", ..., same), ("c.weight", ..., np.transpose))),
    ),
    "three maps": (
        lambda m: eadem.tie(
            m,
            {
                "a.weight": eadem.Same(),
                "b.weight": eadem.Rotate(1),
                "c.weight": eadem.Flip(-1),
            },
        ),
        Rule(
            (4, 4),
            (
                ("a.weight", ..., same),
                ("b.weight", ..., np.rot90),
                ("c.weight", ..., lambda t: t[:, ::-1]),
            ),
        ),
    ),
    "part": (
        lambda m: eadem.tie(m, "v[1]", "v[4]"),
        Rule((), (("v", 1, same), ("v", 4, same))),
    ),
    "rows": (
        lambda m: eadem.tie(m, "a.weight[0]", "a.weight[2]", "c.weight[3]"),
        Rule((4,), (("a.weight", 0, same), ("a.weight", 2, same), ("c.weight", 3, same))),
    ),
    "palindrome": (
        lambda m: eadem.tie(m, "v", via=eadem.Palindrome(dim=-1)),
        Rule((3,), (("v", ..., lambda t: np.concatenate([t, t[::-1]])),)),
    ),
    "odd": (
        lambda m: eadem.tie(m, "c.weight", via=eadem.Palindrome(dim=0, odd=True)),
        Rule((2, 4), (("c.weight", ..., lambda t: np.concatenate([t, -t[::-1]])),)),
    ),
    "scaled": (
        lambda m: eadem.tie(m, {"a.bias": eadem.Scale(-2.0), "v[:4]": eadem.Same()}),
        Rule((4,), (("a.bias", ..., lambda t: -2.0 * t), ("v", slice(0, 4), same))),
    ),
    "shifted": (
        lambda m: eadem.tie(m, {"a.bias": eadem.Same(), "a.weight[1]": eadem.Affine(1.0, 0.5)}),
        Rule((4,), (("a.bias", ..., same), ("a.weight", 1, lambda t: t + 0.5))),
    ),
    "picked": (
        lambda m: eadem.tie(
            m, "b.weight[1:3]", via=eadem.Gather([[0, 1, 2, -1], [2, 1, 0, 0]])
        ),
        Rule(
            (3,),
            (
                (
                    "b.weight",
                    slice(1, 3),
                    lambda t: np.array([[t[0], t[1], t[2], 0.0], [t[2], t[1], t[0], t[0]]]),
                ),
            ),
        ),
    ),
}
SITES = ("v", "a.weight", "a.bias", "b.weight", "c.weight")


def stock() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Small()


class Life(RuleBasedStateMachine):
    """A model, its reference, and what may happen to it."""

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module = stock()
        self.declared: list[str] = []
        self.shapes = {n: tuple(p.shape) for n, p in self.model.named_parameters()}
        self.dense = self.solved()
        self.f = self.read()
        self.folder = tempfile.TemporaryDirectory()

    def teardown(self) -> None:
        self.folder.cleanup()

    # the reference

    def solved(self, more: tuple[str, ...] = ()) -> Dense:
        found = solve(self.shapes, [TIES[n][1] for n in (*self.declared, *more)])
        assert found is not None, "every set of these ties has 0 or a shift of it"
        return found

    def read(self) -> np.ndarray:
        """The free values as the model's parameters hold them."""
        held = dict(self.model.named_parameters())
        found = [
            held[n].detach().double().numpy().reshape(-1) for n in self.shapes if n in held
        ]
        return np.concatenate(found)

    def want(self) -> dict[str, np.ndarray]:
        return self.dense.expand(self.f)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def tolerance(self) -> float:
        return {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 0.05}[self.dtype]

    def agrees(self, found: Any, want: Any, loose: float = 1.0) -> None:
        wanted = torch.as_tensor(np.asarray(want), dtype=torch.float64)
        at = self.tolerance * loose
        torch.testing.assert_close(found.detach().double(), wanted, rtol=at, atol=at)

    def resolved(self, values: dict[str, Any]) -> None:
        """The free values are those that lay in the sites' values."""
        self.agrees(torch.as_tensor(self.read()), self.dense.flat(values)[self.dense.free])
        self.f = self.read()

    def reference(self) -> nn.Module:
        """The stock model with the values of the reference."""
        model = stock().to(self.dtype).train(self.model.training)
        values = {n: torch.as_tensor(w).to(self.dtype) for n, w in self.want().items()}
        model.load_state_dict({**dict(self.model.named_buffers()), **values}, strict=True)
        return model

    def batch(self) -> Tensor:
        return torch.linspace(-1, 1, 20).reshape(5, 4).sin().to(self.dtype)

    # what must hold after each event

    @invariant()
    def every_site_is_the_reference(self) -> None:
        eadem.check(self.model)
        held = dict(self.model.named_parameters())
        assert {n: p.numel() for n, p in held.items() if n in SITES} == {
            n: k for n, k in self.dense.owned().items() if n in SITES and k
        }
        assert set(self.model.state_dict()) == set(held) | {
            n for n, _ in self.model.named_buffers()
        }
        assert eadem.counts(self.model).free == len(self.f)
        for name, want in self.want().items():
            owner, _, attr = name.rpartition(".")
            self.agrees(getattr(self.model.get_submodule(owner), attr), want)

    @initialize(
        double=st.booleans(),
        names=st.lists(st.sampled_from(sorted(TIES)), min_size=1, max_size=4, unique=True),
    )
    def begin(self, double: bool, names: list[str]) -> None:
        if double:
            self.model.double()
            self.f = self.read()
        for name in names:
            self.declare(name)

    # declaring

    @rule(name=st.sampled_from(sorted(TIES)))
    def tie(self, name: str) -> None:
        if name not in self.declared:
            self.declare(name)

    def declare(self, name: str) -> None:
        before, old = snapshot(self.model), self.want()
        after = self.solved((name,))
        if after.collapsed and "picked" in (*self.declared, name):
            return  # a zero that a tie fixes may spread over a whole site: no conflict
        if after.collapsed:
            with pytest.raises(eadem.TieConflict):
                TIES[name][0](self.model)
            assert_unchanged(self.model, before)
            return
        TIES[name][0](self.model)
        self.declared.append(name)
        self.dense = after
        self.resolved(old)

    @rule()
    def untie(self) -> None:
        old = self.want()
        eadem.untie(self.model)
        self.declared, self.dense = [], solve(self.shapes, [])  # type: ignore[assignment]
        self.resolved(old)

    # training and editing

    @rule(lr=st.sampled_from([0.01, 0.1]), steps=st.integers(1, 2))
    def train(self, lr: float, steps: int) -> None:
        optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        for _ in range(steps):
            other = self.reference()
            other(self.batch()).tanh().sum().backward()
            site = {n: p.grad.double().numpy() for n, p in other.named_parameters()}  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.model(self.batch()).tanh().sum().backward()
            optimizer.step()
            self.f = self.f - lr * (self.dense.r.T @ self.dense.flat(site))
            self.agrees(torch.as_tensor(self.read()), self.f, 100.0)
            self.f = self.read()

    @rule(by=st.sampled_from(["add_", "data", "replaced", "foreach", "fused", "vector"]))
    def edit(self, by: str) -> None:
        held = [p for _, p in self.model.named_parameters()]
        if by == "add_":
            with torch.no_grad():
                for p in held:
                    p.add_(0.25)
        elif by == "data":
            for p in held:
                p.data.add_(0.25)
        elif by == "replaced":
            for p in held:
                p.data = p.data + 0.25
        elif by == "foreach":
            torch._foreach_add_([p.data for p in held], 0.25)
        elif by == "fused":
            for p in held:
                p.grad = torch.full_like(p, -0.25)
            torch.optim.SGD(held, lr=1.0, fused=True).step()
            self.model.zero_grad()
        else:
            v = nn.utils.parameters_to_vector(held).detach()
            nn.utils.vector_to_parameters(v + 0.25, held)
        self.f = self.f + 0.25
        self.agrees(torch.as_tensor(self.read()), self.f, 10.0)
        self.f = self.read()

    @rule(name=st.sampled_from(SITES), how=st.sampled_from(["copy_", "assign", "data", "mul_"]))
    def write_at_a_site(self, name: str, how: str) -> None:
        """Values of another member of the set, written at one site, reach its free values."""
        rng = np.random.default_rng(len(self.f))
        w = self.want()[name]
        old = self.f.copy()
        if how == "mul_":
            target = 0.5 * w
            if self.dense.c.any():  # a shifted tie does not allow every multiple
                return
        else:
            target = self.dense.expand(self.f + 0.1 * rng.standard_normal(len(self.f)))[name]
        owner, _, attr = name.rpartition(".")
        module = self.model.get_submodule(owner)
        given = torch.as_tensor(target).to(self.dtype)
        stored = dict(self.model.named_parameters()).get(name)
        if how == "assign" and stored is not None and stored.shape != given.shape:
            return  # a site that holds part of its values: torch's own setattr rules
        with torch.no_grad():
            if how == "copy_":
                getattr(module, attr).copy_(given)
            elif how == "data":
                getattr(module, attr).data.copy_(given)
            elif how == "mul_":
                getattr(module, attr).mul_(0.5)
            else:
                setattr(module, attr, nn.Parameter(given))
        self.f = self.read()
        self.agrees(torch.as_tensor(self.want()[name]), given.double().numpy())
        touched = np.abs(self.dense.r[self.span(name)]).sum(0) > 0
        np.testing.assert_array_equal(self.f[~touched], old[~touched])

    def span(self, name: str) -> slice:
        at = 0
        for n, shape in self.shapes.items():
            size = int(np.prod(shape))
            if n == name:
                return slice(at, at + size)
            at += size
        raise KeyError(name)

    @rule(name=st.sampled_from(["a.weight", "b.weight", "c.weight"]))
    def initialise(self, name: str) -> None:
        nn.init.normal_(self.model.get_submodule(name[0]).weight)
        self.f = self.read()

    @rule()
    def reset(self) -> None:
        self.model.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
        self.f = self.read()

    # loading

    @rule(assign=st.booleans())
    def load_free_values(self, assign: bool) -> None:
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        for n, _ in self.model.named_parameters():
            state[n] += 0.125
        self.model.load_state_dict(state, strict=True, assign=assign)
        self.model.requires_grad_(True)
        self.f = self.read()

    @rule(assign=st.booleans())
    def load_every_site(self, assign: bool) -> None:
        moved = self.dense.expand(self.f + 0.5)
        state = {k: v.clone() for k, v in eadem.materialize(self.model).items()}
        state |= {n: torch.as_tensor(w).to(self.dtype) for n, w in moved.items()}
        self.model.load_state_dict(state, strict=True, assign=assign)
        self.model.requires_grad_(True)
        self.agrees(torch.as_tensor(self.read()), self.f + 0.5)
        self.f = self.read()

    @precondition(lambda self: len(self.f) < len(self.dense.r))
    @rule()
    def load_what_disagrees(self) -> None:
        rng = np.random.default_rng(0)
        wrong = self.dense.split(rng.standard_normal(len(self.dense.r)))
        state = {k: v.clone() for k, v in eadem.materialize(self.model).items()}
        state |= {n: torch.as_tensor(w).to(self.dtype) for n, w in wrong.items()}
        before = snapshot(self.model)
        with pytest.raises(eadem.TieConflict, match="disagree"):
            self.model.load_state_dict(state)
        assert_unchanged(self.model, before)

    # moving about

    @rule(how=st.sampled_from(["deepcopy", "pickle", "torch", "wrapped"]))
    def copied(self, how: str) -> None:
        if how == "deepcopy":
            new = copy.deepcopy(self.model)
        elif how == "pickle":
            new = pickle.loads(pickle.dumps(self.model))
        elif how == "torch":
            file = io.BytesIO()
            torch.save(self.model, file)
            file.seek(0)
            new = torch.load(file, weights_only=False)
        else:
            new = copy.deepcopy(nn.Sequential(self.model, nn.Linear(1, 1)))[0]
        for p in self.model.parameters():
            p.data.zero_()
        self.model = new

    @rule()
    def saved(self) -> None:
        path = Path(self.folder.name) / "model.safetensors"
        eadem.save(self.model, path)
        fresh = stock().to(self.dtype).train(self.model.training)
        eadem.load(fresh, path)
        self.model = fresh

    @rule()
    def recorded(self) -> None:
        fresh = stock().to(self.dtype).train(self.model.training)
        eadem.apply(fresh, eadem.record(self.model))
        fresh.load_state_dict(self.model.state_dict(), strict=True)
        assert eadem.record(fresh) == eadem.record(self.model)
        self.model = fresh

    @rule()
    def materialized(self) -> None:
        other = stock().to(self.dtype).train(self.model.training)
        other.load_state_dict(eadem.materialize(self.model), strict=True)
        self.compare(self.model, other)

    @rule(to=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def cast(self, to: torch.dtype) -> None:
        self.model.to(to)
        self.agrees(torch.as_tensor(self.read()), self.f)
        self.f = self.read()

    @rule(overwrite=st.booleans())
    def converted(self, overwrite: bool) -> None:
        future = torch.__future__
        flags = (
            future.set_overwrite_module_params_on_conversion,
            future.set_swap_module_params_on_conversion,
        )
        flag = flags[overwrite]
        flag(True)
        try:
            self.model.to(torch.float64)
        finally:
            flag(False)

    @rule()
    def emptied(self) -> None:
        state = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.to("meta").to_empty(device="cpu")
        self.model.load_state_dict(state)

    # using

    @rule(mode=st.booleans())
    def train_or_eval(self, mode: bool) -> None:
        self.model.train(mode)

    @rule()
    def frozen_and_thawed(self) -> None:
        self.model.requires_grad_(False)
        assert not self.model(self.batch()).requires_grad
        self.model.requires_grad_(True)

    def compare(self, model: nn.Module, other: nn.Module) -> None:
        """Equal outputs, with the running statistics of one put back."""
        was = model.training
        with torch.no_grad():
            found = model.eval()(self.batch()).double()
            want = other.eval()(self.batch()).double()
        model.train(was)
        at = 4 * self.tolerance
        torch.testing.assert_close(found, want, rtol=at, atol=at)

    @rule(mode=st.sampled_from([torch.no_grad, torch.inference_mode, torch.enable_grad]))
    def evaluated(self, mode: Callable[[], Any]) -> None:
        with mode():
            self.compare(self.model, self.reference())

    @rule()
    def from_threads(self) -> None:
        self.model.eval()
        want = self.reference().eval()(self.batch()).detach()

        def work(_: int) -> Tensor:
            with torch.no_grad():
                return self.model(self.batch())

        with ThreadPoolExecutor(2) as pool:
            for found in pool.map(work, range(4)):
                self.agrees(found, want.double(), 4.0)

    @rule()
    def functionally(self) -> None:
        self.model.eval()
        held = {n: p.detach() + 0.5 for n, p in self.model.named_parameters()}
        found = functional_call(self.model, held, (self.batch(),))
        kept, self.f = self.f, self.f + 0.5
        want = self.reference()(self.batch())
        self.f = kept
        self.agrees(found, want.detach().double(), 40.0)

    @precondition(lambda self: self.declared)
    @rule()
    def traced(self) -> None:
        with eadem.trace(self.model):
            self.model(self.batch()).sum().backward()
        self.model.zero_grad()

    @rule()
    def twinned(self) -> None:
        other = eadem.twin(self.model)
        assert not eadem.ties(other)
        self.compare(self.model, other)

    @rule(name=st.sampled_from(SITES))
    def explained(self, name: str) -> None:
        assert eadem.explain(self.model, name).startswith(name)


Life.TestCase.settings = settings(
    max_examples=int(os.environ.get("EADEM_LIVES", "40")),
    stateful_step_count=25,
    phases=[Phase.generate],  # a failure prints its events; shrinking takes minutes
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestLife = Life.TestCase
