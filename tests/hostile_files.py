"""Checkpoints spoiled in every way that a program can think of, each told by a seed.

Bytes are flipped, cut, moved and put in; headers and records are changed as the JSON they
are. What then happens is judged by `judge`: a typed error and an untouched model, or a load
that gives what the safetensors library reads in the same file.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eadem


class Net(nn.Module):
    """Layers that most maps fit on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 6)
        self.head = nn.Linear(6, 12)
        self.encoder = nn.Linear(6, 4)
        self.decoder = nn.Linear(4, 6)
        self.k0 = nn.Conv2d(1, 2, 3, bias=False)
        self.k1 = nn.Conv2d(1, 2, 3, bias=False)
        self.filter = nn.Conv1d(1, 2, 5)
        self.norm = nn.BatchNorm1d(4)
        self.wide = nn.Linear(16, 16)


class Large(nn.Module):
    """Wide enough for an array that is kept by its hash."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(96, 96, bias=False)
        self.b = nn.Linear(96, 96, bias=False)


def _bulky(kind: Callable[[], nn.Module], bulk: int) -> nn.Module:
    model = kind()
    model.bulk = nn.Parameter(torch.zeros(bulk))
    return model


def _many(m: nn.Module) -> None:
    eadem.tie(m, "embed.weight", "head.weight")
    eadem.tie(m, "decoder.weight", to="encoder.weight", via=eadem.Transpose())
    eadem.tie(m, {"k0.weight": eadem.Same(), "k1.weight": eadem.Rotate(1)})
    eadem.tie(m, "filter.weight", via=eadem.Palindrome(dim=-1))
    eadem.tie(m, "head.bias[0:4]", "head.bias[8:12]")
    eadem.tie(m, "wide.weight", via=eadem.Toeplitz2d(4, 3, padding=1))


def _dense(m: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(24, 3, generator=generator, dtype=torch.float64)
    eadem.tie(m, "encoder.weight", via=eadem.Subspace(basis))
    eadem.tie(m, "wide.bias", via=eadem.Gather(torch.arange(16) % 5 - 1))
    eadem.tie(m, "norm.weight", "norm.bias", via=eadem.Scale(0.5) @ eadem.Flip(0))
    eadem.tie(m, "decoder.bias", via=eadem.Fixed(torch.arange(6.0)))
    eadem.tie(m, "filter.bias", via=eadem.Affine(2.0, 1.0) @ eadem.Positive())
    eadem.tie(m, "head.bias", via=eadem.Bounded(-9.0, 9.0))


def _indexed(m: nn.Module) -> None:
    order = torch.randperm(96 * 96, generator=torch.Generator().manual_seed(0))
    gather = eadem.Gather(order.reshape(96, 96))
    eadem.tie(m, {"a.weight": eadem.Same(), "b.weight": gather})


@dataclass(frozen=True)
class Case:
    """A stock class, how it is tied, and the file that `eadem.save` wrote of it."""

    stock: Callable[[], nn.Module]
    tie: Callable[[nn.Module], None]
    data: bytes

    def tied(self) -> nn.Module:
        model = build(self.stock)
        self.tie(model)
        return model


def build(stock: Callable[[], nn.Module]) -> nn.Module:
    """The stock model with the same values every time, in the range that every map takes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = stock()
    with torch.no_grad():
        for p in model.parameters():
            p.abs_().add_(1.25)
    return model


def cases(folder: Path, bulk: int = 0) -> list[Case]:
    """Four files: many ties, dense and non-linear ones, a large index, none. `bulk` values
    are added to each.
    """
    found = []
    for kind, tie in ((Net, _many), (Net, _dense), (Large, _indexed), (Net, lambda m: None)):
        stock = partial(_bulky, kind, bulk) if bulk else kind
        model = build(stock)
        tie(model)
        eadem.save(model, folder / "whole")
        found.append(Case(stock, tie, (folder / "whole").read_bytes()))
    return found


