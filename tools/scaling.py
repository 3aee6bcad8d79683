"""The scaling curves: runs of several families, sizes and seeds by the same tokens, and the paper's figure of them.

python tools/scaling.py run --ladder quick --root DIR
  Makes, trains and evaluates everything on this machine, one after the other. May be stopped and killed at any time:
  the same command goes on. Ends with the figure.
python tools/scaling.py status --ladder quick --root DIR
  One line a run.
python tools/scaling.py plot --root DIR [--ladder NAME] [--out DIR]
  scaling.png and .svg (by 6 N tokens), scaling_exact.* (by exact EFLOPs), scaling.csv, scaling.json with the power
  laws, of whatever runs lie in DIR/runs, or of those of a ladder: wherever they were made, a workdir is all that is
  needed.
python tools/scaling.py run --ladder joint --root DIR
  The paper's orderings at small scale (joint, mask-loss, loc, block): the same, of variants in place of families, and a
  verdict. In one DIR they share their stage 1 and the runs that they have in common.
python tools/scaling.py plan --ladder paper --root DIR [--topology v5p:4x4x8 [--slices N] [--price 4.2]]
  The commands that launch it; for a topology also hours, chip-hours, storage and cost of each run, by tools/plan.py.

configs/ladder.py has the ladders, or --ladder FILE:NAME. --records and --data are the records and the folder of the
tasks' files, by default DIR/records and DIR/tasks, which the quick ladder makes itself.
"""

import os
from pathlib import Path

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.errors import UserError, run_main
from colajax.files import in_bucket
from colajax.planning.advice import refusal
from colajax.planning.plan import make_plan, target
from colajax.planning.topology import find_topology
from colajax.scaling import figure, launch, results
from colajax.scaling.collect import collect
from colajax.scaling.ladder import find_ladder, runs_of
from colajax.scaling.run import run_ladder, status
from colajax.stages import stage_of

ROOT = Path(__file__).parent.parent
LADDERS = ROOT / "configs" / "ladder.py"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("action", choices=("run", "status", "plot", "plan"))
    parser.add_argument("--ladder", metavar="NAME")
    parser.add_argument("--root", required=True, metavar="DIR", help="of the ladder: DIR/runs, DIR/logs")
    parser.add_argument("--records", metavar="DIR", help="default DIR/records")
    parser.add_argument("--data", metavar="DIR", help="of the tasks; default DIR/tasks")
    parser.add_argument("--out", metavar="DIR", help="of the figure; default DIR")
    parser.add_argument("--topology", metavar="NAME", help="v5p:4x4x8, h100:64, ...")
    parser.add_argument("--slices", type=int, default=1, help="of that topology, joined by the network")
    parser.add_argument("--price", type=float, help="of a chip-hour, in any currency")
    args = parser.parse_args()
    out = epath.Path(args.out or args.root)
    if args.action == "plot":
        _plot(args.root, out, args.ladder)
        return
    if args.ladder is None:
        parser.error(f"{args.action}: expected --ladder NAME")
    local = args.action in ("run", "status")
    folder = _absolute(args.root) if local else args.root
    ladder = find_ladder(args.ladder, LADDERS)
    data = {name: place for name, place in (("records", args.records), ("tasks", args.data)) if place}
    data = {name: _absolute(place) if local else place for name, place in data.items()}
    runs = runs_of(ladder, folder, ROOT, data)
    if args.action == "run":
        run_ladder(ladder, runs, folder, data, ROOT)
        _plot(folder, out, args.ladder)
    elif args.action == "status":
        print("\n".join(map(status, runs)))
    else:
        if args.topology:
            print(launch.table(launch.plan_rows(runs, _planner(args), args.price)), end="\n\n")
        print(launch.commands(runs, args.data or f"{folder}/tasks"))


def _absolute(path: str) -> str:
    return path if in_bucket(path) else os.path.abspath(path)


def _planner(args):
    for name in ("slices", "price"):
        if (value := getattr(args, name)) is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name} {value}: expected more than 0")
    topology = find_topology(args.topology, args.slices)

    def plan_of(run):
        config = run.config(ROOT)
        plan = make_plan(config, stage_of(config), topology)
        if not plan["fits"]:
            raise refusal(plan, config, stage_of(config), topology)
        return plan, target(plan, config)

    return plan_of


def _plot(root: str, out: epath.Path, name: str | None) -> None:
    folder = epath.Path(root) / "runs"
    if not folder.is_dir():
        raise UserError(f"{folder}: not found; expected the workdirs of a ladder's runs in it")
    if name is None:
        workdirs, labels, best = sorted(folder.iterdir()), {}, ""
    else:
        ladder = find_ladder(name, LADDERS)
        runs = [run for run in runs_of(ladder, root, ROOT) if run.budgets]
        workdirs, labels = [folder / run.name for run in runs], {run.name: run.label for run in runs}
        best = ladder.best
    collected = collect((path for path in workdirs if (path / "config.json").exists()), labels)
    results.write_tables(out, collected, best)
    written = figure.draw(out, collected)
    print(results.text(collected, best))
    print(f"{out}: scaling.csv, scaling.json, {', '.join(path.name for path in written)}")


if __name__ == "__main__":
    run_main(main)
