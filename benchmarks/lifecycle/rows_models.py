"""Rows 1 to 13: what is done to a model and to its checkpoints."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import eadem

from .oracle import Stopped, event, judge, worst
from .rows import Case, Probe, Row, after, always, first_two, inner, kept, said, state_of
from .subjects import Subject, read
from .verdict import Outcome, Verdict, short
from .ways import ALIAS, EADEM, NATIVE, PARAMETRIZE, Way

__all__ = ["ROWS"]


# 1, 2: casts


def _casts(model: nn.Module) -> nn.Module:
    return model.to(torch.bfloat16).half().double().float()


def _one_module_cast(way: Way, subject: Subject) -> Outcome:
    found = [kept()]
    for name in subject.sites:
        model = way.tied(subject)
        with event(model):
            inner(model, name).double()
        kinds = {read(model, n).dtype for n in subject.sites}
        if len(kinds) > 1:
            found.append(said(Verdict.UNTIED, f"casting the module of {name} leaves {kinds}"))
        found.append(judge(model.float(), subject))
    return worst(found)


@contextmanager
def _flag(setter: Callable[[bool], None]) -> Iterator[None]:
    setter(True)
    try:
        yield
    finally:
        setter(False)


def _under(setter: Callable[[bool], None]) -> Probe:
    def probe(way: Way, subject: Subject) -> Outcome:
        model = way.tied(subject)
        with event(model), _flag(setter):
            model.double()
        return judge(model, subject)

    return probe


# 3, 4: models built without values


def initialise(model: nn.Module) -> nn.Module:
    """Fill every parameter and buffer that the model names, each in its own way."""
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            nn.init.uniform_(p, 0.1, 1.0, generator=torch.Generator().manual_seed(i))
        for name, b in model.named_buffers():
            b.fill_(1 if name.endswith("var") else 0)
    return model


def _on_meta(way: Way, subject: Subject) -> Outcome:
    with torch.device("meta"):
        model = subject.factory()
    with event(model):
        way.tie(model, subject)
        model.to_empty(device="cpu")
        initialise(model)
    return judge(model, subject)


def _to_meta_and_back(model: nn.Module) -> nn.Module:
    return initialise(model.to("meta").to_empty(device="cpu"))


def _empty_weights(way: Way, subject: Subject) -> Outcome:
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = subject.factory()
        way.tie(model, subject)
    with event(model):
        initialise(model.to_empty(device="cpu"))
    return judge(model, subject)


def _tied_then_emptied(way: Way, subject: Subject) -> Outcome:
    """The tie is made in the model's own constructor, under the context, as classes do."""
    from accelerate import init_empty_weights

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = way.tied(subject)

    with init_empty_weights():
        model = Own().model
    model.load_state_dict(state_of(way, subject, 5), assign=True)
    return judge(model, subject, want=subject.values(5))


def _accelerate_loads(way: Way, subject: Subject) -> Outcome:
    """accelerate's own handling: a checkpoint loaded and dispatched, ties looked for."""
    from accelerate import init_empty_weights, load_checkpoint_and_dispatch

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.bin"
        torch.save(state_of(ALIAS, subject, 5), path)
        with init_empty_weights():
            model = ALIAS.tied(subject)
        with event(model):
            model = load_checkpoint_and_dispatch(model, str(path), device_map={"": "cpu"})
    return judge(model, subject, want=subject.values(5))


# 5, 6, 7: copies


def _one_module_copied(way: Way, subject: Subject) -> Outcome:
    """A copy of one site's module holds its own values, in its own parameters."""
    found = [kept()]
    for name in subject.sites:
        model = way.tied(subject)
        module, leaf = inner(model, name), name.rpartition(".")[2]
        if module is model:
            continue
        before = read(model, name)
        with event(model):
            alone = copy.deepcopy(module)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1.0)
        now = getattr(alone, leaf).detach()
        if not torch.equal(now, before):
            found.append(said(Verdict.WRONG, f"the copy of {name} changed with the model"))
        with torch.no_grad():
            for p in alone.parameters():
                p.mul_(2.0)
        if torch.equal(getattr(alone, leaf).detach(), before):
            what = f"the copy of {name} has no parameter that moves it"
            found.append(said(Verdict.WRONG, what))
        found.append(judge(model, subject))
    return worst(found)


def _pickled(model: nn.Module) -> nn.Module:
    again: nn.Module = pickle.loads(pickle.dumps(model))
    return again


