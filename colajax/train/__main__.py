"""python -m colajax.train --config configs/X.py[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]

Trains what the configuration says, going on from whatever DIR holds. On a cluster every process runs this same
command (colajax/parallel/processes.py says how they find each other; launch/ has the scripts). Ends with status 0
when the run is complete, 2 on a mistake in configuration or data, 75 on what time may mend (a full disk, a bucket that
is away, processes that do not come), and 130 or 143 when stopped by a signal, after saving.
"""

import sys

from colajax.command_line import BEGAN, Parser, begin
from colajax.train.watchdog import start_watched

if __name__ == "__main__":
    begin()
    start_watched()

from colajax.errors import run_main
from colajax.parallel.agreement import share_errors
from colajax.parallel.processes import join
from colajax.stages import stage_of
from colajax.train.config import load_config
from colajax.train.loop import train


def main() -> None:
    parser = Parser(__doc__, prog="python -m colajax.train")
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    args, overrides = parser.parse_with_config()
    join()  # so that what is wrong in one process ends all of them
    config, make_stage = share_errors(lambda: _configured(args.config, overrides))
    sys.exit(train(config, make_stage, args.workdir, began=BEGAN))


def _configured(spec: str, overrides: list[str]) -> tuple:
    config = load_config(spec, overrides)
    return config, stage_of(config)


if __name__ == "__main__":
    run_main(main)
