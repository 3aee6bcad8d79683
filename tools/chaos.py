"""Does to a training what happens to trainings, and sees whether it comes to the same end, with nobody there.

python tools/chaos.py --out DIR [--faults NAME,...] [--times N] [--seed N] [--jobs N] [--processes N]
  A small stage 1 on stories, which it makes in DIR, under launch/supervise.sh: left alone, at least twice, then N
  times with each fault. Prints the survival table; DIR/trials.jsonl is the raw log, with the seed and what was done.
  The same command goes on with trials that were interrupted.
python tools/chaos.py --out DIR --full
  Each fault as often as the table in tools/README.md has it.
python tools/chaos.py --out DIR --result FILE --checkpoints FOLDER -- COMMAND ...
  Another training: {workdir} stands for its workdir in COMMAND; FILE and FOLDER are of the workdir. The upper nine
  faults can be done to it.

  kill      SIGKILL at any moment                   truncate  of the newest checkpoint any file is cut off,
  save      SIGKILL while a checkpoint is written   zero      its rest is zeros,
  call      SIGKILL as it enters a system call by   flip      a bit of it is another,
            which it saves (needs strace)           remove    or it is gone
  term      SIGTERM at any moment, status 143       full      the disk is full for some seconds
                                                              (needs root, to mount a small one)
  lost      SIGKILL of one of two processes         frozen    SIGSTOP of one, for good
  away      the bucket that it writes to says 503   cut       or does not answer, for up to a minute
  nan       batches whose loss is NaN, and SIGKILL  spike     a hundred times as large, and SIGKILL
  record    rows of the records are damaged, and SIGKILL
The status is 1 where a trial did not come to the same end.
"""

import json
import os
import sys
from pathlib import Path

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.chaos.faults import FAULTS
from colajax.chaos.subject import Subject
from colajax.chaos.trial import LATE, SAME, References, table_of, trials
from colajax.data.jsonl import write_jsonl
from colajax.data.prepare import prepare
from colajax.data.tokenizer import train_sentencepiece
from colajax.errors import UserError, run_main
from colajax.stories.grammar import stories

ROOT = Path(__file__).parent.parent
TRIALS = "trials.jsonl"
LENGTH = 32
SMALL = (
    f"sequence_length={LENGTH}", "batch_size=64", "total_steps=60", "log_every=1", "checkpoint_every=10",
    "eval_every=25", "eval_rows=12", "optimizer.warmup_steps=3", "vae.dim=32", "vae.ffn_dim=48", "vae.num_heads=2",
    "vae.latent_dim=4",
)  # fmt: skip


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, metavar="DIR", help="a new one, or of trials that are gone on with")
    parser.add_argument("--faults", metavar="NAME,...", help="all that can be done to it by default")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="of each fault")
    parser.add_argument("--full", action="store_true", help="each as often as the table there has it")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial of each; the next has the next")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials that run at once")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that train together")
    parser.add_argument("--result", default="metrics.jsonl", metavar="FILE")
    parser.add_argument("--checkpoints", default="checkpoints", metavar="FOLDER")
    parser.add_argument("command", nargs="*", metavar="COMMAND")
    args = parser.parse_args()
    possible = [name for name, fault in FAULTS.items() if fault.any_trainer or not args.command]
    faults = args.faults.split(",") if args.faults else possible
    if unknown := next((name for name in faults if name not in possible), None):
        raise UserError(f"--faults {unknown}: expected some of {', '.join(possible)}")
    if "full" in faults and os.geteuid():
        raise UserError("--faults full: needs root, to mount a small disk; leave it out")
    for name in ("times", "jobs", "processes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)}: expected at least 1")
    out = Path(args.out).absolute()
    command = tuple(args.command or _small(out))
    subject = Subject(command, args.checkpoints, args.result, args.processes)
    known = _begin(out, subject)
    if not args.command and not (out / "records").exists():
        _make_records(out)
    references = References(out, args.jobs)
    print(f"left alone it takes {references.of(subject).seconds:.1f} s", flush=True)
    times = {name: FAULTS[name].times if args.full else args.times for name in faults}
    found = [trial for trial in known if trial["fault"] in times]
    for trial in trials(times, args.seed, subject, references, out, jobs=args.jobs, known=tuple(found)):
        with (out / TRIALS).open("a") as log:
            log.write(json.dumps(trial) + "\n")
        found.append(trial)
        said = f"{trial['done']}: {trial['end']}, {trial['seconds']:.0f} s"
        print(f"{trial['fault']} {trial['seed']}: {said}", flush=True)
    print(f"\n{table_of(sorted(found, key=lambda trial: faults.index(trial['fault'])))}")
    sys.exit(any(trial["end"] not in (SAME, LATE) for trial in found))


def _begin(out: Path, subject: Subject) -> list[dict]:
    """What is known of the subject from trials before; makes the folder where there were none."""
    file, told = out / "subject.json", json.dumps(subject._asdict(), indent=2)
    if not out.exists():
        out.mkdir(parents=True)
        file.write_text(told)
    elif not file.exists() or file.read_text() != told:
        raise UserError(f"{out}: is there already, and has no trials of this command; name a new folder")
    log = out / TRIALS
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def _small(out: Path) -> list[str]:
    """The command of a training of seconds."""
    config = ["--config", str(ROOT / "configs" / "cola_vae.py:quickstart")]
    return [
        sys.executable, "-m", "colajax.train", *config, "--workdir", "{workdir}", f"--config.records={out / 'records'}",
        *(f"--config.{override}" for override in SMALL),
    ]  # fmt: skip


def _make_records(out: Path) -> None:
    write_jsonl(out / "stories.jsonl", stories(3, 200))
    tokenizer = train_sentencepiece(stories(3, 200), out / "tokenizer.model", 500)
    prepare([out / "stories.jsonl"], tokenizer.path, out / "records", LENGTH, validation_fraction=0.2)


if __name__ == "__main__":
    run_main(main)
