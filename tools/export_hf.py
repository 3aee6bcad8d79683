"""Exports a run to the released Hugging Face layout, or a baseline's to transformers' LLaMA.

python tools/export_hf.py --workdir RUN --out DIR [--step N] [--dtype bfloat16] [--skip_verify]

DIR then holds cola_vae/ and, for a stage 2 run, cola_dit/ (config.json, model.safetensors or shards of 2 GB), the
PyTorch classes with which AutoModel.from_pretrained(DIR, trust_remote_code=True) loads it, the tokenizer, a model card
(README.md), manifest.json (sha256 of every tensor) and, where torch is installed, certificate.json: that it computes
what the run computes. Of an AR run it holds a LlamaForCausalLM, which AutoModelForCausalLM loads with no code of ours,
of a LLaDA run one model with classes of ours (AutoModelForMaskedLM). It appears under its name only when complete. A
run that does not fit in memory twice is exported with --skip_verify: the export itself holds one shard at a time. Every
path may be in a bucket (gs://); then a shard passes through TMPDIR, for the comparison the whole export.
"""

import importlib.util

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import run_main
from colajax.evals.export_parity import verify
from colajax.hf.export import export
from colajax.hf.model_card import Stated
from colajax.sampling.load import SAMPLERS, run_tokenizer
from colajax.train.kept import run_config


def generation_settings(workdir) -> dict:
    """Of the run's family; none of a text VAE alone."""
    family = SAMPLERS.get(run_config(workdir)["stage"])
    return {} if family is None else {name: getattr(family.settings({}), name) for name in family.SETTINGS}


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a training run")
    parser.add_argument("--out", required=True, help="a folder that does not exist")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--license", help="for the model card, as the hub spells it: apache-2.0, ...")
    parser.add_argument("--language", action="append", help="of the text, for the card; may be given several times")
    parser.add_argument("--dataset", action="append", help="id on the hub, for the card; may be given several times")
    parser.add_argument("--base_model", help="id on the hub of the checkpoint that the run was imported from")
    parser.add_argument("--skip_verify", action="store_true", help="do not compare with PyTorch")
    args = parser.parse_args()
    check = None
    if args.skip_verify:
        print("not verified; tools/verify_export.py does it")
    elif importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        check = lambda folder: verify(args.workdir, folder)  # noqa: E731
    else:
        print("not verified: no torch and transformers here (pip install '.[torch]', then tools/verify_export.py)")
    step = export(
        args.workdir, args.out, run_tokenizer(args.workdir), generation_settings(args.workdir),
        step=args.step, dtype=args.dtype, check=check,
        stated=Stated(args.license, args.language, args.dataset, args.base_model),
    )  # fmt: skip
    print(f"{args.out}: step {step} of {args.workdir}")


if __name__ == "__main__":
    run_main(main)
