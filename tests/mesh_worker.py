"""What mesh_test.py runs in processes of their own: python tests/mesh_worker.py OUT JOBS

JOBS is a JSON list of [task, mesh, argument ...]; a mesh is "data,fsdp,tensor", or "one", the first device alone. Every
process of a group is started alike (see colajax/parallel/processes.py); the first one writes OUT, a JSON list of
results.
"""

import base64
import dataclasses
import functools
import hashlib
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny_models
import tiny_runs

from colajax.axes import by_sample
from colajax.data.loader import Loader
from colajax.keys import training_draw
from colajax.models import layers
from colajax.parallel.batch import global_batch, local_rows
from colajax.parallel.mesh import AXES, ONE_DEVICE, make_mesh
from colajax.parallel.processes import is_first, join
from colajax.parallel.rules import laid_out, replicated, shardings_of
from colajax.sampling.load import SAMPLERS
from colajax.sampling.settings import SamplingSettings
from colajax.stages.joint import JointStage
from colajax.stages.llada import LLaDAStage
from colajax.train.config import load_config
from colajax.train.optimizer import make_optimizer, optimizer_of
from colajax.train.state import TrainState, abstract_state, fresh_state
from colajax.train.step import batch_gradients, make_train_step, watched

STEPS = 50
layers.UNROLLED_LAYERS = 0  # as for tall stacks; and there is less to compile


def mesh_of(name: str):
    if name == "one":
        return make_mesh(ONE_DEVICE, jax.devices()[:1])
    sizes = [int(size) for size in name.split(",")]
    return make_mesh(dict(zip(AXES, sizes, strict=True)), jax.devices()[: math.prod(sizes)])


def flat(tree) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def gradients(mesh, stage_name: str, *overrides: str) -> dict:
    """{"loss": number, "gradients": flattened, a list}"""
    # 43 words divide over nothing, and 4 masked views not over 8 devices.
    group = "llama" if stage_name in ("ar", "llada") else "vae"
    stage, config = tiny_runs.make_stage(stage_name, f"{group}.vocab_size=43", *overrides)
    params = tiny_runs.make_params(stage)
    state = TrainState(jnp.int32(5), params, {}, tiny_runs.make_frozen(stage))
    optimizer = make_optimizer(config.optimizer, params, config.total_steps)
    like = abstract_state(stage, optimizer, mesh)
    where = TrainState(replicated(mesh), shardings_of(like.params), {}, shardings_of(like.frozen))
    state = jax.device_put(jax.tree.map(np.asarray, state), where)
    tokens = tiny_runs.make_tokens()
    tokens = global_batch(mesh, tokens[local_rows(mesh, len(tokens))], len(tokens))

    def run(state, tokens):
        with laid_out(mesh):
            draw = training_draw(1, state.step, jnp.arange(len(tokens)))
            examples = jax.tree.map(by_sample, stage.examples(tokens, draw))
            return batch_gradients(stage, state, examples, stage.groups, 1)

    found, means = jax.device_get(jax.jit(run, out_shardings=replicated(mesh))(state, tokens))
    return {"loss": float(means["loss"]), "gradients": flat(found).astype(np.float64).tolist()}


def production(reduction: str):
    """A stage 2 at the quickstart's widths in production precision: (configuration, stage, optimizer)."""
    config = load_config(
        tiny_runs.spec("joint"),
        ["compute_dtype=bfloat16", f"gradient_reduction={reduction}", "remat=dots", "optimizer.clip=1e9",
         "dit.num_layers=1"],
    )  # fmt: skip
    stage = JointStage(config, 0, 1)
    return config, stage, optimizer_of(config, stage)


@functools.cache
def beginning() -> tuple:
    """(state, batch) of it as numpy, away from the zeros at which a prior begins; words are as often as in a text, the
    first one in eight."""
    config, stage, optimizer = production("float32")
    like = abstract_state(stage, optimizer, mesh_of("one"))
    state = jax.device_get(fresh_state(stage, optimizer, like, seed=0))
    rng = np.random.default_rng(1)
    noisy = [x + 0.02 * rng.standard_normal(x.shape, np.float32) for x in jax.tree.leaves(state.params)]
    share = 1 / np.arange(1, config.vae.vocab_size)
    tokens = 1 + rng.choice(len(share), (config.batch_size, config.sequence_length), p=share / share.sum())
    params = jax.tree.structure(state.params).unflatten(noisy)
    return dataclasses.replace(state, params=params), tokens.astype(np.int32)


