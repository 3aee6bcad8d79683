"""What a stage is to the training loop, and what every stage needs to read its batches."""

import abc
import collections
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from colajax.errors import UserError
from colajax.keys import Draw
from colajax.models.layers import REMAT_POLICIES
from colajax.stages.flops import Keys

NOMINAL_TOLERANCE = 0.1  # of config.compute_params against the model's own count
TIME_BINS = 10


class Stage(abc.ABC):
    """One training stage. The loop knows nothing else of what is trained.

    The loss is a weighted sum of terms, each a sum over the *global* batch divided by a count over the global batch:
    loss = sum_k weights[k] * terms[k] / counts[DENOMINATORS[k]]. Terms of parts of a batch add up, so neither gradient
    accumulation nor the number of devices changes the loss. Everything random is drawn in `examples`.
    """

    vocab_size: int  # of the first group; a tokenizer may have as many tokens
    pad_id: int
    eos_id: int
    isolate_documents: bool  # a document of a row sees itself alone
    sequence_length: int  # tokens of a row
    period: int = 1  # after so many steps `trainable` begins again
    init_from: str = ""  # workdir of another run that this one begins with
    init_step: int | None = None  # of its checkpoint; None: the latest
    init_groups: tuple[str, ...] = ()  # what it takes from there
    groups: tuple[str, ...]  # of parameters, each clipped and optimised on its own; a model (Functional) of each name
    weights: Mapping[str, float]  # of the terms in the loss; the others are reported only
    DENOMINATORS: Mapping[str, str]  # term -> count; "latents" for a term that is not named
    rows_together = 1  # so many rows in a row belong together: a part of a batch has a multiple of them

    @abc.abstractmethod
    def trainable(self, step: int) -> tuple[str, ...]:
        """The groups that the update from `step` to step + 1 changes."""

    @abc.abstractmethod
    def init(self, key: jax.Array) -> dict:
        """Fresh parameters, {group: tree}."""

    def shapes(self) -> dict:
        """The parameters as ShapeDtypeStructs, {group: tree}: nothing is allocated."""
        return {group: getattr(self, group).shapes() for group in self.groups}

    def axes(self) -> dict:
        """The logical axes of the parameters, {group: tree}: see `models.layers.Functional.axes`."""
        return {group: getattr(self, group).axes() for group in self.groups}

    def frozen_axes(self) -> dict:
        """The same of `frozen`."""
        return {}

    def check_start(self, found: dict | None) -> None:  # noqa: B027  (a stage that begins with nothing has no need)
        """Raises UserError unless a run can begin with the one of configuration `found` (of `init_from`; None: with
        nothing)."""

    def begin(self, params: dict, loaded: dict | None) -> tuple[dict, dict]:
        """(parameters, frozen) before the first update, from fresh ones and, where init_from names a run, its own."""
        return params, {}

    @abc.abstractmethod
    def examples(self, tokens, draw: Draw) -> dict:
        """Everything the loss of these samples depends on, arrays with leading axis B; tokens: (B, T)."""

    @abc.abstractmethod
    def counts(self, examples: dict) -> dict:
        """The denominators, over all of `examples`."""

    @abc.abstractmethod
    def terms(self, params: dict, frozen: dict, examples: dict, trainable: tuple[str, ...], diagnostics: bool) -> dict:
        """Sums of every term over these examples; `diagnostics` adds what only an evaluation reports."""

    @abc.abstractmethod
    def summarise(self, means: dict) -> dict[str, float]:
        """Scalars to report, from {term: sum / count} of numpy arrays."""

    @abc.abstractmethod
    def step_flops(self, batch_size: int, trainable: tuple[str, ...], keys: Keys) -> dict[str, float]:
        """Floating point operations of one update by part of the model: see `flops`."""

    def flops(self, batch_size: int, trainable: tuple[str, ...]) -> float:
        """Useful floating point operations of one update, of which MFU is made: over the keys that masks allow."""
        return sum(self.step_flops(batch_size, trainable, Keys.ALLOWED).values())

    @abc.abstractmethod
    def compute_params(self) -> int:
        """N of the compute axis, EFLOPs = 6 N tokens / 1e18."""

    def eflops_per_step(self, batch_size: int) -> float:
        """Of the compute axis."""
        return 6 * self.compute_params() * batch_size * self.sequence_length / 1e18

    def step_of(self, eflops: float, batch_size: int) -> int:
        """The first step that reaches so many EFLOPs of the compute axis."""
        return steps_to(eflops, self.eflops_per_step(batch_size))

    def flops_until(self, batch_size: int, step: int, keys: Keys) -> dict[str, float]:
        """Of all updates up to `step`, by part of the model."""
        whole, rest = divmod(step, self.period)
        times = collections.Counter()
        for place in range(min(step, self.period)):
            times[self.trainable(place)] += whole + (place < rest)
        total = collections.Counter()
        for trainable, count in times.items():
            for part, flops in self.step_flops(batch_size, trainable, keys).items():
                total[part] += count * flops
        return dict(total)

    def ledger(self, batch_size: int, step: int) -> dict[str, float]:
        """What a run has cost at `step`: tokens, EFLOPs of the compute axis, and exact ones, over all the keys that the
        program computes. Tokens alike is not compute alike: a prior on two copies does more than the axis says."""
        exact = sum(self.flops_until(batch_size, step, Keys.COMPUTED).values())
        return {
            "tokens": step * batch_size * self.sequence_length,
            "eflops": self.eflops_per_step(batch_size) * step,
            "exact_eflops": exact / 1e18,
        }

    def documents(self, tokens_BxT):
        """`documents_of` the rows, or None where attention crosses the documents in a row."""
        return documents_of(tokens_BxT, self.eos_id) if self.isolate_documents else None

    def mean(self, name: str, total, counts: dict):
        """The sum of a term as a mean; a count of zero leaves a sum of zero."""
        return total / jnp.maximum(counts[self.DENOMINATORS.get(name, "latents")], 1)


