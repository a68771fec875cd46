"""A model that lies in shards: shared without its weights ever being in memory together."""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

import eadem
from eadem._share.files import open_model
from eadem._share.scratch import mapped
from tiny_transformers import ids, tiny

LINUX = sys.platform.startswith("linux")
CODE = """
import sys, threading, time
import scipy.linalg, torch
import eadem
from eadem._share import Entry, Plan, matrices, statistics
from eadem._share.files import open_model

def held():
    with open("/proc/self/status") as f:
        return next(int(x.split()[1]) for x in f if x.startswith("RssAnon")) / 1024

statistics.LIMIT = 8 << 20
model, _ = open_model(sys.argv[1], stored=True)
x = torch.arange(320).reshape(20, 16) % 60
with torch.no_grad():
    model(x)
torch.linalg.eigh(torch.eye(512, dtype=torch.float64))
kinds = ("gate", "up", "down")
sites = [m.site for m in matrices(model) if m.kind in kinds]
plan = Plan(tuple(Entry("factored", (s,), 150) for s in sites))
start, peak, done = held(), [0.0], threading.Event()

def watch():
    while not done.is_set():
        peak.append(held())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
eadem.share(model, calibration=x, plan=plan, windows=(4, 2, 2), length=16)
eadem.save(model, sys.argv[2])
done.set()
thread.join()
sites = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
print(max(peak) - start, sites)
"""


@pytest.mark.skipif(not LINUX, reason="reads /proc/self/status")
def test_sharing_takes_a_part_of_the_memory_that_the_weights_would(tmp_path):
    """What stays of the weights are pages of the mapped shards, which the system can drop."""
    config = LlamaConfig(
        hidden_size=512,
        intermediate_size=2560,
        num_hidden_layers=8,
        num_attention_heads=8,
        vocab_size=60,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    size = sum(p.numel() for p in model.parameters()) * 4 / 2**20
    model.save_pretrained(tmp_path / "model", max_shard_size="40MB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    del model
    # freed memory goes back at once, so that what is held is what is in use
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    out = tmp_path / "theta.safetensors"
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "model"), str(out)],
        env={**os.environ, **small, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, after = map(float, found.stdout.split())
    assert out.stat().st_size > 0.9 * after * 2**20
    assert size > 140
    assert peak < 0.5 * size, (peak, size)


def test_the_number_format_of_the_file_is_kept_where_that_is_asked(tmp_path):
    tiny("llama").to(torch.bfloat16).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 2
    wide, _ = open_model(tmp_path / "model")
    model, _ = open_model(tmp_path / "model", stored=True)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    few = {"windows": (24, 8, 8), "length": 16, "compare": False}
    kept = eadem.share(model, 0.8, ids(), **few)
    full = eadem.share(wide, 0.8, ids(), **few)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert kept.free <= 0.8 * kept.full
    assert kept.original == pytest.approx(full.original, rel=0.02)
    assert kept.test == pytest.approx(full.test, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_a_tensor_in_a_scratch_file_is_the_tensor_and_can_be_written_to(dtype):
    value = torch.arange(24).reshape(4, 6).t().to(dtype)
    found = mapped(value)
    assert torch.equal(found, value)
    assert found.dtype == dtype
    found[0, 0] = 7
    assert found[0, 0] == 7
    assert value[0, 0] == 0
    assert mapped(value[:0]).shape == (0, 4)
