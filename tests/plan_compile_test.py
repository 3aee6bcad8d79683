"""Every configuration that ships at paper scale, compiled for a real topology by the real compiler: it fits, and what
the plan says of it is within what such a model can be."""

import pytest
from tiny_runs import ROOT

from colajax.planning.plan import make_plan
from colajax.planning.topology import find_topology
from colajax.stages import stage_of
from colajax.train.config import load_config

CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
TOPOLOGY = "v5p:4x4x8"


@pytest.mark.parametrize("name", CONFIGS)
def test_fits_and_trains_at_a_believable_speed(name):
    config = load_config(f"{ROOT}/configs/{name}", [])
    plan = make_plan(config, stage_of(config), find_topology(TOPOLOGY))
    assert plan["fits"]
    memory = plan["memory"]
    assert memory["peak"] < 0.5 * plan["available"]
    # float32, two moments, over fsdp; what is not divided is less than a hundredth of it.
    whole = 16 * (memory["parameters"] + memory["optimizer"] + memory["frozen"])
    assert whole == pytest.approx(plan["checkpoint_bytes"], rel=0.01)
    assert 0.1 < plan["mfu"] < 0.7
    assert {"attention", "MLP", "cross-entropy", "optimizer"} <= set(plan["cycles"])
    assert plan["cycles"]["attention"] + plan["cycles"]["MLP"] > 0.5 * plan["cycles_per_device"]
    assert "while loop of unknown length, counted once" not in plan["untimed"]
    # 15/16 of the weights come along fsdp at least twice a step, in bfloat16.
    along_fsdp = sum(row["bytes"] for row in plan["communication"] if "fsdp" in row["axes"])
    assert along_fsdp > 15 * memory["parameters"]
    assert plan["exposed_seconds"] < 0.2 * plan["step_seconds"]
