"""Sampling from a Cola model: prompt -> latents -> blocks of new latents from the prior -> tokens.

Shape letters as in the models, and S positions of a block, P prompt latents as padded.

Two compiled functions do the work: `prefill`, once a batch, and `block_step`, once a block, against caches of fixed
shape.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.keys import Purpose, normals, sample_keys
from colajax.models.attention import KVCache, append_to_cache
from colajax.models.config import DiTConfig, VAEConfig, check_pair
from colajax.models.dit import DiT
from colajax.models.layers import Functional
from colajax.models.text_vae import TextVAE, normalise
from colajax.parallel.rules import laid_out, replicated
from colajax.sampling import tokens as token_choice
from colajax.sampling.base import BaseSampler, choice_of, power_of_two, with_room
from colajax.sampling.settings import SamplingSettings


class State(NamedTuple):
    """What a block step reads and hands on."""

    dit: KVCache  # (layers, B, J, H, K)
    decoder: KVCache
    finished: jax.Array  # (B,), latents in the caches
    seen: jax.Array  # (B, V), tokens of finished blocks
    clean: jax.Array  # (B, S, D), the next block's prompt latents ...
    clean_count: jax.Array  # (B,), ... and how many there are; 0 after the first block


class Sampler(BaseSampler):
    """The sampler of a text VAE and its prior.

    vae_params, dit_params: the trees of TextVAE and DiT; dtype: of compute and caches; the rest as in BaseSampler.
    Raises UserError also on configurations that do not fit together.
    """

    CONFIGS = {"vae": VAEConfig, "dit": DiTConfig}
    LAYERS = {"vae": ("encoder_num_blocks", "decoder_num_blocks"), "dit": ("num_layers",)}
    SETTINGS = (
        "max_new_tokens", "steps", "guidance", "temperature", "top_k", "top_p", "repetition_penalty", "seed",
    )  # fmt: skip

    def __init__(
        self, vae_config: VAEConfig, dit_config: DiTConfig, vae_params: dict, dit_params: dict,
        *, pad_id: int, eos_id: int | None, token_count: int | None = None, dtype=jnp.float32, mesh: Mesh | None = None,
    ):  # fmt: skip
        check_pair(vae_config, dit_config)
        self.vae_config, self.dit_config = vae_config, dit_config
        models = self.models({"vae": vae_config, "dit": dit_config}, dtype)
        super().__init__(
            models, {"vae": vae_params, "dit": dit_params}, vocab_size=vae_config.vocab_size, pad_id=pad_id,
            eos_id=eos_id, token_count=token_count, mesh=mesh,
        )  # fmt: skip
        self._vae, self._dit = models["vae"], models["dit"]
        self.block_size = dit_config.block_size  # a whole number of the VAE's
        self.block_tokens = self.block_size * vae_config.patch_size
        over_mesh, whole, state = laid_out(self.mesh), replicated(self.mesh), self._state_shardings()
        self.prefill = jax.jit(over_mesh(self._prefill), static_argnames="capacity", out_shardings=state)
        self.block_step = jax.jit(
            over_mesh(self._block_step), static_argnames="guided", donate_argnames="state",
            out_shardings=(state, whole, whole),
        )  # fmt: skip
        self._keys = jax.jit(sample_keys, static_argnums=1, out_shardings=whole)
        self._normals = jax.jit(normals, static_argnums=1, out_shardings=whole)

    @staticmethod
    def models(configs: dict, dtype=jnp.float32) -> dict[str, Functional]:
        return {
            "vae": Functional(TextVAE, configs["vae"], dtype=dtype),
            "dit": Functional(DiT, configs["dit"], dtype=dtype),
        }

    @classmethod
    def of(cls, configs: dict, params: dict, **others) -> "Sampler":
        return cls(configs["vae"], configs["dit"], params["vae"], params["dit"], **others)

    def _state_shardings(self) -> State:
        samples = self.by_sample()
        return State(
            dit=self.cache_sharding(self.dit_config.heads), decoder=self.cache_sharding(self.vae_config.num_heads),
            finished=samples, seen=samples, clean=samples, clean_count=samples,
        )  # fmt: skip

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: SamplingSettings, *, sample_indices=None, noise=None
    ) -> list[list[int]]:
        """As in BaseSampler. noise: (blocks, B, S, D), in place of drawn noise, at least as many blocks as are needed.
        Raises UserError also on noise of another shape."""
        if not prompts:
            return []
        given = [self._prompt_tokens_in_first_block(len(prompt)) for prompt in prompts]
        blocks = -(-(max(given) + settings.max_new_tokens) // self.block_tokens)
        produced: list[list[int]] = [[] for _ in prompts]
        for _, tokens in self.blocks(prompts, settings, blocks, sample_indices=sample_indices, noise=noise):
            for sample, new in zip(produced, np.asarray(tokens).tolist(), strict=True):
                sample.extend(new)
            answers = [self.answer(s[g:], settings.max_new_tokens) for s, g in zip(produced, given, strict=True)]
            if all(ended for _, ended in answers):
                break
        return [answer for answer, _ in answers]

    def blocks(
        self, prompts, settings: SamplingSettings, blocks: int, *, sample_indices=None, noise=None
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Yields (the decoder's logits (B, S * patch, V), tokens (B, S * patch)) of each of `blocks` blocks, on device.

        The first block begins with the prompt tokens that do not fill a block of the prefix (as sampled again, not as
        given). Arguments and errors as in `generate`.
        """
        samples = len(prompts)
        noise = self._check_noise(noise, blocks, samples)
        prompts, indices = self.filled_up(prompts, sample_indices)
        tokens, padded, prompt_latents = self._pad(prompts)
        if noise is not None:
            noise = jnp.pad(noise, ((0, 0), (0, len(prompts) - samples), (0, 0), (0, 0)))
        size = self.block_size
        prompt_blocks = tokens.shape[1] // self.block_tokens
        capacity = max(prompt_blocks, power_of_two(int(prompt_latents.max()) // size + blocks)) * size
        state = self.prefill(self.params, tokens, padded, prompt_latents, capacity=capacity)
        choice, seed = choice_of(settings), np.uint32(settings.seed)
        for block in range(blocks):
            drawn = noise[block] if noise is not None else self._normals(
                self._keys(seed, Purpose.GENERATION_NOISE, block, indices), (size, self.vae_config.latent_dim)
            )  # fmt: skip
            state, logits, chosen = self.block_step(
                self.params, state, drawn, self._keys(seed, Purpose.GENERATION_TOKENS, block, indices),
                steps=np.int32(settings.steps), guidance=np.float32(settings.guidance),
                guided=settings.guidance != 1, choice=choice,
            )  # fmt: skip
            yield logits[:samples], chosen[:samples]

    def _prompt_tokens_in_first_block(self, length: int) -> int:
        prompt_latents = -(-length // self.vae_config.patch_size)
        prefix_blocks = prompt_latents // self.block_size
        # Negative when the prefix's last latent is part pad.
        return max(0, length - prefix_blocks * self.block_tokens)

    def probe(self, prompts) -> dict[str, jax.Array]:
        """Of the block in which the prompt ends, and of one that reads it from the caches."""
        settings = SamplingSettings(steps=2, temperature=0.0, guidance=2.0)
        return {f"block {i + 1}": logits for i, (logits, _) in enumerate(self.blocks(prompts, settings, 2))}

    def _pad(self, prompts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens (B, T) with pads; (B,) latents of each sample padded alone to whole blocks; (B,) prompt latents."""
        tokens, lengths = self.padded(prompts)
        own_blocks = -(-lengths // self.block_tokens)
        return tokens, own_blocks * self.block_size, -(-lengths // self.vae_config.patch_size)

    def _check_noise(self, noise, blocks: int, samples: int):
        expected = (samples, self.block_size, self.vae_config.latent_dim)
        if noise is not None and (noise.ndim != 4 or noise.shape[0] < blocks or noise.shape[1:] != expected):
            raise UserError(f"noise has shape {noise.shape}: expected {(blocks, *expected)}")
        return None if noise is None else jnp.asarray(noise, jnp.float32)

    def _prefill(self, params, tokens_BxT, padded_B, prompt_latents_B, *, capacity: int) -> State:
        """Encodes the prompts and fills both caches, of `capacity` latents, with their prefixes."""
        config, size = self.vae_config, self.block_size
        vae, dit = self._vae.bind(params["vae"]), self._dit.bind(params["dit"])
        mean, _ = vae.encoder(tokens_BxT, padded_B)
        z_BxPxD = normalise(config, mean)
        prefix_B = prompt_latents_B // size * size
        # Latents after a sample's prefix pass through too; no one reads what they leave in the caches.
        _, decoder_kv = vae.decoder.hidden(z_BxPxD, lengths=prefix_B)
        one_copy = z_BxPxD[:, None]
        all_clean = jnp.zeros(one_copy.shape[:3], bool)
        _, dit_kv = dit(one_copy, jnp.zeros(1), all_clean, jnp.arange(z_BxPxD.shape[1]), with_kv=True)

        beyond = jnp.pad(z_BxPxD, ((0, 0), (0, size), (0, 0)))
        clean = jax.vmap(lambda z, start: jax.lax.dynamic_slice_in_dim(z, start, size))(beyond, prefix_B)
        seen = jnp.zeros((tokens_BxT.shape[0], config.vocab_size), bool)
        caches = with_room(dit_kv, capacity), with_room(decoder_kv, capacity)
        return State(*caches, prefix_B, seen, clean, prompt_latents_B - prefix_B)

    def _block_step(self, params, state: State, noise_BxSxD, token_keys_B, *, steps, guidance, guided: bool, choice):
        """Draws one block and appends it to the caches. Returns (state, logits (B, S * patch, V), tokens)."""
        vae, dit = self._vae.bind(params["vae"]), self._dit.bind(params["dit"])
        z_BxSxD = self._flow(dit, state, noise_BxSxD, steps, guidance, guided)
        size = self.block_size
        positions = state.finished[:, None] + jnp.arange(size)
        logits, decoder_kv = vae.decoder(
            z_BxSxD, positions=positions, cache=state.decoder, context_lengths=state.finished
        )
        tokens = token_choice.choose(self.text_alone(logits), state.seen, token_keys_B, **choice)
        all_clean = jnp.zeros((len(tokens), 1, size), bool)
        _, dit_kv = dit(
            z_BxSxD[:, None], jnp.zeros(1), all_clean, positions[:, None],
            cache=state.dit, context_lengths=state.finished[:, None], with_kv=True,
        )  # fmt: skip
        state = State(
            dit=append_to_cache(state.dit, dit_kv, state.finished),
            decoder=append_to_cache(state.decoder, decoder_kv, state.finished),
            finished=state.finished + size,
            seen=state.seen.at[jnp.arange(len(tokens))[:, None], tokens].set(True),
            clean=state.clean,
            clean_count=jnp.zeros_like(state.clean_count),
        )
        return state, logits, tokens

    def _flow(self, dit: DiT, state: State, noise_BxSxD, steps, guidance, guided: bool):
        """The prior's ODE from t = 1 to 0 in Euler steps, for one block. Returns its latents (B, S, D).

        Copy 0 is conditioned on the caches; copy 1, where guided, is the block alone at positions 0..S-1."""
        samples, size = noise_BxSxD.shape[:2]
        copies = 2 if guided else 1
        is_clean = jnp.arange(size) < state.clean_count[:, None]
        is_noisy = jnp.broadcast_to(~is_clean[:, None], (samples, copies, size))
        starts = jnp.stack([state.finished, jnp.zeros_like(state.finished)][:copies], axis=1)
        positions = starts[..., None] + jnp.arange(size)
        # Nothing finished: both copies see the same, and guidance could only magnify rounding.
        scale = jnp.where(state.finished == 0, 1.0, guidance)[:, None, None]

        def euler(step, z):
            time = 1 - step.astype(jnp.float32) / steps
            z_copies = jnp.broadcast_to(z[:, None], (samples, copies, *z.shape[1:]))
            v, _ = dit(z_copies, time[None], is_noisy, positions, cache=state.dit, context_lengths=starts)
            v = v[:, 1] + scale * (v[:, 0] - v[:, 1]) if guided else v[:, 0]
            return jnp.where(is_clean[..., None], z, z - v / steps)

        start = jnp.where(is_clean[..., None], state.clean, noise_BxSxD)
        return jax.lax.fori_loop(0, steps, euler, start)
