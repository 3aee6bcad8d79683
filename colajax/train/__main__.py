"""python -m colajax.train --config configs/X.py[:VARIANT] --workdir DIR [--config.KEY=VALUE ...]

Trains what the configuration says, going on from whatever DIR holds. On a cluster every process runs this same command
(colajax/parallel/processes.py says how they find each other; launch/ has the scripts). Ends with status 0 when the run
is complete, 2 on a mistake in configuration or data, and 130 or 143 when stopped by a signal, after saving.
"""

import argparse
import sys

from colajax.errors import UserError, run_main
from colajax.parallel.processes import join
from colajax.stages import stage_of
from colajax.train.config import load_config
from colajax.train.loop import train


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m colajax.train", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    parser.add_argument("--workdir", required=True, metavar="DIR")
    args, rest = parser.parse_known_args()
    for argument in rest:
        if not argument.startswith("--config."):
            raise UserError(f"{argument}: unknown argument; expected --config, --workdir or --config.KEY=VALUE")
    config = load_config(args.config, [argument.removeprefix("--config.") for argument in rest])
    make_stage = stage_of(config)
    join()
    sys.exit(train(config, make_stage, args.workdir))


if __name__ == "__main__":
    run_main(main)
