"""Ten thousand spoiled checkpoints, then minutes of coverage-guided fuzzing with atheris.

Every file gives a typed error and leaves the model as it was, or loads as the safetensors
library reads it; within a time, and within 1.5 × the file's memory. `--files N`,
`--minutes M` for other amounts, `--seed S` for one file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

#: Values added to every model: 4 MB, beside which the interpreter's own noise is small.
BULK = 1 << 20
#: Seconds that a file may take, and its memory over its size.
SECONDS, MEMORY = 20.0, 1.5


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


class Measured:
    """`eadem.load`, with the peak memory and the time of the last call."""

    extra = 0
    seconds = 0.0

    def __call__(self, model: Any, path: Path) -> None:
        """Load, and note what it took."""
        import eadem

        Path("/proc/self/clear_refs").write_text("5")
        before, start = status("VmRSS"), time.monotonic()
        try:
            eadem.load(model, path)
        finally:
            self.seconds = time.monotonic() - start
            self.extra = status("VmHWM") - before


def mutated(count: int, only: int | None) -> int:
    """Load `count` spoiled files (or the one of a seed); the number that went wrong."""
    from hostile_files import build, cases, judge, spoiled

    seen: Counter[str] = Counter()
    wrong = 0
    worst, slowest = (0.0, 0), (0.0, 0)
    load = Measured()
    with tempfile.TemporaryDirectory() as folder:
        written = cases(Path(folder), BULK)
        for case in written:  # what is built on first use is not the files'
            (Path(folder) / "whole").write_bytes(case.data)
            load(build(case.stock), Path(folder) / "whole")
        path = Path(folder) / "spoiled"
        models: dict[tuple[int, bool], Any] = {}
        for seed in range(count) if only is None else [only]:
            number, tied = seed % len(written), seed // len(written) % 2 == 1
            case = written[number]
            path.write_bytes(spoiled(case.data, seed))
            model = models.pop((number, tied), None)
            if model is None:
                model = case.tied() if tied else build(case.stock)
            try:
                found = judge(path, model, load)
                memory = load.extra / max(path.stat().st_size, len(case.data))
                worst = max(worst, (memory, seed))
                slowest = max(slowest, (load.seconds, seed))
                if memory > MEMORY or load.seconds > SECONDS:
                    found = "WRONG"
                    wrong += 1
                    print(f"seed {seed}: {memory:.2f} × its memory, {load.seconds:.1f} s")
            except Exception as error:
                found = "WRONG"
                wrong += 1
                print(f"seed {seed}: {type(error).__name__}: {str(error)[:300]}")
            seen[found] += 1
            if found not in ("loaded", "WRONG"):
                models[number, tied] = model
    print(
        f"{sum(seen.values())} files: " + ", ".join(f"{n} {k}" for k, n in seen.most_common())
    )
    print(f"most memory: {worst[0]:.2f} × the file (seed {worst[1]})")
    print(f"longest: {slowest[0]:.2f} s (seed {slowest[1]})")
    return wrong


def atheris_main(arguments: list[str]) -> None:
    """The process that libFuzzer takes over: bytes as a file, or as a record's text."""
    import atheris

    with atheris.instrument_imports(include=["eadem.store", "eadem.maps.spec"]):
        import eadem
        from eadem.store import layout, schema
    from hostile_files import Net, build, state

    model = build(Net)
    before = state(model)
    folder = tempfile.mkdtemp()
    path = Path(folder) / "x"

    def one(data: bytes) -> None:
        nonlocal model, before
        try:
            if data[:1] == b"r":
                found = schema.checked(layout.loads(data[1:], "the record"))
                eadem.apply(model, found)
            else:
                path.write_bytes(data[1:])
                eadem.load(model, path)
        except eadem.EademError:
            assert state(model) == before, "a changed model"
            return
        eadem.check(model)
        model = build(Net)
        before = state(model)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def corpus(folder: Path) -> None:
    """Sound files and records to start from."""
    from hostile_files import cases, split

    with tempfile.TemporaryDirectory() as other:
        for i, case in enumerate(cases(Path(other))):
            (folder / f"file{i}").write_bytes(b"f" + case.data)
            header, _ = split(case.data)
            text = header["__metadata__"]["eadem"].encode()
            (folder / f"record{i}").write_bytes(b"r" + text)


def main() -> int:
    """Both parts; the number of things that went wrong decides the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--atheris", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.atheris is not None:
        atheris_main(given.atheris)
        return 0
    wrong = mutated(given.files, given.seed)
    if given.seed is None and given.minutes:
        with tempfile.TemporaryDirectory() as folder:
            corpus(Path(folder))
            limits = [
                f"-max_total_time={round(60 * given.minutes)}",
                "-timeout=20",
                "-rss_limit_mb=2048",
                "-max_len=40000",
                "-verbosity=1",
                "-print_final_stats=1",
            ]
            command = [sys.executable, __file__, "--atheris", *limits, folder]
            done = subprocess.run(command, cwd=folder, stderr=subprocess.PIPE, text=True)
            lines = done.stderr.splitlines()
            print("\n".join(x for x in lines if x.startswith("stat::number_of")))
            if done.returncode:
                wrong += 1
                print("\n".join(lines[-40:]))
    print("all as it should be" if not wrong else f"{wrong} went wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
