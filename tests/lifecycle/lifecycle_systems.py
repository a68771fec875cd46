"""The systems that every row of the lifecycle is run over.

Each is a stock model, the declaration that ties it, and the relation that must hold between
the values read at its sites. The relation is written by hand, without Eadem, so that it can
be asked of anything: a copy, a pickle, a compiled model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import eadem


class Tokens(nn.Module):
    """Embedding and output layer of a tiny language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embed(x))))


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(6, 3)
        self.decoder = nn.Linear(3, 6)

    def encode(self, x: Tensor) -> Tensor:
        return torch.tanh(self.encoder(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encode(x))


class Kernels(nn.Module):
    """Three convolutions, to be one kernel seen in three poses."""

    def __init__(self) -> None:
        super().__init__()
        self.k0 = nn.Conv2d(1, 2, 3)
        self.k1 = nn.Conv2d(1, 2, 3)
        self.k2 = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.k0(x) + torch.tanh(self.k1(x)) + torch.sigmoid(self.k2(x)))


class Rows(nn.Module):
    """One tensor two of whose rows are the same value."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3))
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log_softmax(self.mix(x) @ torch.tanh(self.w), dim=-1)


class Filter(nn.Module):
    """A convolution whose filters are to read the same from both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 5)
        self.out = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.conv(x)).mean(-1))


class Filters(Filter):
    """Two convolutions whose filters are positive, and the same."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv1d(1, 2, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((torch.tanh(self.conv(x)) + self.other(x).sigmoid()).mean(-1))


def _positive_filter() -> nn.Module:
    model = Filters()
    with torch.no_grad():
        for conv in (model.conv, model.other):
            conv.weight.abs_().add_(0.1)
    return model


def _waves() -> Tensor:
    """Three directions in the ten values of the filter; neither orthogonal nor of length 1."""
    t = torch.arange(10, dtype=torch.float64)
    return torch.stack([torch.ones(10).double(), t / 3, (t / 2).sin()], dim=1)


def _projected(w: Tensor) -> Tensor:
    basis = _waves()
    found = basis @ torch.linalg.lstsq(basis, w.double().reshape(-1)).solution
    return found.reshape(w.shape)


@dataclass(frozen=True)
class System:
    """A stock model, its tie, and what must then hold.

    `tie(model, at="")` declares it, with the names prefixed by `at`.
    `sites` are the dotted names of the tied parameters, `owned` the numbers that each keeps
    in a parameter of its own (0: none), `derived` the modules without a parameter there.
    """

    name: str
    factory: Callable[[], nn.Module]
    tie: Callable[..., Any]
    relation: Callable[[nn.Module], list[tuple[Tensor, Tensor]]]
    x: Callable[[], Tensor]
    owned: dict[str, int]
    free: int
    expanded: int
    derived: tuple[str, ...] = ()
    tolerance: float = 0.0

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.owned)

    def stock(self, seed: int = 0) -> nn.Module:
        """The untied model, the same for the same seed."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.factory()

    def tied(self, seed: int = 0) -> nn.Module:
        """The model after its declaration."""
        model = self.stock(seed)
        self.tie(model)
        return model

    def input(self, model: nn.Module | None = None) -> Tensor:
        """A fixed batch, in the dtype of `model`."""
        with torch.random.fork_rng():
            torch.manual_seed(11)
            x = self.x()
        if model is not None and x.is_floating_point():
            x = x.to(next(model.parameters()).dtype)
        return x


def _kernels(m: nn.Module) -> list[tuple[Tensor, Tensor]]:
    w = value(m, "k0.weight")
    return [
        (value(m, "k1.weight"), torch.rot90(w, 1, (-2, -1))),
        (value(m, "k2.weight"), w.flip(-1)),
    ]


SYSTEMS: tuple[System, ...] = (
    System(
        "equality",
        Tokens,
        lambda m, at="": eadem.tie(m, f"{at}embed.weight", f"{at}head.weight"),
        lambda m: [(value(m, "embed.weight"), value(m, "head.weight"))],
        lambda: torch.randint(0, 7, (5, 3)),
        {"embed.weight": 28, "head.weight": 0},
        free=28 + 20,
        expanded=56 + 20,
        derived=("head",),
    ),
    System(
        "transpose",
        Autoencoder,
        lambda m, at="": eadem.tie(
            m, f"{at}decoder.weight", to=f"{at}encoder.weight", via=eadem.Transpose()
        ),
        lambda m: [(value(m, "decoder.weight"), value(m, "encoder.weight").t())],
        lambda: torch.randn(5, 6),
        {"encoder.weight": 18, "decoder.weight": 0},
        free=18 + 9,
        expanded=36 + 9,
        derived=("decoder",),
    ),
    System(
        "kernels",
        Kernels,
        lambda m, at="": eadem.tie(
            m,
            {
                f"{at}k0.weight": eadem.Same(),
                f"{at}k1.weight": eadem.Rotate(1),
                f"{at}k2.weight": eadem.Flip(-1),
            },
        ),
        _kernels,
        lambda: torch.randn(2, 1, 6, 6),
        {"k0.weight": 18, "k1.weight": 0, "k2.weight": 0},
        free=18 + 6 + 4,
        expanded=54 + 6 + 4,
        derived=("k1", "k2"),
    ),
    System(
        "part",
        Rows,
        lambda m, at="": eadem.tie(m, f"{at}w[1]", f"{at}w[3]"),
        lambda m: [(value(m, "w")[1], value(m, "w")[3])],
        lambda: torch.randn(5, 4),
        {"w": 9},
        free=9 + 20,
        expanded=12 + 20,
    ),
    System(
        "palindrome",
        Filter,
        lambda m, at="": eadem.tie(m, f"{at}conv.weight", via=eadem.Palindrome(dim=-1)),
        lambda m: [(value(m, "conv.weight"), value(m, "conv.weight").flip(-1))],
        lambda: torch.randn(5, 1, 9),
        {"conv.weight": 6},
        free=6 + 5,
        expanded=10 + 5,
    ),
    System(
        "subspace",
        Filter,
        lambda m, at="": eadem.tie(m, f"{at}conv.weight", via=eadem.Subspace(_waves())),
        lambda m: [(value(m, "conv.weight").double(), _projected(value(m, "conv.weight")))],
        lambda: torch.randn(5, 1, 9),
        {"conv.weight": 3},
        free=3 + 5,
        expanded=10 + 5,
        tolerance=1e-6,
    ),
    System(
        "positive",
        _positive_filter,
        lambda m, at="": eadem.tie(
            m, f"{at}conv.weight", f"{at}other.weight", via=eadem.Positive()
        ),
        lambda m: [
            (value(m, "conv.weight"), value(m, "other.weight")),
            (value(m, "conv.weight"), value(m, "conv.weight").abs()),
        ],
        lambda: torch.randn(5, 1, 9),
        {"conv.weight": 10, "other.weight": 0},
        free=10 + 7,
        expanded=20 + 7,
        derived=("other",),
        tolerance=1e-6,
    ),
)


