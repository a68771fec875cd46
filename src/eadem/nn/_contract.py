"""The arithmetic of a locally connected layer: gather the patches, multiply, fold back.

`gather` copies every position's patch out of the input, `product` multiplies it by that
position's kernel. With the batch as the last axis, the copy moves runs of kernel width ×
channels × batch numbers. The gradient of the input comes back as one addition per kernel tap
instead of a scatter over single numbers: that is where the time of a training step goes
when autograd differentiates `as_strided` or `unfold` by itself.

With N positions times groups, K numbers in a patch, O outputs and B observations:
patches (N, K, B), weight (N, K, O), output (N, O, B).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["Geometry", "Windows", "gather", "product", "single", "windows_of_one"]

Kind = Literal["output", "patches", "weight"]
#: Sizes and strides of all windows, and the shape (N, K, batch) that they are copied to.
Windows = tuple[tuple[int, ...], tuple[int, ...], tuple[int, int, int]]

#: Batches from this size on are multiplied as (O, K) @ (K, B): see benchmarks.
WIDE_BATCH = 16


@dataclass(frozen=True)
class Geometry:
    """Sizes along (rows, columns); `pads` is (left, right, top, bottom), of zeros."""

    in_size: tuple[int, int]
    out_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int


def _patches(x: Tensor, g: Geometry) -> Tensor:
    """x (batch, channels, rows, columns) → (N, K, batch), K = (row, column, channel)."""
    moved = x.permute(2, 3, 1, 0)  # (rows, columns, channels, batch)
    if any(g.pads):
        moved = torch.constant_pad_nd(moved, (0, 0, 0, 0, *g.pads))
    moved = moved.contiguous()
    _, columns, channels, batch = moved.shape
    plan = _windows.__wrapped__ if torch.compiler.is_compiling() else _windows
    size, strides, shape = plan(g, columns, channels, batch)
    return moved.as_strided(size, strides).reshape(shape)


def single(
    x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry, windows: Windows
) -> Tensor:
    """One observation without derivatives, from x (1, channels, rows, columns), contiguous
    weight and bias, one group: (positions, 1, out). The order (rows, columns, channels) is
    then that of a channels-last image, and every axis of length one is left out.
    """
    moved = x.permute(0, 2, 3, 1)
    if any(g.pads):
        moved = torch.constant_pad_nd(moved, (0, 0, *g.pads))
    size, strides, (places, inside, _) = windows
    patches = moved.contiguous().as_strided(size, strides).reshape(places, 1, inside)
    kernels = weight.view(places, inside, -1)
    if bias is None:
        return torch.bmm(patches, kernels)
    return torch.baddbmm(bias.view(places, 1, -1), patches, kernels)


@functools.lru_cache(maxsize=256)
def _windows(g: Geometry, columns: int, channels: int, batch: int) -> Windows:
    """Sizes and strides of all windows of a contiguous (rows, columns, channels, batch), and
    the shape (N, K, batch) that they are copied to. Axes of length one are left out.
    """
    each = channels // g.groups
    column = channels * batch
    row = columns * column
    (out_rows, out_columns), (high, wide) = g.out_size, g.kernel_size
    size = (out_rows, out_columns, g.groups, high, wide, each, batch)
    steps = (g.stride[0] * row, g.stride[1] * column, each * batch)
    strides = (*steps, g.dilation[0] * row, g.dilation[1] * column, batch, 1)
    kept = [i for i, n in enumerate(size) if n != 1]
    shape = (out_rows * out_columns * g.groups, high * wide * each, batch)
    return tuple(size[i] for i in kept), tuple(strides[i] for i in kept), shape


def _fold(patches: Tensor, g: Geometry) -> Tensor:
    """The adjoint of `_patches`: every number added where it was read."""
    (out_rows, out_columns), (high, wide) = g.out_size, g.kernel_size
    each, batch = patches.shape[1] // (high * wide), patches.shape[2]
    taps = patches.reshape(out_rows, out_columns, g.groups, high, wide, each, batch)
    left, right, top, bottom = g.pads
    rows, columns = g.in_size
    total = patches.new_zeros(
        (rows + top + bottom, columns + left + right, g.groups, each, batch)
    )
    reach_r = g.stride[0] * (out_rows - 1) + 1
    reach_c = g.stride[1] * (out_columns - 1) + 1
    for u in range(high):
        for v in range(wide):
            r, c = u * g.dilation[0], v * g.dilation[1]
            read = total[r : r + reach_r : g.stride[0], c : c + reach_c : g.stride[1]]
            read += taps[:, :, :, u, v]
    inner = total[top : top + rows, left : left + columns]
    return inner.flatten(2, 3).permute(3, 2, 0, 1)


def _turned(x: Tensor) -> Tensor:
    """x (N, m, batch) as (N, batch, m), in strides that BLAS takes as they are."""
    one = x.shape[2] == 1  # a view by .mT would give its single row the stride 1
    turned = x.reshape(x.shape[0], 1, x.shape[1]) if one else x.mT
    return turned if turned.stride(2) == 1 else turned.contiguous()


def _multiply(kind: Kind, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """One of the three products of patches, weight and output, in the fastest order for BLAS.

    "output": patches, weight (and bias (N, O, 1)); "patches": output, weight;
    "weight": patches, output.
    """
    if kind == "output":
        if a.shape[2] >= WIDE_BATCH:
            out = torch.bmm(b.mT, a)
            return out if bias is None else out + bias
        if a.shape[2] == 1:  # one row a position: the same numbers in the same order
            left = _turned(a)
            shift = None if bias is None else bias.reshape(bias.shape[0], 1, -1)
            out = torch.bmm(left, b) if shift is None else torch.baddbmm(shift, left, b)
            return out.view(out.shape[0], -1, 1)
        if bias is None:
            return torch.bmm(a.mT, b).mT
        return torch.baddbmm(bias.mT, a.mT, b).mT
    if kind == "patches":
        if a.shape[2] == 1:
            return torch.bmm(_turned(a), b.mT).mT
        return torch.bmm(b, a.contiguous())
    return torch.bmm(a, _turned(b))


class _Gather(Function):
    """`_patches` or, with `fold`, its adjoint; each is the other's derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, g: Geometry, fold: bool) -> Tensor:
        return _fold(x, g) if fold else _patches(x, g)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.geometry, ctx.fold = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _gather(grads[0], ctx.geometry, not ctx.fold), None, None


