"""A group acting on the tensors of a network, and the first layer that does not follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eadem import bind
from eadem.errors import GroupError, ShapeError
from eadem.evidence.score import EvidenceError
from eadem.groups import Equivariant, Group, Representation
from eadem.groups.group import Word
from eadem.groups.signed import Signed
from eadem.maps.base import LinearComposed, Map, numel

__all__ = ["GroupAction", "act", "buffers_kept", "first_loss", "representations"]

#: Up to so many elements a group is tried out in full.
EXHAUSTIVE = 1000
#: So many random words stand for a larger one.
SAMPLED = 200


@dataclass(frozen=True)
class GroupAction:
    """A finite group on images (batch, channels, *axes) or features (batch, channels).

    Channels move as `in_rep` and `out_rep` say (None: they stay), axes as `space` does, by
    default as the group does. Elements are words in the generators: all of them, or random
    ones where there are more than 1,000.
    """

    group: Group
    in_rep: Representation | None = None
    out_rep: Representation | None = None
    space: Representation | None = None

    def __post_init__(self) -> None:
        for name in ("in_rep", "out_rep", "space"):
            rep = getattr(self, name)
            if rep is None:
                continue
            if not isinstance(rep, Representation):
                raise EvidenceError(
                    f"{name}={rep!r:.80}; give a representation such as group.regular(2)"
                )
            if rep.group != self.group:
                raise EvidenceError(
                    f"{name}={rep} is of another group than {self.group}; take it from that"
                )

    def __str__(self) -> str:
        return str(self.group)

    def elements(self, x: Tensor) -> Iterable[Word]:
        """Words; the identity comes first."""
        if self.group.order <= EXHAUSTIVE:
            return self.group.words()
        random = np.random.default_rng(0)
        r = len(self.group.generators)
        words: list[Word] = [(), *(((s, 1),) for s in range(r))]
        for _ in range(SAMPLED - len(words)):
            letters, powers = random.integers(r, size=12), random.integers(1, 7, size=12)
            words.append(tuple(zip(letters.tolist(), powers.tolist(), strict=True)))
        return words

    def on_input(self, element: Word, x: Tensor) -> Tensor:
        """g·x."""
        return act(element, self.group, self.in_rep, self.space, x)

    def on_output(self, element: Word, y: Tensor) -> Tensor:
        """g·y."""
        return act(element, self.group, self.out_rep, self.space, y)

    def compared(self, element: Word, y: Tensor) -> Tensor | None:
        """Everywhere."""
        return None

    def name(self, element: Word) -> str:
        """The element in the generators' names."""
        return self.group.name(element)


def act(
    word: Word,
    group: Group,
    rep: Representation | None,
    space: Representation | None,
    x: Tensor,
) -> Tensor:
    """g·x for x (batch, channels, *axes). Raises EvidenceError for other channels."""
    if x.ndim < 2:
        raise EvidenceError(
            f"a group acts on tensors (batch, channels, …), not on shape {tuple(x.shape)}"
        )
    if x.ndim > 2:
        pixels = group.grid(tuple(x.shape[2:]), space).image(word)
        x = _along(pixels, x.flatten(2), 2).reshape(x.shape)
    if rep is None:
        return x
    if rep.size != x.shape[1]:
        raise EvidenceError(
            f"{rep} acts on {rep.size} channels; the tensor has shape {tuple(x.shape)}"
        )
    return _along(rep.image(word), x, 1)


def _along(image: Any, x: Tensor, dim: int) -> Tensor:
    if not isinstance(image, Signed):
        matrix = torch.from_numpy(image).to(x)
        mixed: Tensor = torch.tensordot(x, matrix, dims=([dim], [1])).movedim(-1, dim)
        return mixed
    back = image.inverse()
    moved = x.index_select(dim, torch.from_numpy(back.place).to(x.device))
    if back.sign is None:
        return moved
    sign = torch.from_numpy(back.sign).to(x)
    return moved * sign.reshape(-1, *[1] * (x.ndim - dim - 1))


def representations(model: nn.Module) -> dict[int, Representation]:
    """What acts on the output of a module, where its ties or its `out_rep` say so, by id."""
    found = {
        id(m): rep
        for m in model.modules()
        if isinstance(rep := getattr(m, "out_rep", None), Representation)
    }
    modules = dict(model.named_modules())
    for tie in bind.ties(model):
        for site, phi in zip(tie.sites, tie.maps, strict=True):
            said = _equivariant(phi)
            path, _, attr = site.rpartition(".")
            if said is not None and attr == "weight" and path in modules:
                found[id(modules[path])] = said.out_rep
    return found


def _equivariant(phi: Map) -> Equivariant | None:
    if isinstance(phi, LinearComposed):
        return _equivariant(phi.inner)
    return phi if isinstance(phi, Equivariant) else None