def update(mesh, reduction: str) -> str:
    """The gradients of the first update, from AdamW's first moments: flattened, the bytes of float32 in base64."""
    config, stage, optimizer = production(reduction)
    state, tokens = beginning()
    like = abstract_state(stage, optimizer, mesh)
    state = jax.device_put(state, shardings_of(like))
    step = make_train_step(stage, optimizer, like, seed=1, parts=1, reduction=reduction)
    limits = dict.fromkeys(watched(stage, stage.groups), np.float32(np.inf))
    state, _ = step(state, global_batch(mesh, tokens, config.batch_size), np.int32(0), limits, stage.groups)
    moments = [slots for slots in jax.tree.leaves(jax.device_get(state.opt_state), is_leaf=is_adam) if is_adam(slots)]
    gradients = flat([slots.mu for slots in moments]) / np.float32(1 - config.optimizer.b1)
    return base64.b64encode(gradients).decode()


def is_adam(slots) -> bool:
    return isinstance(slots, optax.ScaleByAdamState)


def text(mesh, stage_name: str) -> list:
    """Tokens drawn after prompts of several lengths, in a batch that divides over nothing."""
    sampler = tiny_models.random_sampler(SAMPLERS[stage_name], pad_id=0, eos_id=None, mesh=mesh)
    prompts = [[1, 2, 3], [], [4] * 9]
    return sampler.generate(prompts, SamplingSettings(max_new_tokens=10, steps=4, block_length=5, guidance=2.0))


class Probe:
    """Over a stage: its terms are a digest of the examples that reach the loss, a number of each sample's bits, summed
    over samples in integers, so that it tells which samples there are and not in which parts they came."""

    DENOMINATORS = {}

    def terms(self, params, frozen, examples, trainable, diagnostics=False):
        rows = examples["tokens"].shape[0]
        digests = {"zero": 0.0 * sum(leaf.sum() for leaf in jax.tree.leaves(params))}
        for name, array in examples.items():
            array = array.astype(jnp.uint32) if array.dtype == bool else jax.lax.bitcast_convert_type(array, jnp.uint32)
            array = array.reshape(rows, -1)
            odd = 2 * jnp.arange(array.shape[1], dtype=jnp.uint32) + jnp.uint32(2654435761)
            sample = (array * odd).sum(-1, dtype=jnp.uint32)
            sample = (sample ^ (sample >> 15)) * jnp.uint32(2246822519)
            digests[name] = (sample ^ (sample >> 13)).sum(dtype=jnp.uint32)
        return digests

    def mean(self, name, total, counts):
        return total


class JointProbe(Probe, JointStage):
    pass


class LLaDAProbe(Probe, LLaDAStage):
    pass


PROBES = {
    "joint": (JointProbe, "objective.mask_every=2", "objective.prompt_probability=.5"),
    "llada": (LLaDAProbe, "objective.cut_probability=.3"),
}


def hashes(mesh, stage_name: str, records: str, parts: int, seed: int = 66) -> str:
    """A digest of everything that the loss of STEPS updates reads: rows, noise, times, masks."""
    probe, *overrides = PROBES[stage_name]
    config = tiny_runs.tiny_config(stage_name, "batch_size=16", f"seed={seed}", *overrides)
    stage = probe(config, 0, 1)
    stage.weights = {"zero": 1.0}
    params = jax.device_put({group: np.zeros(8, np.float32) for group in stage.groups}, replicated(mesh))
    loader = Loader(records, "train", config.batch_size, config.sequence_length, config.data_seed)

    def run(params, step, tokens):
        state = TrainState(step, params, {}, {})
        with laid_out(mesh):
            draw = training_draw(config.seed, step, jnp.arange(len(tokens)))
            examples = jax.tree.map(by_sample, stage.examples(tokens, draw))
            return batch_gradients(stage, state, examples, stage.groups, parts)[1]

    run = jax.jit(run, out_shardings=replicated(mesh))
    digest = hashlib.sha256()
    batches = loader.iterate(0, local_rows(mesh, config.batch_size))
    for step, local in zip(range(STEPS), batches, strict=False):
        found = jax.device_get(run(params, np.int32(step), global_batch(mesh, local, config.batch_size)))
        digest.update(json.dumps({name: int(value) for name, value in sorted(found.items())}).encode())
    return digest.hexdigest()


TASKS = {"gradients": gradients, "update": update, "text": text, "hashes": hashes}


def main() -> None:
    out, jobs = sys.argv[1:]
    join()
    results = [TASKS[task](mesh_of(mesh), *arguments) for task, mesh, *arguments in json.loads(jobs)]
    if is_first():
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
