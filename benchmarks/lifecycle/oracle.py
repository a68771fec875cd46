"""One judge for every way of tying: what a model does after an event decides the verdict.

Nothing of Eadem takes part but its errors' type. The untied stock class, fed with the values
read at the sites, says what the outputs must be; plain functions of θ say how the sites must
move, and what one step of an optimizer must make of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import eadem

from .subjects import Subject, read
from .verdict import Outcome, Verdict, short

__all__ = [
    "Reference",
    "Stopped",
    "event",
    "expected_gradients",
    "expected_step",
    "follow",
    "jacobian",
    "judge",
    "loss",
    "related",
    "stopped",
    "worst",
]

LEARNING_RATE, DECAY = 0.05, 0.5
Call = Callable[[Tensor], Tensor]


class Stopped(Exception):
    """The event raised; `changed` says what it had done to the model by then."""

    def __init__(self, error: BaseException, changed: str) -> None:
        super().__init__(str(error))
        self.error, self.changed = error, changed


@contextmanager
def event(*models: nn.Module) -> Iterator[None]:
    """What happens to the models. An error is noted with what it left behind."""
    before = [_picture(m) for m in models]
    try:
        yield
    except Exception as error:
        changed = next(
            (c for m, b in zip(models, before, strict=True) if (c := _changes(m, b))), ""
        )
        raise Stopped(error, changed) from error


def stopped(error: Stopped, by_eadem: bool) -> Outcome:
    """A refusal says what it refuses, before anything changed; any other error is foreign."""
    kind, text = type(error.error).__name__, str(error.error)
    chain: BaseException | None = error.error
    typed = False
    while chain is not None:
        typed = typed or isinstance(chain, eadem.EademError)
        chain = chain.__cause__ or chain.__context__
    bug = isinstance(error.error, AttributeError | LookupError | AssertionError)
    spoken = typed or not (by_eadem or bug or _SPOKEN.search(text) is None)
    if spoken and not error.changed:
        return Outcome(Verdict.REFUSED, short(f"{kind}: {text}"))
    left = f" (the model is changed: {error.changed})" if error.changed else ""
    return Outcome(Verdict.RAISES, short(f"{kind}: {text}") + left)


#: What an error without a type of its own must speak of to pass for a refusal of the tie.
_SPOKEN = re.compile(
    r"(?i)\b(tied|tying|tie|ties|shared?|sharing|more than one parameter group|"
    r"parametri[sz]\w+|duplicates?)\b"
)


def _picture(model: nn.Module) -> dict[str, Any]:
    return {
        "names": {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "values": {n: p.detach().clone() for n, p in model.named_parameters() if not p.is_meta},
        "classes": {n: type(m) for n, m in model.named_modules()},
    }


def _changes(model: nn.Module, before: Mapping[str, Any]) -> str:
    now = _picture(model)
    for what in ("names", "classes"):
        if now[what] != before[what]:
            return f"its {'parameters' if what == 'names' else what}"
    for name, old in before["values"].items():
        new = now["values"][name]
        if new.shape != old.shape or not torch.equal(new, old):
            return f"the values of {name}"
    return ""


def follow(model: nn.Module, subject: Subject) -> nn.Module:
    """The stock class with the values that are read in `model`, in float64."""
    stock = subject.untied().double()
    with torch.no_grad():
        for name, p in stock.named_parameters():
            p.copy_(read(model, name))
        for name, b in stock.named_buffers():
            b.copy_(read(model, name))
    return stock.train(model.training)


def _free(model: nn.Module, subject: Subject) -> dict[str, Tensor]:
    """θ and the untied parameters of a model, in float64, by the owner's or their own name."""
    held = {n: p.detach() for n, p in follow(model, subject).named_parameters()}
    untied = {n: w for n, w in held.items() if n not in subject.sites}
    return {n: w.clone().requires_grad_() for n, w in (subject.theta(held) | untied).items()}


def _reference(model: nn.Module, subject: Subject, free: Mapping[str, Tensor]) -> Tensor:
    """The outputs of the untied stock class as a function of θ and the untied parameters."""
    holder = _Caller(follow(model, subject), subject)
    theta = {o: free[o] for o in subject.owners}
    named = {f"stock.{n}": w for n, w in {**free, **subject.expand(theta)}.items()}
    found: Tensor = functional_call(holder, named, (_wide(subject.input()),), tie_weights=False)
    return found


