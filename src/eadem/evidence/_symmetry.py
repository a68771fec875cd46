"""A group acting on the tensors of a network, and the first layer that does not follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
from eadem.maps.base import LinearComposed, Map

__all__ = ["GroupAction", "act", "first_loss", "representations"]

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

    Outputs move as the module's tie says, or else as what comes before does, or as channels
    that stay, or as copies of the regular representation, whichever fits best.
    """
    plain, moved = _outputs(model, x), _outputs(model, action.on_input(element, x))
    said = representations(model)
    current = action.in_rep
    names = {id(m): n or type(m).__name__ for n, m in model.named_modules()}
    for (module, y), (_, at) in zip(plain, moved, strict=False):
        if y.ndim < 2 or y.shape != at.shape or not y.is_floating_point():
            continue
        current = said.get(id(module), current)
        choices = _choices(action.group, current, int(y.shape[1]), id(module) in said)
        scale = max(float(y.abs().max()), 1e-300)
        errors = []
        for rep in choices:
            try:
                expected = act(element, action.group, rep, action.space, y)
            except (GroupError, ShapeError):
                continue
            errors.append(float((at - expected).abs().max()) / scale)
        if errors and not min(errors) <= tolerance:
            return names[id(module)]
    return None


def _choices(
    group: Group, current: Representation | None, channels: int, certain: bool
) -> list[Representation | None]:
    fits = current is not None and current.size == channels
    if certain and fits:
        return [current]
    found: list[Representation | None] = [current] if fits else []
    found.append(None)
    if group.order <= EXHAUSTIVE and channels % group.order == 0:
        found.append(group.regular(channels // group.order))
    return found


def _outputs(model: nn.Module, x: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """The output of every module without children, in the order of the calls."""
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append((module, output.detach().clone()))

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    hooks = [m.register_forward_hook(note) for m in leaves]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def loss_finder(
    fn: Callable[[Tensor], Tensor], action: Any, x: Tensor
) -> Callable[[Any, float], str | None]:
    """What tells the first layer at which equivariance is lost, where that can be told."""
    if not isinstance(fn, nn.Module) or not isinstance(action, GroupAction):
        return lambda element, tolerance: None
    return lambda element, tolerance: first_loss(fn, action, element, x, tolerance)
