"""Stock layers made equivariant, what may stand between them, and whole networks of them.

>>> from eadem.groups import Cyclic
>>> model = group_cnn(Cyclic(4), in_channels=1, widths=(4, 8), classes=10, in_size=28)
>>> model(torch.zeros(2, 1, 28, 28)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from eadem.bind import Tie, plan, tie
from eadem.errors import OutOfRange, ShapeError, SymmetryBroken, Unsupported
from eadem.groups import Equivariant, Group, Representation
from eadem.maps import LinearMap, Map, Transpose
from eadem.nn._fields import axes, check_alike, check_blocks, each, say_zeros, still, unsigned

__all__ = ["GroupPool", "check_geometry", "check_symmetry", "equivariant", "group_cnn"]

Layer = TypeVar("Layer", bound=nn.Module)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
)
_ADAPTIVE = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
#: Functions of one number at a time; an odd one commutes with a change of sign.
_ODD = (nn.Tanh, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink)
_POINTWISE = (
    *_ODD,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Threshold,
)


def equivariant(
    layer: Layer,
    in_rep: Representation,
    out_rep: Representation,
    in_size: int | Sequence[int] | None = None,
    space: Representation | None = None,
) -> Layer:
    """Tie the weight and the bias of a stock layer by a group; gives the layer back.

    `layer` is an `nn.Linear`, an `nn.Conv1d/2d/3d` or `nn.ConvTranspose1d/2d/3d`, or a
    normalization with an affine weight for each channel (`in_rep` is then `out_rep`).
    `in_size` is the side of its input, which decides whether a stride keeps the symmetry.
    Raises SymmetryBroken where the layer's geometry does not, and what `Equivariant` raises.
    Where no bias is invariant, the layer must have none: NoEquivariantMap. Warns where the
    symmetry leaves nothing but zeros at an output, or in what is taken from an input. The
    weight starts as large as it was drawn. The weight of a normalization, which does not
    change sign with its channels, is one for all channels that the group exchanges.

    >>> from eadem.groups import Cyclic
    >>> C4 = Cyclic(4)
    >>> conv = equivariant(nn.Conv2d(4, 8, 3), C4.regular(1), C4.regular(2))
    >>> sum(p.numel() for p in conv.parameters())
    74
    """
    _tie_layer(layer, "", layer, (in_rep, out_rep), in_size, space)
    return layer


def _tie_layer(
    model: nn.Module,
    prefix: str,
    layer: nn.Module,
    reps: tuple[Representation, Representation],
    in_size: int | Sequence[int] | None,
    space: Representation | None = None,
) -> None:
    """Tie `layer`, whose parameters' names in `model` begin with `prefix`."""
    via: Map = Equivariant(*reps, space)
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        ndim = len(layer.kernel_size)
        if layer.groups != 1:
            raise Unsupported(
                f"{layer} takes each output from 1/{layer.groups} of the inputs, which "
                "equivariant() does not check against the group; use groups=1"
            )
        moves = axes(reps[0].group, ndim, space)
        if not still(moves):
            sides = _sides(in_size, ndim)
            check_alike(layer, moves, sides)
            check_geometry(layer, sides)
        on_weight: Map = Transpose(0, 1) @ via if isinstance(layer, _TRANSPOSED) else via
    elif isinstance(layer, nn.GroupNorm):
        on_weight = _normalized(layer, *reps)
    elif isinstance(layer, nn.Linear):
        on_weight = via
    else:
        raise Unsupported(
            f"equivariant() ties nn.Linear, convolutions and nn.GroupNorm, not "
            f"{type(layer).__name__}; use eadem.tie with via=Equivariant(in_rep, out_rep)"
        )
    given: Any = layer
    free = given.weight is None or given.weight.is_meta
    drawn = None if free else float(given.weight.detach().norm())
    bound = None
    with plan(model):
        if given.weight is not None:
            bound = tie(model, prefix + "weight", via=on_weight)
        if given.bias is not None:
            tie(model, prefix + "bias", via=via)
    if bound is not None and drawn is not None:
        _rescale(given.weight, drawn, on_weight, bound)
    if bound is not None and not isinstance(layer, nn.GroupNorm):
        say_zeros(layer, on_weight, tuple(given.weight.shape), reps)


def _normalized(
    layer: nn.GroupNorm, in_rep: Representation, out_rep: Representation
) -> Equivariant:
    """What ties the weight of a normalization. Raises SymmetryBroken."""
    if in_rep != out_rep:
        raise SymmetryBroken(
            f"{layer} leaves every channel where it is, so that what comes out moves as what "
            f"goes in: give one representation twice, not {in_rep} and {out_rep}"
        )
    if out_rep.size != layer.num_channels:
        raise ShapeError(
            f"{out_rep} acts on {out_rep.size} channels; {layer} has {layer.num_channels}"
        )
    check_blocks(layer, layer.num_groups, out_rep)
    if layer.weight is None:
        return Equivariant(in_rep, out_rep)
    plain = unsigned(out_rep)
    return Equivariant(plain, plain)


