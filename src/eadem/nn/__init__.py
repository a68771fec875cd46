"""Layers that Eadem brings because PyTorch has none of their kind."""

from .local import LocallyConnected1d as LocallyConnected1d
from .local import LocallyConnected2d as LocallyConnected2d
from .repeat import Repeat as Repeat
from .siamese import Siamese as Siamese
from .symmetric import GroupPool as GroupPool
from .symmetric import check_geometry as check_geometry
from .symmetric import check_symmetry as check_symmetry
from .symmetric import equivariant as equivariant
from .symmetric import group_cnn as group_cnn
from .unet import UNet as UNet
