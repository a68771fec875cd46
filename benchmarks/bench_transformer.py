"""Transformers: twelve layers tied by Eadem against the same model tied by hand.

GPT-2's own class, built small: the output layer is the embedding, and every layer but the
first takes its attention and its feed-forward weights from the first, as in ALBERT. By hand,
each is an attribute assignment, `b.weight = a.weight`; both models hold the same values. An
evaluation is one forward pass under `no_grad`, a step is forward, backward and an SGD update.
The rows of operators count what each model dispatches in a step and an evaluation, that of
guards what torch.compile checks before each call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import eadem
from timing import Ratio, Row, paired, row

__all__ = ["rows"]

LAYERS = 12
#: (width, batch, time): the first is the size at which a module's own cost weighs most.
SIZES = ((64, 1, 16), (256, 4, 64))
MODES = ("evaluation", "step")
#: What the project promises of the tied model's time over that of the hand-tied one.
LIMIT = 1.02
TIED = (
    "attn.c_attn.weight",
    "attn.c_proj.weight",
    "mlp.c_fc.weight",
    "mlp.c_proj.weight",
)


def stock(width: int) -> nn.Module:
    """GPT-2, untied; the same for the same width."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS,
        n_embd=width,
        n_head=4,
        vocab_size=512,
        n_positions=128,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        tie_word_embeddings=False,
    )
    return GPT2LMHeadModel(config)


def by_eadem(width: int) -> nn.Module:
    """Tied by Eadem."""
    model = stock(width)
    with eadem.plan(model):
        eadem.tie(model, "transformer.wte.weight", "lm_head.weight")
        for name in TIED:
            eadem.tie(model, f"transformer.h.*.{name}")
    return model


def by_hand(width: int) -> nn.Module:
    """The same, by assignment."""
    model = stock(width)
    model.lm_head.weight = model.transformer.wte.weight
    first, *others = model.transformer.h
    for name in TIED:
        path, _, attr = name.rpartition(".")
        for block in others:
            setattr(block.get_submodule(path), attr, first.get_parameter(name))
    return model


Call = Callable[[Tensor], Tensor]


def _logits(call: Any) -> Call:
    return lambda ids: call(input_ids=ids).logits


def step(model: nn.Module, call: Call, ids: Tensor) -> Callable[[], None]:
    """One training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(call(ids).flatten(0, 1), ids.flatten()).backward()
        optimizer.step()

    return run


def evaluation(call: Call, ids: Tensor) -> Callable[[], None]:
    """One forward pass under no_grad."""

    def run() -> None:
        with torch.no_grad():
            call(ids)

    return run


def compare(width: int, batch: int, time: int, how: str) -> list[Row]:
    """Evaluation and step of one size, eager or compiled.

    Of two models of one class, that which is compiled first runs one or two percent slower,
    whichever it is. So each is first once; the ratio is the geometric mean of the two.
    """
    orders = (False, True) if how == "compiled" else (False,)
    both = [_ratios(width, batch, time, how, turned) for turned in orders]
    size = f"{width} wide, {batch}×{time} tokens, {how}"
    return [
        row(f"{LAYERS} layers, {mode}, {size}", "tied by hand", _mean(ratios), LIMIT)
        for mode, ratios in zip(MODES, zip(*both, strict=True), strict=True)
    ]


def _ratios(width: int, batch: int, time: int, how: str, turned: bool) -> list[Ratio]:
    """Eadem over by hand, for each of `MODES`; `turned`: the one by hand is compiled first."""
    ids = torch.randint(0, 512, (batch, time))
    models = [by_eadem(width), by_hand(width)]
    order = models[::-1] if turned else models
    whole: dict[nn.Module, Any] = {m: m for m in order}
    if how == "compiled":
        torch._dynamo.reset()
        whole = {m: torch.compile(m, fullgraph=True) for m in order}
    calls = {m: _logits(c) for m, c in whole.items()}
    found = []
    for mode in MODES:
        for m in order:
            m.train(mode == "step")
        uses = {
            m: evaluation(calls[m], ids) if mode == "evaluation" else step(m, calls[m], ids)
            for m in order
        }
        one, other = (calls[m](ids) for m in order)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        for m in order:
            uses[m]()
        found.append(paired(*(uses[m] for m in models), rounds=25, pairs=10))
    return found


def _mean(ratios: Sequence[Ratio]) -> Ratio:
    return Ratio(
        geometric_mean(r.median for r in ratios),
        min(r.low for r in ratios),
        max(r.high for r in ratios),
    )


class _Count(TorchDispatchMode):
    """The number of operators that reach the dispatcher."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
        self.number += 1
        return func(*args, **(kwargs or {}))


def operators() -> list[Row]:
    """Operators dispatched by a step and by an evaluation: a ratio of two counts."""
    ids = torch.randint(0, 512, (1, 16))
    found = []
    for mode in ("evaluation", "step"):
        counts = []
        for model in (by_eadem(64), by_hand(64)):
            call = _logits(model.train(mode == "step"))
            use = step(model, call, ids) if mode == "step" else evaluation(call, ids)
            with _Count() as count:
                use()
            counts.append(count.number)
        ratio = counts[0] / counts[1]
        name = f"{LAYERS} layers, {mode}: operators dispatched ({counts[1]} by hand)"
        found.append(Row(name, "tied by hand", ratio, ratio, ratio, 1.0))
    return found


def guards() -> list[Row]:
    """What torch.compile checks before each call of an evaluation: a ratio of two counts."""
    ids = torch.randint(0, 512, (1, 16))
    counts = []
    for model in (by_eadem(64), by_hand(64)):
        torch._dynamo.reset()
        checks: list[str] = []
        with _guards(checks), torch.no_grad():
            torch.compile(model.eval(), fullgraph=True, backend="eager")(input_ids=ids)
        counts.append(sum("+- " in line for line in "".join(checks).splitlines()))
    ratio = counts[0] / counts[1]
    name = f"{LAYERS} layers, evaluation: guards of the compiler ({counts[1]} by hand)"
    return [Row(name, "tied by hand", ratio, ratio, ratio, LIMIT)]


@contextmanager
def _guards(checks: list[str]) -> Iterator[None]:
    """The compiler's guards, as text, are put on the list."""
    torch._dynamo.guards.guard_manager_testing_hook_fn = lambda g, *_: checks.append(str(g))
    try:
        yield
    finally:
        torch._dynamo.guards.guard_manager_testing_hook_fn = None


def rows() -> list[Row]:
    """All of the table; without transformers, one row that says so."""
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        return [Row(f"{LAYERS} layers", "transformers (not installed)", None)]
    eager = [r for size in SIZES for r in compare(*size, "eager")]
    return [*operators(), *guards(), *eager, *compare(*SIZES[0], "compiled")]
