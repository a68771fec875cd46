"""A pretrained model read from a folder or a gguf file; a shared one written to a folder."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from torch import nn

from eadem import store
from eadem._share.measure import cache_bytes
from eadem._share.run import Shared
from eadem.errors import DataError, MissingPackage
from eadem.report import numbers

__all__ = ["METRICS", "card", "metrics", "open_model", "read_text", "write"]

#: A file that every finished folder holds.
METRICS = "metrics.json"
_TOKENS = ("tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt", "*.model")


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "pretrained models are read by the package 'transformers', which is not "
            'installed: pip install "eadem[hf]"'
        ) from error


def open_model(path: str | Path, *, stored: bool = False) -> tuple[nn.Module, Any]:
    """The model, in float32, and its tokenizer (None where there is none).

    `path` is a folder that transformers wrote (safetensors, in one file or in shards, or a
    torch file), or a gguf file. `stored`: in the number format that the file has. Weights of
    safetensors whose format stays are not read into memory: they are the mapped file, of which
    the system holds what is in use, so that a model may be larger than memory. Raises
    DataError where there is no such model.
    """
    where = Path(path).expanduser()
    found = _transformers()
    import torch

    gguf = where.suffix == ".gguf"
    folder = where.parent if gguf else where
    if not where.exists() or not (gguf or (folder / "config.json").is_file()):
        raise DataError(
            f"{where} is no model; give a folder with config.json and weights, as "
            "save_pretrained writes it, or a .gguf file"
        )
    extra: dict[str, Any] = {"gguf_file": where.name} if gguf else {}
    options: dict[str, Any] = dict(extra)
    if gguf:
        options["quantization_config"] = found.GgufConfig(dequantize=True)
    try:
        kind = found.AutoModelForCausalLM
        if not gguf:
            config = found.AutoConfig.from_pretrained(folder, local_files_only=True)
            named = [getattr(found, n, None) for n in config.architectures or ()]
            kind = next((k for k in named if k is not None), found.AutoModel)
        model = kind.from_pretrained(
            folder,
            dtype="auto" if stored else torch.float32,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"transformers cannot read {where}: {error}") from error
    try:
        tokenizer = found.AutoTokenizer.from_pretrained(folder, local_files_only=True, **extra)
    except Exception:  # whatever a foreign tokenizer raises
        tokenizer = None
    if tokenizer is not None and getattr(tokenizer, "pad_token", 0) is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def read_text(path: str | Path) -> str:
    """A text file, or all .txt files of a folder in order. Raises DataError."""
    where = Path(path).expanduser()
    files = sorted(where.glob("*.txt")) if where.is_dir() else [where]
    try:
        found = "\n".join(f.read_text(encoding="utf-8", errors="replace") for f in files)
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
    if not found.strip():
        raise DataError(f"{where} holds no text; give a file of plain text")
    return found


def metrics(found: Shared) -> dict[str, Any]:
    """What was measured, as plain data."""
    return {
        "class": type(found.model).__name__,
        "plan": found.plan.name,
        "quantity": found.quantity,
        "keep": found.keep,
        "full": found.full,
        "free": found.free,
        "standing": str(found.standing),
        "original": found.original,
        "test": found.test,
        "recovered": found.recovered,
        "baseline": found.baseline,
        "methods": [
            {
                "name": m.plan.name,
                "free": m.free,
                "loss": m.choose,
                "entries": len(m.plan.entries),
            }
            for m in found.methods
        ],
        "embeddings": found.embeddings
        and {"free": found.embeddings.free, "test": found.embeddings.test},
        "evidence": found.evidence,
        "curves": found.curves,
        "alike": {k: v.tolist() for k, v in found.alike.items()},
        "cost": found.cost,
        "cache_bytes_a_token": cache_bytes(found.model),
    }


def write(
    found: Shared, folder: Path, source: str | Path, *, plain: bool, tokenizer: Any = None
) -> None:
    """θ with its record, the plan, the card and the figures; with `plain`, a checkpoint of the
    stock class beside them.
    """
    model: Any = found.model
    store.save(model, folder / "theta.safetensors")
    config = getattr(model, "config", None)
    if config is not None:
        text = config.to_json_string(use_diff=False)
        held = json.loads(text)
        held.pop("quantization_config", None)
        (folder / "config.json").write_text(json.dumps(held, indent=2) + "\n")
    where = Path(source)
    if where.is_dir():
        for pattern in _TOKENS:
            for file in where.glob(pattern):
                if file.is_file():
                    shutil.copy(file, folder / file.name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if plain:
        target = folder / "plain"
        model.save_pretrained(target, state_dict=store.materialize(model))
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
    (folder / "plan.toml").write_text(found.plan.toml(), encoding="utf-8")
    (folder / "README.md").write_text(card(found, str(source), plain), encoding="utf-8")
    (folder / METRICS).write_text(json.dumps(metrics(found), indent=1) + "\n")


def card(found: Shared, source: str, plain: bool) -> str:
    """The model card: what was done, what was measured, how to load it."""
    kind = type(found.model).__name__
    share = found.free / found.full
    lines = [
        f"# {Path(source).name}, shared by Eadem",
        "",
        f"A {kind} whose blocks keep {found.free:,} of {found.full:,} weights ({share:.1%}), "
        f"by {found.plan.name}. What shares what is in `plan.toml`, which can be edited and "
        "run again with `eadem share … --plan plan.toml`.",
        "",
        f"Before: {found.standing}.",
        "",
        f"| | weights in the blocks | {found.quantity}, test text |",
        "| --- | ---: | ---: |",
        f"| original | {found.full:,} | {found.original:.4f} |",
        f"| shared | {found.free:,} | {found.test:.4f} |",
    ]
    if found.recovered is not None:
        lines.append(f"| shared, then recovered | {found.free:,} | {found.recovered:.4f} |")
    if found.baseline is not None and found.methods:
        lines.append(
            f"| per-layer whitened SVD | {found.methods[0].free:,} | {found.baseline:.4f} |"
        )
    if found.methods:
        lines += [
            "",
            "Every method at the same count, on the text for choosing:",
            "",
            "| method | weights | loss |",
            "| --- | ---: | ---: |",
        ]
        lines += [f"| {m.plan.name} | {m.free:,} | {m.choose:.4f} |" for m in found.methods]
    if found.embeddings is not None:
        one = found.embeddings
        cost = (one.test or 0.0) - found.original
        lines += [
            "",
            f"Input and output embedding are two matrices of {one.free:,} numbers each. As one "
            f"(beside the blocks' budget, and not done) they would cost {cost:+.4f} of loss on "
            "the test text; to have it, add this to `plan.toml` and give that with `--plan`:",
            "",
            "```toml",
            *one.plan.toml().strip().splitlines()[4:],
            "```",
        ]
    lines += ["", "## Running", "", "| | dense | shared |", "| --- | ---: | ---: |"]
    for name, (dense, shared) in found.cost.items():
        lines.append(f"| {name} | {numbers.amount(dense)} | {numbers.amount(shared)} |")
    lines += [
        "",
        "The cache of keys and values is as large as the original's: weights are shared, "
        "activations are not.",
        "",
        "## Loading",
        "",
        "```python",
        "import eadem",
        f"from transformers import AutoConfig, {kind}",
        "",
        f'model = {kind}(AutoConfig.from_pretrained("."))',
        'eadem.load(model, "theta.safetensors")',
        "```",
        "",
    ]
    if plain:
        lines += [f'Without Eadem: `{kind}.from_pretrained("plain")`.', ""]
    return "\n".join(lines)
