"""Keras 3 on the torch backend: its own layers refuse ties, with the way to have them.

A Keras layer reads its `Variable`s, and its optimizers and files go by them; the torch
parameters that a Keras model shows as an `nn.Module` only stand beside. A tie bound to those
would be read by nothing.
"""

from __future__ import annotations

from importlib import import_module

from eadem.bind.names import UNSUPPORTED

__all__ = ["follow"]

WAY = (
    "a Keras layer reads its own Variables, which a tie of torch parameters would not reach. "
    "Nothing was changed. Tie a torch module with eadem.tie and give it to "
    "keras.layers.TorchModuleWrapper (fit, save_weights and load_weights then keep the tie); "
    "or let one Keras layer compute with the other's variable, as in "
    "keras.ops.matmul(x, keras.ops.transpose(encoder.kernel))"
)


def follow() -> None:
    """Have `eadem.tie` refuse Keras layers. Raises AttributeError for another kind of Keras."""
    layer = import_module("keras.src.backend.torch.layer").TorchLayer
    setattr(layer, UNSUPPORTED, WAY)
