"""Continues prompts with a trained model: a stage 2 run of Cola, or one of the baselines, AR and LLaDA.

python tools/generate.py --workdir RUN --prompt "Anna lived near the hill" [--prompt ...] [--max_new_tokens 32]

Prints each prompt with its continuation. The same seed and place among the prompts give the same text. A setting that
the run's family does not have is refused: --steps and --guidance are of Cola and LLaDA (which takes as many steps as
tokens, and no guidance, by default), --block_length is of LLaDA; the others are of all three.
"""

import dataclasses

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import run_main
from colajax.sampling.load import family_of, load_run
from colajax.sampling.settings import OTHER_NAMES, SamplingSettings, named


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a stage 2 run, an AR run or a LLaDA run")
    parser.add_argument("--prompt", required=True, action="append", help="may be given several times")
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    kinds = {field.name: field.type for field in dataclasses.fields(SamplingSettings)}
    for field in dataclasses.fields(SamplingSettings):
        parser.add_argument(f"--{field.name}", type=field.type, help=f"default {field.default}")
    for name, setting in OTHER_NAMES.items():
        parser.add_argument(f"--{name}", type=kinds[setting], help=f"another name of --{setting}")
    args = parser.parse_args()
    given = named({name: getattr(args, name) for name in (*kinds, *OTHER_NAMES)})
    settings = family_of(args.workdir).settings(given)
    run = load_run(args.workdir, args.step)
    answers = run.sampler.generate([run.tokenizer.encode(prompt) for prompt in args.prompt], settings)
    for prompt, answer in zip(args.prompt, answers, strict=True):
        print(f"{prompt}|{run.tokenizer.decode_continuation(answer)}\n")


if __name__ == "__main__":
    run_main(main)
