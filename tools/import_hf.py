"""Makes a run from a checkpoint in the Hugging Face layout, released or exported.

python tools/import_hf.py --hf DIR --workdir RUN [--step N] [--config FILE[:VARIANT]] [--config.KEY=VALUE ...]

RUN can then be generated from, evaluated and exported, and training goes on with it:
  python -m colajax.train --config RUN/config.json --workdir RUN --config.records=RECORDS
The configuration says how; its model sections are the checkpoint's. The default is configs/cola_joint.py, or
configs/cola_vae.py for a text VAE alone. The optimizer starts afresh; the records must be of its tokenizer. Both
paths may be in a bucket (gs://), from which one tensor is read at a time.
"""

import pathlib

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import run_main
from colajax.hf.import_run import groups_in, import_run
from colajax.train.config import load_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--hf", required=True, help="a folder with cola_vae/ and, for the whole model, cola_dit/")
    parser.add_argument("--workdir", required=True, help="a folder that does not exist")
    parser.add_argument("--step", type=int, default=0, help="updates that the checkpoint counts as; default 0")
    parser.add_argument("--config", metavar="FILE[:VARIANT]")
    args, overrides = parser.parse_with_config()
    spec = args.config or str(CONFIGS / ("cola_joint.py" if "dit" in groups_in(args.hf) else "cola_vae.py"))
    config = load_config(spec, overrides)
    import_run(args.hf, args.workdir, config, step=args.step)
    print(f"{args.workdir}: {args.hf} as step {args.step}; goes on with: python -m colajax.train --config "
          f"{args.workdir}/config.json --workdir {args.workdir} --config.records=RECORDS")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
