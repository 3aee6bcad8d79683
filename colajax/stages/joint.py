"""Stage 2: the prior, jointly with the VAE.

L = lambda_vae (-E log p(x | z0) + beta E log q(z0 | x) + lambda_mask L_mask) + lambda_fm L_FM
    + lambda_ref KL(q(z0 | x) || q_ref(z0 | x)), with q_ref the frozen encoder of stage 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from colajax import keys
from colajax.errors import UserError
from colajax.keys import Purpose
from colajax.models.config import DiTConfig, check_pair, from_mapping
from colajax.models.dit import DiT
from colajax.models.layers import Functional
from colajax.models.text_vae import normalise
from colajax.objectives import elbo
from colajax.objectives import flow_matching as fm
from colajax.stages.base import Stage, latents_of
from colajax.stages.flops import dit_flops, encoder_flops
from colajax.stages.vae import VAEPass

TIME_BINS = 10


class JointStage(Stage):
    """Stage 2 as the loop sees it. `frozen` holds {"reference": the encoder of stage 1} where the VAE is trained."""

    groups = ("vae", "dit")
    init_groups = ("vae",)
    DENOMINATORS = VAEPass.DENOMINATORS | {
        "flow": "noisy", "flow_floor": "noisy", "flow_swapped": "noisy", "flow_by_time": "noisy_by_time",
    }  # fmt: skip

    def __init__(self, config, pad_id: int):
        self.vae = VAEPass(config, pad_id)
        self.config: DiTConfig = from_mapping(DiTConfig, config.dit.to_dict(), "config.dit")
        check_pair(self.vae.config, self.config)
        self.objective, self.sequence_length = config.objective, config.sequence_length
        self.nominal_params = config.compute_params
        dtype = jnp.dtype(config.compute_dtype)
        self.model = Functional(lambda rngs: DiT(self.config, dtype=dtype, remat=config.remat, rngs=rngs))
        self.vocab_size = self.vae.config.vocab_size
        self.init_from, self.vae_config = config.init_from, config.vae.to_dict()
        self.weights = self._weights()

    def _weights(self) -> dict[str, float]:
        o = self.objective
        if o.time_distribution not in ("logit_normal", "uniform"):
            raise UserError(
                f"config.objective.time_distribution is {o.time_distribution!r}: expected logit_normal or uniform"
            )
        if not 0 <= o.prompt_probability <= 1:
            raise UserError(f"config.objective.prompt_probability is {o.prompt_probability}: expected 0 to 1")
        if not 0 <= o.interval_joint <= o.interval:
            raise UserError(
                f"config.objective.interval_joint is {o.interval_joint}: expected 0 to interval ({o.interval})"
            )
        if not self.vae.config.use_variation and (o.beta or o.lambda_ref):
            raise UserError("config.objective: expected beta 0 and lambda_ref 0 for a VAE without use_variation")
        return {
            "reconstruction": o.lambda_vae, "negative_entropy": o.lambda_vae * o.beta,
            "mask": o.lambda_vae * o.lambda_mask, "flow": o.lambda_fm, "kl_reference": o.lambda_ref,
        }  # fmt: skip

    def trainable(self, step: int) -> tuple[str, ...]:
        """Fixed VAE: the prior alone. Interval: in each `interval` steps the first interval_joint are joint."""
        o = self.objective
        joint = o.train_vae and (not o.interval or step % o.interval < o.interval_joint)
        return self.groups if joint else ("dit",)

    def init(self, key: jax.Array) -> dict:
        vae_key, dit_key = jax.random.split(key)
        return {"vae": self.vae.model.init(vae_key), "dit": self.model.init(dit_key)}

    def axes(self) -> dict:
        return {"vae": self.vae.model.axes(), "dit": self.model.axes()}

    def frozen_axes(self) -> dict:
        return {"reference": self.vae.encoder.axes()}

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
        theirs = found["vae"] | {"fixed_log_snr": found["objective"]["fixed_log_snr"]}
        ours = self.vae_config | {"fixed_log_snr": o.fixed_log_snr}
        differ = [f"{k} is {ours.get(k)!r}, there {theirs.get(k)!r}" for k in sorted({*ours, *theirs})
                  if ours.get(k) != theirs.get(k)]  # fmt: skip
        if differ:
            raise UserError(f"config.vae: differs from the stage 1 run {self.init_from} ({'; '.join(differ)})")

    def begin(self, params: dict, loaded: dict | None) -> tuple[dict, dict]:
        """The VAE of stage 1, a fresh prior. The reference is kept without lambda_ref too: its KL shows a collapse."""
        params = params if loaded is None else {**params, "vae": loaded["vae"]}
        if not self.objective.train_vae or not (self.init_from or self.objective.lambda_ref):
            return params, {}
        # A copy: the step donates the parameters' memory.
        return params, {"reference": jax.tree.map(jnp.copy, params["vae"]["encoder"])}

    def examples(self, tokens, step, seed: int) -> dict:
        o, block_size = self.objective, self.config.block_size
        examples = self.vae.examples(tokens, step, seed)
        rows, shape = jnp.arange(tokens.shape[0]), examples["posterior_noise"].shape[1:]

        def draw(purpose):
            return keys.sample_keys(seed, purpose, step, rows)

        time = draw(Purpose.TIME)
        times = fm.sample_times(
            keys.normals(time, ()),
            keys.uniforms(time, ()),
            distribution=o.time_distribution,
            loc=o.time_loc,
            scale=o.time_scale,
        )
        cuts = keys.uniforms(draw(Purpose.PROMPT), (2, shape[0] // block_size))
        given = fm.given_positions(cuts[:, 0], cuts[:, 1], block_size, o.prompt_probability)
        return examples | {"noise": keys.normals(draw(Purpose.NOISE), shape), "time": times, "given": given}

    def _predicted(self, examples: dict):
        """Which latents the flow loss is on, (B, L): neither given nor padding."""
        return latents_of(examples["tokens"] != self.vae.pad_id, self.vae.config.patch_size) & ~examples["given"]

    def counts(self, examples: dict) -> dict:
        predicted = self._predicted(examples).sum(-1).astype(jnp.float32)
        by_time = _exactly(_time_bins(examples["time"]).T, predicted)
        return self.vae.counts(examples) | {"noisy": predicted.sum(), "noisy_by_time": by_time}

    def terms(self, params, frozen, examples, trainable, diagnostics=False) -> dict:
        tokens = examples["tokens"]
        valid = latents_of(tokens != self.vae.pad_id, self.vae.config.patch_size)
        if "vae" in trainable or diagnostics:
            terms, (mean, logvar, z) = self.vae.terms(params["vae"], examples)
        else:
            mean, logvar = self.vae.encode(self.vae.encoder.bind(params["vae"]["encoder"]), tokens)
            z = normalise(self.vae.config, elbo.sample_posterior(mean, logvar, examples["posterior_noise"]))
            terms = self.vae.posterior_terms(mean, logvar, valid)
        if frozen:
            reference = self.vae.encode(self.vae.encoder.bind(frozen["reference"]), tokens)
            divergence = elbo.kl_between(mean, logvar, *reference)
            terms["kl_reference"] = jnp.where(valid, divergence, 0).sum()
        return terms | self._flow_terms(params["dit"], z, examples, valid, diagnostics)

    def _flow_terms(self, params: dict, z, examples: dict, valid, diagnostics: bool) -> dict:
        dit, given, noise, t = self.model.bind(params), examples["given"], examples["noise"], examples["time"]
        clean = jax.lax.stop_gradient(z)
        noisy = jnp.where(given[..., None], clean, fm.interpolate(z, noise, t))
        is_noisy = jnp.stack([jnp.zeros_like(given), ~given], axis=1)
        positions = jnp.arange(z.shape[1])
        predicted = self._predicted(examples)

        def errors(context):
            velocity, _ = dit(jnp.stack([context, noisy], axis=1), t, is_noisy, positions)
            return jnp.where(predicted, ((velocity[:, 1] - (noise - z)) ** 2).mean(-1), 0).sum(-1)

        error = errors(clean)
        terms = {
            "flow": error.sum(),
            "flow_floor": (fm.unit_floor(t) * predicted.sum(-1)).sum(),
            "flow_by_time": _exactly(_time_bins(t).T, error),
        }
        if diagnostics:
            terms["flow_swapped"] = errors(jnp.roll(clean, 1, axis=0)).sum()
            flat = jnp.where(valid[..., None], z, 0).reshape(-1, z.shape[-1])
            terms["z"], terms["z_outer"] = flat.sum(0), _exactly(flat.T, flat)
        return terms

    def summarise(self, means: dict) -> dict[str, float]:
        """The VAE's scalars, and: skill = 1 - L_FM / the best of unit Gaussian latents without context; by time, the
        flow loss of each tenth of 0..1; from an evaluation also context_gain, and gaussian_skill, which a Gaussian
        fitted to the latents reaches without reading any context."""
        by_time = means.pop("flow_by_time")
        z, z_outer = means.pop("z", None), means.pop("z_outer", None)
        report = self.vae.summarise(means)
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

    def warnings(self, report: dict[str, float]) -> list[str]:
        """Latents that are one constant plus a small deviation carry the token, are easy to predict, and cannot be
        generated: skill and reconstruction look perfect, these two figures do not."""
        collapsed = report["mean_variance"] < 0.5 or report["gaussian_skill"] > 0.5
        return [] if not collapsed else [
            f"the latents are collapsing: variance of the mean across tokens {report['mean_variance']:.3f} (healthy: "
            f"above 0.9), skill of a Gaussian without context {report['gaussian_skill']:.3f} (healthy: below 0.1); "
            f"raise lambda_ref"
        ]  # fmt: skip

    def _time_quantiles(self, count: int = 2000) -> np.ndarray:
        o, u = self.objective, (jnp.arange(count) + 0.5) / count
        normal = jax.scipy.special.ndtri(u)
        return np.asarray(
            fm.sample_times(normal, u, distribution=o.time_distribution, loc=o.time_loc, scale=o.time_scale)
        )

    def flops(self, batch_size: int, trainable: tuple[str, ...]) -> float:
        vae, length = self.vae.config, self.sequence_length
        total = 3 * dit_flops(self.config, length // vae.patch_size)
        total += self.vae.flops(length) if "vae" in trainable else encoder_flops(vae, length)
        if self.objective.train_vae:
            total += encoder_flops(vae, length)  # the reference
        return total * batch_size

    def compute_params(self) -> int:
        return self.nominal_params or sum(leaf.size for leaf in jax.tree.leaves(self.model.shapes()))


def _exactly(a, b):
    """A float32 product that no accelerator rounds: these are counts and statistics."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _time_bins(t_B):
    """One-hot of the tenth of 0..1 that each time lies in, (B, TIME_BINS) float32."""
    return jax.nn.one_hot(jnp.minimum((t_B * TIME_BINS).astype(jnp.int32), TIME_BINS - 1), TIME_BINS)
