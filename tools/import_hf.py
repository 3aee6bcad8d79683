"""Makes a run from a checkpoint in the Hugging Face layout, released or exported, or from a LLaMA of transformers.

python tools/import_hf.py --hf DIR --workdir RUN [--step N] [--config FILE[:VARIANT]] [--config.KEY=VALUE ...]

RUN can then be generated from, evaluated and exported, and training goes on with it:
  python -m colajax.train --config RUN/config.json --workdir RUN --config.records=RECORDS
The configuration says how; its model sections are the checkpoint's. The default is configs/cola_joint.py,
configs/cola_vae.py for a text VAE alone, configs/ar.py for a LLaMA (with a tokenizer.json or .model beside it; untied
embeddings, a key for every head, RoPE without scaling), configs/llada.py for an exported LLaDA. The optimizer starts
afresh; the records must be of its tokenizer. Both paths may be in a bucket (gs://), from which one tensor is read at a
time.
"""

import pathlib

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import run_main
from colajax.hf.import_run import import_run
from colajax.hf.layout import stage_in
from colajax.train.config import load_config

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
DEFAULTS = {"vae": "cola_vae.py", "joint": "cola_joint.py", "ar": "ar.py", "llada": "llada.py"}  # by stage


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--hf", required=True, help="a folder with cola_vae/ and cola_dit/, or with one model")
    parser.add_argument("--workdir", required=True, help="a folder that does not exist")
    parser.add_argument("--step", type=int, default=0, help="updates that the checkpoint counts as; default 0")
    parser.add_argument("--config", metavar="FILE[:VARIANT]")
    args, overrides = parser.parse_with_config()
    spec = args.config or str(CONFIGS / DEFAULTS[stage_in(args.hf)])
    config = load_config(spec, overrides)
    import_run(args.hf, args.workdir, config, step=args.step)
    print(f"{args.workdir}: {args.hf} as step {args.step}; goes on with: python -m colajax.train --config "
          f"{args.workdir}/config.json --workdir {args.workdir} --config.records=RECORDS")  # fmt: skip


if __name__ == "__main__":
    run_main(main)
