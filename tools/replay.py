"""Does an update again that a run left out, from what it kept of it.

python tools/replay.py WORKDIR/skipped/FILE.json [--config.KEY=VALUE ...]
  From the newest checkpoint before it, or the run's beginning, up to that update: its loss and gradients as recorded
  and as this machine finds them, bit for bit where devices and mesh are the run's; the gradients of each parameter,
  those that are no number first; the rows of the batch. Nothing is written. On one device: --config.mesh.data=1
  --config.mesh.fsdp=1 --config.mesh.tensor=1.

Ends with status 0 where the update is not sound here either, 1 where it is.
"""

import math
import sys

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.errors import UserError, run_main
from colajax.stages import stage_of
from colajax.train.config import load_config
from colajax.train.replay import Replayed, replay

SHOWN = 12  # parameters with the largest gradients


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("file", metavar="FILE")
    args, overrides = parser.parse_with_config()
    file = epath.Path(args.file)
    if not file.is_file():
        raise UserError(f"{file}: not found; expected a file of WORKDIR/skipped")
    config = load_config(str(file.parent.parent / "config.json"), overrides)
    found = replay(file, config, stage_of(config))
    print("\n".join(lines_of(found)))
    sys.exit(found.again is None)


def lines_of(found: Replayed) -> list[str]:
    """For people."""
    recorded, again = found.recorded, found.again
    since = f"the checkpoint of step {found.since}" if found.since else "the beginning"
    lines = [f"batch {recorded.batch} at step {recorded.begins}, from {since} on"]
    if again is None:
        lines.append("sound here: on other devices, or another mesh, sums are rounded in another way")
    for name, value in recorded.means.items():
        here = "" if again is None else f"  here {again.means[name]!r}"
        lines.append(f"  {name} {value!r}{here}  (at most {recorded.limits[name]:.4g})")
    if again:
        same = repr(again.means) == repr(recorded.means)
        lines.append("the same to the bit" if same else "the same decision, not the same bits")
    lines.append("norms of gradients:")
    order = sorted(found.gradients.items(), key=lambda item: (math.isfinite(item[1]), -item[1]))
    broken = sum(not math.isfinite(norm) for _, norm in order)
    lines += [f"  {name} {norm:.4g}" for name, norm in order[: max(SHOWN, broken)]]
    lines.append("rows:")
    return lines + [f"  {row}: {text[:100]!r}" for row, text in zip(recorded.rows, found.texts, strict=True)]


if __name__ == "__main__":
    run_main(main)
