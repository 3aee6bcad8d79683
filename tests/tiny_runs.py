"""Small trainings for tests: the shipped quickstart configurations, shrunk by command-line overrides, and stages and
batches that show what a loss does with padding, patches and weights."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tiny_models

from colajax.stages import STAGES
from colajax.stages.joint import JointStage
from colajax.train import loop
from colajax.train.checkpoint import step_folder
from colajax.train.config import load_config
from colajax.train.digests import write_digests
from colajax.train.stored import open_arrays

ROOT = Path(__file__).parent.parent
SEQUENCE_LENGTH = 32
RUN = (
    "batch_size=8", f"sequence_length={SEQUENCE_LENGTH}", "total_steps=12", "log_every=1", "eval_every=5",
    "checkpoint_every=4", "eval_rows=12", "optimizer.warmup_steps=3", "alerts=()",
)  # fmt: skip
VAE = ("vae.dim=32", "vae.ffn_dim=48", "vae.num_heads=2", "vae.latent_dim=4")
DIT = (
    "dit.txt_dim=32", "dit.emb_dim=16", "dit.heads=2", "dit.head_dim=16", "dit.rope_dim=8", "dit.num_layers=1",
    "dit.txt_in_channels=4", "dit.txt_out_channels=4",
)  # fmt: skip
LLAMA = (
    "llama.hidden_size=32", "llama.intermediate_size=48", "llama.num_attention_heads=2", "llama.num_hidden_layers=2",
)  # fmt: skip
MODELS = {"vae": VAE, "joint": VAE + DIT, "ar": LLAMA, "llada": LLAMA}


def file_of(stage: str) -> str:
    """The configuration file of a stage, at the paper's size."""
    return f"{ROOT}/configs/{dict(vae='cola_vae', joint='cola_joint').get(stage, stage)}.py"


def spec(stage: str) -> str:
    return f"{file_of(stage)}:quickstart"


def overrides(stage: str) -> tuple[str, ...]:
    return RUN + MODELS[stage]


def tiny_config(stage: str, *more: str):
    """The locked configuration of `stage` after RUN, those of its models, and `more`."""
    return load_config(spec(stage), [*overrides(stage), *more])


# Most of the time of small programs is XLA's, and what it makes of them is not tested. JAX 0.10 has an older way to
# write fusions that takes half the time, though its last bits differ from program to program; later ones have lost it,
# and abort at a flag that they do not know.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""

# What a process that the tests start has compiled is there for all others: the first process of pytest makes the
# folder, and removes it.
if "COLAJAX_TESTS_COMPILED" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="compiled", ignore_cleanup_errors=True)
    os.environ["COLAJAX_TESTS_COMPILED"] = _compiled.name
QUICK_TO_COMPILE = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_ENABLE_COMPILATION_CACHE": "true",
    "JAX_COMPILATION_CACHE_DIR": os.environ["COLAJAX_TESTS_COMPILED"],
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}  # fmt: skip

# python -m colajax.train that gets a signal when it is about to print the line of a step, once a folder is there:
# python -c STOPPED SIGNAL STEP FOLDER, and what the training is given.
STOPPED = """
import os, sys, time
from etils import epath
from colajax.errors import run_main
from colajax.train import __main__, reporter
number, at, first = int(sys.argv.pop(1)), int(sys.argv.pop(1)), epath.Path(sys.argv.pop(1))
line = reporter.progress_line
def line_and_signal(step, *rest):
    if step == at:
        while not first.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)
    return line(step, *rest)
reporter.progress_line = line_and_signal
run_main(__main__.main)
"""


def environment(devices: int, *, optimised: bool = False, quick: str = QUICK_FLAGS, **more: str) -> dict[str, str]:
    """The environment of a process with so many simulated devices; optimised: compiled as a user's run is; quick: XLA's
    flags for what is not."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    if optimised:
        more["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
    else:
        flags += f" {quick}"
    # Collectives wait for each other in threads of XLA, of which there must be enough: see launch/local.sh.
    threads = str(4 * devices)
    return os.environ | QUICK_TO_COMPILE | {"XLA_FLAGS": flags, "NPROC": threads, "TF_CPP_MIN_LOG_LEVEL": "3"} | more


def stop_after(patch, updates: int) -> None:
    """Trainings in this process get SIGTERM when so many updates were begun; patch: a pytest.MonkeyPatch."""

    class Stop(loop.StopSignals):
        def agreed(self, step):
            return signal.SIGTERM if step == updates else 0

    patch.setattr(loop, "StopSignals", Stop)


def train_alone(stage: str, workdir, records) -> None:
    """A whole training in a process of its own, on one device."""
    given = [f"--config.{override}" for override in (*overrides(stage), f"records={records}")]
    command = [sys.executable, "-m", "colajax.train", "--config", spec(stage), "--workdir", str(workdir), *given]
    result = subprocess.run(command, cwd=ROOT, env=environment(1), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]


@contextlib.contextmanager
def changed_arrays(workdir):
    """The parameters of a run's latest checkpoint as arrays to be written to; its digests are of what they are then."""
    step, params = open_arrays(workdir, write=True)
    yield params
    write_digests(step_folder(workdir, step))


def read_metrics(workdir) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


PAD, END, ROWS, VOCABULARY = 0, 1, 8, 40
SHAPE = (
    "vae.dim=16", "vae.ffn_dim=24", f"vae.vocab_size={VOCABULARY}", "vae.patch_size=2", "vae.block_size=4",
    "objective.mask_every=2", "objective.mask_rate=0.4", "objective.beta=0.03", "objective.lambda_mask=0.4",
)  # fmt: skip
JOINT_SHAPE = (
    "dit.block_size=4", "objective.prompt_probability=0.5", "objective.lambda_vae=0.7", "objective.lambda_fm=1.3",
    "objective.lambda_ref=0.2",
)  # fmt: skip


LLAMA_SHAPE = ("llama.hidden_size=16", "llama.intermediate_size=24", f"llama.vocab_size={VOCABULARY}")
LLADA_SHAPE = ("objective.least_rate=0.1",)
SHAPES = {"vae": SHAPE, "joint": SHAPE + JOINT_SHAPE, "ar": LLAMA_SHAPE, "llada": LLAMA_SHAPE + LLADA_SHAPE}


def make_stage(name, *overrides, use_variation=True):
    """The stage and its configuration; every weight of the loss is a number of its own."""
    config = tiny_config(name, *SHAPES[name], *overrides)
    if "vae" in config:
        with config.unlocked():  # nothing of the loss may rest on these two being 1 and 0
            config.vae.scaling_factor, config.vae.shifting_factor = 1.25, 0.1
            config.vae.use_variation = use_variation
    return STAGES[name](config, PAD, END), config


def make_tokens(seed=0):
    """Rows with padding, from none to nearly all of the row, not always in whole patches."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, VOCABULARY, (ROWS, SEQUENCE_LENGTH)).astype(np.int32)
    for row, used in enumerate((32, 9, 32, 17, 3, 28, 32, 24)):
        tokens[row, used:] = PAD
    return tokens


def make_params(stage, seed=0):
    return {
        group: jax.tree.map(jnp.asarray, tiny_models.random_tree(getattr(stage, group).shapes(), seed))
        for group in stage.groups
    }


def make_frozen(stage):
    """Another encoder than the one that is trained, as it is after some steps."""
    return {"reference": make_params(stage, seed=9)["vae"]["encoder"]} if isinstance(stage, JointStage) else {}
