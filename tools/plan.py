"""What a training will take on hardware that is not there: memory, time, cost.

python tools/plan.py --config configs/cola_joint.py --topology v5p:4x4x8 [--slices N] [--mesh data=8,fsdp=16]
    [--steps N | --eflops X] [--search] [--json] [--config.KEY=VALUE ...]

For a TPU the real training step is compiled by the real compiler (a minute or more): whether it fits, memory by kind,
the compiler's schedule by part, what the chips send each other and whether that is hidden, the time of a step, and
days, chip-hours and storage to the target. For GPUs (h100:64) and CPUs (cpu:8) all is arithmetic, and the plan says so.
A step that does not fit ends it with status 2 and a line that says what would, and so does a program that cannot
be read, or whose matrix products contradict the stage's own count. --search compiles alternatives and ranks them.
"""

import json
import os
import sys

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()
os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs; a TPU or GPU of this machine is left alone

from colajax.errors import UserError, run_main
from colajax.parallel.mesh import parse_mesh
from colajax.planning.advice import refusal
from colajax.planning.plan import make_plan, target
from colajax.planning.report import text
from colajax.planning.search import line, search
from colajax.planning.topology import find_topology
from colajax.stages import stage_of
from colajax.train.budgets import with_total_steps
from colajax.train.config import load_config


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--topology", required=True, metavar="NAME", help="v5p:4x4x8, v5e:16x16, h100:64, cpu:8, ...")
    parser.add_argument("--slices", type=int, default=1, help="of that topology, joined by the network")
    parser.add_argument("--mesh", metavar="data=8,fsdp=16,tensor=1", help="in place of config.mesh")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--steps", type=int, help="to plan for; config.total_steps by default")
    goal.add_argument("--eflops", type=float, help="to plan for, of the compute axis")
    parser.add_argument("--search", action="store_true", help="compile alternatives, rank them")
    parser.add_argument("--json", action="store_true", help="the plan as one JSON object")
    args, overrides = parser.parse_with_config()
    mesh = [f"mesh.{axis}={size}" for axis, size in parse_mesh(args.mesh).items()] if args.mesh else []
    config = load_config(args.config, [*mesh, *overrides])
    for name in ("slices", "steps", "eflops"):
        if getattr(args, name) is not None and getattr(args, name) <= 0:
            raise UserError(f"--{name} {getattr(args, name)}: expected more than 0")
    make_stage, topology = stage_of(config), find_topology(args.topology, args.slices)
    config = with_total_steps(config, make_stage)
    if args.search and (args.steps or args.eflops):
        raise UserError("--search ranks by speed: --steps and --eflops go with a plan alone")
    if args.search:
        plans = search(config, make_stage, topology, report=lambda plan: print(line(plan), file=sys.stderr, flush=True))
        ranking = [f"{place}. {line(plan)}" for place, plan in enumerate(plans, 1)]
        print(json.dumps(plans, indent=1) if args.json else "\n".join(["", "fastest first", *ranking]))
        return

    plan = make_plan(config, make_stage, topology)
    if not plan["fits"]:
        raise refusal(plan, config, make_stage, topology)
    reached = target(plan, config, steps=args.steps, eflops=args.eflops)
    if args.json:
        print(json.dumps({"config": args.config, **plan, "target": reached}, indent=1))
    else:
        print(text(args.config, plan, reached))


if __name__ == "__main__":
    run_main(main)
