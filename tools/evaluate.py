"""Evaluates a model by what it writes: the eight tasks of the paper, or continuations of held-out text.

python tools/evaluate.py --workdir RUN --tasks all --data DIR [--out DIR] [--prompts FILE] [--limit N]
  Accuracies with bootstrap intervals; of --tasks some, as in mmlu,squad. OUT (RUN/tasks/STEP) has tasks.json, tasks.csv
  and generations/. At any time it may be killed: the same command goes on. --hf EXPORT in place of --workdir.
python tools/evaluate.py --rescore DIR [--tasks all] [--out DIR]
  Scores outputs that are there, DIR/TASK.jsonl.
python tools/evaluate.py --workdir RUN --records RECORDS [--prefixes 500]
  A table and three continuations of held-out prefixes, beside the run's last evaluation, and both in
  RUN/evaluation.json (with --step, RUN/evaluation_N.json). Stories are also checked by the grammar that wrote them.
"""

import json

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.errors import UserError, run_main
from colajax.evals.held_out import evaluate_held_out
from colajax.evals.model import model_of_export, model_of_run, stage_of_export
from colajax.evals.tasks import report
from colajax.evals.tasks.data import read_data
from colajax.evals.tasks.outputs import output_files, score_files
from colajax.evals.tasks.prompts import read_prompts
from colajax.evals.tasks.run import NEW_TOKENS, run_tasks
from colajax.evals.tasks.table import tasks_named
from colajax.files import check_writable, write_whole
from colajax.parallel.agreement import share_errors
from colajax.parallel.processes import is_first, join
from colajax.sampling.base import BaseSampler
from colajax.sampling.load import SAMPLERS, family_of, load_run
from colajax.sampling.settings import OTHER_NAMES, SamplingSettings, named

# What each of the three evaluations has to be given, and what of the others it does without.
MODES = {
    "rescore": {"rescore", "tasks", "out", "decisions"},
    "tasks": {"workdir", "hf", "step", "tasks", "data", "out", "prompts", "limit", "batch_size", "decisions"},
    "records": {"workdir", "step", "records", "prefixes"},
}
SETTINGS = ("guidance", "steps", "block_length", *OTHER_NAMES)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", help="of a run")
    parser.add_argument("--hf", help="an export or a released checkpoint, in place of a run")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--tasks", help="all, or names with commas between them")
    parser.add_argument("--data", help="folder of the tasks' files: TASK.jsonl, .parquet or .csv, or folders TASK")
    parser.add_argument("--out", help="folder of outputs and scores; default RUN/tasks/STEP")
    parser.add_argument("--prompts", help="other prompts than those that ship (tools/README.md)")
    parser.add_argument("--limit", type=int, help="the first so many records of each task")
    parser.add_argument("--batch_size", type=int, help="prompts that go through the model together; default 128")
    parser.add_argument("--decisions", action="store_true", help="OUT/decisions/TASK.jsonl: how each output was read")
    parser.add_argument("--rescore", help="folder of outputs that are there")
    parser.add_argument("--records", help="folder whose validation rows give prefixes to continue")
    parser.add_argument("--prefixes", type=int, help="default 500")
    parser.add_argument("--guidance", type=float, help="of Cola, tasks: default 7, prefixes: 1; of LLaDA: 1")
    parser.add_argument("--guidance_scale", type=float, help="another name of --guidance")
    parser.add_argument(
        "--steps", type=int,
        help=f"of Cola, Euler steps a block, default {SamplingSettings.steps}; of LLaDA, default as many as tokens",
    )  # fmt: skip
    parser.add_argument("--block_length", type=int, help="of LLaDA: uncovered together; default the whole answer")
    for name in ("timestep_num", "diffusion_steps"):
        parser.add_argument(f"--{name}", type=int, help="another name of --steps")
    args = parser.parse_args()
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    mode = next((mode for mode in MODES if mode in given), None)
    if mode is None:
        parser.error("expected --tasks, --records or --rescore")
    allowed = MODES[mode] | (set() if mode == "rescore" else set(SETTINGS))
    if unfit := sorted(given - allowed):
        parser.error(f"--{unfit[0]} has no meaning beside --{mode}")
    for name, least in (("prefixes", 1), ("limit", 1), ("batch_size", 1)):
        if name in given and not least <= getattr(args, name) < 2**31:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least {least}, less than 2**31")
    {"rescore": _rescore, "tasks": _tasks, "records": _held_out}[mode](args)


def _settings(args, family: type[BaseSampler], **defaults) -> SamplingSettings:
    """Greedy, with what is given, and the family's and these defaults."""
    given = {name: value for name, value in defaults.items() if name in family.SETTINGS}
    given |= named({name: getattr(args, name) for name in SETTINGS})
    return family.settings(given | {"temperature": 0.0, "max_new_tokens": NEW_TOKENS})


def _tasks(args) -> None:
    if (args.workdir is None) == (args.hf is None) or args.data is None or (args.out is None and args.hf is not None):
        raise UserError("--tasks: expected --data, and either --workdir or both of --hf and --out")
    join()
    tasks = tasks_named(args.tasks)
    family = SAMPLERS[stage_of_export(args.hf)] if args.workdir is None else family_of(args.workdir)
    settings = _settings(args, family)
    templates, data = share_errors(lambda: (read_prompts(tasks, args.prompts), read_data(tasks, args.data, args.limit)))
    check_writable(report.folder_of(args.workdir) if args.out is None else args.out)
    model = model_of_export(args.hf) if args.workdir is None else model_of_run(args.workdir, args.step)
    out = report.folder_of(args.workdir, model.step) if args.out is None else epath.Path(args.out)
    batch_size = 128 if args.batch_size is None else args.batch_size
    found = run_tasks(model, data, templates, out, settings, batch_size=batch_size, keep_decisions=args.decisions)
    if is_first():
        print(f"{report.table(found)}\n{out}")


def _rescore(args) -> None:
    if args.decisions and args.out is None:
        raise UserError("--decisions: expected an --out to write them to")
    out = None if args.out is None else epath.Path(args.out)
    files = output_files(args.rescore, tasks_named(args.tasks or "all"), every=args.tasks not in (None, "all"))
    if out is not None:
        check_writable(out)
    found = report.scores(score_files(files, out / "decisions" if args.decisions else None))
    if out is not None:
        report.write_report(out, found, {"settings": {"rescored": args.rescore}, "step": None, "family": None})
    print(report.table(found))


def _held_out(args) -> None:
    if args.workdir is None:
        raise UserError("--records: expected --workdir, of a run")
    settings = _settings(args, family_of(args.workdir), guidance=1.0)
    out = epath.Path(args.workdir) / f"evaluation{'' if args.step is None else f'_{args.step}'}.json"
    check_writable(out)
    run = load_run(args.workdir, args.step)
    count = 500 if args.prefixes is None else args.prefixes
    found = evaluate_held_out(run, args.workdir, args.records, count, settings)
    guided = f"guidance {settings.guidance:g}, " if "guidance" in run.sampler.SETTINGS else ""
    print(f"{args.workdir}, step {run.step}, {guided}greedy")
    if found.report_step != run.step:
        print(f"(the figures of the latents and the prior are of step {found.report_step})")
    print(found)
    result = {
        "step": run.step,
        "guidance": settings.guidance,
        "steps": settings.steps,
        "figures": {label.strip(): value for label, value in found.rows},
        "samples": found.samples,
    }
    write_whole(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
