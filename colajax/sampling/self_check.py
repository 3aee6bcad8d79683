"""A check before text is generated on several devices: the mesh samples what one device samples, prompt by prompt. What
it is for is said in `train.self_check`."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from colajax.errors import UserError
from colajax.parallel.batch import batch_shares
from colajax.parallel.mesh import ONE_DEVICE, make_mesh
from colajax.sampling.base import BaseSampler, parameters_like
from colajax.train.self_check import TOLERANCE, agreed, drawn, row_difference


def check_sampler(family: type[BaseSampler], configs: dict, *, pad_id: int, dtype, mesh: Mesh) -> None:
    """Raises UserError unless a sampler on `mesh` gives every prompt the logits that it has on one device, with the
    run's widths and precision, two layers of each stack, and random parameters. configs: {group: configuration}. Every
    process calls it alike."""
    if mesh.size == 1:
        return
    configs = {
        group: dataclasses.replace(config, **{key: min(2, getattr(config, key)) for key in family.LAYERS[group]})
        for group, config in configs.items()
    }
    alone = make_mesh(ONE_DEVICE, mesh.local_devices[:1])
    probes = []
    for where in (mesh, alone):
        parameters = drawn(parameters_like(family.models(configs), where))
        sampler = family.of(configs, parameters, pad_id=pad_id, eos_id=None, dtype=dtype, mesh=where)
        prompts = _prompts(2 * batch_shares(mesh.shape), sampler)
        with jax.default_device(where.local_devices[0]):
            probes.append(sampler.probe(prompts))
    differences = [
        (name, row_difference(_rows(found), np.asarray(_rows(probes[1][name]))), TOLERANCE[str(np.dtype(dtype))])
        for name, found in probes[0].items()
    ]
    for name, difference, tolerance in agreed(differences):
        if not difference <= tolerance:
            raise UserError(
                f"{mesh.size} devices: the logits of {name}, prompt by prompt, differ from one device's by "
                f"{difference:.2g} of their size, expected at most {tolerance}: the compiler does not keep samples "
                f"apart there; generate on another number of devices"
            )


def _rows(array: jax.Array) -> jax.Array:
    return array.reshape(len(array), -1)


def _prompts(count: int, sampler: BaseSampler) -> list[list[int]]:
    """Random prompts of several lengths, from none to two blocks and a half."""
    random, block = np.random.default_rng(0), sampler.block_tokens
    lengths = [i * 5 * block // 2 // max(count - 1, 1) for i in range(count)]
    words = [token for token in range(min(sampler.vocab_size, 1000)) if token != sampler.pad_id]
    return [random.choice(words, length).tolist() for length in lengths]
