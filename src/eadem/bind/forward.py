"""A computed site's value within one forward of the model that was tied: computed once, kept
until that forward ends, and across nothing longer than that.

A hook before the forward and one after it say where it begins and ends. In a small model what
they and `read` do would take longer than the arithmetic, so it is little.
"""

from __future__ import annotations

import sys
import threading
from operator import is_
from types import FrameType
from typing import Any

import torch
from torch import Tensor, is_grad_enabled, is_inference_mode_enabled, nn
from torch.compiler import is_compiling

from eadem.bind.group import Link
from eadem.bind.written import SiteValue
from eadem.errors import TieBroken

__all__ = ["enter_forward", "leave_forward", "read", "version_of"]

_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks


class _Kept:
    """A value, the parameters it was computed from, and the modes and versions they had."""

    __slots__ = ("grad", "held", "inference", "value", "version", "versions")

    def __init__(self, link: Link) -> None:
        self.held = held = link.parameters()
        self.grad, self.inference = is_grad_enabled(), is_inference_mode_enabled()
        self.versions = [version_of(p) for p in held]
        self.value = link.of(held)
        self.version = version_of(self.value)

    def holds(self, link: Link) -> bool:
        """Whether the link would compute the same value now."""
        held = link.parameters()
        return (
            self.grad is is_grad_enabled()
            and self.inference is is_inference_mode_enabled()
            and all(map(is_, self.held, held))
            and self.versions == [version_of(p) for p in held]
        )

    @property
    def written(self) -> bool:
        """Whether something was written into the value."""
        return self.version is not None and self.value._version != self.version


def version_of(value: Tensor) -> int | None:
    """How often a tensor was written to; those of inference mode do not count it, nor do
    parameters made of them, which do not say that they are.
    """
    try:
        return value._version
    except RuntimeError:
        return None


def _lost(link: Link) -> TieBroken:
    return link.group.refuse(
        TieBroken(
            f"the forward wrote in place at {link.key!r}, which is computed from its tie; the "
            "write would be lost. Write outside the forward, or to the free values"
        )
    )


class _Forward:
    """A forward that runs, with what it has computed."""

    __slots__ = ("depth", "frame", "kept")

    def __init__(self, frame: FrameType) -> None:
        self.frame, self.depth = frame, 1
        self.kept: dict[Link, _Kept] = {}

    def runs(self) -> bool:
        """Whether it does run still. After a KeyboardInterrupt torch calls no hook, so the
        end of a forward can go unseen.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self.frame:
                return True
            frame = frame.f_back
        return False


class _Thread(threading.local):
    """The outermost forward that runs in this thread, if one does."""

    forward: _Forward | None = None


_thread = _Thread()


def enter_forward(module: nn.Module, args: Any) -> None:
    """Forward pre-hook: from here on, a computed site is kept."""
    if is_compiling():
        return
    now = _thread.forward
    if now is None or not now.runs():
        _thread.forward = _Forward(sys._getframe(1))
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
        for link, kept in now.kept.items():
            if kept.written:
                raise _lost(link)


def read(link: Link) -> Tensor:
    """A computed site's value: fresh, or the one that this forward has computed already."""
    if is_compiling():
        return link.compute()
    now = _thread.forward
    if now is None:
        return _outside(link)
    if _saved_tensors_hooks(False) is not None:
        return link.compute()  # activation checkpointing must see the same work twice
    found = now.kept.get(link)
    if found is not None:
        if not now.runs():
            _thread.forward = None
            return _outside(link)
        if found.written:
            del now.kept[link]  # said once
            raise _lost(link)
        if found.holds(link):
            return found.value
    found = now.kept[link] = _Kept(link)
    return found.value


def _outside(link: Link) -> Tensor:
    value = link.compute()
    if type(value) is not Tensor or torch._C._functorch.peek_interpreter_stack() is not None:
        return value
    if torch._C._get_tracing_state() is not None:
        return value
    return SiteValue.of(value, link)