def first_loss(
    model: nn.Module, action: GroupAction, element: Word, x: Tensor, tolerance: float
) -> str | None:
    """The first module without children, in the order they run, whose output at g·x is not
    g times that at x; None where there is none.

    Outputs move as the module's tie says, or else as what comes before does (its places may
    have been flattened since), or as channels that stay, or as copies of the regular
    representation, whichever fits. A module whose input moves in no such way, by what ran
    between the modules, is not blamed.
    """
    plain, moved = _calls(model, x), _calls(model, action.on_input(element, x))
    said = representations(model)
    seen = _Seen(action, element, tolerance)
    seen.follows(x, action.on_input(element, x), action.in_rep, True)
    names = {id(m): n or type(m).__name__ for n, m in model.named_modules()}
    for (module, before, y), (_, before_at, at) in zip(plain, moved, strict=False):
        if y.ndim < 2 or y.shape != at.shape or not y.is_floating_point():
            continue
        certain = id(module) in said
        clear = before is None or before_at is None or seen.follows(before, before_at)
        if seen.follows(y, at, said.get(id(module)), certain):
            continue
        if certain or clear:
            return names[id(module)]
    return None


class _Seen:
    """How the tensors seen last move: their channels' representation, and their shape."""

    def __init__(self, action: GroupAction, element: Word, tolerance: float) -> None:
        self.action, self.element, self.tolerance = action, element, tolerance
        self.rep: Representation | None = None
        self.shape: tuple[int, ...] = ()

    def follows(
        self,
        y: Tensor,
        at: Tensor,
        rep: Representation | None = None,
        certain: bool = False,
    ) -> bool:
        """Whether `at` is g times y in some way that y may move, which is remembered."""
        if y.ndim < 2 or y.shape != at.shape or not y.is_floating_point():
            return False
        scale = max(float(y.abs().max()), 1e-300) if y.numel() else 1.0
        for one, shape in self._ways(y, rep, certain):
            try:
                whole = y.reshape(y.shape[0], *shape[1:])
                expected = act(
                    self.element, self.action.group, one, self.action.space, whole
                ).reshape(y.shape)
            except (GroupError, ShapeError, EvidenceError):
                continue
            error = float((at - expected).abs().max()) / scale if y.numel() else 0.0
            if error <= self.tolerance:
                self.rep, self.shape = one, shape
                return True
        return False

    def _ways(
        self, y: Tensor, rep: Representation | None, certain: bool
    ) -> list[tuple[Representation | None, tuple[int, ...]]]:
        shape, channels, group = tuple(y.shape), int(y.shape[1]), self.action.group
        if certain and (rep is None or rep.size == channels):
            return [(rep, shape)]
        found: list[tuple[Representation | None, tuple[int, ...]]] = []
        if self.rep is not None and self.rep.size == channels:
            found.append((self.rep, shape))
        if (
            self.shape
            and shape[1:] != self.shape[1:]
            and numel(shape[1:]) == numel(self.shape[1:])
        ):
            found.append((self.rep, self.shape))
        found.append((None, shape))
        if group.order <= EXHAUSTIVE and channels % group.order == 0:
            found.append((group.regular(channels // group.order), shape))
        return found


def _calls(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor | None, Tensor]]:
    """First input and output of every module without children, in the order of the calls."""
    found: list[tuple[nn.Module, Tensor | None, Tensor]] = []
    inputs: list[Tensor | None] = []

    def note_input(module: nn.Module, args: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        inputs.append(None if given is None else given.detach().clone())

    def note(module: nn.Module, args: Any, output: Any) -> None:
        before = inputs.pop() if inputs else None
        if isinstance(output, Tensor):
            found.append((module, before, output.detach().clone()))

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    hooks = [m.register_forward_pre_hook(note_input) for m in leaves]
    hooks += [m.register_forward_hook(note) for m in leaves]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def buffers_kept(fn: object) -> Iterator[None]:
    """What forwards write into a module's buffers, as in train mode, is taken back after."""
    if not isinstance(fn, nn.Module) or not any(m.training for m in fn.modules()):
        yield
        return
    places = [(m, n, b) for m in fn.modules() for n, b in m._buffers.items() if b is not None]
    copies = [b.detach().clone() for *_, b in places]
    try:
        yield
    finally:
        with torch.no_grad():
            for (module, name, buffer), copy in zip(places, copies, strict=True):
                if not torch.equal(buffer, copy):
                    buffer.copy_(copy)
                module._buffers[name] = buffer


def loss_finder(
    fn: Callable[[Tensor], Tensor], action: Any, x: Tensor
) -> Callable[[Any, float], str | None]:
    """What tells the first layer at which equivariance is lost, where that can be told."""
    if not isinstance(fn, nn.Module) or not isinstance(action, GroupAction):
        return lambda element, tolerance: None
    return lambda element, tolerance: first_loss(fn, action, element, x, tolerance)