def expected_gradients(model: nn.Module, subject: Subject) -> dict[str, Tensor]:
    """The gradients of the loss along θ and along the untied parameters."""
    free = _free(model, subject)
    value = loss(_reference(model, subject, free))
    found = torch.autograd.grad(value, list(free.values()), allow_unused=True)
    return {
        n: torch.zeros_like(w) if g is None else g
        for (n, w), g in zip(free.items(), found, strict=True)
    }


def expected_step(
    model: nn.Module, subject: Subject, lr: float = LEARNING_RATE, decay: float = DECAY
) -> dict[str, Tensor]:
    """The site values after one step of SGD with decay on θ, by autograd through the maps."""
    free, grads = _free(model, subject), expected_gradients(model, subject)
    theta = {o: free[o].detach() for o in subject.owners}
    return subject.expand({o: t - lr * (grads[o] + decay * t) for o, t in theta.items()})


def jacobian(model: nn.Module, subject: Subject) -> Tensor:
    """The outputs' derivatives along θ and the untied parameters, (outputs, free)."""
    free = _free(model, subject)
    names = list(free)

    def f(*values: Tensor) -> Tensor:
        return _reference(model, subject, dict(zip(names, values, strict=True))).reshape(-1)

    blocks = torch.autograd.functional.jacobian(f, tuple(free.values()))
    return torch.cat([b.flatten(1) for b in blocks], dim=1)


class Reference(nn.Module):
    """The tied model by hand: θ and the untied parameters, and the stock class beneath them.

    `use(stock, x)` is the forward pass.
    """

    def __init__(self, subject: Subject, use: Callable[..., Tensor], seed: int = 0) -> None:
        super().__init__()
        stock = subject.untied(seed)
        held = {n: p.detach().clone() for n, p in stock.named_parameters()}
        untied = {n: w for n, w in held.items() if n not in subject.sites}
        self.subject, self.names = subject, list(subject.theta(held) | untied)
        self.free = nn.ParameterList((subject.theta(held) | untied).values())
        self.holder = [_Using(stock, use)]

    def values(self) -> dict[str, Tensor]:
        """Every parameter of the stock class, as a function of the free ones."""
        free = dict(zip(self.names, self.free, strict=True))
        return {**free, **self.subject.expand({o: free[o] for o in self.subject.owners})}

    def forward(self, *args: Any) -> Tensor:
        named = {f"stock.{n}": w for n, w in self.values().items()}
        found: Tensor = functional_call(self.holder[0], named, args, tie_weights=False)
        return found


