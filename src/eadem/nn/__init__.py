"""Layers that Eadem brings because PyTorch has none of their kind."""

from .local import LocallyConnected1d as LocallyConnected1d
from .local import LocallyConnected2d as LocallyConnected2d