# mutations

_NUMBERS = (
    -1, 0, 1, 2, 3, 7, 63, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1,
    2**63, 2**64, 10**30, -(2**63), 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
)  # fmt: skip
_TEXTS = (
    "", " ", "w", "x" * 5000, "nan", "inf", "F32", "BF16", "F64", "I64", "BOOL", "Q7", "Same",
    "Transpose", "Rotate", "Scale", "Gather", "Fixed", "Palindrome", "Toeplitz2d", "Local2d",
    "Subspace", "Positive", "Function", "Map", "LinearMap", "Composed", "LinearStack", "Dense",
    "Viewed", "os:system", "builtins:eval", "torch:load", "torch:manual_seed", "torch:exp",
    "subprocess:run", "embed.weight", "embed.weight[0]", "embed.weight[99]", "head.bias[::-1]",
    "encoder.weight[" + "[" * 300, "wide.bias[0:0]", "wide.bias[...]", "a.weight[" + "9" * 5000,
    "norm.running_mean", "__proto__", "\x00", "\ud800", "é\u202e", "../../etc/passwd",
    "bool", "float64", "uint8", "complex64", "torch", "eadem/" + "0" * 64,
)  # fmt: skip


#: What is put into a record's text.
_TYPOS = ('"ties":[],', "NaN", "[", "}", "\\", "1e999", ",", "[" * 100_000)


def _deep(random_: random.Random) -> Any:
    value: Any = 0
    for _ in range(random_.choice((3, 70, 150))):
        value = [value] if random_.random() < 0.7 else {"kind": "Same", "args": {"x": value}}
    return value


def _odd(random_: random.Random) -> Any:
    kinds: tuple[Callable[[], Any], ...] = (
        lambda: random_.choice(_NUMBERS),
        lambda: random_.choice(_TEXTS),
        lambda: random_.choice((None, True, False, [], {}, [[]], {"": 0})),
        lambda: [random_.choice(_NUMBERS) for _ in range(random_.choice((1, 2, 4, 40)))],
        lambda: {random_.choice(_TEXTS): random_.choice(_NUMBERS)},
        lambda: {
            "array": {"dtype": "int64", "shape": [2], "values": [random_.choice(_NUMBERS)] * 2}
        },
        lambda: {"kind": random_.choice(_TEXTS), "args": {}},
        lambda: {"function": random_.choice(_TEXTS)},
        lambda: _deep(random_),
    )
    return random_.choice(kinds)()


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        at = stack.pop()
        keys = (
            list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else []
        )
        for key in keys:
            found.append((at, key))
            stack.append(at[key])
    return found


def spoil_json(value: Any, random_: random.Random) -> Any:
    """A copy of a JSON value with one to three nodes changed."""
    value = copy.deepcopy(value)
    for _ in range(random_.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return _odd(random_)
        holder, key = random_.choice(places)
        other, there = random_.choice(places)
        held = holder[key]
        match random_.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(held))
            case 1:
                holder[random_.choice(_TEXTS)] = holder.pop(key)
            case 2:
                holder[key] = copy.deepcopy(other[there])
            case 3 if type(held) in (int, float):
                holder[key] = random_.choice((-held, held + 1, held * 1000, held * 2**40))
            case 4 if isinstance(held, str) and held:
                at = random_.randrange(len(held))
                cut = (held[:at], held[at:], held[:at] + "[" + held[at:], held + held)
                holder[key] = random_.choice((*cut, held.upper()))
            case 5 if isinstance(held, list):
                holder[key] = held * random_.choice((0, 2, 50))
            case _:
                holder[key] = _odd(random_)
    return value


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, rest: bytes) -> bytes:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + rest


