"""The real training step, compiled ahead of time for TPUs that are not there."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from colajax.parallel.rules import sharding
from colajax.planning.memory import state_bytes
from colajax.planning.schedule import Schedule, read_schedule
from colajax.planning.topology import out_of_memory
from colajax.train.optimizer import Optimizer
from colajax.train.state import TrainState
from colajax.train.step import make_train_step, watched


class CompiledStep(NamedTuple):
    """What the compiler says of one device. memory: bytes by kind, "peak" their sum, of a step that does not fit as far
    as the compiler got; schedule is None then."""

    memory: dict[str, int]
    schedule: Schedule | None
    seconds: float  # that compiling took


def compile_step(config, stage, optimizer: Optimizer, state: TrainState) -> CompiledStep:
    """Compiles what `train.loop.train` would run on the devices of a TPU topology; state: `abstract_state` on them.

    Raises hlo.UnreadableProgram where the compiler's program is not understood."""
    mesh = state.step.sharding.mesh
    shape = (config.batch_size, config.sequence_length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding(mesh, ("batch", None), shape))
    step = make_train_step(
        stage, optimizer, state, seed=config.seed, parts=config.accumulation_steps, reduction=config.gradient_reduction
    )
    trainable = stage.trainable(0)
    limits = dict.fromkeys(watched(stage, trainable), jax.ShapeDtypeStruct((), jnp.float32))
    lowered = step.lower(state, tokens, jax.ShapeDtypeStruct((), jnp.int32), limits, trainable)
    memory, began = state_bytes(state), time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = out_of_memory(error)
        if refused is None:
            raise
        memory["activations"] = int(refused[0]) - sum(memory.values())
        return CompiledStep(memory | {"peak": int(refused[0])}, None, time.perf_counter() - began)
    seconds = time.perf_counter() - began
    (program,) = compiled.runtime_executable().hlo_modules()
    schedule = read_schedule(program.as_serialized_hlo_module_proto(), dict(mesh.shape))
    found = compiled.memory_analysis()
    total = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    total += found.temp_size_in_bytes + found.generated_code_size_in_bytes
    memory["program"] = found.generated_code_size_in_bytes
    memory["activations"] = total - sum(memory.values())
    return CompiledStep(memory | {"peak": total}, schedule, seconds)
