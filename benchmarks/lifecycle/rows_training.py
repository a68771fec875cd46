"""Rows 15 to 19, 23, 24: training a tied model, calling it, compiling it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import clip_grad_norm_

import eadem

from . import oracle
from .oracle import event, expected_step, judge, worst
from .rows import Case, Row, always, inner, kept, linked, said
from .subjects import Subject, read
from .verdict import Outcome, Verdict
from .ways import Way

__all__ = ["ROWS", "distance"]


def loss(model: nn.Module, subject: Subject) -> Tensor:
    """The oracle's own loss of the model's outputs."""
    return oracle.loss(subject.call(model, subject.input(model)))


def distance(model: nn.Module, expected: dict[str, Tensor], tolerance: float = 2e-5) -> str:
    """Where the sites differ from expected values, in words; empty where they do not."""
    for name, w in expected.items():
        far = float((read(model, name).double() - w.double()).abs().max())
        if not far <= tolerance * (1 + float(w.abs().max())):
            return f"{name} is {far:.2g} from a step of θ"
    return ""


def _stepped(model: nn.Module, expected: dict[str, Tensor], twice: str) -> Outcome:
    """Whether one step left the sites where a step of θ does."""
    far = distance(model, expected)
    return said(Verdict.TWICE, f"{twice}: {far}") if far else kept()


def _both(model: nn.Module, subject: Subject) -> list[list[nn.Parameter]]:
    """The parameters by site module: those of the first site's, and all the others'."""
    module = inner(model, subject.sites[0])
    first = list(module.parameters())
    held = {id(p) for p in first}
    rest: list[nn.Parameter] = []
    for name in subject.sites[1:]:
        rest += inner(model, name).parameters()
    known = held | {id(p) for p in rest}
    return [first, rest + [p for p in model.parameters() if id(p) not in known]]


# 15: one optimizer


def _one_state(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    with event(model):
        loss(model, subject).backward()
    optimizer.step()
    held = sum(s["exp_avg"].numel() for s in optimizer.state.values())
    if held != subject.free():
        return said(Verdict.TWICE, f"Adam holds {held} averages for {subject.free()} values")
    return judge(model, subject)


def _both_names(way: Way, subject: Subject) -> Outcome:
    """Parameters collected by name, with every name that the model gives them."""
    model = way.tied(subject)
    expected = expected_step(model, subject)
    with event(model):
        named = model.named_parameters(remove_duplicate=False)
        optimizer = torch.optim.SGD(
            [p for _, p in named], oracle.LEARNING_RATE, weight_decay=oracle.DECAY
        )
        loss(model, subject).backward()
        optimizer.step()
    return worst([_stepped(model, expected, "stepped twice"), judge(model, subject)])


# 16: several optimizers, or one built before the tie


def _checked(model: nn.Module, *optimizers: torch.optim.Optimizer) -> None:
    if eadem.ties(model):
        eadem.check_optimizers(model, *optimizers)


def _split_optimizers(way: Way, subject: Subject) -> Outcome:
    """One optimizer for each site's module."""
    model = way.tied(subject)
    parts = [p for p in _both(model, subject) if p]
    expected = expected_step(model, subject)
    with event(model):
        optimizers = [
            torch.optim.SGD(p, oracle.LEARNING_RATE, weight_decay=oracle.DECAY) for p in parts
        ]
        _checked(model, *optimizers)
        loss(model, subject).backward()
        for o in optimizers:
            o.step()
    return _stepped(model, expected, "stepped by two optimizers")


def _split_groups(way: Way, subject: Subject) -> Outcome:
    """One group for each site's module, with a rate of its own."""
    model = way.tied(subject)
    parts = [p for p in _both(model, subject) if p]
    with event(model):
        groups = [{"params": p, "lr": 0.1 * (i + 1)} for i, p in enumerate(parts)]
        optimizer = torch.optim.SGD(groups)
        _checked(model, optimizer)
        loss(model, subject).backward()
        optimizer.step()
    values = {n: read(model, n) for n in subject.sites}
    return worst([kept(), *oracle.related(model, subject, values)])


