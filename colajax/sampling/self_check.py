"""A check before text is generated on several devices: the mesh samples what one device samples, prompt by prompt. What
it is for is said in `train.self_check`."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.models.config import DiTConfig, VAEConfig
from colajax.parallel.batch import batch_shares
from colajax.parallel.mesh import ONE_DEVICE, make_mesh
from colajax.sampling.cola import Sampler, parameters_like
from colajax.sampling.settings import SamplingSettings
from colajax.train.self_check import TOLERANCE, agreed, drawn, row_difference

BLOCKS = 2  # the one in which the prompt ends, and one that reads it from the caches


def check_sampler(vae_config: VAEConfig, dit_config: DiTConfig, *, pad_id: int, dtype, mesh: Mesh) -> None:
    """Raises UserError unless a sampler on `mesh` gives every prompt the logits that it has on one device, with the
    run's widths and precision, two layers of each stack, and random parameters. Every process calls it alike."""
    if mesh.size == 1:
        return
    vae_config = dataclasses.replace(
        vae_config, encoder_num_blocks=min(2, vae_config.encoder_num_blocks),
        decoder_num_blocks=min(2, vae_config.decoder_num_blocks),
    )  # fmt: skip
    dit_config = dataclasses.replace(dit_config, num_layers=min(2, dit_config.num_layers))
    alone = make_mesh(ONE_DEVICE, mesh.local_devices[:1])
    prompts = _prompts(2 * batch_shares(mesh.shape), vae_config, pad_id)
    settings = SamplingSettings(steps=2, temperature=0.0, guidance=2.0)
    logits = []
    for where in (mesh, alone):
        parameters = drawn(parameters_like(vae_config, dit_config, where))
        sampler = Sampler(
            vae_config, dit_config, parameters["vae"], parameters["dit"], pad_id=pad_id, eos_id=None, dtype=dtype,
            mesh=where,
        )  # fmt: skip
        with jax.default_device(where.local_devices[0]):
            logits.append([block.reshape(len(prompts), -1) for block, _ in sampler.blocks(prompts, settings, BLOCKS)])
    differences = [
        (f"block {i + 1}", row_difference(found, np.asarray(expected)), TOLERANCE[str(np.dtype(dtype))])
        for i, (found, expected) in enumerate(zip(*logits, strict=True))
    ]
    for name, difference, tolerance in agreed(differences):
        if not difference <= tolerance:
            raise UserError(
                f"{mesh.size} devices: the logits of {name}, prompt by prompt, differ from one device's by "
                f"{difference:.2g} of their size, expected at most {tolerance}: the compiler does not keep samples "
                f"apart there; generate on another number of devices"
            )


def _prompts(count: int, config: VAEConfig, pad_id: int) -> list[list[int]]:
    """Random prompts of several lengths, from none to two blocks and a half."""
    random, block = np.random.default_rng(0), config.block_size * config.patch_size
    lengths = [i * 5 * block // 2 // max(count - 1, 1) for i in range(count)]
    words = [token for token in range(min(config.vocab_size, 1000)) if token != pad_id]
    return [random.choice(words, length).tolist() for length in lengths]