class _Using(nn.Module):
    def __init__(self, stock: nn.Module, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stock, self.use = stock, use

    def forward(self, *args: Any) -> Tensor:
        return self.use(self.stock, *args)


class _Caller(nn.Module):
    def __init__(self, stock: nn.Module, subject: Subject) -> None:
        super().__init__()
        self.stock, self.subject = stock, subject

    def forward(self, x: Tensor) -> Tensor:
        return self.subject.call(self.stock, x)


def _wide(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def loss(out: Tensor) -> Tensor:
    """A loss that weighs every output differently."""
    weights = torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape).to(out)
    return (out * weights).sum() / out.numel()


def worst(outcomes: list[Outcome]) -> Outcome:
    """The outcome that costs the user most."""
    return max(outcomes, key=lambda o: o.verdict.cost)


def judge(
    model: nn.Module,
    subject: Subject,
    *,
    want: Mapping[str, Tensor] | None = None,
    call: Call | None = None,
    count: bool = True,
) -> Outcome:
    """What has become of the tie.

    `want`: values that the sites must have. `call`: how to call the model, if not directly.
    `count=False` where the model is wrapped in a way that counts differently.
    """
    try:
        return _judge(model, subject, want, call, count)
    except Exception as error:  # reading, calling or training the model failed
        return Outcome(Verdict.RAISES, short(f"{type(error).__name__}: {error}"))


def _judge(
    model: nn.Module,
    subject: Subject,
    want: Mapping[str, Tensor] | None,
    call: Call | None,
    count: bool,
) -> Outcome:
    run: Call = (lambda x: subject.call(model, x)) if call is None else call
    found = [Outcome(Verdict.KEPT)]
    found += related(model, subject)
    found += _wanted(model, subject, want or {})
    twice = _counted(model, subject) if count else []
    found += twice
    found += _answers(model, subject, run, "")
    before = {n: read(model, n) for n in subject.sites}
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            noise = torch.linspace(-1, 1, p.numel()).sin() * 0.2 + 0.1 + 0.01 * i
            p.add_(noise.reshape(p.shape).to(p))
    found += related(model, subject, "after a change of its parameters ")
    still = [n for n, old in before.items() if torch.equal(read(model, n), old)]
    if still:
        found.append(Outcome(Verdict.UNTIED, f"no parameter of the model moves {still[0]}"))
    found += _answers(model, subject, run, "after a change of its parameters ")
    if all(o.verdict in (Verdict.KEPT, Verdict.TWICE) for o in found):
        found += _trains(model, subject, run, bool(twice))
    return worst(found)


def _tolerance(model: nn.Module, subject: Subject) -> float:
    dtype = read(model, subject.sites[0]).dtype
    return {torch.float64: 1e-9, torch.float32: 2e-5}.get(dtype, 0.06)


def _far(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def related(model: nn.Module, subject: Subject, when: str = "") -> list[Outcome]:
    """Nothing where the sites are as the tie says, else by how much they are not."""
    values = {n: read(model, n) for n in subject.sites}
    expected = subject.expand(subject.theta(values))
    for name, w in expected.items():
        if w.shape != values[name].shape:
            shapes = f"{tuple(values[name].shape)}, not {tuple(w.shape)}"
            return [Outcome(Verdict.UNTIED, f"{when}{name} has the shape {shapes}")]
        if not torch.equal(w, values[name].to(w)):
            other = subject.links[name].owner if name in subject.links else "its own map"
            far = _far(w, values[name])
            return [Outcome(Verdict.UNTIED, f"{when}{name} is {far:.2g} from {other}".strip())]
    return []


def _wanted(model: nn.Module, subject: Subject, want: Mapping[str, Tensor]) -> list[Outcome]:
    for name, w in want.items():
        far = _far(read(model, name), w)
        if not far <= _tolerance(model, subject) * (1 + float(w.abs().max())):
            return [
                Outcome(Verdict.WRONG, f"{name} is {far:.2g} from the value it should have")
            ]
    return []


def _counted(model: nn.Module, subject: Subject) -> list[Outcome]:
    free = subject.free()
    found = sum(p.numel() for p in model.parameters())
    if found != free:
        return [Outcome(Verdict.TWICE, f"{found} numbers in parameters() for {free} free ones")]
    storages = {
        v.untyped_storage().data_ptr(): v.untyped_storage().nbytes()
        for v in model.state_dict().values()
        if isinstance(v, Tensor) and v.numel()
    }
    buffers = {
        b.untyped_storage().data_ptr(): b.untyped_storage().nbytes() for b in model.buffers()
    }
    stored = sum(n for p, n in storages.items() if p not in buffers)
    needed = sum(p.numel() * p.element_size() for p in model.parameters())
    if stored > needed:
        return [Outcome(Verdict.TWICE, f"{stored} bytes in the state dict for {needed}")]
    return []


def _answers(model: nn.Module, subject: Subject, run: Call, when: str) -> list[Outcome]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            found = run(subject.input(model))
            expected = subject.call(follow(model, subject), _wide(subject.input()))
    finally:
        model.train(training)
    far = _far(found, expected)
    if not far <= _tolerance(model, subject) * (1 + float(expected.abs().max())):
        detail = f"{when}the outputs are {far:.2g} from those of the values read at the sites"
        return [Outcome(Verdict.STALE, detail)]
    return []


def _trains(model: nn.Module, subject: Subject, run: Call, twice: bool) -> list[Outcome]:
    """One step of SGD with decay: a free value that is stepped twice decays twice."""
    expected = expected_step(model, subject)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    optimizer.zero_grad()
    loss(run(subject.input(model))).backward()
    optimizer.step()
    for name, w in expected.items():
        far = _far(read(model, name), w)
        if not far <= _tolerance(model, subject) * (1 + float(w.abs().max())):
            if twice:
                return [Outcome(Verdict.TWICE, "it is stored, stepped and decayed twice")]
            return [Outcome(Verdict.WRONG, f"a step leaves {name} {far:.2g} from a step of θ")]
    return related(model, subject, "after a step ")
