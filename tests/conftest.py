"""What all tests share."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import eadem.recipes


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """A test starts from the seed of its own name: it fails alone as it does in the suite."""
    seed = sum(request.node.nodeid.encode())
    torch.manual_seed(seed)
    request.node.add_report_section("setup", "seed", f"torch.manual_seed({seed})")


@pytest.fixture
def recipe_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An extra folder of recipes, forgotten again after the test."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setattr(eadem.recipes, "__path__", [*eadem.recipes.__path__, str(folder)])
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if name.startswith("eadem.recipes."):
            del sys.modules[name]


def pytest_configure(config: pytest.Config) -> None:
    """Several workers share the cores, one thread each, and a folder."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start
    else:
        folder = tempfile.TemporaryDirectory(prefix="eadem-tests-")
        config.add_cleanup(folder.cleanup)
        os.environ["EADEM_TESTS_FOLDER"] = folder.name