def _rescale(weight: Tensor, drawn: float, via: Map, bound: Tie) -> None:
    """Make a weight as large as it was drawn.

    Orbits hold drawn values themselves. A basis, or an interpolation, takes the nearest
    weight, which is smaller: a projection on k of n dimensions by the root of k/n.
    """
    phi = via.bind(tuple(weight.shape))
    left = float(weight.detach().norm())
    if left > 0 and isinstance(phi, LinearMap) and phi.index() is None:
        with torch.no_grad():
            bound.theta.mul_(drawn / left)


def _moves(group: Group, ndim: int, space: Representation | None) -> bool:
    """Whether the group moves the axes at all."""
    return not still(axes(group, ndim, space))


def _sides(in_size: int | Sequence[int] | None, ndim: int) -> tuple[int, ...] | None:
    if in_size is None:
        return None
    return (in_size,) * ndim if isinstance(in_size, int) else tuple(in_size)


def check_geometry(layer: nn.Module, in_size: Sequence[int] | None) -> None:
    """Raise SymmetryBroken where a convolution or a pooling does not treat both ends alike.

    A window of k taps that moves by s over n places with padding p begins and ends as far
    from the border when s divides n + 2p − k. Stride 2 with a kernel of 3 and a padding of 1
    does so on odd sides only. `in_size` may be None for a stride of 1.
    """
    known: Any = layer
    transposed = isinstance(layer, _TRANSPOSED)
    if isinstance(layer, (*_CONVOLUTIONS, *_TRANSPOSED)):
        ndim = len(layer.kernel_size)
    else:
        ndim = int(type(layer).__name__[-2])
    kernel = each(known.kernel_size, ndim)
    stride = each(known.stride, ndim)
    dilation = each(getattr(known, "dilation", 1), ndim)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if known.padding == "same":
        _same_padding(layer, reach)
        return
    padding = (0,) * ndim if known.padding == "valid" else each(known.padding, ndim)
    if transposed:
        extra = each(known.output_padding, ndim)
        if any(extra):
            raise SymmetryBroken(
                f"{layer} adds output_padding={extra} at one end only, which no symmetry "
                "keeps; choose kernel and padding so that it is 0 (kernel 4, stride 2, padding "
                "1 doubles a side)"
            )
        return
    if in_size is None and any(s > 1 for s in stride):
        raise SymmetryBroken(
            f"whether {layer} keeps the symmetry depends on the side of its input: say "
            "in_size=, or use stride 1 and pool afterwards"
        )
    for n, k, s, p in zip(in_size or (1,) * ndim, reach, stride, padding, strict=True):
        rest = (n + 2 * p - k) % s
        if s > 1 and rest:
            raise SymmetryBroken(
                f"{layer} on a side of {n}: {n} + 2·{p} − {k} leaves {rest} over when divided "
                f"by the stride {s}, so its windows reach one end and not the other, and the "
                f"symmetry is lost. Use {_cures(n, k, s, p)}, or stride 1 and a pooling that "
                "fits"
            )


def _same_padding(layer: nn.Module, reach: Sequence[int]) -> None:
    if any(k % 2 == 0 for k in reach):
        raise SymmetryBroken(
            f"{layer}: padding='same' puts one place more after an even kernel than before it; "
            "use an odd kernel, or give the padding as a number"
        )


def _cures(n: int, k: int, s: int, p: int) -> str:
    sides = [m for m in range(max(1, n - s), n + s + 1) if (m + 2 * p - k) % s == 0]
    nearest = min(sides, key=lambda m: abs(m - n))
    kernels = [m for m in range(max(1, k - s), k + s + 1) if (n + 2 * p - m) % s == 0]
    kernel = min(kernels, key=lambda m: (abs(m - k), -m))
    return f"a side of {nearest}, or a kernel of {kernel}"


