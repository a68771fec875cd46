from __future__ import annotations

import sys
from pathlib import Path

import pytest

# A spawned worker unpickles models by the name of this module: it must be importable there.
if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

from lifecycle_systems import SYSTEMS, System


@pytest.fixture(params=SYSTEMS, ids=lambda s: s.name)
def system(request: pytest.FixtureRequest) -> System:
    """Each of the five systems in turn."""
    found = request.param
    assert isinstance(found, System)
    return found
