"""Stage 2: the prior, jointly with the VAE.

L = lambda_vae (-E log p(x | z0) + beta E log q(z0 | x) + lambda_mask L_mask) + lambda_fm L_FM
    + lambda_ref KL(q(z0 | x) || q_ref(z0 | x)), with q_ref the frozen encoder of stage 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from colajax.errors import UserError
from colajax.keys import Draw, Purpose, normals, uniforms
from colajax.models.config import DiTConfig, VAEConfig, check_pair, from_mapping
from colajax.models.dit import DiT
from colajax.models.layers import Functional
from colajax.models.text_vae import normalise
from colajax.objectives import elbo
from colajax.objectives import flow_matching as fm
from colajax.stages.base import check_lengths, exactly, latents_of, nominal_params, parameter_count, time_bins
from colajax.stages.flops import Keys, encoder_flops, trained_dit_flops, trained_modulation_flops
from colajax.stages.text_vae import TextVAEStage


class JointStage(TextVAEStage):
    """Stage 2 as the loop sees it. `frozen` holds {"reference": the encoder of stage 1} where `has_reference`."""

    groups = ("vae", "dit")
    init_groups = ("vae",)
    DENOMINATORS = TextVAEStage.DENOMINATORS | {
        "flow": "noisy", "flow_floor": "noisy", "flow_swapped": "noisy", "flow_by_time": "noisy_by_time",
    }  # fmt: skip

    def __init__(self, config, pad_id: int, eos_id: int):
        super().__init__(config, pad_id, eos_id)
        self.dit_config: DiTConfig = from_mapping(DiTConfig, config.dit.to_dict(), "config.dit")
        check_pair(self.vae_config, self.dit_config)
        check_lengths(self.vae_config.patch_size, self.dit_config.block_size, config.sequence_length)
        if not self.vae_config.block_causal:
            raise UserError("config.vae.block_causal: expected True: the sampler decodes block by block")
        dtype = jnp.dtype(config.compute_dtype)
        self.dit = Functional(DiT, self.dit_config, dtype=dtype, remat=config.remat)
        self.init_from, self.init_step = config.init_from, config.init_step
        self.weights = self._weights()
        self.nominal_params = nominal_params(config.compute_params, parameter_count(self.dit.shapes()), "config.dit")

    def _weights(self) -> dict[str, float]:
        o = self.objective
        if o.time_distribution not in ("logit_normal", "uniform"):
            raise UserError(
                f"config.objective.time_distribution is {o.time_distribution!r}: expected logit_normal or uniform"
            )
        if not 0 <= o.prompt_probability <= 1:
            raise UserError(f"config.objective.prompt_probability is {o.prompt_probability}: expected 0 to 1")
        if (o.interval or o.interval_joint) and not 0 < o.interval_joint < o.interval:
            raise UserError(
                f"config.objective.interval_joint is {o.interval_joint}: expected 1 to interval - 1 "
                f"({o.interval - 1}); a fixed VAE is train_vae=False"
            )
        return {
            "reconstruction": o.lambda_vae, "negative_entropy": o.lambda_vae * o.beta,
            "mask": o.lambda_vae * o.lambda_mask, "flow": o.lambda_fm, "kl_reference": o.lambda_ref,
        }  # fmt: skip

    @property
    def period(self) -> int:
        return self.objective.interval or 1

    @property
    def has_reference(self) -> bool:
        """Whether the encoder that the run began with is kept: without lambda_ref too, for its KL shows a collapse."""
        return self.objective.train_vae and bool(self.init_from or self.objective.lambda_ref)

    def trainable(self, step: int) -> tuple[str, ...]:
        """Fixed VAE: the prior alone. Interval: in each `interval` steps the first interval_joint are joint."""
        o = self.objective
        joint = o.train_vae and (not o.interval or step % o.interval < o.interval_joint)
        return self.groups if joint else ("dit",)

    def init(self, key: jax.Array) -> dict:
        vae_key, dit_key = jax.random.split(key)
        return {"vae": self.vae.init(vae_key), "dit": self.dit.init(dit_key)}

    def frozen_axes(self) -> dict:
        return {"reference": self.encoder.axes()}

    def check_start(self, found: dict | None) -> None:
        o = self.objective
        if found is None:
            if o.lambda_ref or not o.train_vae:
                raise UserError(
                    "config.init_from: expected the workdir of a stage 1 run (or lambda_ref 0 and train_vae True, to "
                    "train all from scratch); pass --config.init_from=DIR"
                )
            return
        if found["stage"] != "vae":
            raise UserError(f"config.init_from: {self.init_from} is a run of stage {found['stage']!r}; expected 'vae'")
        # A key that the run is too old to have has its default.
        theirs = dataclasses.asdict(VAEConfig()) | found["vae"] | {"fixed_log_snr": found["objective"]["fixed_log_snr"]}
        ours = dataclasses.asdict(self.vae_config) | {"fixed_log_snr": o.fixed_log_snr}
        differ = [f"{k} is {ours.get(k)!r}, there {theirs.get(k)!r}" for k in sorted({*ours, *theirs})
                  if ours.get(k) != theirs.get(k)]  # fmt: skip
        if differ:
            raise UserError(f"config.vae: differs from the stage 1 run {self.init_from} ({'; '.join(differ)})")

    def begin(self, params: dict, loaded: dict | None) -> tuple[dict, dict]:
        """The VAE of stage 1, a fresh prior."""
        params = params if loaded is None else {**params, "vae": loaded["vae"]}
        if not self.has_reference:
            return params, {}
        # A copy: the step donates the parameters' memory.
        return params, {"reference": jax.tree.map(jnp.copy, params["vae"]["encoder"])}

    def examples(self, tokens, draw: Draw) -> dict:
        o, block_size = self.objective, self.dit_config.block_size
        examples = super().examples(tokens, draw)
        shape = examples["posterior_noise"].shape[1:]
        if o.time_distribution == "uniform":
            times = uniforms(draw(Purpose.TIME), ())
        else:
            times = fm.logit_normal(normals(draw(Purpose.TIME), ()), o.time_loc, o.time_scale)
        cuts = uniforms(draw(Purpose.PROMPT), (2, shape[0] // block_size))
        given = fm.given_positions(cuts[:, 0], cuts[:, 1], block_size, o.prompt_probability)
        return examples | {"noise": normals(draw(Purpose.NOISE), shape), "time": times, "given": given}

    def _predicted(self, examples: dict):
        """Which latents the flow loss is on, (B, L): neither given nor padding."""
        return latents_of(examples["tokens"] != self.pad_id, self.vae_config.patch_size) & ~examples["given"]

    def counts(self, examples: dict) -> dict:
        predicted = self._predicted(examples).sum(-1).astype(jnp.float32)
        by_time = exactly(time_bins(examples["time"]).T, predicted)
        return super().counts(examples) | {"noisy": predicted.sum(), "noisy_by_time": by_time}

    def terms(self, params, frozen, examples, trainable, diagnostics=False) -> dict:
        tokens = examples["tokens"]
        documents = self.documents(tokens)
        valid = latents_of(tokens != self.pad_id, self.vae_config.patch_size)
        if "vae" in trainable or diagnostics:
            terms, (mean, logvar, z) = self.vae_terms(params["vae"], examples)
        else:
            mean, logvar = self.encode(self.encoder.bind(params["vae"]["encoder"]), tokens, documents)
            z = normalise(self.vae_config, elbo.sample_posterior(mean, logvar, examples["posterior_noise"]))
            terms = self.posterior_terms(mean, logvar, valid)
        if frozen:
            reference = self.encode(self.encoder.bind(frozen["reference"]), tokens, documents)
            divergence = elbo.kl_between(mean, logvar, *reference)
            terms["kl_reference"] = jnp.where(valid, divergence, 0).sum()
        return terms | self._flow_terms(params["dit"], z, examples, documents, valid, diagnostics)

    def _flow_terms(self, params: dict, z, examples: dict, documents, valid, diagnostics: bool) -> dict:
        dit, given, noise, t = self.dit.bind(params), examples["given"], examples["noise"], examples["time"]
        clean = jax.lax.stop_gradient(z)
        noisy = jnp.where(given[..., None], clean, fm.interpolate(z, noise, t))
        is_noisy = jnp.stack([jnp.zeros_like(given), ~given], axis=1)
        positions = jnp.arange(z.shape[1])
        predicted = self._predicted(examples)

        def errors(context):
            copies = jnp.stack([context, noisy], axis=1)
            velocity, _ = dit(copies, t, is_noisy, positions, documents_BxL=documents)
            return jnp.where(predicted, ((velocity[:, 1] - (noise - z)) ** 2).mean(-1), 0).sum(-1)

        error = errors(clean)
        terms = {
            "flow": error.sum(),
            "flow_floor": (fm.unit_floor(t) * predicted.sum(-1)).sum(),
            "flow_by_time": exactly(time_bins(t).T, error),
        }
        if diagnostics:
            terms["flow_swapped"] = errors(_partners(clean)).sum()
            flat = jnp.where(valid[..., None], z, 0).reshape(-1, z.shape[-1])
            terms["z"], terms["z_outer"] = flat.sum(0), exactly(flat.T, flat)
        return terms

    def summarise(self, means: dict) -> dict[str, float]:
        """The VAE's scalars, and: skill = 1 - L_FM / the best of unit Gaussian latents without context; by time, the
        flow loss of each tenth of 0..1; from an evaluation also context_gain, and gaussian_skill, which a Gaussian
        fitted to the latents reaches without reading any context."""
        by_time = means.pop("flow_by_time")
        z, z_outer = means.pop("z", None), means.pop("z_outer", None)
        report = super().summarise(means)
        floor = report.pop("flow_floor")
        report["skill"] = 1 - report["flow"] / floor
        report |= {f"flow_time_0.{i}": float(value) for i, value in enumerate(by_time) if value}
        if z is not None:
            report["context_gain"] = (report.pop("flow_swapped") - report["flow"]) / floor
            variances = np.linalg.eigvalsh(z_outer - np.outer(z, z)).clip(1e-12)
            times = self._time_quantiles()
            report["gaussian_skill"] = 1 - float(
                fm.gaussian_floor(times, variances).mean() / fm.unit_floor(times).mean()
            )
        return report

    def _time_quantiles(self, count: int = 2000) -> np.ndarray:
        o, u = self.objective, (jnp.arange(count) + 0.5) / count
        if o.time_distribution == "uniform":
            return np.asarray(u)
        return np.asarray(fm.logit_normal(jax.scipy.special.ndtri(u), o.time_loc, o.time_scale))

    def step_flops(self, batch_size: int, trainable: tuple[str, ...], keys: Keys) -> dict[str, float]:
        vae, dit, joint = self.vae_config, self.dit_config, "vae" in trainable
        encoder = batch_size * encoder_flops(vae, self.sequence_length, keys)
        parts = self.vae_flops(batch_size, keys) if joint else {"encoder": encoder}
        if self.has_reference:
            parts["reference encoder"] = encoder
        latents = self.sequence_length // vae.patch_size
        parts["prior"] = batch_size * trained_dit_flops(dit, latents, keys, latents_trained=joint)
        parts["modulation"] = (batch_size + 1) * trained_modulation_flops(dit)
        return parts

    def compute_params(self) -> int:
        return self.nominal_params


def _partners(x):
    """Each row's partner in place of the row: rows of an evaluation come in pairs, see `train.evaluation`."""
    first = (jnp.arange(x.shape[0]) % 2 == 0).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(first, jnp.roll(x, -1, axis=0), jnp.roll(x, 1, axis=0))