def spoil_record(data: bytes, random_: random.Random) -> bytes:
    header, rest = split(data)
    found = json.loads(header["__metadata__"]["eadem"])
    text = json.dumps(spoil_json(found, random_))
    if random_.random() < 0.1:  # as text: a key twice, a NaN, a bracket too many
        at = random_.randrange(len(text))
        put = random_.choice(_TYPOS)
        text = text[:at] + put + text[at:]
    header["__metadata__"]["eadem"] = text
    return join(header, rest)


def spoil_header(data: bytes, random_: random.Random) -> bytes:
    header, rest = split(data)
    if random_.random() < 0.8:
        name = random_.choice(list(header))
        header[name] = spoil_json(header[name], random_)
        return join(header, rest)
    return join(spoil_json(header, random_), rest)


def spoil_bytes(data: bytes, random_: random.Random) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    held = bytearray(data)
    lo, hi = random_.choice(((0, 8), (8, 8 + length), (0, len(data)), (8 + length, len(data))))
    hi = max(hi, lo + 1)
    at = min(random_.randrange(lo, hi), len(held) - 1)
    size = random_.choice((1, 2, 8, 64, 1000))
    match random_.randrange(8):
        case 0:
            for _ in range(random_.choice((1, 1, 2, 8))):
                held[min(random_.randrange(lo, hi), len(held) - 1)] ^= 1 << random_.randrange(8)
        case 1:
            held[at] = random_.choice((0, 9, 34, 44, 58, 91, 93, 123, 125, 128, 255))
        case 2:
            del held[at:]
        case 3:
            del held[at : at + size]
        case 4:
            held[at:at] = held[at : at + size]
        case 5:
            held[at : at + size] = bytes(len(held[at : at + size]))
        case 6:
            held += random_.randbytes(size)
        case _:
            number = random_.choice(
                (0, 1, length - 1, length + 1, len(data), 2**31, 2**63, 2**64 - 1)
            )
            held[:8] = struct.pack("<Q", max(0, number))
    return bytes(held)


def spoiled(data: bytes, seed: int) -> bytes:
    """One mutated file."""
    random_ = random.Random(seed)
    how = random_.choices((spoil_bytes, spoil_header, spoil_record), (4, 2, 4))[0]
    found = how(data, random_)
    again = how is spoil_bytes and random_.random() < 0.1 and len(found) >= 8
    return how(found, random_) if again else found


# judgement


def state(model: nn.Module) -> tuple[Any, ...]:
    """All that a refused file must leave as it was."""
    modules = dict(model.named_modules())
    return (
        {n: (id(p), p.shape, p.requires_grad, p.grad) for n, p in model.named_parameters()},
        {n: type(m) for n, m in modules.items()},
        {n: {k: _seen(v) for k, v in vars(m).items()} for n, m in modules.items()},
    )


def _seen(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): id(v) for k, v in value.items()}
    return id(value) if isinstance(value, nn.Module | Tensor) else str(type(value))


def numbers(model: nn.Module) -> list[Tensor]:
    return [v.detach().clone() for v in (*model.parameters(), *model.buffers())]


def judge(
    path: Path, model: nn.Module, load: Callable[[nn.Module, Path], object] = eadem.load
) -> str:
    """Load a file into a model. Returns "loaded", or the kind of error; raises AssertionError
    where the model was touched and not loaded, or loaded with other values.
    """
    before, held = state(model), numbers(model)
    refused: eadem.EademError | None = None
    try:
        load(model, path)
    except eadem.EademError as error:
        refused = error
    if refused is not None:
        said = f"{type(refused).__name__}: {refused}"
        assert str(refused), said
        assert state(model) == before, f"a changed model after {said}"
        for a, b in zip(numbers(model), held, strict=True):
            assert torch.equal(a, b), f"changed values after {said}"
        return type(refused).__name__
    eadem.check(model)
    theirs = load_file(path)
    ours = model.state_dict()
    assert {k for k in theirs if not k.startswith("eadem/")} == set(ours)
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name].to(value.dtype), rtol=0, atol=0, equal_nan=True, msg=name
        )
    return "loaded"
