"""Programs that tie nothing, or tie while others import."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
import torch

from eadem.bind.split import is_split


def test_a_module_that_is_being_imported_has_split_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "torch.distributed.tensor"
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    assert not is_split(torch.zeros(1))


def test_a_torch_that_is_still_to_be_loaded_does_not_stop_the_import() -> None:
    program = (
        "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import eadem"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
