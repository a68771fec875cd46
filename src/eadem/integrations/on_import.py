"""Libraries that Eadem follows: each is met when the program imports it, in either order.

`import eadem` imports none of them. It leaves a finder in front of `sys.meta_path` that lets
the library's module be imported as ever, and then calls `follow()` of the file that knows it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["FOLLOWED", "watch"]

#: By the module whose import is waited for: the file that knows what to do then.
FOLLOWED = {
    "keras.src.backend.torch.layer": "eadem.integrations.keras",
    "peft": "eadem.integrations.peft",
    "torchao.quantization.quant_api": "eadem.integrations.torchao",
    "torch": "eadem.integrations.torch_quantization",
    "torch.ao.quantization.quantize_fx": "eadem.integrations.torch_quantization",
    "accelerate.big_modeling": "eadem.integrations.accelerate",
    "transformers.modeling_utils": "eadem.integrations.transformers",
}


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and has `follow()` called once it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in FOLLOWED:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = (
                None if finder is self or find is None else find(name, path, target)
            )
            if spec is not None:
                loader = spec.loader
                if loader is not None and hasattr(loader, "exec_module"):
                    # on this one loader object: its class, and what it else offers, stay
                    loader.exec_module = _then(loader.exec_module, name)  # type: ignore[method-assign, assignment]
                return spec
        return None


def _then(run: Callable[[ModuleType], None], name: str) -> Callable[[ModuleType], None]:
    def run_and_follow(module: ModuleType) -> None:
        run(module)
        _follow(name)

    return run_and_follow


def _follow(name: str) -> None:
    library = name.partition(".")[0]
    try:
        import_module(FOLLOWED[name]).follow()
    except (AttributeError, ImportError, TypeError, ValueError) as error:
        # the program may tie nothing: its import of the library must not fail
        warnings.warn(
            f"Eadem does not know this version of {library} ({error}): ties are not kept where "
            f"{library} changes, saves or loads a model. Use eadem.save and eadem.load, or a "
            f"version of {library} that the extra eadem[hf] names",
            stacklevel=2,
        )


def watch() -> None:
    """Follow the libraries imported already, and the others when they are imported."""
    if not any(type(f).__qualname__ == _Finder.__qualname__ for f in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for name in FOLLOWED:
        if name in sys.modules:
            _follow(name)