def _built_before(way: Way, subject: Subject) -> Outcome:
    """An optimizer that was built on the untied model holds what the tie took away."""
    model = subject.stock()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    way.tie(model, subject)
    live = {id(p) for p in model.parameters()}
    held = [p for g in optimizer.param_groups for p in g["params"]]
    dead = sum(id(p) not in live for p in held)
    with event(model):
        loss(model, subject).backward()
        optimizer.step()
    if dead:
        return said(Verdict.STALE, f"steps {dead} parameter no longer in the model, silently")
    missing = len(live - {id(p) for p in held})
    if missing:
        return said(Verdict.STALE, f"never steps {missing} parameter of the tie, silently")
    return kept()


# 17, 18, 19: gradients


def _compared(model: nn.Module, subject: Subject, expected: Tensor, what: str) -> Outcome:
    found = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    if found.numel() != expected.numel():
        detail = f"{found.numel()} gradients for {expected.numel()} free values"
        return said(Verdict.TWICE, detail)
    # the order of parameters is the way's own: compare what does not depend on it
    far = float((found.double().sort().values - expected.sort().values).abs().max())
    if far > 1e-4 * (1 + float(expected.abs().max())):
        return said(Verdict.WRONG, f"{what} {far:.2g} from the sum over sites")
    return kept()


def _scaled(by_site: bool) -> Callable[[Way, Subject], Outcome]:
    def probe(way: Way, subject: Subject) -> Outcome:
        model = way.tied(subject)
        expected = oracle.expected_gradients(model, subject)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        with event(model):
            parts = _both(model, subject) if by_site else [list(model.parameters())]
            optimizers = [torch.optim.SGD(p, lr=0.1) for p in parts if p]
            _checked(model, *optimizers)
            scaler.scale(loss(model, subject)).backward()
            for o in optimizers:
                scaler.unscale_(o)
        flat = torch.cat([g.reshape(-1) for g in expected.values()])
        return _compared(model, subject, flat, "after unscale_ the gradient is")

    return probe


