"""The recipe pinn-periodic: its quick run, and its references against other solutions."""

import json
import math

import numpy as np
import pytest
import torch

import eadem
from eadem.recipes import _pde as pde
from eadem.recipes import _pinn, run
from eadem.recipes import pinn_periodic as recipe

TINY = recipe.Sizes(30, 60, 10, 1, 6)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    folder = run("pinn-periodic", out=tmp_path_factory.mktemp("runs") / "one", quick=True)
    assert (folder / "report.html").stat().st_size > 10_000
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C24"
    assert claim["holds"], claim["measured"]


def test_only_by_construction_the_ends_meet(metrics):
    for ways in metrics["solutions"].values():
        worst = {way: max(one["mismatch"] for one in found) for way, found in ways.items()}
        assert worst["hard"] < 1e-12 < min(worst[way] for way in ("soft", "penalty"))
        assert worst["soft, untied"] > worst["soft"]


def test_convection_is_the_start_moved():
    times = np.array([0.0, 0.3, 1.0])
    x = np.arange(64) * pde.LENGTH / 64
    moved = [pde.CONVECTION.start(torch.from_numpy(x - 2 * t)).numpy() for t in times]
    np.testing.assert_allclose(pde.reference(pde.CONVECTION, times, 64), moved, atol=1e-12)


def test_burgers_by_cole_and_hopf():
    """u = −2ν φ_x / φ, where φ solves the heat equation (J. D. Cole, 1951)."""
    points, nu, t = 256, pde.BURGERS.viscosity, 0.8
    x = np.arange(points) * pde.LENGTH / points
    integral = -np.cos(x) + 0.3 * np.sin(2 * x)  # of the start, whose mean is zero
    k = np.arange(points // 2 + 1)
    modes = np.fft.rfft(np.exp(-integral / (2 * nu))) * np.exp(-nu * k**2 * t)
    slope = np.fft.irfft(1j * k * modes, points)
    right = -2 * nu * slope / np.fft.irfft(modes, points)
    found = pde.reference(pde.BURGERS, np.array([0.0, t]), points)[1]
    np.testing.assert_allclose(found, right, atol=1e-7)


@pytest.mark.parametrize("way", recipe.WAYS)
def test_a_way_has_the_start_and_its_free_values(way):
    torch.manual_seed(0)
    model = recipe.Solution(pde.BURGERS, way, TINY)
    torch.nn.init.normal_(model.weight)
    x = torch.linspace(0, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(model(torch.zeros_like(x), x), pde.BURGERS.start(x))
    edges = {"soft": 1, "soft, untied": 2}.get(way, 0)
    assert eadem.counts(model).free == 30 + edges * 2 * _pinn.EDGES


def test_the_derivatives_are_those_of_differences():
    torch.manual_seed(0)
    model = recipe.Solution(pde.BURGERS, "hard", TINY)
    t, x, h = torch.tensor([0.4]).double(), torch.tensor([1.1]).double(), 1e-4
    u, u_t, u_x, u_xx = model._along(t, x)
    at = [model._along(t, x + s)[0] for s in (-h, h)]
    late = [model._along(t + s, x)[0] for s in (-h, h)]
    torch.testing.assert_close(u_x, (at[1] - at[0]) / (2 * h), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(u_xx, (at[1] - 2 * u + at[0]) / h**2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(u_t, (late[1] - late[0]) / (2 * h), atol=1e-5, rtol=1e-5)


def test_the_hard_way_is_periodic_everywhere():
    torch.manual_seed(0)
    model = recipe.Solution(pde.CONVECTION, "hard", TINY)
    torch.nn.init.normal_(model.weight)
    t, x = torch.rand(2, 20, dtype=torch.float64)
    torch.testing.assert_close(model(t, x), model(t, x + 2 * math.pi), atol=1e-12, rtol=0)
