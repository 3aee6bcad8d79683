"""Exports a run to the released Hugging Face layout.

python tools/export_hf.py --workdir RUN --out DIR

DIR then holds cola_vae/ and, for a stage 2 run, cola_dit/ (config.json, model.safetensors), and the run's tokenizer.
It appears under its name only when complete.
"""

import argparse
import os

from etils import epath

from colajax.errors import UserError, run_main
from colajax.hf import layout
from colajax.models.config import from_mapping
from colajax.sampling.load import run_tokenizer
from colajax.train.checkpoint import read_params, run_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--workdir", required=True, help="of a training run")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    out = epath.Path(args.out)
    if out.exists():
        raise UserError(f"{out}: exists; remove it or name another folder")
    config, tokenizer = run_config(args.workdir), run_tokenizer(args.workdir)
    step, params = read_params(args.workdir, args.step)
    partial = out.parent / f"{out.name}.tmp-{os.getpid()}"
    for group, kind in (("vae", layout.VAE), ("dit", layout.DIT)):
        if group in params:
            model_config = from_mapping(kind.config_class, config[group], f"{args.workdir}: {group}")
            layout.save(kind, model_config, params[group], partial / kind.folder)
    epath.Path(tokenizer.path).copy(partial / epath.Path(tokenizer.path).name)
    partial.rename(out)
    print(f"{out}: step {step} of {args.workdir}")


if __name__ == "__main__":
    run_main(main)