def _gradient(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    expected = oracle.expected_gradients(model, subject)
    with event(model):
        loss(model, subject).backward()
    flat = torch.cat([g.reshape(-1) for g in expected.values()])
    return _compared(model, subject, flat, "a gradient is")


def _gradcheck(way: Way, subject: Subject) -> Outcome:
    """First and second derivatives along θ, in float64."""
    model = way.tied(subject).double().eval()
    x = subject.input(model)
    names = list(dict(model.named_parameters()))
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def f(*theta: Tensor) -> Tensor:
        found: Tensor = functional_call(model, dict(zip(names, theta, strict=True)), (x,))
        return oracle.loss(found)

    with event(model):
        torch.autograd.gradcheck(f, values)
        torch.autograd.gradgradcheck(f, values)
    return judge(model, subject)


def _norm(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    expected = oracle.expected_gradients(model, subject)
    want = float(torch.cat([g.reshape(-1) for g in expected.values()]).norm())
    with event(model):
        loss(model, subject).backward()
        found = float(clip_grad_norm_(model.parameters(), 1e-3))
    if abs(found - want) > 1e-4 * want:
        return said(Verdict.TWICE, f"the norm is {found:.4g}, that of θ's gradient {want:.4g}")
    return kept()


def _decay(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    before = {n: read(model, n) for n in subject.sites}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    with event(model):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
    theta = {o: t * 0.95 for o, t in subject.theta(before).items()}
    return _stepped(model, subject.expand(theta), "decayed twice")


# 23: functional calls


def _theta(way: Way, subject: Subject, seed: int) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in way.tied(subject, seed).named_parameters()}


def _by_theta(way: Way, subject: Subject) -> Outcome:
    model, other = way.tied(subject).eval(), way.tied(subject, 4).eval()
    x = subject.input()
    with event(model):
        found = functional_call(model, _theta(way, subject, 4), (x,))
    state = {n: read(other, n) for n, _ in subject.untied().named_parameters()}
    stock = subject.untied().eval()
    stock.load_state_dict(state, strict=False)
    far = float((found - stock(x)).abs().max())
    if far > 1e-5:
        return said(Verdict.WRONG, f"the outputs are {far:.2g} from those of the values given")
    return judge(model, subject)


def _vmapped(way: Way, subject: Subject) -> Outcome:
    models = [way.tied(subject, s).eval() for s in (1, 2)]
    base, x = way.tied(subject).eval(), subject.input()
    with event(base):
        parameters, buffers = stack_module_state(models)
        found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    if sum(p[0].numel() for p in parameters.values()) != subject.free():
        return said(Verdict.TWICE, "stacked twice")
    far = max(float((o - m(x)).abs().max()) for o, m in zip(found, models, strict=True))
    if far > 1e-5:
        return said(Verdict.WRONG, f"the outputs are {far:.2g} from the single models'")
    return judge(base, subject)


def _jacobian(way: Way, subject: Subject) -> Outcome:
    """J_θ = J_W φ: its singular values, by dense matrices, and a directional derivative."""
    model = way.tied(subject).double().eval()
    x = subject.input(model)
    parameters = {n: p.detach() for n, p in model.named_parameters()}
    with event(model):
        blocks = jacrev(lambda p: functional_call(model, p, (x,)).reshape(-1))(parameters)
        f = lambda p: functional_call(model, p, (x,))  # noqa: E731
        ones = {n: torch.ones_like(p) for n, p in parameters.items()}
        _, along = jvp(f, (parameters,), (ones,))
    found = torch.cat([j.flatten(1) for j in blocks.values()], dim=1)
    want = oracle.jacobian(model, subject)
    if found.shape != want.shape:
        return said(Verdict.TWICE, f"{found.shape[1]} columns for {want.shape[1]} free values")
    far = float((torch.linalg.svdvals(found) - torch.linalg.svdvals(want)).abs().max())
    far = max(far, float((along.reshape(-1) - want.sum(1)).abs().max()))
    if far > 1e-8:
        return said(Verdict.WRONG, f"the Jacobian is {far:.2g} from J_W φ")
    return kept()


def _conflicting(way: Way, subject: Subject) -> Outcome:
    """Values given for two sites that the tie cannot both have."""
    model = way.tied(subject).eval()
    given = subject.values(4)
    last = subject.sites[-1]
    given[last] = given[last] + 1.0
    with event(model):
        functional_call(model, given, (subject.input(),))
    return said(Verdict.UNTIED, "two values for one θ are taken without a word")


# 24: compiled


def _compiled(way: Way, subject: Subject) -> Outcome:
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    model = way.tied(subject)
    eager = way.tied(subject)
    with event(model):
        compiled = torch.compile(model, fullgraph=True, backend=counter)
        compiled(subject.input())
    losses = [_losses(call, m, subject) for call, m in ((compiled, model), (eager, eager))]
    far = max(abs(a - b) for a, b in zip(*losses, strict=True))
    if far > 1e-5:
        return said(Verdict.WRONG, f"a loss is {far:.2g} from eager's")
    if counter.frame_count != 1:
        return said(Verdict.WRONG, f"{counter.frame_count} compilations in 20 steps")
    return judge(model, subject, call=compiled)


def _losses(call: nn.Module, model: nn.Module, subject: Subject) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    found = []
    for _ in range(20):
        optimizer.zero_grad()
        value = oracle.loss(call(subject.input()))
        value.backward()
        optimizer.step()
        found.append(float(value.detach()))
    return found


ROWS = (
    Row(
        15,
        "given to an optimizer",
        (
            Case("", _one_state),
            Case("by all its names", _both_names),
        ),
    ),
    Row(
        16,
        "given to several optimizers or groups, or tied after one was built",
        (
            Case("an optimizer a module", _split_optimizers, refusable=always),
            Case("a group a module", _split_groups, refusable=always),
            Case("optimizer first", _built_before, refusable=always),
        ),
    ),
    Row(
        17,
        "trained under GradScaler",
        (
            Case("", _scaled(by_site=False)),
            Case("an optimizer a module", _scaled(by_site=True), refusable=always),
        ),
    ),
    Row(
        18,
        "differentiated",
        (
            Case("θ's gradient", _gradient),
            Case("gradcheck, gradgradcheck", _gradcheck),
        ),
    ),
    Row(19, "clipped and decayed", (Case("norm", _norm), Case("decay", _decay))),
    Row(
        23,
        "called through `functional_call`, `vmap`, `jacrev`, `jvp`",
        (
            Case("by θ's name", _by_theta),
            Case("vmap", _vmapped),
            Case("jacrev, jvp", _jacobian),
            Case("conflicting values", _conflicting, refusable=always, subjects=linked),
        ),
    ),
    Row(24, "compiled, `fullgraph=True`, 20 steps", (Case("", _compiled, seconds=180),)),
)
