"""The recipe pbso4: its quick run, and what it says beside the reference."""

import json

import pytest
import torch

import eadem
from eadem.recipes import _pbso4_suspects, render, run
from eadem.recipes import pbso4 as recipe

pytest.importorskip("gemmi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run("pbso4", out=tmp_path_factory.mktemp("runs") / "one", quick=True)


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_the_claim_holds(metrics):
    (claim,) = metrics["claims"]
    assert claim["id"] == "C23"
    assert claim["holds"], claim["measured"]


def test_every_stage_is_better_and_ends_at_a_least_chi2(metrics):
    chi2 = [s["chi2"] for s in metrics["stages"]]
    assert chi2 == sorted(chi2, reverse=True)
    assert [s["free"] for s in metrics["stages"]] == [14, 19, 26, 47, 48]
    assert all(f["converged"] for f in metrics["fits"].values())


def test_the_rival_is_shown_and_not_among_the_suspects(metrics):
    sites = [t["site"] for t in metrics["suspects"]]
    assert recipe.RIVAL in sites
    assert recipe.RIVAL not in _pbso4_suspects.SUSPECTS.values()
    assert metrics["claims"][0]["measured"]["blamed"] != recipe.RIVAL


def test_raw_p_values_are_far_below_those_by_blocks(metrics):
    wavelength = metrics["suspects"][0]
    assert wavelength["raw"]["statistic"] > 5 * wavelength["robust"]["statistic"]
    assert min(metrics["serial"].values()) > 0.2


def test_values_agree_with_the_reference_within_the_errors_of_both(metrics):
    for row in metrics["structure"]:
        if row["kind"] == "xyz" and row["stderr"]:
            spread = (row["stderr"] ** 2 + row["reference_stderr"] ** 2) ** 0.5
            assert abs(row["value"] - row["reference"]) < 6 * spread, row
        if row["kind"] == "cell":
            assert abs(row["value"] / row["reference"] - 1) < 5e-4, row


def test_the_page_has_both_patterns_and_the_structure_is_a_cif(folder):
    import gemmi

    page = (folder / "report.html").read_text()
    assert page.count('<figure class="pattern"') == 2
    assert "not to be trusted" in page
    render(folder)
    assert (folder / "report.html").read_text() == page
    structure = gemmi.read_small_structure(str(folder / "pbso4.cif"))
    assert [s.label for s in structure.sites] == ["Pb", "S", "O1", "O2", "O3"]


def test_what_is_shared_is_one_set_of_values():
    model = recipe.joint(quick=True)
    # three cell lengths, eleven coordinates, five displacements
    free = [n for n, p in model.named_parameters() if ".phase." in n and p.requires_grad]
    assert sum(model.get_parameter(n).numel() for n in free) == 3 + 11 + 5
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.001)
    cell = model["neutron"].phase.cell.detach()
    assert torch.equal(model["xray"].phase.xyz, model["neutron"].phase.xyz)
    assert torch.equal(model["xray"].phase.cell, cell)
    own = recipe.untied_cells(model, quick=True)
    assert eadem.counts(own).free == eadem.counts(model).free + 3
    assert torch.equal(own["xray"].phase.xyz, model["neutron"].phase.xyz)
    assert torch.equal(own["xray"].phase.cell, cell)


def test_blocks_of_points_do_not_cross_patterns():
    model = recipe.joint(quick=True)
    ids = recipe.blocks_of(model, quick=True)
    n = len(model["neutron"].x)
    assert int(ids[n - 1]) < int(ids[n])
    sizes = torch.bincount(ids)
    assert int(sizes[: int(ids[n])].max()) == 20
    assert int(sizes[int(ids[n]) :].max()) == 13
    assert len(ids) == n + len(model["xray"].x)
