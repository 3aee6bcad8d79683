"""Evaluates a stage 2 run by what it writes after held-out prefixes, beside the run's own last evaluation.

python tools/evaluate.py --workdir RUN --records DIR [--step N] [--prefixes 500] [--guidance 1.0]

Prints a table and three continuations, and writes both to RUN/evaluation.json (with --step, RUN/evaluation_N.json). On
the project's story corpus the continuations are also checked by the grammar that wrote it.
"""

import json

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.data.records import Records, check_tokenizer
from colajax.errors import UserError, run_main
from colajax.evals import continuation as cont
from colajax.files import check_writable, write_whole
from colajax.sampling.load import load_run
from colajax.sampling.settings import OTHER_NAMES, SamplingSettings, settings_of
from colajax.stories.checker import check_story
from colajax.train.kept import run_config
from colajax.train.metrics import read_lines

# Rows of the table: what the run's last evaluation calls it, and what a reader should.
FROM_TRAINING = (
    ("accuracy", "held-out reconstruction from sampled latents"),
    ("log_snr", "logSNR of the latents"),
    ("mean_variance", "variance of the mean across tokens (collapsed: 0)"),
    ("skill", "skill of the prior"),
    ("gaussian_skill", "  of a Gaussian without context"),
    ("context_gain", "context gain"),
    ("kl_reference", "KL to the stage 1 encoder, nats a latent"),
)


def last_report(workdir: str, step: int) -> dict:
    """The figures of the last evaluation up to `step` in the run's metrics; none where there was none (an import)."""
    path = epath.Path(workdir) / "metrics.jsonl"
    return next((x for x in reversed(read_lines(path)) if x.get("kind") == "eval" and x["step"] <= step), {})


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="of a stage 2 run")
    parser.add_argument("--records", required=True, help="folder whose validation rows give the prefixes")
    parser.add_argument("--prefixes", type=int, default=500)
    parser.add_argument("--step", type=int, help="of the checkpoint; the latest by default")
    parser.add_argument("--guidance", type=float, help="default 1")
    parser.add_argument("--guidance_scale", type=float, help="another name of --guidance")
    parser.add_argument("--steps", type=int, help=f"Euler steps a block; default {SamplingSettings.steps}")
    for name in ("timestep_num", "diffusion_steps"):
        parser.add_argument(f"--{name}", type=int, help="another name of --steps")
    args = parser.parse_args()
    if not 1 <= args.prefixes < 2**31:
        raise UserError(f"--prefixes {args.prefixes}: expected at least 1, less than 2**31")

    given = {key: getattr(args, key) for key in ("guidance", "steps", *OTHER_NAMES)}
    if args.guidance is None and args.guidance_scale is None:
        given["guidance"] = 1.0
    settings = settings_of(given | {"temperature": 0.0})
    run_config(args.workdir)  # of a run that is not there nothing can be written
    out = epath.Path(args.workdir) / f"evaluation{'' if args.step is None else f'_{args.step}'}.json"
    check_writable(out)

    run = load_run(args.workdir, args.step)
    held_out, training = Records.open(args.records, "validation"), Records.open(args.records, "train")
    check_tokenizer(held_out.metadata, run.tokenizer)
    report = last_report(args.workdir, run.step)
    rows = [(label, report[name]) for name, label in FROM_TRAINING if report.get(name) is not None]

    block = run.sampler.block_tokens
    prefixes = cont.held_out_prefixes(held_out, args.prefixes, shortest=2 * block, rest=block)
    if not prefixes:
        raise UserError(f"{args.records}: no held-out document of {3 * block} tokens or more to take a prefix from")
    length = run.config["sequence_length"]
    answers = cont.continue_prefixes(run.sampler, prefixes, settings, length=length)
    counts = cont.count_tokens(training, run.sampler.vae_config.vocab_size)
    predictions = {
        f"first token after {len(prefixes)} held-out prefixes": [answer[0] if answer else -1 for answer in answers],
        "  by a bigram of the training tokens": [int(counts.bigram[prefix.tokens[-1]]) for prefix in prefixes],
        "  by the most frequent training token": [counts.unigram] * len(prefixes),
    }
    rows += [(label, cont.first_token_accuracy(prefixes, tokens)) for label, tokens in predictions.items()]
    if check_story(run.tokenizer.decode(prefixes[0].tokens + prefixes[0].rest)).accepted:
        score = cont.score_stories(prefixes, answers, run.tokenizer)
        rows += [
            ("generated stories that the grammar accepts", score.accepted),
            ("  that keep the prefix's names and things", score.keeps_prefix),
            ("  both", score.both),
        ]
    decode = run.tokenizer.decode
    samples = [(decode(p.tokens), decode(a)) for p, a in list(zip(prefixes, answers, strict=True))[:3]]

    width = max(len(label) for label, _ in rows)
    print(f"{args.workdir}, step {run.step}, guidance {settings.guidance:g}, greedy")
    if report.get("step", run.step) != run.step:
        print(f"(the figures of the latents and the prior are of step {report['step']})")
    print("\n".join(f"{label:<{width}}  {value:.4g}" for label, value in rows))
    for prompt, text in samples:
        print(f"\n{prompt} |{text}")
    result = {
        "step": run.step,
        "guidance": settings.guidance,
        "steps": settings.steps,
        "figures": {k.strip(): v for k, v in rows},
        "samples": samples,
    }
    write_whole(out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