def _torch_saved(model: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    again: nn.Module = torch.load(stream, weights_only=False)
    return again


def echo(given: Any, answer: Any) -> None:
    """In a fresh process: take a model, send it back."""
    answer.send(pickle.dumps(pickle.loads(given)))


def _spawned(model: nn.Module) -> nn.Module:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=echo, args=(pickle.dumps(model), theirs))
    worker.start()
    try:
        again: nn.Module = pickle.loads(mine.recv())
    finally:
        worker.join(20)
    return again


def _chain(model: nn.Module) -> nn.Module:
    return copy.deepcopy(_pickled(copy.deepcopy(model).double())).bfloat16().float()


# 8, 9, 10: state dicts


def _load(assign: bool) -> Probe:
    def probe(way: Way, subject: Subject) -> Outcome:
        model, state = way.tied(subject), state_of(way, subject, 7)
        with event(model):
            model.load_state_dict(state, assign=assign)
        return judge(model, subject, want=subject.values(7))

    return probe


def _theta_only(way: Way, subject: Subject) -> Outcome:
    state = {k: v for k, v in state_of(way, subject, 7).items() if k not in subject.links}
    model = way.tied(subject)
    with event(model):
        model.load_state_dict(state, strict=True)
    return judge(model, subject, want=subject.values(7))


def _agreeing(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject)
    with event(model):
        model.load_state_dict(subject.agreeing(7), strict=True)
    return judge(model, subject, want=subject.values(7))


def _disagreeing(way: Way, subject: Subject) -> Outcome:
    """One value at the last site is off by 0.75: to be refused, with the difference."""
    model, state = way.tied(subject), subject.agreeing(7)
    site = subject.sites[-1]
    state[site].view(-1)[-1] += 0.75
    try:
        with event(model):
            model.load_state_dict(state, strict=True)
    except Stopped as error:
        text = str(error.error)
        if error.changed:
            return said(Verdict.RAISES, f"raises, but {error.changed} were changed")
        if site in text and ("0.75" in text or "0.37" in text):
            return said(Verdict.REFUSED, short(text))
        return said(Verdict.RAISES, f"without the difference: {short(text)}")
    last = torch.allclose(read(model, site), state[site])
    tail = "the last one's values stay" if last else "another site's values stay"
    return said(Verdict.WRONG, f"sites that differ by 0.75 load without a word; {tail}")


# 11, 12, 13: values on the way in and out


def _start_mean(way: Way, subject: Subject) -> Outcome:
    stock = subject.stock()
    values = {n: read(stock, n).double() for n in subject.sites}
    want = _least_squares(subject, values)
    if way is not EADEM:
        model = way.tied(subject)
        far = max(float((read(model, n).double() - w).abs().max()) for n, w in want.items())
        detail = f"no such start: a value {far:.2g} from the mean, and no residual"
        return said(Verdict.NOT_APPLICABLE, detail)
    model = stock
    with event(model):
        eadem.untie(model)
    tie = _restarted(subject, model)
    for name, residual in tie.residual.items():
        whole = name.split("[")[0]
        away = float((values[whole] - want[whole]).abs().max())
        if abs(residual - away) > 1e-5 and "[" not in name:
            return said(Verdict.WRONG, f"residual of {name}: {residual:.3g}, not {away:.3g}")
    return judge(model, subject, want=want)


def _restarted(subject: Subject, model: nn.Module) -> eadem.Tie:
    """The subject's own declaration, started at the mean."""
    from unittest.mock import patch

    real = eadem.tie
    started: list[eadem.Tie] = []

    def mean(*args: Any, **options: Any) -> eadem.Tie:
        started.append(real(*args, **options, start="mean"))
        return started[0]

    with patch.object(eadem, "tie", mean):
        subject.declare(model)
    return started[0]


