"""The paper's stage 1 with six layers of each part, compiled for a real topology by the real compiler: what the plan
says is what it said when it was looked at, with each libtpu; and what contradicts the stage's own count is refused.

Stage 2 takes twice as long to compile and has little that this one has not."""

import pytest
from tiny_runs import ROOT

from colajax.errors import UserError
from colajax.planning import compiled, hlo, plan
from colajax.planning.topology import find_topology
from colajax.stages import stage_of
from colajax.train.config import load_config

pytestmark = pytest.mark.optimised

TOPOLOGY = "v5p:2x2x1"
SMALL = (
    "batch_size=32", "mesh.data=1", "mesh.fsdp=4", "vae.encoder_num_blocks=6", "vae.decoder_num_blocks=6",
)  # fmt: skip
MESH = {"data": 1, "fsdp": 4, "tensor": 1}


@pytest.fixture(scope="module")
def planned():
    """(plan, the compiler's serialized program, topology)"""
    programs = []

    def kept(serialized, mesh):
        programs.append(serialized)
        return hlo_schedule(serialized, mesh)

    hlo_schedule, topology = compiled.read_schedule, find_topology(TOPOLOGY)
    config = load_config(f"{ROOT}/configs/cola_vae.py", list(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "read_schedule", kept)
        return plan.make_plan(config, stage_of(config), topology), programs[0], topology


def test_the_plan_is_what_it_was(planned):
    """With libtpu 0.0.42 and 0.0.50; a change of more than 15 % is one to look at, and to write down here."""
    found, _, _ = planned
    assert found["fits"]
    cycles = {part: round(count / 1e6, 1) for part, count in found["cycles"].items()}
    expected = {"attention": 91.6, "MLP": 30.2, "cross-entropy": 27.4, "optimizer": 4.9}
    assert {part: cycles[part] for part in expected} == pytest.approx(expected, rel=0.15)
    assert found["cycles_per_device"] / 1e6 == pytest.approx(194.2, rel=0.15)
    # Weights cross devices in bfloat16, gradients in float32.
    assert found["communication_bytes_per_device"] / 1e9 == pytest.approx(2.46, rel=0.15)
    assert found["memory"]["peak"] / 1e9 == pytest.approx(8.97, rel=0.15)
    assert found["step_seconds"] * 1e3 == pytest.approx(118.3, rel=0.15)
    assert found["mfu"] == pytest.approx(0.256, rel=0.15)
    # float32, two moments, over fsdp; what is not divided is less than a hundredth of it.
    memory = found["memory"]
    whole = 4 * (memory["parameters"] + memory["optimizer"] + memory["frozen"])
    assert whole == pytest.approx(found["checkpoint_bytes"], rel=0.01)
    # 3/4 of the weights come along fsdp at least twice a step, in bfloat16.
    along_fsdp = sum(row["bytes"] for row in found["communication"] if "fsdp" in row["axes"])
    assert along_fsdp > 3 * memory["parameters"]


def test_what_is_printed_adds_up(planned):
    found, _, _ = planned
    memory = found["memory"]
    assert (found["how"], found["mesh"], found["chips"]) == ("compiled", MESH, 4)
    assert memory["peak"] == sum(size for kind, size in memory.items() if kind != "peak")
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
    assert found["cycles_per_device"] == sum(found["cycles"].values())
    assert found["communication_bytes_per_device"] == sum(row["bytes"] for row in found["communication"])
    seconds = found["cycles_per_device"] / found["clock"] + found["exposed_seconds"]
    assert found["step_seconds"] == pytest.approx(seconds)
    assert found["mfu"] == pytest.approx(found["useful_flops"] / (4 * 459e12 * seconds))


def test_loops_counted_once_are_refused(planned, monkeypatch):
    """As libtpu 0.0.50 was once read: a plan many times too fast."""
    found, serialized, topology = planned
    monkeypatch.setattr(hlo, "trip_count", lambda program, loop: 1)
    with pytest.raises(UserError, match=r"cannot be trusted: its program has 0\.[0-7]\d times the matrix prod"):
        plan.check_plan(found, compiled.read_schedule(serialized, MESH), topology)


def test_products_without_a_time_are_refused(planned, monkeypatch):
    found, serialized, topology = planned
    monkeypatch.setattr(hlo, "cycles", lambda instruction: None)
    with pytest.raises(UserError, match="no time for 100% of the matrix products"):
        plan.check_plan(found, compiled.read_schedule(serialized, MESH), topology)


def test_more_than_the_peak_is_refused(planned):
    found, serialized, topology = planned
    with pytest.raises(UserError, match="122% of their peak"):
        plan.check_plan(found | {"mfu": 1.22}, compiled.read_schedule(serialized, MESH), topology)