def check_symmetry(
    model: nn.Module,
    in_rep: Representation,
    in_size: int | Sequence[int],
    space: Representation | None = None,
) -> None:
    """Run a model once on zeros and check what stands between its equivariant layers.

    `in_size` is the input's sides: (side,) or (rows, columns), () for features without axes,
    or one number for all axes of the model's first convolution or pooling (two where it has
    neither).

    Raises SymmetryBroken for a stride or padding that treats the ends of a side differently,
    axes treated differently that the group exchanges, a non-linearity that acts on single
    numbers where the group does more than permute them, and a normalization or a PReLU that
    has statistics or weights of its own for parts of a field. The message says what to use
    instead. What a module does to its output's representation is
    known of layers tied by `Equivariant` and of modules with an `out_rep`.
    """
    from eadem.evidence._symmetry import representations

    said = representations(model)
    state: dict[str, Representation] = {"rep": in_rep}

    def look(module: nn.Module, args: Any) -> None:
        given = args[0] if args and isinstance(args[0], Tensor) else None
        if given is not None:
            _look(module, state["rep"], given, space, id(module) in said)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        state["rep"] = said.get(id(module), state["rep"])

    leaves = [m for m in model.modules() if not any(True for _ in m.children())]
    hooks = [m.register_forward_pre_hook(look) for m in leaves]
    hooks += [m.register_forward_hook(after) for m in model.modules() if id(m) in said]
    like = next(model.parameters(), torch.zeros(()))
    sides = _sides(in_size, _axes_of(model))
    training = [(m, m.training) for m in model.modules()]
    try:
        with torch.no_grad():
            shape = (1, in_rep.size, *(sides or ()))
            model.eval()(torch.zeros(shape, dtype=like.dtype, device=like.device))
    finally:
        for module, mode in training:
            module.training = mode
        for hook in hooks:
            hook.remove()


def _axes_of(model: nn.Module) -> int:
    """The axes of a model's images, as its first convolution or pooling has them."""
    kinds = (*_CONVOLUTIONS, *_TRANSPOSED, *_POOLS, *_ADAPTIVE)
    first = next((type(m) for m in model.modules() if isinstance(m, kinds)), None)
    if first is None:
        return 2
    name = next(k.__name__ for k in first.__mro__ if k in kinds)
    return int(name[-2])


def _look(
    module: nn.Module,
    rep: Representation,
    given: Tensor,
    space: Representation | None,
    tied: bool,
) -> None:
    ndim = given.ndim - 2
    fits = ndim >= 0 and rep.size == given.shape[1]
    if isinstance(module, (*_CONVOLUTIONS, *_TRANSPOSED, *_POOLS, *_ADAPTIVE)):
        moves = axes(rep.group, ndim, space)
        if not still(moves):
            check_alike(module, moves, tuple(given.shape[2:]))
            if not isinstance(module, _ADAPTIVE):
                check_geometry(module, tuple(given.shape[2:]))
    elif isinstance(module, nn.LayerNorm):
        _look_at_layer_norm(module, rep, given, tied, space)
    elif isinstance(module, nn.GroupNorm) and fits:
        check_blocks(module, module.num_groups, rep)
        _refuse_own(module, rep, tied or not module.affine)
    elif isinstance(module, _INSTANCE_NORMS) and fits:
        check_blocks(module, rep.size, rep)
        _refuse_own(module, rep, tied or not (module.affine or module.track_running_stats))
    elif isinstance(module, nn.PReLU) and fits:
        if not rep.permutes:
            raise SymmetryBroken(
                f"{module} acts on single numbers, but {rep} does more than permute them: the "
                "result does not follow the group. Use regular(m) or another permutation "
                "representation here"
            )
        _refuse_own(module, rep, tied or module.num_parameters == 1)
    elif isinstance(module, _POINTWISE) and fits:
        odd = isinstance(module, _ODD)
        if not (rep.permutes or (odd and rep.exact)):
            raise SymmetryBroken(
                f"{module} acts on single numbers, but {rep} "
                + ("changes their signs" if rep.exact else "mixes them")
                + ": the result does not follow the group. Use regular(m) or another "
                "permutation representation here"
                + (", or an odd function such as Tanh" if rep.exact else "")
            )
    elif isinstance(module, _BATCH_NORMS) and fits and not still(rep):
        raise SymmetryBroken(
            f"{module} has statistics of its own for every channel, but {rep} moves channels "
            "into one another. Use equivariant(nn.GroupNorm(m, channels), rep, rep), with one "
            "group of channels for each of the m fields"
        )


def _refuse_own(module: nn.Module, rep: Representation, none: bool) -> None:
    """Raise SymmetryBroken where channels that are exchanged have weights of their own."""
    if none or still(rep):
        return
    cure = f"equivariant(nn.GroupNorm(m, {rep.size}), rep, rep), or affine=False"
    if isinstance(module, nn.PReLU):
        cure = "nn.PReLU(), with one weight"
    raise SymmetryBroken(
        f"{module} has weights or statistics of its own for every channel or place, but {rep} "
        f"moves them into one another. Use {cure}"
    )


