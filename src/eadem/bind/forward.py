"""A computed site's value within one forward of the model that was tied: computed once, kept
until that forward ends, and across nothing longer than that.

The generated class of the module that holds the whole tie says where a forward begins and
ends (`called`), or two hooks where that module's class has ways of its own. In a small model
what they and `reader` do would take longer than the arithmetic, so it is little.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled, nn
from torch.compiler import is_compiling
from torch.nn import Parameter

from eadem.bind.group import LINKS, Link
from eadem.bind.written import SiteValue
from eadem.errors import TieBroken

__all__ = [
    "Forward",
    "called",
    "enter_forward",
    "leave_forward",
    "reader",
    "running",
    "version_of",
]

_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


def version_of(value: Tensor) -> int | None:
    """How often a tensor was written to; those of inference mode do not count it, nor do
    parameters made of them, which do not say that they are.
    """
    try:
        return value._version
    except RuntimeError:
        return None


#: A value and its version, the parameters it was computed from and theirs, and whether
#: gradients and inference mode were on. A plain tuple: making it calls nothing.
_Kept = tuple[Tensor, int | None, Sequence[Tensor], Sequence[int | None], bool, bool]


def _keep(link: Link) -> _Kept:
    held = link.parameters()
    versions = [version_of(p) for p in held]
    value = link.of(held)
    modes = is_grad_enabled(), is_inference_mode_enabled()
    return (value, version_of(value), held, versions, *modes)


def _holds(kept: _Kept, link: Link) -> bool:
    """Whether the link would compute the same value now."""
    _, _, before, versions, grad, inference = kept
    held = link.parameters()
    return (
        grad is is_grad_enabled()
        and inference is is_inference_mode_enabled()
        and all(map(is_, before, held))
        and [*versions] == [version_of(p) for p in held]
    )


def _written(kept: _Kept) -> bool:
    """Whether something was written into the value."""
    return kept[1] is not None and kept[0]._version != kept[1]


def _lost(link: Link) -> TieBroken:
    return link.group.refuse(
        TieBroken(
            f"the forward wrote in place at {link.key!r}, which is computed from its tie; the "
            "write would be lost. Write outside the forward, or to the free values"
        )
    )


class Forward:
    """A forward that runs, with what it has computed. `frame` is that of a hook, which is not
    told of every end; None where no end goes unseen.
    """

    __slots__ = ("depth", "frame", "half", "kept")

    def __init__(self, frame: FrameType | None) -> None:
        self.frame, self.depth = frame, 1
        self.kept: dict[Link, _Kept] = {}
        #: input, θ, their versions and the first half of the product that was made last
        self.half: tuple[Tensor, Tensor, tuple[int | None, ...], Tensor] | None = None

    def runs(self) -> bool:
        """Whether it does run still. After a KeyboardInterrupt torch calls no hook, so the
        end of a forward can go unseen.
        """
        if self.frame is None:
            return True
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self.frame:
                return True
            frame = frame.f_back
        return False


class _Thread(threading.local):
    """The outermost forward that runs in this thread, if one does."""

    forward: Forward | None = None


_thread = _Thread()


def running() -> Forward | None:
    """The forward of the tied model that runs in this thread, if one does."""
    now = _thread.forward
    return now if now is None or now.runs() else None


def called(call: Callable[..., Any]) -> Callable[..., Any]:
    """A module's `__call__` that keeps computed sites, while it runs in no other that does.

    It raises TieBroken where the forward wrote into a kept value, which would be lost.
    """

    def begun(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return call(self, *args, **kwargs)
        now = _thread.forward
        if now is not None and now.runs():
            return call(self, *args, **kwargs)
        now = Forward(None)
        try:
            _thread.forward = now
            found = call(self, *args, **kwargs)
        except BaseException:
            now.kept.clear()  # a traceback keeps this frame
            now.half = None
            raise
        finally:
            _thread.forward = None
        _unwritten(now.kept)
        return found

    return begun


def enter_forward(module: nn.Module, args: Any) -> None:
    """Forward pre-hook: from here on, a computed site is kept."""
    if is_compiling():
        return
    now = _thread.forward
    if now is None or not now.runs():
        _thread.forward = Forward(sys._getframe(1))
    else:
        now.depth += 1


def leave_forward(module: nn.Module, args: Any, output: Any) -> None:
    """Forward hook, also after an error: what was kept is dropped.

    Raises TieBroken where the forward wrote into a kept value, which would be lost.
    """
    if is_compiling():
        return
    now = _thread.forward
    if now is None:
        return
    now.depth -= 1
    if now.depth == 0:
        _thread.forward = None
        _unwritten(now.kept)


def _unwritten(found: dict[Link, _Kept]) -> None:
    """Raise TieBroken where something was written into a kept value."""
    for link, kept in found.items():
        if kept[1] is not None and kept[0]._version != kept[1]:
            raise _lost(link)


def reader(
    attr: str, broken: Callable[[nn.Module, str], TieBroken]
) -> Callable[[nn.Module], Tensor]:
    """What reads a computed site of a module: fresh, or as this forward has computed it.

    Every layer calls it between pieces of arithmetic that leave no Python in the caches, where
    a Python call takes microseconds, so what is common (the first read in a forward of a site
    picked from one parameter) is written out here. `broken(module, attr)` is the error where
    an owner is gone.
    """

    def get(self: nn.Module) -> Tensor:
        try:
            link: Link = self.__dict__[LINKS][attr]
            if is_compiling():
                return link.compute()
            now = _thread.forward
            if now is None:
                return _outside(link)
            if _saved_tensors_hooks(False) is not None:
                return link.compute()  # activation checkpointing must see the same work twice
            kept = now.kept
            if link in kept:
                return _again(link, now)
            if link.direct is not None and not is_inference_mode_enabled():
                module, name, owner = link.sources[0]
                p = module._parameters[name]
                if type(p) is Parameter and p.shape == owner.shape:
                    try:
                        version: int | None = p._version
                    except RuntimeError:  # it is made of a tensor of inference mode
                        version = None
                    value = link.direct(p)
                    state = value._version, (p,), (version,)
                    kept[link] = (value, *state, is_grad_enabled(), False)
                    return value
            found = kept[link] = _keep(link)
            return found[0]
        except (AttributeError, KeyError) as e:
            raise broken(self, attr) from e

    return get


def _again(link: Link, now: Forward) -> Tensor:
    """A site that has been read in this forward."""
    if not now.runs():
        _thread.forward = None
        return _outside(link)
    found = now.kept[link]
    if _written(found):
        del now.kept[link]  # said once
        raise _lost(link)
    if not _holds(found, link):
        found = now.kept[link] = _keep(link)
    return found[0]


def _outside(link: Link) -> Tensor:
    value = link.compute()
    if type(value) is not Tensor or torch._C._functorch.peek_interpreter_stack() is not None:
        return value
    if torch._C._get_tracing_state() is not None:
        return value
    return SiteValue.of(value, link)
