"""Shows what checkpoints cost: how long a save holds the training up, what updates take beside one, and verifying it.

python tools/measure_saves.py --config FILE[:VARIANT] --workdir DIR [--saves N] [--config.KEY=VALUE ...]

Trains in DIR, which must not exist and is removed at the end: N times 20 updates alone, a save, and the updates that
are done until it is on disk. Each update is waited for, so that its seconds are its own.
"""

import time
from contextlib import ExitStack

from colajax.command_line import BEGAN, Parser, begin

if __name__ == "__main__":
    begin()

import numpy as np
from etils import epath

from colajax.errors import UserError, run_main
from colajax.files import files_under
from colajax.stages import stage_of
from colajax.train.checkpoint import damage, latest_step, step_folder
from colajax.train.config import load_config
from colajax.train.goodput import Clock
from colajax.train.setup import set_up
from colajax.train.updates import Updates

ALONE = 20  # updates before each save
PAPER = 29e9  # bytes of a checkpoint of the paper's model: parameters and two moments in float32


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    parser.add_argument("--saves", type=int, default=5, metavar="N")
    args, overrides = parser.parse_with_config()
    if args.saves < 1:
        raise UserError(f"--saves {args.saves}: expected at least 1")
    workdir = epath.Path(args.workdir)
    if workdir.exists():
        raise UserError(f"{workdir}: exists; name another folder")
    try:
        with ExitStack() as ends:
            measure(load_config(args.config, overrides), workdir, args.saves, ends)
    finally:
        if workdir.exists():
            workdir.rmtree()


def measure(config, workdir: epath.Path, saves: int, ends: ExitStack) -> None:
    run = set_up(config, stage_of(config), workdir, Clock(BEGAN), ends)
    updates = Updates(config, run.stage, run.optimizer, run.like, run.loader)
    updates.begin_at(0, run.state, {})
    updates.read_first(lambda: None)

    def update() -> float:
        began = time.perf_counter()
        updates.begin(updates.next_batch())
        list(updates.settled(0))
        return time.perf_counter() - began

    for _ in range(3):  # compiled, and settled
        update()
    alone, beside, held, written = [], [], [], []
    for _ in range(saves):
        alone += [update() for _ in range(ALONE)]
        began = time.perf_counter()
        run.checkpoints.save(updates.state, {})
        held.append(time.perf_counter() - began)
        while run.checkpoints.saving:
            beside.append(update())
        written.append(time.perf_counter() - began)
    run.checkpoints.close()
    step = latest_step(workdir)
    size = sum(file.stat().length for file in files_under(step_folder(workdir, step)))
    began = time.perf_counter()
    if reason := damage(workdir, step):
        raise UserError(f"{step_folder(workdir, step)}: {reason}")
    rate = size / (time.perf_counter() - began)
    print(f"checkpoint: {size / 1e6:,.0f} MB; {saves} saves; the training waits {_of(held)}; on disk in {_of(written)}")
    print(f"updates alone ({len(alone)}): {_of(alone)}")
    print(f"beside a save ({len(beside)}): {_of(beside)}: p95 x {_p(beside, 95) / _p(alone, 95):.2f}")
    print(f"verified at {rate / 1e6:,.0f} MB/s: 29 GB in {PAPER / rate:.0f} s")


def _p(seconds: list[float], percent: int) -> float:
    return float(np.percentile(seconds, percent)) if seconds else 0.0


def _of(seconds: list[float]) -> str:
    return f"p50 {_p(seconds, 50) * 1e3:,.0f} ms, p95 {_p(seconds, 95) * 1e3:,.0f} ms"


if __name__ == "__main__":
    run_main(main)
