"""What of a layer must be alike for a group to pass: axes, and blocks of channels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from eadem.errors import ShapeError, SymmetryBroken
from eadem.groups import Group, Representation
from eadem.groups.signed import Signed
from eadem.maps import LinearMap, Map

__all__ = ["axes", "check_alike", "check_blocks", "each", "say_zeros", "still", "unsigned"]

#: How far a matrix may be from one that takes blocks of channels to blocks.
TOLERANCE = 1e-9
#: What of a layer belongs to the axes, one number for each.
_BY_AXIS = ("kernel_size", "stride", "padding", "dilation", "output_padding", "output_size")


def each(value: Any, ndim: int) -> tuple[int, ...]:
    """One number for each axis."""
    return (int(value),) * ndim if isinstance(value, int) else tuple(int(v) for v in value)


def axes(group: Group, ndim: int, space: Representation | None) -> Representation:
    """How a group moves `ndim` axes. Raises ShapeError for a `space` of other axes."""
    if space is not None and space.size != ndim:
        raise ShapeError(
            f"space={space} acts on {space.size} axes; the layer has {ndim}. Give one of "
            f"{ndim} axes, or leave it out for {group}.space({ndim})"
        )
    return group.space(ndim) if space is None else space


def still(rep: Representation) -> bool:
    """Whether no element changes anything."""
    identity = Signed.identity(rep.size)
    return all(
        i.distance(identity) == 0
        if isinstance(i, Signed)
        else bool((i == (0 if rep.group.algebra else identity.matrix())).all())
        for i in rep.images
    )


def _exchanged(rep: Representation) -> list[tuple[int, int]]:
    """Pairs of axes of which some generator takes one into the other."""
    found = []
    for image in rep.images:
        matrix = image.matrix() if isinstance(image, Signed) else image
        rows, columns = np.nonzero(np.abs(matrix) > TOLERANCE)
        found += [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if i != j]
    return found


def check_alike(
    layer: nn.Module, moves: Representation, sides: Sequence[int] | None = None
) -> None:
    """Raise SymmetryBroken where a layer treats axes differently that the group exchanges."""
    pairs = _exchanged(moves)
    given = {name: getattr(layer, name, None) for name in _BY_AXIS}
    asked = {name: value for name, value in given.items() if value is not None}
    if sides is not None:
        asked["sides of its input"] = tuple(sides)
    for name, value in asked.items():
        if isinstance(value, str) or value == ():
            continue
        values = (value,) * moves.size if isinstance(value, int) else tuple(value)
        for i, j in pairs:
            if values[i] != values[j]:
                raise SymmetryBroken(
                    f"{layer}: {name} {values} treats axes {i} and {j} differently, which "
                    f"{moves.group} exchanges; make them the same"
                )


def unsigned(rep: Representation) -> Representation:
    """The permutations of a signed permutation representation, without the signs."""
    if rep.permutes:
        return rep
    if not rep.exact or rep.group.algebra:
        raise SymmetryBroken(
            f"a weight for each channel does not commute with {rep}, which mixes channels; "
            "use affine=False"
        )
    places = [i.place for i in rep.images if isinstance(i, Signed)]
    return rep.group.representation(*places)


def check_blocks(layer: nn.Module, blocks: int, rep: Representation) -> None:
    """Raise SymmetryBroken where mean and variance over each of `blocks` blocks of channels
    do not follow `rep`: it must take whole blocks to blocks, one sign for each block.
    """
    if all(_by_blocks(image, blocks) for image in rep.images) and not (
        rep.group.algebra and not still(rep)
    ):
        return
    raise SymmetryBroken(
        f"{layer} takes the mean and the variance of each of {blocks} blocks of "
        f"{rep.size // blocks} channels, but {rep} does not take whole blocks to blocks, each "
        "with one sign: the result does not follow the group. Use nn.GroupNorm(m, channels) "
        "with one block for each of the m fields, such as those of group.regular(m)"
    )


def _by_blocks(image: Any, blocks: int) -> bool:
    if isinstance(image, Signed):
        to = image.place.reshape(blocks, -1) // (len(image) // blocks)
        signs = image.signs().reshape(blocks, -1)
        return bool((to == to[:, :1]).all() and (signs == signs[:, :1]).all())
    size = len(image) // blocks
    parts = image.reshape(blocks, size, blocks, size).transpose(0, 2, 1, 3)
    there = np.abs(parts).max((2, 3)) > TOLERANCE
    if not bool((there.sum(0) == 1).all() and (there.sum(1) == 1).all()):
        return False
    for part in parts[there]:
        sums = part.sum(1)
        even = np.abs(part @ part.T - np.eye(size)).max() < TOLERANCE
        if not even or np.abs(sums * sums[0] - 1).max() > TOLERANCE:
            return False
    return True


def say_zeros(
    layer: nn.Module,
    via: Map,
    shape: tuple[int, ...],
    reps: tuple[Representation, Representation],
) -> None:
    """Warn of channels that the symmetry cuts off: each of their weights is zero."""
    phi = via.bind(shape)
    if not isinstance(phi, LinearMap):
        return
    random = torch.Generator().manual_seed(0)
    theta = torch.randn(phi.in_shape, dtype=torch.float64, generator=random, device="cpu")
    with torch.device("cpu"), torch.no_grad():
        size = phi.forward(theta).abs()
    if getattr(layer, "transposed", False):
        size = size.transpose(0, 1)
    size = size.flatten(2).amax(2) if size.ndim > 2 else size
    small = 1e-9 * float(size.max())
    for what, most in (("outputs", size.amax(1)), ("inputs", size.amax(0))):
        zero = torch.nonzero(most <= small).flatten().tolist()
        if zero:
            listed = ", ".join(map(str, zero[:8])) + (", …" if len(zero) > 8 else "")
            does = "are always zero" if what == "outputs" else "are never used"
            warnings.warn(
                f"{layer}: {what} {listed} ({len(zero)} of {len(most)}) {does}, for no weight "
                f"between them and the rest commutes with {reps[0]} and {reps[1]}; leave such "
                "channels out, or have a part of each kind on both sides",
                UserWarning,
                stacklevel=4,
            )
