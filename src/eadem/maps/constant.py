"""Constants of a map: tensors that are made and kept outside whatever torch is doing.

>>> with outside():
...     index = torch.arange(3)
>>> Constant(index).on(torch.device("cpu"), torch.float64)
tensor([0., 1., 2.], dtype=torch.float64)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

__all__ = ["Constant", "alike", "on_cpu", "outside"]


@contextmanager
def on_cpu() -> Iterator[None]:
    """Where indices and other constants are made: on the CPU, whatever the default device.

    Under `torch.device("meta")`, or accelerate's `init_empty_weights(include_buffers=True)`,
    they would have no values.
    """
    if not torch._C._len_torch_function_stack():  # no default device has been set
        yield
        return
    with torch.device("cpu"):
        yield


@contextmanager
def outside() -> Iterator[None]:
    """Where constants are made: outside autograd, inference mode and torch.func transforms.

    A tensor made inside would be an inference tensor, or carry a level of a transform that
    has ended by the time it is used again.
    """
    with (
        temporarily_clear_interpreter_stack(),
        torch.inference_mode(False),
        torch.no_grad(),
        on_cpu(),
    ):
        yield


class Constant:
    """A tensor that belongs to a map: a CPU master and copies where it was needed.

    It is no buffer, so casting, `to_empty` and `load_state_dict` leave it alone. Copies of a
    map share the master; pickling drops the copies, and makes those on the CPU again.
    """

    __slots__ = ("__weakref__", "copies", "master")

    def __init__(self, value: Tensor, dtypes: Iterable[torch.dtype] = ()) -> None:
        with outside():
            master = value.detach().cpu().contiguous()
            self.master = master.clone() if master.is_inference() else master
        self.copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for dtype in dtypes:
            self.on(self.master.device, dtype)

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        """The value on `device`, in `dtype` (its own by default)."""
        dtype = self.master.dtype if dtype is None else dtype
        if device == self.master.device and dtype == self.master.dtype:
            return self.master
        found = self.copies.get((device, dtype))
        if found is not None:
            return found
        if torch.compiler.is_compiling():
            return self.master.to(device=device, dtype=dtype)
        with outside():
            found = self.master.to(device=device, dtype=dtype)
        if type(found) is Tensor and device.type != "meta":
            self.copies[device, dtype] = found
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Constant:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        here = [dtype for device, dtype in self.copies if device == self.master.device]
        return (Constant, (self.master, here))


def alike(values: Tensor) -> Constant:
    """The constant of these whole numbers, the same one for as long as another holds it.

    Layers that are tied alike then have one index between them: it is held once, and it is
    in the processor's caches when the second layer asks for it.

    >>> one, other = alike(torch.arange(4)), alike(torch.arange(4) + 1)
    >>> alike(torch.arange(4)) is one, other is one
    (True, False)
    """
    flat = values.detach().cpu().contiguous().view(-1)
    few = flat[:: max(1, flat.numel() // FEW)].tolist()
    key = (flat.dtype, tuple(values.shape), tuple(few))
    found = _held.get(key)
    if found is None or not torch.equal(found.master, flat.view(values.shape)):
        found = _held[key] = Constant(values)
    return found


#: How many of its values an index is looked up by, before it is compared in full.
FEW = 64
_held: WeakValueDictionary[tuple[Any, ...], Constant] = WeakValueDictionary()