def _look_at_layer_norm(
    module: nn.LayerNorm,
    rep: Representation,
    given: Tensor,
    tied: bool,
    space: Representation | None,
) -> None:
    """A normalization over the last axes: all of them with the channels, or places alone."""
    over = len(module.normalized_shape)
    ndim = given.ndim - 2
    if over > ndim and given.shape[1] == rep.size:
        check_blocks(module, 1, rep)
    moves = ndim > 0 and _moves(rep.group, ndim, space)
    if moves and over < ndim:
        raise SymmetryBroken(
            f"{module} normalizes the last {over} of {ndim} axes, which {rep.group} moves; use "
            "nn.GroupNorm, or normalize over all axes"
        )
    if module.elementwise_affine and (moves or not still(rep)) and not tied:
        raise SymmetryBroken(
            f"{module} has a weight of its own for every channel or place, which "
            f"{rep.group} moves into one another; use elementwise_affine=False, or "
            "equivariant(nn.GroupNorm(m, channels), rep, rep)"
        )


class GroupPool(nn.Module):
    """The maximum, or the mean, over the group: (batch, m·n, …) → (batch, m, …).

    `rep` is m copies of a permutation representation of n points on which the group is
    transitive, as `group.regular(m)`. What comes out is invariant, place by place.

    >>> from eadem.groups import Cyclic
    >>> GroupPool(Cyclic(4).regular(2))(torch.arange(8.0)[None])
    tensor([[3., 7.]])
    """

    def __init__(self, rep: Representation, how: Literal["max", "mean"] = "max") -> None:
        super().__init__()
        kind, *args = rep.form
        if kind not in ("regular", "points", "quotient"):
            raise SymmetryBroken(
                f"GroupPool takes copies of one permutation representation, such as "
                f"group.regular(m), not {rep}; pool its parts one by one"
            )
        if how not in ("max", "mean"):
            raise OutOfRange(f"how={how!r}; GroupPool takes 'max' or 'mean'")
        self.fields, self.how = int(args[0]), how
        self.in_rep, self.out_rep = rep, rep.group.trivial(self.fields)

    def forward(self, x: Tensor) -> Tensor:
        """The fields, pooled."""
        fields: Tensor = x.unflatten(1, (self.fields, -1))
        return fields.amax(2) if self.how == "max" else fields.mean(2)

    def extra_repr(self) -> str:
        """The representation and the way of pooling."""
        return f"{self.in_rep}, how={self.how!r}"


def group_cnn(
    group: Group,
    in_channels: int,
    widths: Sequence[int],
    classes: int,
    in_size: int,
    kernel_size: int = 3,
    ndim: int = 2,
) -> nn.Sequential:
    """A convolutional network whose output no element of `group` changes.

    A lifting convolution and group convolutions of `widths` fields, each with a normalization
    over its fields and a ReLU, each but the last followed by a pooling of 2 where the side is
    even; then the maximum over the group, the mean over all places, and a linear layer. With
    Cyclic(4) that is p4, with Dihedral(4) p4m. All layers are stock layers with a tie, and
    `check_symmetry` has passed. Raises SymmetryBroken.
    """
    if ndim not in (1, 2, 3):
        raise OutOfRange(f"ndim={ndim!r}; torch has convolutions of 1, 2 and 3 axes")
    if not widths:
        raise OutOfRange("widths is empty; give the number of fields of each layer")
    conv: Any = _CONVOLUTIONS[ndim - 1]
    pool: Any = _POOLS[ndim - 1]
    layers: list[nn.Module] = []
    reps: dict[int, tuple[Representation, Representation]] = {}
    rep, side = group.trivial(in_channels), in_size
    for i, width in enumerate(widths):
        out = group.regular(width)
        reps |= {len(layers): (rep, out), len(layers) + 1: (out, out)}
        layers.append(conv(rep.size, out.size, kernel_size, padding=kernel_size // 2))
        layers += [nn.GroupNorm(width, out.size), nn.ReLU()]
        side = side + 2 * (kernel_size // 2) - kernel_size + 1
        if i + 1 < len(widths) and side % 2 == 0 and side > 2:
            layers.append(pool(2))
            side //= 2
        rep = out
    everywhere: Any = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
    layers += [GroupPool(rep), everywhere[ndim - 1](1), nn.Flatten()]
    layers.append(nn.Linear(widths[-1], classes))
    model = nn.Sequential(*layers)
    for i, (given, taken) in reps.items():  # as one model: values are kept for its forward
        _tie_layer(model, f"{i}.", model[i], (given, taken), None)
    check_symmetry(model, group.trivial(in_channels), (in_size,) * ndim)
    return model
