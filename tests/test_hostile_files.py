"""Files from anywhere: a typed error and an untouched model, or a right load; nothing else."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hostile_files import Case, build, cases, judge, spoiled

ROUNDS = 1000


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return cases(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("part", range(4))
def test_spoiled_files(part: int, written: list[Case], tmp_path: Path) -> None:
    case = written[part]
    path = tmp_path / "spoiled"
    seen: Counter[str] = Counter()
    models = [build(case.stock), case.tied()]
    for seed in range(part * ROUNDS, part * ROUNDS + ROUNDS // 4):
        path.write_bytes(spoiled(case.data, seed))
        start = time.monotonic()
        try:
            with torch.random.fork_rng():
                found = judge(case, path, models[seed % 2])
        except BaseException as error:
            raise AssertionError(f"case {part}, seed {seed}") from error
        assert time.monotonic() - start < 20, f"case {part}, seed {seed} took too long"
        seen[found] += 1
        if found == "loaded":
            models = [build(case.stock), case.tied()]
    assert seen["loaded"] > 0
    assert seen["RecordError"] > 100
