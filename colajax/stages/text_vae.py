"""What the stages that train the text VAE share: its examples, and its terms from one batched encoder and decoder pass.

Rows 0, mask_every, 2 mask_every, ... of a batch also have a masked view, encoded and decoded in the same pass.
"""

import jax
import jax.numpy as jnp
import numpy as np

from colajax.axes import by_sample
from colajax.errors import UserError
from colajax.keys import Draw, Purpose, normals, uniforms
from colajax.models.config import VAEConfig, from_mapping
from colajax.models.layers import Functional
from colajax.models.text_vae import Encoder, TextVAE, normalise
from colajax.objectives import elbo
from colajax.stages.base import Stage, check_lengths, check_step, latents_of, sum_where
from colajax.stages.flops import TRAINED, Keys, decoder_flops, encoder_flops, unembedding_flops

DEAD = 0.01  # variance of the posterior mean below which a channel carries nothing


class TextVAEStage(Stage):
    """A stage with the parameter group "vae"."""

    DENOMINATORS = {"reconstruction": "tokens", "accuracy": "tokens", "mask": "masked", "mask_accuracy": "masked"}

    def __init__(self, config, pad_id: int, eos_id: int):
        self.vae_config: VAEConfig = from_mapping(VAEConfig, config.vae.to_dict(), "config.vae")
        self.objective, self.sequence_length = config.objective, config.sequence_length
        self.pad_id, self.eos_id, self.isolate_documents = pad_id, eos_id, config.isolate_documents
        self.vocab_size = self.vae_config.vocab_size
        if not self.vae_config.use_variation:
            if self.objective.fixed_log_snr is not None:
                raise UserError("config.objective.fixed_log_snr: expected None for a VAE without use_variation")
            if self.objective.beta:
                raise UserError("config.objective.beta: expected 0 for a VAE without use_variation, which has no KL")
        patch = self.vae_config.patch_size
        if self.isolate_documents and patch > 1:
            raise UserError(
                f"config.isolate_documents: expected False with config.vae.patch_size {patch}, where a latent may hold "
                f"the end of one document and the beginning of the next"
            )
        check_lengths(patch, self.vae_config.block_size, config.sequence_length)
        self.rows_together = self._rows_together()
        check_step(config, self.rows_together, "accumulation_steps * mask_every")
        make = dict(dtype=jnp.dtype(config.compute_dtype), remat=config.remat)
        self.vae = Functional(TextVAE, self.vae_config, **make)
        self.encoder = Functional(Encoder, self.vae_config, **make)

    def _rows_together(self) -> int:
        """Masked views are of every so many-th row."""
        every, rate = self.objective.mask_every, self.objective.mask_rate
        if every < 0:
            raise UserError(f"config.objective.mask_every is {every}: expected 0 (no masked views) or more")
        if every and not 0 < rate < 1:
            raise UserError(f"config.objective.mask_rate is {rate}: expected a share of the tokens between 0 and 1")
        return max(every, 1)

    def examples(self, tokens, draw: Draw) -> dict:
        shape = (tokens.shape[1] // self.vae_config.patch_size, self.vae_config.latent_dim)
        text = tokens != self.pad_id
        examples = {"tokens": tokens, "posterior_noise": normals(draw(Purpose.POSTERIOR), shape)}
        if self.objective.mask_every:
            examples["masked"] = text & (uniforms(draw(Purpose.MASK), tokens.shape[1:]) < self.objective.mask_rate)
            examples["masked_posterior_noise"] = normals(draw(Purpose.MASKED_POSTERIOR), shape)
        return examples

    def counts(self, examples: dict) -> dict:
        text = examples["tokens"] != self.pad_id
        counts = {"tokens": text.sum(), "latents": latents_of(text, self.vae_config.patch_size).sum()}
        if self.objective.mask_every:
            counts["masked"] = examples["masked"][:: self.objective.mask_every].sum()
        return {name: count.astype(jnp.float32) for name, count in counts.items()}

    def encode(self, encoder: Encoder, tokens, documents):
        """Posterior mean and logvar (B, L, D), with the variance fixed where the objective says so."""
        mean, logvar = encoder(tokens, documents_BxL=documents)
        if self.objective.fixed_log_snr is not None:
            logvar = elbo.fixed_logvar(mean, self.objective.fixed_log_snr)
        return mean, logvar

    def vae_flops(self, batch_size: int, keys: Keys) -> dict[str, float]:
        """One update of encoder and decoder, by part."""
        config, length, every = self.vae_config, self.sequence_length, self.objective.mask_every
        parts = {
            "encoder": encoder_flops(config, length, keys),
            "decoder": decoder_flops(config, length, keys),
            "unembedding": unembedding_flops(config.dim, config.vocab_size, length),
        }
        if every:
            parts["masked views"] = sum(parts.values()) / every
        return {part: TRAINED * batch_size * flops for part, flops in parts.items()}

    def vae_terms(self, params: dict, examples: dict) -> tuple[dict, tuple]:
        """The sums of the VAE's terms, and (mean, logvar, z) of the clean rows, z as the prior sees it."""
        vae, every = self.vae.bind(params), self.objective.mask_every
        tokens, noise = examples["tokens"], examples["posterior_noise"]
        rows = tokens.shape[0]
        targets = jnp.concatenate([tokens, tokens[::every]]) if every else tokens
        documents = self.documents(targets)
        if every:
            masked = examples["masked"][::every]
            view = jnp.where(masked, self.vae_config.mask_id, tokens[::every])
            mean, logvar = self.encode(vae.encoder, by_sample(jnp.concatenate([tokens, view])), documents)
            noise = jnp.concatenate([noise, examples["masked_posterior_noise"][::every]])
        else:
            mean, logvar = self.encode(vae.encoder, tokens, documents)
        z = normalise(self.vae_config, elbo.sample_posterior(mean, logvar, noise))
        logits, _ = vae.decoder(z, documents_BxL=documents)
        with jax.named_scope("cross_entropy"):
            nll = elbo.cross_entropy(logits, targets)
            right = elbo.logit_of(logits, targets) >= logits.max(-1)
        text = tokens != self.pad_id
        terms = {"reconstruction": sum_where(text, nll[:rows]), "accuracy": sum_where(text, right[:rows])}
        if every:
            terms |= {"mask": sum_where(masked, nll[rows:]), "mask_accuracy": sum_where(masked, right[rows:])}
        mean, logvar, z = mean[:rows], None if logvar is None else logvar[:rows], z[:rows]
        terms |= self.posterior_terms(mean, logvar, latents_of(text, self.vae_config.patch_size))
        return terms, (mean, logvar, z)

    def posterior_terms(self, mean, logvar, valid) -> dict:
        """Statistics of the posterior over the valid (B, L) latents; vectors over the D channels."""
        over = valid[..., None]
        terms = {
            "mean": jnp.where(over, mean, 0).sum((0, 1)),
            "mean_square": jnp.where(over, mean**2, 0).sum((0, 1)),
        }
        if logvar is not None:
            terms["variance"] = jnp.where(over, jnp.exp(logvar), 0).sum((0, 1))
            terms["kl"] = jnp.where(valid, elbo.kl_to_standard_normal(mean, logvar), 0).sum()
            terms["negative_entropy"] = jnp.where(valid, elbo.negative_entropy(logvar), 0).sum()
        return terms

    def summarise(self, means: dict) -> dict[str, float]:
        """Scalars; the vectors over channels become log_snr, its centred version, and the variance of the mean across
        latents (mean over channels): near 1 in health, near 0 when the encoder has collapsed to one vector.
        dead_channels is the share of those that carry nothing (Burda et al. 2016, 1509.00519)."""
        report = {name: float(value) for name, value in means.items() if np.ndim(value) == 0}
        by_channel = means["mean_square"] - means["mean"] ** 2
        square, across = means["mean_square"].mean(), by_channel.mean()
        report["mean_variance"] = float(across)
        report["dead_channels"] = float((by_channel < DEAD).mean())
        if "variance" in means:
            variance = means["variance"].mean()
            report["log_snr"] = float(np.log(square / variance))
            report["log_snr_centred"] = float(np.log(max(across, 1e-12) / variance))
        return report
