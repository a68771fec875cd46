"""Layers that Eadem brings because PyTorch has none of their kind, and patterns of sharing.

`HopConv` needs the extra `graph`, and is loaded on first use.
"""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from .local import LocallyConnected1d as LocallyConnected1d
from .local import LocallyConnected2d as LocallyConnected2d
from .periodic import Periodic as Periodic
from .repeat import Repeat as Repeat
from .sharing import share_layers as share_layers
from .siamese import Siamese as Siamese
from .symmetric import GroupPool as GroupPool
from .symmetric import check_geometry as check_geometry
from .symmetric import check_symmetry as check_symmetry
from .symmetric import equivariant as equivariant
from .symmetric import group_cnn as group_cnn
from .unet import UNet as UNet

if _TYPE_CHECKING:
    from .hops import HopConv as HopConv
    from .hops import tie_hops as tie_hops


def __getattr__(name: str) -> _Any:
    if name in ("HopConv", "tie_hops"):
        from . import hops

        return getattr(hops, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