def steps_to(eflops: float, eflops_per_step: float) -> int:
    """The first step that reaches so many EFLOPs."""
    return max(1, math.ceil(eflops / eflops_per_step * (1 - 1e-12)))  # a multiple, rounded up, is no step more


def parameter_count(shapes: dict) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def nominal_params(nominal: int, count: int, what: str) -> int:
    """N of the compute axis: config.compute_params, or where it is 0 the count of the parameters of `what`. Raises
    UserError where the two are far from each other."""
    if nominal and abs(nominal / count - 1) > NOMINAL_TOLERANCE:
        raise UserError(
            f"config.compute_params is {nominal:,}, but {what} has {count:,} parameters: the EFLOPs would be of "
            f"another model; set compute_params=0 for its own count"
        )
    return nominal or count


def time_bins(t_B):
    """One-hot of the tenth of 0..1 that each time lies in, (B, TIME_BINS) float32."""
    return jax.nn.one_hot(jnp.minimum((t_B * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS)


def exactly(a, b):
    """A float32 product that no accelerator rounds: these are counts and statistics."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def sum_where(where, values):
    return jnp.where(where, values, 0).sum().astype(jnp.float32)


def latents_of(tokens_are_text, patch_size: int):
    """A latent counts where it stands for at least one token that is not padding: (B, T) -> (B, L) booleans."""
    return tokens_are_text.reshape(tokens_are_text.shape[0], -1, patch_size).any(-1)


def documents_of(tokens_BxT, eos_id: int):
    """The document of each token, (B, T) int32: how many ends of text there are before it in the row. An end of text is
    of the document that it ends, and the padding behind the last one of none that has a token."""
    is_end = tokens_BxT == eos_id
    return jnp.cumsum(is_end, axis=1) - is_end


def check_step(config, rows_together: int, unit: str = "accumulation_steps") -> None:
    """Raises UserError unless the batch splits evenly into parts of whole groups of rows (`unit` names the product that
    it has to be a multiple of), and dtypes and rematerialisation are ones that there are."""
    parts = config.accumulation_steps
    if parts < 1 or config.batch_size % (parts * rows_together):
        sizes = f"{parts} * {rows_together}" if rows_together > 1 else f"{parts}"
        raise UserError(f"config.batch_size is {config.batch_size}: expected a multiple of {unit} = {sizes}")
    if config.remat not in REMAT_POLICIES:
        raise UserError(f"config.remat is {config.remat!r}: expected one of {', '.join(REMAT_POLICIES)}")
    if config.compute_dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.compute_dtype is {config.compute_dtype!r}: expected float32 or bfloat16")
    if config.gradient_reduction not in {"float32", config.compute_dtype}:
        raise UserError(
            f"config.gradient_reduction is {config.gradient_reduction!r}: expected float32, or bfloat16 with "
            f"compute_dtype bfloat16"
        )


def check_lengths(patch_size: int, block_size: int, sequence_length: int) -> None:
    """Raises UserError unless rows hold whole blocks."""
    unit = patch_size * block_size
    if sequence_length % unit:
        raise UserError(
            f"config.sequence_length is {sequence_length}: expected a multiple of patch_size * block_size = {unit}; "
            f"the next one is {(sequence_length // unit + 1) * unit}"
        )
