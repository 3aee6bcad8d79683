"""Generation with Cola: prompt -> latents -> blocks of new latents from the prior -> tokens.

Letters: B samples, S latents of a block, D latent channels, V vocabulary.
"""

import torch

from .layers_cola import append, block_causal_mask, cached_mask, grow
from .tokens_cola import answer, as_lists, choose, settings_of, with_text

# generate() takes these; an export's generation_config.json may set others.
DEFAULTS = {
    "max_new_tokens": 32, "steps": 16, "guidance": 7.0, "temperature": 1.0, "top_k": 50, "top_p": 0.9,
    "repetition_penalty": 1.0, "seed": 0,
}  # fmt: skip


class ColaGeneration:
    """What ColaModel has beside its two parts, `vae` and `dit`."""

    @property
    def block_tokens(self):
        """Tokens a block stands for."""
        return self.dit.config.block_size * self.vae.config.patch_size

    def generate(self, input_ids, attention_mask=None, *, noise=None, **settings):
        """New tokens of each prompt, a list of lists: max_new_tokens, or fewer where the end token comes first.

        input_ids: lists of token ids of any lengths, or a tensor (B, T) with its attention_mask, as a tokenizer gives
        them. settings: max_new_tokens, steps (Euler steps a block), guidance (1: none), temperature (0: the best
        token), top_k (0: off), top_p (1: off), repetition_penalty (1: off), seed, also under OTHER_NAMES; what is not
        given is as in generation_config.json. noise: (blocks, B, S, D) in place of drawn noise. What a sample draws
        depends on the seed and on its place in the batch, and on nothing else in the batch.
        """
        settings = self.settings(**settings)
        prompts, budget = as_lists(input_ids, attention_mask), settings.pop("max_new_tokens")
        if not prompts:
            return []
        given = [self._prompt_tokens_in_first_block(len(prompt)) for prompt in prompts]
        blocks = -(-(max(given) + budget) // self.block_tokens)
        produced = [[] for _ in prompts]
        for _, tokens in self.generate_blocks(prompts, blocks, noise=noise, **settings):
            for sample, new in zip(produced, tokens.tolist(), strict=True):
                sample.extend(new)
            end, samples = self.config.eos_token_id, zip(produced, given, strict=True)
            answers = [answer(sample[skip:], budget, end) for sample, skip in samples]
            if all(ended for _, ended in answers):
                break
        return [new for new, _ in answers]

    def settings(self, **given):
        """Every setting of `generate`: given, or as in generation_config.json, under these names or OTHER_NAMES.
        ValueError on an unknown name and on two names with two values."""
        return settings_of(DEFAULTS, self.generation_config, given)

    @torch.no_grad()
    def generate_blocks(
        self, prompts, blocks, *, noise=None, steps, guidance, temperature, top_k, top_p, repetition_penalty, seed
    ):
        """Yields (logits (B, S * patch, V), tokens (B, S * patch)) of each of `blocks` blocks.

        The first block begins with the prompt tokens that do not fill a block of the prefix (as sampled again, not as
        given). prompts: lists of token ids; the rest as in `generate`.
        """
        size, channels = self.dit.config.block_size, self.vae.config.latent_dim
        device = self.dit.txt_in.proj.weight.device
        generators = [torch.Generator().manual_seed((seed << 32) + i) for i in range(len(prompts))]
        state = self._prefill(prompts, blocks)
        seen = torch.zeros(len(prompts), self.vae.config.vocab_size, dtype=torch.bool, device=device)
        for block in range(blocks):
            if noise is None:
                drawn = torch.stack([torch.randn(size, channels, generator=g) for g in generators])
            else:
                drawn = torch.as_tensor(noise[block], dtype=torch.float32)
            z = self._flow(state, drawn.to(device), steps, guidance)
            positions = state.finished[:, None] + torch.arange(size, device=device)
            mask = cached_mask(state.finished, state.decoder[0][0].shape[2], size)
            own = self.vae.config.block_size if self.vae.config.block_causal else size
            vae_mask = cached_mask(state.finished, state.decoder[0][0].shape[2], size, own)
            logits, decoder_kv = self.vae.decoder(z, positions=positions, mask=vae_mask, cache=state.decoder)
            candidates = with_text(logits, self.config)
            tokens = choose(candidates, seen, generators, temperature, top_k, top_p, repetition_penalty)
            _, dit_kv = self.dit(z, torch.zeros_like(z[..., 0]), positions, mask, state.dit)
            append(state.decoder, decoder_kv, state.finished)
            append(state.dit, dit_kv, state.finished)
            state.finished, state.clean_count = state.finished + size, torch.zeros_like(state.clean_count)
            seen.scatter_(1, tokens, True)
            yield logits, tokens

    def _prefill(self, prompts, blocks):
        """Encodes the prompts and fills both caches with their prefixes: the whole blocks of prompt latents."""
        config, device = self.vae.config, self.dit.txt_in.proj.weight.device
        size, width = self.dit.config.block_size, self.block_tokens
        lengths = [len(prompt) for prompt in prompts]
        own_blocks = torch.tensor([-(-length // width) for length in lengths], device=device)
        latents = torch.tensor([-(-length // config.patch_size) for length in lengths], device=device)
        padded = max(1, int(own_blocks.max())) * width
        pad = self.config.pad_token_id
        tokens = torch.tensor([[*prompt, *[pad] * (padded - len(prompt))] for prompt in prompts], device=device)
        z = self.vae.normalise(self.vae.encode(tokens, own_blocks * size)[0])
        prefix = latents // size * size
        # Latents after a sample's prefix pass through too; no one reads what they leave in the caches.
        _, decoder_kv = self.vae.decoder(z, prefix)
        mask = block_causal_mask(z.shape[1], size, device)
        _, dit_kv = self.dit(z, torch.zeros_like(z[..., 0]), torch.arange(z.shape[1], device=device)[None], mask)
        capacity = max(z.shape[1], int(prefix.max()) + blocks * size)
        z = torch.cat([z, torch.zeros_like(z[:, :size])], dim=1)
        clean = torch.stack([row[start : start + size] for row, start in zip(z, prefix.tolist(), strict=True)])
        return _State(grow(dit_kv, capacity), grow(decoder_kv, capacity), prefix, clean, latents - prefix)

    def _flow(self, state, noise, steps, guidance):
        """The prior's ODE from t = 1 to 0 in Euler steps, for one block. Returns its latents (B, S, D)."""
        place = torch.arange(noise.shape[1], device=noise.device)
        is_clean = place < state.clean_count[:, None]
        z = torch.where(is_clean[..., None], state.clean, noise)
        positions = state.finished[:, None] + place
        mask = cached_mask(state.finished, state.dit[0][0].shape[2], len(place))
        alone = torch.ones(1, 1, 1, len(place), dtype=torch.bool, device=noise.device)
        # Nothing finished: with and without context are the same.
        scale = torch.where(state.finished == 0, 1.0, guidance)[:, None, None]
        for step in range(steps):
            timesteps = torch.where(is_clean, 0.0, 1000.0 * (1 - step / steps))
            v, _ = self.dit(z, timesteps, positions, mask, state.dit)
            if guidance != 1:
                v_alone, _ = self.dit(z, timesteps, place[None], alone)
                v = v_alone + scale * (v - v_alone)
            z = torch.where(is_clean[..., None], z, z - v / steps)
        return z

    def _prompt_tokens_in_first_block(self, length):
        latents = -(-length // self.vae.config.patch_size)
        return max(0, length - latents // self.dit.config.block_size * self.block_tokens)


class _State:
    """What a block reads: both caches, the latents finished in them, and the first block's prompt latents."""

    def __init__(self, dit, decoder, finished, clean, clean_count):
        self.dit, self.decoder, self.finished = dit, decoder, finished
        self.clean, self.clean_count = clean, clean_count
