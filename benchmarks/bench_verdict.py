"""A verdict on a large tie: twelve layers of 288 × 288, all tied, against an epoch of training.

10⁶ values at twelve sites. The mean test of Chen & Qin on 64 micro-batches of 4,096
observations stands against an epoch of Adam over the same observations, in batches of 64. Each
runs in a process of its own, in turn; memory is its peak over what was there before.
"""

from __future__ import annotations

import statistics
import subprocess
import sys

from timing import Row

__all__ = ["rows"]

ROUNDS, LIMIT = 3, 2.0
USE = """
import sys, time, torch, eadem
from torch import nn
from eadem.evidence import site_mean_test

def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))

torch.manual_seed(0)
torch.set_num_threads(1)
layers = [nn.Linear(288, 288, bias=False) for _ in range(12)]
model = nn.Sequential(*(m for layer in layers for m in (layer, nn.Tanh())), nn.Linear(288, 1))
eadem.tie(model, *(f"{2 * i}.weight" for i in range(12)))
x = torch.randn(4096, 288)
y = x[:, :1].tanh() + 0.1 * torch.randn(4096, 1)
batches = list(zip(x.split(64), y.split(64)))

def log_density(model, batch):
    return -0.5 * (batch[1] - model(batch[0])).square().sum(1)

def epoch():
    optimizer = torch.optim.Adam(model.parameters())
    for batch in batches:
        optimizer.zero_grad()
        (-log_density(model, batch).mean()).backward()
        optimizer.step()

def verdict():
    assert "joint" in site_mean_test(model, log_density, batches, samples=64)

(-log_density(model, batches[0]).mean()).backward()
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
start = time.perf_counter()
{"epoch": epoch, "verdict": verdict}[sys.argv[1]]()
print(time.perf_counter() - start, status("VmHWM") - before, status("VmHWM"))
"""


def rows() -> list[Row]:
    """Time and memory."""
    taken: dict[str, list[list[float]]] = {"epoch": [], "verdict": []}
    for _ in range(ROUNDS):
        for name, found in taken.items():
            done = subprocess.run(
                [sys.executable, "-c", USE, name], capture_output=True, text=True, check=True
            )
            found.append([float(word) for word in done.stdout.split()])
    pairs = list(zip(taken["verdict"], taken["epoch"], strict=True))
    what = "verdict on 10⁶ values at 12 sites"
    lines = []
    for column, name, against in (
        (0, "time", "an epoch of training"),
        (2, "peak memory of the process", "while training"),
    ):
        ratios = sorted(a[column] / b[column] for a, b in pairs)
        middle = statistics.median(ratios)
        lines.append(
            Row(f"{what}: {name}", against, middle, ratios[0], ratios[-1], limit=LIMIT)
        )
    return lines


if __name__ == "__main__":
    for line in rows():
        print(line)