def _least_squares(subject: Subject, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The site values nearest to those given, by the dense matrix of the tie."""
    start = subject.theta(values)
    shapes = {o: t.shape for o, t in start.items()}
    sizes = [t.numel() for t in start.values()]

    def sites(flat: Tensor) -> Tensor:
        parts = dict(zip(shapes, flat.split(sizes), strict=True))
        full = subject.expand({o: p.reshape(shapes[o]) for o, p in parts.items()})
        return torch.cat([full[n].reshape(-1) for n in subject.sites])

    matrix = torch.autograd.functional.jacobian(sites, torch.zeros(sum(sizes)).double())
    target = torch.cat([values[n].reshape(-1) for n in subject.sites])
    flat = torch.linalg.lstsq(matrix, target).solution
    parts = dict(zip(shapes, flat.split(sizes), strict=True))
    return subject.expand({o: p.reshape(shapes[o]) for o, p in parts.items()})


def _plain_state(way: Way, model: nn.Module) -> dict[str, Tensor]:
    """A state dict for the stock class, as each way makes it."""
    if way is EADEM:
        return eadem.materialize(model)
    if way is PARAMETRIZE:
        model = copy.deepcopy(model)
        for module in list(model.modules()):
            for attr in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, attr, leave_parametrized=True)
    return model.state_dict()


def _materialized(way: Way, subject: Subject) -> Outcome:
    model = way.tied(subject).eval()
    with event(model):
        stock = subject.stock(3).eval()
        stock.load_state_dict(_plain_state(way, model), strict=True)
        far = float((stock(subject.input()) - model(subject.input())).abs().max())
    if far > 1e-6:
        return said(Verdict.WRONG, f"the stock class's outputs are {far:.2g} away")
    return judge(model, subject)


def _rebuilt(
    save: Callable[[nn.Module, Path], object], load: Callable[[nn.Module, Path], object]
) -> Probe:
    def probe(way: Way, subject: Subject) -> Outcome:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.file"
            source = way.tied(subject, 7)
            with event(source):
                save(source, path)
            fresh = subject.stock(3)
            with event(fresh):
                load(fresh, path)
        return judge(fresh, subject, want=subject.values(7))

    return probe


def _file_of(way: Way, subject: Subject) -> Outcome:
    """Eadem's own files; elsewhere what torch offers: a pickled state dict."""
    if way is EADEM:
        return _rebuilt(eadem.save, eadem.load)(way, subject)
    return _rebuilt(
        lambda m, path: torch.save(m.state_dict(), path),
        lambda m, path: m.load_state_dict(torch.load(path, weights_only=True)),
    )(way, subject)


def _safetensors(way: Way, subject: Subject) -> Outcome:
    from safetensors.torch import load_model, save_model

    return _rebuilt(save_model, load_model)(ALIAS, subject)


OVERWRITE = torch.__future__.set_overwrite_module_params_on_conversion
SWAP = torch.__future__.set_swap_module_params_on_conversion

ROWS = (
    Row(
        1,
        "cast, whole or at one site's module",
        (
            Case("the model", after(_casts)),
            Case("one site's module", _one_module_cast),
        ),
    ),
    Row(
        2,
        "converted under torch's `__future__` flags",
        (
            Case("overwrite", _under(OVERWRITE)),
            Case("swap", _under(SWAP)),
        ),
    ),
    Row(
        3,
        "built on `meta`, `to_empty`, initialised",
        (
            Case("tied on meta", _on_meta),
            Case("sent to meta and back", after(_to_meta_and_back)),
        ),
    ),
    Row(
        4,
        "built under accelerate's `init_empty_weights`",
        (
            Case("tied inside, then to_empty", _empty_weights, needs=("accelerate",)),
            Case("tied by its constructor", _tied_then_emptied, needs=("accelerate",)),
            Case(
                "load_checkpoint_and_dispatch",
                _accelerate_loads,
                subjects=first_two,
                ways=(NATIVE,),
                library="accelerate",
                needs=("accelerate",),
            ),
        ),
    ),
    Row(
        5,
        "deep-copied, whole or one site's module alone",
        (
            Case("whole", after(copy.deepcopy)),
            Case("one module alone", _one_module_copied),
        ),
    ),
    Row(
        6,
        "pickled, `torch.save`d, sent to a spawned process",
        (
            Case("pickle", after(_pickled)),
            Case("torch.save", after(_torch_saved)),
            Case("spawned process", after(_spawned), seconds=150),
        ),
    ),
    Row(7, "deep-copied, cast and pickled in turn", (Case("", after(_chain)),)),
    Row(8, "loaded with `load_state_dict(assign=True)`", (Case("", _load(assign=True)),)),
    Row(9, "loaded from a checkpoint with θ only, `strict=True`", (Case("", _theta_only),)),
    Row(
        10,
        "loaded from a checkpoint with every site",
        (
            Case("agreeing", _agreeing),
            Case("disagreeing", _disagreeing, refusable=always),
        ),
    ),
    Row(11, "tied while its sites differ, to start at the mean", (Case("", _start_mean),)),
    Row(12, "written as a plain state dict for the stock class", (Case("", _materialized),)),
    Row(
        13,
        "saved as one file, and rebuilt on a fresh, untied model",
        (
            Case("", _file_of),
            Case(
                "save_model, load_model",
                _safetensors,
                subjects=first_two,
                ways=(NATIVE,),
                library="safetensors",
                needs=("safetensors",),
            ),
        ),
    ),
)