def value(model: nn.Module, name: str) -> Tensor:
    """What a user reads at a site: the attribute, detached and copied."""
    owner, _, leaf = name.rpartition(".")
    found = getattr(model.get_submodule(owner), leaf)
    assert isinstance(found, Tensor), f"{name} is {type(found)}"
    return found.detach().clone(memory_format=torch.contiguous_format)


def values(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: value(model, name) for name in names}


def assert_holds(model: nn.Module, system: System) -> None:
    """The relation holds to the bit, and each free value is stored once under one name."""
    assert_related(model, system)
    stored = dict(model.named_parameters())
    for name, count in system.owned.items():
        assert stored[name].numel() == count if count else name not in stored, name
    again = dict(model.named_parameters(remove_duplicate=False))
    assert list(again) == list(stored)
    assert sum(p.numel() for p in model.parameters()) == system.free
    keys = set(model.state_dict())
    assert keys - set(stored) == {name for name, _ in model.named_buffers()}
    assert set(stored) <= keys
    pointers = [p.data_ptr() for p in stored.values() if p.numel()]
    assert len(set(pointers)) == len(pointers)


def assert_related(model: nn.Module, system: System) -> None:
    """The relation alone: of index maps to the bit, of others to the rounding of the dtype."""
    low = {torch.bfloat16, torch.float16}
    kinds = {v.dtype for v in values(model, system.sites).values()}
    for a, b in system.relation(model):
        close(a, b, system, 0.05 if kinds & low else 0.0)


def close(a: object, b: object, system: System, least: float = 0.0) -> None:
    """Equal: to the bit where the system's maps are index maps, else to rounding.

    `least` loosens the comparison of the others.
    """
    tolerance = max(system.tolerance, least) if system.tolerance else 0.0
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def assert_tied(model: nn.Module, system: System) -> None:
    """The relation holds now, and still does after every stored value has been changed."""
    assert_holds(model, system)
    before = values(model, system.sites)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            noise = torch.linspace(-1, 1, p.numel()).sin() + 0.1 * i + 0.05
            p.add_(noise.reshape(p.shape).to(p))
    assert_holds(model, system)
    for name, old in before.items():
        assert not torch.equal(value(model, name), old), f"{name} did not follow θ"
    trained(model, system)
    assert_holds(model, system)
    eadem.check(model)


def trained(model: nn.Module, system: System, steps: int = 2, lr: float = 0.05) -> list[float]:
    """Losses of a few SGD steps, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(system.input(model)).float().square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def site_gradients(
    model: nn.Module, system: System
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Values and loss gradients at every site, from the untied stock class.

    The stock model is loaded with what is read at the sites, one name at a time, so nothing
    of Eadem takes part but the values themselves.
    """
    stock = system.stock().to(next(model.parameters()).dtype)
    stock.train(model.training)
    with torch.no_grad():
        for name, p in stock.named_parameters():
            p.copy_(value(model, name))
        for name, b in stock.named_buffers():
            b.copy_(model.get_buffer(name))
    loss(stock, system).backward()
    named = dict(stock.named_parameters())
    return (
        {n: p.detach() for n, p in named.items()},
        {n: p.grad.detach() for n, p in named.items() if p.grad is not None},
    )


def loss(model: nn.Module, system: System) -> Tensor:
    out = model(system.input(model))
    return (out * torch.linspace(0.5, 1.5, out.numel()).reshape(out.shape).to(out)).sum()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything a refused call must leave as it was."""
    return {
        "identity": {n: id(p) for n, p in model.named_parameters(remove_duplicate=False)},
        "values": {n: p.detach().clone() for n, p in model.named_parameters()},
        "buffers": {n: b.detach().clone() for n, b in model.named_buffers()},
        "keys": list(model.state_dict()),
        "types": {n: type(m) for n, m in model.named_modules()},
        "grad": {n: p.requires_grad for n, p in model.named_parameters()},
        "hooks": {
            n: (len(m._load_state_dict_pre_hooks), len(m._state_dict_hooks))
            for n, m in model.named_modules()
        },
    }


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    now = snapshot(model)
    for kind in ("identity", "keys", "types", "grad", "hooks"):
        assert now[kind] == before[kind], kind
    for kind in ("values", "buffers"):
        for name, old in before[kind].items():
            if old.device.type != "meta":
                torch.testing.assert_close(
                    now[kind][name], old, rtol=0, atol=0, equal_nan=True, msg=name
                )
