"""A recipe is a short file: its pictures, data and networks have modules of their own."""

from pathlib import Path

import pytest

import eadem.recipes
from eadem.recipes import recipes

HERE = Path(eadem.recipes.__file__).parent
MOST = 150


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_has_no_more_lines_than_can_be_read_at_once(name):
    lines = (HERE / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST, f"{name}: {len(lines)} lines, {MOST} are allowed"