class _GatherJvp(_Gather):
    """With a forward derivative, which torch.compile does not trace."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _gather(tangents[0], ctx.geometry, ctx.fold)


class _Product(Function):
    """`_multiply`; it is linear in both factors, so its derivatives are the other kinds."""

    generate_vmap_rule = True

    @staticmethod
    def forward(kind: Kind, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        return _multiply(kind, a, b, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.kind = inputs[0]
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (h,) = grads
        a, b = ctx.saved_tensors
        _, for_a, for_b, for_bias = ctx.needs_input_grad
        kind, grad_a, grad_b = ctx.kind, None, None
        if kind == "output":
            grad_a = _product("patches", h, b) if for_a else None
            grad_b = _product("weight", a, h) if for_b else None
        elif kind == "patches":
            grad_a = _product("output", h, b) if for_a else None
            grad_b = _product("weight", h, a) if for_b else None
        else:
            grad_a = _product("patches", b, h) if for_a else None
            grad_b = _product("output", a, h) if for_b else None
        return None, grad_a, grad_b, h.sum(2, keepdim=True) if for_bias else None


class _ProductJvp(_Product):
    """With a forward derivative, which torch.compile does not trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Product.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*inputs[1:3])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        a, b = ctx.saved_tensors
        _, da, db, dbias = tangents
        parts = [] if dbias is None else [dbias]
        if da is not None:
            parts.append(_product(ctx.kind, da, b))
        if db is not None:
            parts.append(_product(ctx.kind, a, db))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


_transforming: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _apply(op: Any, *args: Any) -> Tensor:
    """`op.apply`, without its inspection of the signature where no transform needs it.

    The inspection takes longer than the product of a small layer.
    """
    found: Tensor
    if torch.compiler.is_compiling() or _transforming():
        found = op.apply(*args)
    else:
        found = super(Function, op).apply(*args)
    return found


def _gather(x: Tensor, g: Geometry, fold: bool) -> Tensor:
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _fold(x, g) if fold else _patches(x, g)
    op = _Gather if torch.compiler.is_compiling() else _GatherJvp
    return _apply(op, x, g, fold)


def _product(kind: Kind, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    if not torch.is_grad_enabled() or not (
        a.requires_grad or b.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _multiply(kind, a, b, bias)
    op = _Product if torch.compiler.is_compiling() else _ProductJvp
    return _apply(op, kind, a, b, bias)


def windows_of_one(g: Geometry, channels: int) -> Windows:
    """The windows of a single observation."""
    left, right, _, _ = g.pads
    return _windows(g, g.in_size[1] + left + right, channels, 1)


def gather(x: Tensor, geometry: Geometry) -> Tensor:
    """The patches (N, K, batch) of x (batch, channels, rows, columns); differentiable twice."""
    return _gather(x, geometry, False)


def product(patches: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """patches (N, K, B), weight (N, K, O), bias (N, O, 1) → (N, O, B)."""
    return _product("output", patches, weight, bias)
