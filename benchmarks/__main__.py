"""Runs every `rows()` in benchmarks/bench_*.py and writes docs/benchmarks.md; then, in
benchmarks/lifecycle, what becomes of a tie, for docs/guide/lifecycle-table.md.

`python -m benchmarks` from the root of the repository; names such as `ties` run only
`bench_ties.py` and renew its section, `--out FILE` writes to another place.
`python -m benchmarks lifecycle [ROW …]` runs the lifecycle alone.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # so that a benchmark also runs as a plain script

from lifecycle.run import main as lifecycle  # noqa: E402
from timing import Row, table  # noqa: E402


def modules(wanted: list[str]) -> list[Path]:
    """The benchmark files, all or those named."""
    found = sorted(HERE.glob("bench_*.py"))
    names = [path.stem.removeprefix("bench_") for path in found]
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SystemExit(
            f"no benchmark named {', '.join(unknown)}; there are {', '.join(names)}"
        )
    return [
        path for path, name in zip(found, names, strict=True) if not wanted or name in wanted
    ]


def run(path: Path) -> tuple[str, list[Row]]:
    """The title of a benchmark file (the first line of its docstring) and its rows."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    title = (module.__doc__ or path.stem).strip().splitlines()[0].rstrip(".")
    return title, list(module.rows())


def machine() -> str:
    """What the figures were measured on."""
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads, Python {platform.python_version()}"
    )


def section(title: str, rows: list[Row]) -> str:
    """One benchmark's part of the page."""
    return f"## {title}\n\n{table(rows)}"


def renewed(text: str, found: list[tuple[str, list[Row]]]) -> str:
    """A page with the sections of some benchmarks replaced, or put before its last line."""
    head, *parts = text.split("\n\n## ")
    *parts, last = [*parts[:-1], *parts[-1].rsplit("\n\n", 1)] if parts else [text]
    sections = {p.partition("\n")[0]: f"## {p}" for p in parts}
    sections |= {title: section(title, rows) for title, rows in found}
    return "\n\n".join([head, *(sections[t] for t in sorted(sections)), last])


def page(found: list[tuple[str, list[Row]]]) -> str:
    """The whole of docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        f"Written by `make bench` on {machine()}. Below 1, Eadem is the faster. A ratio is "
        "the median over alternations of the two in one process; the spread is the lowest "
        "and the highest alternation.",
    ]
    parts += [section(*each) for each in found]
    missing = sorted({r.against for _, rows in found for r in rows if r.ratio is None})
    parts.append("Peers missing from this run: " + (", ".join(missing) or "none") + ".")
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Runs, prints and writes; returns 1 where a promise is not kept."""
    if sys.argv[1:2] == ["lifecycle"]:
        return lifecycle(sys.argv[2:])
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("names", nargs="*", help="benchmarks to run (all by default)")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    given = parser.parse_args()
    found = []
    for path in modules(given.names):
        print(f"{path.name} …", file=sys.stderr, flush=True)
        found.append(run(path))
    print("\n\n".join(section(*each) for each in found))
    text = page(found)
    if given.names and given.out.exists():
        text = renewed(given.out.read_text(encoding="utf-8"), found)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(text, encoding="utf-8")
    broken = [r.name for _, rows in found for r in rows if r.holds is False]
    if broken:
        print("not kept: " + "; ".join(broken), file=sys.stderr)
    untied = lifecycle([]) if not given.names else 0
    return 1 if broken or untied else 0


if __name__ == "__main__":
    raise SystemExit(main())
