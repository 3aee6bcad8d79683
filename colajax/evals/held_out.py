"""A run by what it writes after held-out prefixes, beside its own last evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from colajax.data.records import Records, check_tokenizer
from colajax.errors import UserError
from colajax.evals import continuation as cont
from colajax.sampling.load import LoadedRun
from colajax.sampling.settings import SamplingSettings
from colajax.stories.checker import check_story
from colajax.train.metrics import read_lines

# Rows of the table: what the run's last evaluation calls it, and what a reader should; its accuracy by stage.
ACCURACY = {
    "joint": "held-out reconstruction from sampled latents", "ar": "held-out accuracy of the next token",
    "llada": "held-out accuracy of masked tokens",
}  # fmt: skip
FROM_TRAINING = (
    ("log_snr", "logSNR of the latents"),
    ("mean_variance", "variance of the mean across tokens (collapsed: 0)"),
    ("skill", "skill of the prior"),
    ("gaussian_skill", "  of a Gaussian without context"),
    ("context_gain", "context gain"),
    ("kl_reference", "KL to the stage 1 encoder, nats a latent"),
)


class HeldOut(NamedTuple):
    """(label, value) rows of the table, the step that those of the latents are of, and samples (prompt, text)."""

    rows: Sequence[tuple[str, float]]
    report_step: int
    samples: Sequence[tuple[str, str]]

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.rows)
        table = [f"{label:<{width}}  {value:.4g}" for label, value in self.rows]
        return "\n".join([*table, *(f"\n{prompt} |{text}" for prompt, text in self.samples)])


def evaluate_held_out(
    run: LoadedRun, workdir: epath.PathLike, records: epath.PathLike, count: int, settings: SamplingSettings
) -> HeldOut:
    """Continues `count` prefixes of the records' validation rows. Raises UserError on records that do not fit."""
    held_out, training = Records.open(records, "validation"), Records.open(records, "train")
    check_tokenizer(held_out.metadata, run.tokenizer)
    report = _last_report(workdir, run.step)
    labelled = (("accuracy", ACCURACY[run.config["stage"]]), *FROM_TRAINING)
    rows = [(label, report[name]) for name, label in labelled if report.get(name) is not None]

    block = run.sampler.block_tokens
    prefixes = cont.held_out_prefixes(held_out, count, shortest=2 * block, rest=block)
    if not prefixes:
        raise UserError(f"{records}: no held-out document of {3 * block} tokens or more to take a prefix from")
    answers = cont.continue_prefixes(run.sampler, prefixes, settings, length=run.config["sequence_length"])
    counts = cont.count_tokens(training, run.sampler.vocab_size)
    predictions = {
        f"first token after {len(prefixes)} held-out prefixes": [answer[0] if answer else -1 for answer in answers],
        "  by a bigram of the training tokens": [int(counts.bigram[prefix.tokens[-1]]) for prefix in prefixes],
        "  by the most frequent training token": [counts.unigram] * len(prefixes),
    }
    rows += [(label, cont.first_token_accuracy(prefixes, tokens)) for label, tokens in predictions.items()]
    decode = run.tokenizer.decode
    if check_story(decode(prefixes[0].tokens + prefixes[0].rest)).accepted:
        score = cont.score_stories(prefixes, answers, run.tokenizer)
        rows += [
            ("generated stories that the grammar accepts", score.accepted),
            ("  that keep the prefix's names and things", score.keeps_prefix),
            ("  both", score.both),
        ]
    samples = [(decode(p.tokens), decode(a)) for p, a in list(zip(prefixes, answers, strict=True))[:3]]
    return HeldOut(rows, report.get("step", run.step), samples)


def _last_report(workdir: epath.PathLike, step: int) -> dict:
    """The figures of the last evaluation up to `step` in the run's metrics; none where there was none (an import)."""
    path = epath.Path(workdir) / "metrics.jsonl"
    return next((x for x in reversed(read_lines(path)) if x.get("kind") == "eval" and x["step"] <= step), {})
