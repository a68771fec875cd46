"""Row 27: FSDP2 with the sites of a tie in different blocks, an uneven vocabulary, and mixed
precision: two and four processes are equal to one.

The processes are those of `distributed_worker.py`; here is what they must have found.
"""

import re

import pytest
import torch
import torch.distributed.checkpoint as dcp
from distributed_run import FOLDER, found, result
from lifecycle_systems import SYSTEMS, System, assert_tied

import eadem

pytestmark = pytest.mark.timeout(660)

NAMES = [s.name for s in SYSTEMS]
#: After 20 steps of Adam with clipped gradients, relative to each parameter's largest value.
ROUNDING = {"float64": 1e-12, "float32": 2e-5}
#: In bfloat16 the order of a float32 sum may turn one rounding of a weight (2⁻⁸), which moves
#: it by a share of a step.
BFLOAT16 = 1e-3


@pytest.mark.parametrize("processes", [4, 2])
@pytest.mark.parametrize("name", NAMES)
def test_training_equals_one_process(processes: int, name: str) -> None:
    """Every child of the model is wrapped apart, whatever its sites are tied to."""
    for dtype, rounding in ROUNDING.items():
        if f"fsdp:{name}-{dtype}" not in found(processes):
            continue
        for one in result(processes, f"fsdp:{name}-{dtype}"):
            assert one["away"] <= rounding
            assert one["sites"] <= rounding
            assert one["split"]
            assert one["keys"]
            assert one["counts"]
            assert one["summary"]


def test_float32_is_among_them() -> None:
    for processes, count in ((4, 1), (2, 3)):
        assert sum(n.endswith("-float32") for n in found(processes)) == count


@pytest.mark.parametrize("processes", [4, 2])
@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision(processes: int, name: str) -> None:
    """Against one process that computes in bfloat16 and averages gradients in float32."""
    if processes == 4 and name not in ("equality", "kernels"):
        return
    for one in result(processes, f"mixed:{name}"):
        assert one["away"] <= BFLOAT16
        assert one["dtypes"] == ["torch.float32"]


DEEP = ("blocks", "nested", "kept whole", "split at once", "root", "offload")


@pytest.mark.parametrize("how", DEEP)
def test_ties_across_blocks(how: str) -> None:
    """Five kinds of tie over four blocks, the blocks wrapped in six ways. Only what is tied
    across blocks is whole while another block runs.
    """
    for one in result(2, f"deep:{how}"):
        assert one["away"] <= ROUNDING["float64"]
        assert one["sharded"] == ([] if how == "root" else ["down"])


def test_ties_across_nested_blocks_of_four_processes() -> None:
    for how in ("nested", "hybrid"):
        for one in result(4, f"deep:{how}"):
            assert one["away"] <= ROUNDING["float64"]
            assert one["sharded"] == ["down"]
    assert max(result(4, "deep-checkpointed")) <= ROUNDING["float64"]


@pytest.mark.parametrize("how", ["checkpointed", "accumulated", "evaluated", "aliased", "meta"])
def test_ties_across_blocks_when(how: str) -> None:
    """Blocks are checkpointed; gradients are accumulated; evaluations come between the steps;
    the model has aliases of its own; it is sharded on `meta`.
    """
    assert max(result(2, f"deep-{how}")) <= ROUNDING["float64"]


@pytest.mark.parametrize("name", NAMES)
def test_a_write_at_a_site_reaches_the_sharded_values(name: str) -> None:
    for one in result(2, f"written:{name}"):
        assert all(one["moved"])


@pytest.mark.parametrize("name", NAMES)
def test_torch_own_wrapping_says_what_to_do(name: str) -> None:
    """Its fully_shard, block by block, would read one site's parameter while it is sharded."""
    stored_otherwise = name not in ("equality", "transpose", "kernels")
    for one in result(2, f"stock-fsdp:{name}"):
        for how in ("apart", "together"):
            kind, text = one[how]
            if stored_otherwise:
                assert kind == "Unsupported"
            elif how == "apart":
                assert kind == "TieBroken"
            else:
                assert kind == "nothing"
                continue
            system = next(s for s in SYSTEMS if s.name == name)
            assert any(repr(site) in text for site in system.sites)
            assert "eadem.integrations.fsdp.fully_shard" in text


def test_what_needs_whole_parameters_is_refused() -> None:
    for one in result(2, "refused-sharded"):
        for what, pattern in (
            ("tie", r"'k0.bias' is split over processes, and a tie needs it whole"),
            ("untie", r"'k0.weight' is split over processes, and untying needs"),
            ("twin", r"and an untied copy needs it whole: do it before the model is sharded"),
            ("materialize", r"gather the model first .*full_state_dict=True"),
            ("save", r"and a file of the whole model needs it whole"),
            ("again", r"'the model' is sharded already; call fully_shard once"),
            ("full sites", r"the tied sites k1.weight, k2.weight in full.*Nothing was loaded"),
        ):
            kind, text = one[what]
            assert kind == ("RecordError" if what == "full sites" else "Unsupported")
            assert re.search(pattern, text), text


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_changes_the_number_of_processes(name: str) -> None:
    """Four processes write a distributed checkpoint of model and optimizer; two train on; the
    six steps equal those of one process.
    """
    system = next(s for s in SYSTEMS if s.name == name)
    stored = set(system.tied().state_dict())
    for keys in result(4, f"checkpoint-save:{name}"):
        assert set(keys) == stored  # θ once, and no key of a derived site
    assert max(result(2, f"checkpoint-load:{name}")) <= ROUNDING["float64"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
def test_one_process_reads_a_distributed_checkpoint(system: System) -> None:
    found(4)
    model = system.tied().double()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    state = model.state_dict()
    dcp.load({"model": state}, checkpoint_id=FOLDER / f"4-{system.name}", no_dist=True)
    model.load_state_dict(state)
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert_tied(model, system)


def test_a_gathered_state_dict(system: System) -> None:
    """Loads into an unsharded tied model, which saves it with its ties; and goes back."""
    gathered = result(2, f"checkpoint-gathered:{system.name}")
    assert gathered[0]["loaded"] == 0.0
    for one in gathered:
        assert one["moved"] <= 1e-15
    fresh = system.stock().double()
    eadem.load(fresh, FOLDER / f"gathered-2-{system.name}.safetensors")
    assert_tied(fresh, system)
