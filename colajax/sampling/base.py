"""What the samplers of all families share: the model on its mesh, batches of prompts, the end of an answer.

The batch is filled up to a power of two of samples a device and lengths are rounded up to powers of two of a unit, so
that a longer answer, a somewhat longer prompt or a few prompts more meet a compiled function.
"""

import abc
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.models.attention import KVCache
from colajax.models.layers import Functional
from colajax.parallel.batch import batch_shares
from colajax.parallel.mesh import make_mesh
from colajax.parallel.rules import parameter_shardings, sharding, shardings_of, with_shardings
from colajax.sampling.settings import SamplingSettings

EVERY_DEVICE = {"data": 1, "fsdp": -1, "tensor": 1}  # the mesh where none is given
UNIT = 16  # tokens; what lengths are rounded up to where the family has no blocks


def parameters_like(models: Mapping[str, Functional], mesh: Mesh) -> dict:
    """The parameters {group: tree} of models as a sampler on this mesh holds them, ShapeDtypeStructs."""
    shapes = {group: model.shapes() for group, model in models.items()}
    names = {group: model.axes() for group, model in models.items()}
    return with_shardings(shapes, parameter_shardings(mesh, names, shapes))


class BaseSampler(abc.ABC):
    """Generates from one model on the devices of a mesh; every process of a run calls it alike.

    models, params: {group: model} and {group: tree}; vocab_size: of the ids that are read and sampled; eos_id None
    never ends early; token_count: of the tokenizer; ids from there on, which stand for no text, are never sampled
    (None: all are); mesh None divides the batch and the parameters over every device. Raises UserError on token ids
    that are not there.
    """

    CONFIGS: Mapping[str, type]  # of each parameter group of a run, its configuration ...
    LAYERS: Mapping[str, tuple[str, ...]]  # ... and what of it counts layers
    SETTINGS: tuple[str, ...]  # of SamplingSettings, what the family has; the others change nothing
    DEFAULTS: Mapping[str, float] = {}  # of SETTINGS, where they are not SamplingSettings' own
    block_tokens: int = UNIT  # what lengths are rounded up to

    def __init__(
        self, models: Mapping[str, Functional], params: dict, *, vocab_size: int, pad_id: int, eos_id: int | None,
        token_count: int | None, mesh: Mesh | None,
    ):  # fmt: skip
        for key, token in (("pad_id", pad_id), ("eos_id", eos_id)):
            if token is not None and not 0 <= token < vocab_size:
                raise UserError(f"{key} is {token}: expected a token id from 0 to {vocab_size - 1}")
        self.vocab_size, self.pad_id, self.eos_id = vocab_size, pad_id, eos_id
        self.token_count = vocab_size if token_count is None else token_count
        self.mesh = make_mesh(EVERY_DEVICE) if mesh is None else mesh
        self.params = jax.device_put(params, shardings_of(parameters_like(models, self.mesh)))

    @staticmethod
    @abc.abstractmethod
    def models(configs: dict, dtype=jnp.float32) -> dict[str, Functional]:
        """The models {group: model} of configurations {group: configuration}, with `dtype` of compute."""

    @classmethod
    @abc.abstractmethod
    def of(cls, configs: dict, params: dict, **others) -> "BaseSampler":
        """The sampler of configurations and parameters by group; the rest as in the class."""

    @abc.abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, sample_indices=None
    ) -> list[list[int]]:
        """New tokens of each prompt: max_new_tokens, or fewer where the end token comes first (it is left out).

        prompts: token ids, of any lengths, empty ones allowed. sample_indices: (B,) ints, default 0..B-1; a sample's
        randomness depends on (seed, sample index, place in the answer) alone, so that batching changes no output.
        Raises UserError on bad ids or indices.
        """

    @abc.abstractmethod
    def probe(self, prompts) -> dict[str, jax.Array]:
        """What `self_check` compares: named logits (B, ...) that no sampled token has any part in."""

    @classmethod
    def settings(cls, given: dict) -> SamplingSettings:
        """Settings of the family, from those `given` by name and its DEFAULTS. Raises UserError on one that it does not
        have."""
        for name in given:
            if name not in cls.SETTINGS:
                raise UserError(f"{name} is not a setting of this run's family, which has {', '.join(cls.SETTINGS)}")
        return SamplingSettings(**{**cls.DEFAULTS, **given})

    def answer(self, new: list[int], budget: int) -> tuple[list[int], bool]:
        """The new tokens that count, and whether there will be no more."""
        new = new[:budget]
        if self.eos_id in new:
            return new[: new.index(self.eos_id)], True
        return new, len(new) == budget

    def text_alone(self, logits):
        """Logits (..., V) with -inf for ids that stand for no text."""
        return jnp.where(jnp.arange(logits.shape[-1]) < self.token_count, logits, -jnp.inf)

    def filled_up(self, prompts, sample_indices) -> tuple[list, np.ndarray]:
        """Prompts, and empty ones behind them so that the batch divides over the devices and meets a compiled function;
        the sample indices of all."""
        samples = len(prompts)
        indices = check_indices(sample_indices, samples)
        shares = batch_shares(self.mesh.shape)
        more = shares * power_of_two(-(-samples // shares)) - samples
        return [*prompts, *[()] * more], np.pad(indices, (0, more))

    def begun(self, prompts) -> list:
        """Prompts with the end token in the place of empty ones, as documents begin behind one in the rows of a
        training (with the padding where a tokenizer has no end token)."""
        begin = [self.pad_id if self.eos_id is None else self.eos_id]
        return [prompt if len(prompt) else begin for prompt in prompts]

    def padded(self, prompts, room: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, T) with pads behind them, T a power of two of blocks with `room` behind the longest; lengths."""
        if not len(prompts):
            raise UserError("prompts is empty: expected at least one prompt (which may itself be empty)")
        lengths = np.array([len(prompt) for prompt in prompts], np.int32)
        blocks = power_of_two(-(-(int(lengths.max()) + room) // self.block_tokens))
        tokens = np.full((len(prompts), blocks * self.block_tokens), self.pad_id, np.int32)
        for i, prompt in enumerate(prompts):
            ids = np.asarray(prompt, np.int64)
            if ids.size and not (ids.min() >= 0 and ids.max() < self.vocab_size):
                last = self.vocab_size - 1
                raise UserError(f"prompts[{i}] holds a token out of range: expected ids from 0 to {last}")
            tokens[i, : len(ids)] = ids
        return tokens, lengths

    def by_sample(self) -> jax.sharding.NamedSharding:
        """Of arrays (B, ...), samples over the batch's axes."""
        return sharding(self.mesh, ("batch",), (batch_shares(self.mesh.shape),))

    def cache_sharding(self, heads: int) -> KVCache:
        """Of a cache: samples over the batch's axes, heads over tensor where it divides them."""
        names, shape = (None, "batch", None, "heads", None), (1, batch_shares(self.mesh.shape), 1, heads, 1)
        by_head = sharding(self.mesh, names, shape)
        return KVCache(by_head, by_head)


def choice_of(settings: SamplingSettings) -> dict:
    """What `tokens.choose` takes of the settings, as numpy scalars: no value of them compiles anew."""
    scalars = {key: np.float32(getattr(settings, key)) for key in ("temperature", "top_p", "repetition_penalty")}
    return scalars | {"top_k": np.int32(settings.top_k)}


def with_room(cache: KVCache, capacity: int) -> KVCache:
    """A cache (layers, B, J, H, K) with zeros up to `capacity` positions."""
    rest = ((0, 0), (0, 0), (0, capacity - cache.k.shape[2]), (0, 0), (0, 0))
    return jax.tree.map(lambda x: jnp.pad(x, rest), cache)


def power_of_two(count: int) -> int:
    """The least power of two that is at least `count`, and at least 1."""
    return 1 << max(0, int(count) - 1).bit_length()


def check_indices(sample_indices, samples: int) -> np.ndarray:
    """The sample indices as uint32, by default 0..samples-1. Raises UserError on others than that many."""
    indices = np.asarray(range(samples) if sample_indices is None else sample_indices, np.int64)
    if indices.shape != (samples,) or not (indices.min() >= 0 and indices.max() < 2**32):
        raise UserError(f"sample_indices is {sample_indices!r}: expected {samples} ints from 0 to 2**32 - 1")
    return indices.astype(np.uint32)
