"""Ties by a group, against escnn, e2cnn, symm-learning and plain torch.

A network is two convolutions between regular fields of 32 channels in all, kernel 3, padding 1,
with biases and a ReLU between them; a step is forward, backward and an SGD update. Eadem's
filters span all pixel-exact dimensions (36 of p4, 72 of p4m, from field to field), its peers'
fewer (24 and 48). The peers need compiled packages of their own: `pip install --no-deps
escnn e2cnn lie_learn symm-learning`, with numpy below 2. `pip install emlp six` brings emlp,
which runs with jax 0.10.2.
"""

from __future__ import annotations

import itertools
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import eadem
from eadem.groups import Cyclic, Dihedral, Group, Representation, Symmetric
from eadem.groups.orbits import components
from eadem.groups.signed import Signed
from eadem.nn import equivariant
from timing import Row, paired, row, seconds, table

GROUPS: dict[str, Group] = {"p4": Cyclic(4), "p4m": Dihedral(4)}
CHANNELS = 32
SIDES, BATCHES = (8, 32, 64), (1, 8)
#: Entries of the orbit benchmark, and what it may take in seconds and in MB.
ENTRIES, SECONDS, MEGABYTES = 10**6, 0.5, 200
#: Seconds that tying a side of 512 may take.
BASIS = 1.0


def peer(name: str) -> Any:
    """A peer's package, or None where it is not installed or does not load."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return __import__(name, fromlist=["nn", "gspaces", "group"])
    except ImportError:
        return None


def ours(group: Group) -> nn.Sequential:
    """The network as stock layers."""
    rep = group.regular(CHANNELS // group.order)

    def conv() -> nn.Module:
        return nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    model = nn.Sequential(conv(), nn.ReLU(), conv())
    via = eadem.Equivariant(rep, rep)
    with eadem.plan(model):
        for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
            eadem.tie(model, name, via=via)
    return model


def theirs(package: Any, name: str, group: Group) -> tuple[nn.Module, Callable[[Tensor], Any]]:
    """The network in escnn or e2cnn, and what wraps its input."""
    spaces = package.gspaces
    if name == "escnn":
        act = spaces.rot2dOnR2(4) if group.order == 4 else spaces.flipRot2dOnR2(4)
    else:
        act = spaces.Rot2dOnR2(4) if group.order == 4 else spaces.FlipRot2dOnR2(4)
    kind = package.nn.FieldType(act, (CHANNELS // group.order) * [act.regular_repr])
    layers = [package.nn.R2Conv(kind, kind, 3, padding=1) for _ in range(2)]
    model = package.nn.SequentialModule(layers[0], package.nn.ReLU(kind), layers[1])
    return model, lambda x: package.nn.GeometricTensor(x, kind)


def step(model: nn.Module, x: Tensor, wrap: Callable[[Tensor], Any] | None = None) -> Any:
    """One training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        found = model(x if wrap is None else wrap(x))
        (found if wrap is None else found.tensor).square().mean().backward()
        optimizer.step()

    return run


def pulled(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward of one layer."""

    def run() -> None:
        layer.zero_grad()
        layer(x).square().mean().backward()

    return run


def evaluation(call: Callable[[Any], Any]) -> Callable[[], None]:
    """One forward pass without gradients."""

    def run() -> None:
        with torch.no_grad():
            call(None)

    return run


def training() -> list[Row]:
    """Training steps of the whole network, side by side, on one thread and on all."""
    threads, found = torch.get_num_threads(), []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        found += _training(f"{number} thread{'s' * (number > 1)}")
    torch.set_num_threads(threads)
    return found


def _training(threads: str) -> list[Row]:
    found = []
    for name in ("escnn", "e2cnn"):
        package = peer(name)
        for which, group in GROUPS.items():
            for side, batch in itertools.product(SIDES, BATCHES):
                what = f"{which} training step, side {side}, batch {batch}, {threads}"
                wanted = 1 / 1.3 if (side, batch) == (32, 1) and name == "escnn" else 1.0
                if package is None:
                    found.append(Row(what, name, None, limit=wanted))
                    continue
                torch.manual_seed(0)
                x = torch.randn(batch, CHANNELS, side, side)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        other, wrap = theirs(package, name, group)
                    except TypeError:  # e2cnn, with a scikit-learn that refuses np.matrix
                        lacking = f"{name} with scikit-learn below 1.2"
                        found.append(Row(what, lacking, None, limit=wanted))
                        continue
                    mine, other_step = step(ours(group), x), step(other, x, wrap)
                    ratio = paired(mine, other_step, rounds=15, pairs=6)
                found.append(row(what, name, ratio, wanted))
    return found


def expanded() -> list[Row]:
    """Evaluation against convolutions that hold the expanded weights."""
    found = []
    for which, group in GROUPS.items():
        for side in SIDES:
            for batch in BATCHES:
                torch.manual_seed(0)
                model = ours(group).eval()
                plain = eadem.twin(model).eval()
                x = torch.randn(batch, CHANNELS, side, side)
                mine = evaluation(lambda _, m=model, v=x: m(v))
                hand = evaluation(lambda _, m=plain, v=x: m(v))
                what = f"{which} evaluation, side {side}, batch {batch}"
                against = "nn.Conv2d with expanded weights"
                with eadem.expanded(model):
                    ratio = paired(mine, hand, rounds=9, pairs=6)
                found.append(row(f"{what}, in eadem.expanded", against, ratio, 1.02))
                ratio = paired(mine, hand, rounds=9, pairs=6)
                found.append(row(what, against, ratio))
    return found


def linear() -> list[Row]:
    """Equivariant linear layers between regular fields, on 16 observations."""
    found = []
    package = peer("symm_learning.nn")
    cases = [("C4", Cyclic(4), 128), ("C8", Cyclic(8), 256), ("D4", Dihedral(4), 512)]
    for name, group, size in cases:
        what = f"equivariant linear, step, {name}, n = {size}"
        if package is None:
            found.append(Row(what, "symm-learning", None, limit=0.25))
            continue
        torch.manual_seed(0)
        rep = group.regular(size // group.order)
        layer = equivariant(nn.Linear(size, size), rep, rep)
        escnn = peer("escnn")
        spaces = {"C4": (escnn.group.CyclicGroup, 4), "C8": (escnn.group.CyclicGroup, 8)}
        make, n = spaces.get(name, (escnn.group.DihedralGroup, 4))
        their = escnn.group.directsum([make(n).regular_representation] * (size // group.order))
        other = package.eLinear(their, their)
        x = torch.randn(16, size)
        ratio = paired(pulled(layer, x), pulled(other, x), rounds=9, pairs=6)
        found.append(row(what, "symm-learning", ratio, 0.25))
    return found


def bases() -> list[Row]:
    """A side of 512 under a cyclic group: its permutations, and matrices of no such form."""
    group = Cyclic(8)
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(512, 512, dtype=torch.float64)).Q
    blocks = torch.arange(512).view(64, 8).roll(1, 1).reshape(-1)
    matrix = turn @ torch.eye(512, dtype=torch.float64)[blocks] @ turn.T

    def tied(make: Callable[[], Representation]) -> None:
        layer, rep = nn.Linear(512, 512, bias=False).double(), make()
        eadem.tie(layer, "weight", via=eadem.Equivariant(rep, rep))

    ways = {
        "the regular representation": lambda: group.regular(64),
        "given matrices": lambda: group.representation(matrix),
    }
    found = []
    for what, make in ways.items():
        times = [seconds(lambda make=make: tied(make)) for _ in range(5)]
        name = f"equivariant linear of 512 × 512 under C8, {what}"
        found.append(
            Row(name, "seconds, the least of 5", min(times), min(times), max(times), BASIS, "s")
        )
    return found


def orbits() -> list[Row]:
    """A million entries under two generators: permutations, then signed ones."""
    random = np.random.default_rng(0)
    octets = np.arange(ENTRIES).reshape(-1, 8)
    shuffle = random.permutation(ENTRIES)
    back = np.argsort(shuffle)
    places = [np.roll(octets, 1, 1).reshape(-1), octets[:, ::-1].reshape(-1)]
    plain = [Signed(shuffle[p[back]]) for p in places]
    flips = np.where(random.random(ENTRIES) < 0.5, 1, -1).astype(np.int8)
    # signs that agree: those of a change of every other entry's sign
    signed = [Signed(i.place, flips[i.place] * flips) for i in plain]
    found = []
    for what, images in (("permutations", plain), ("signed permutations", signed)):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [seconds(lambda images=images: components(images)) for _ in range(5)]
        most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert components(images)[2] == ENTRIES // 8
        name = f"orbits of 10⁶ entries, two {what} ({most:.0f} MB)"
        found.append(
            Row(
                name,
                "seconds, the least of 5",
                min(times),
                min(times),
                max(times),
                SECONDS,
                "s",
            )
        )
        assert most <= MEGABYTES
    return found


def nullspace() -> list[Row]:
    """The equivariant matrices of points, by orbits, against emlp's nullspace; both from the
    group's generators on, and what both have computed before left out.
    """
    found = []
    cases = [("Z48", Cyclic(48), "Z", 48), ("S24", Symmetric(24), "S", 24)]
    package = peer("emlp.reps")
    for name, group, theirs, n in cases:
        what = f"equivariant basis of {n} × {n}, {name}"
        points = group.points(1) if isinstance(group, Symmetric) else group.regular(1)
        if package is None:
            found.append(Row(what, "emlp", None, limit=1.0))
            continue
        make = getattr(peer("emlp.groups"), theirs)
        bases: list[Any] = []

        def hand(
            make: Any = make, n: int = n, bases: list[Any] = bases, v: Any = package.V
        ) -> None:
            bases.append((v >> v)(make(n)).equivariant_basis())

        mine = [seconds(lambda p=points, n=n: dimension(p, n)) for _ in range(9)]
        other = seconds(hand)  # it keeps what it has found: a second call measures nothing
        assert bases[0].shape[1] == dimension(points, n)
        ratios = sorted(1000 * m / other for m in mine[1:])
        against = f"emlp's nullspace ({other:.1f} s), of a thousandth of its time"
        found.append(Row(what, against, ratios[len(ratios) // 2], ratios[0], ratios[-1], 1.0))
    return found


def dimension(rep: Representation, n: int) -> int:
    """How many dimensions the equivariant matrices have; their orbits are found anew."""
    phi = eadem.Equivariant(rep, rep).bind((n, n))
    phi.ready()
    return phi.rank


def rows() -> list[Row]:
    """The rows of the table."""
    return [*orbits(), *bases(), *training(), *expanded(), *linear(), *nullspace()]


if __name__ == "__main__":
    chosen = {f.__name__: f for f in (orbits, bases, training, expanded, linear, nullspace)}
    wanted = sys.argv[1:] or list(chosen)
    print(table([r for name in wanted for r in chosen[name]()]))
