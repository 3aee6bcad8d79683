"""The check of the layout, on eight simulated devices of a mesh of 2 x 2 x 2: a healthy one, and one where samples are
exchanged, is meant to be seen before anything is written."""

import subprocess
import sys

import numpy as np
import pytest
from tiny_runs import ROOT, environment, overrides, spec

from colajax.train.self_check import orders

# python -c TRAIN FAULT,..., and what the training is given: prints what it is refused for, a line a fault. A fault is
# put where the mesh computes, not where one device does: there `laid_out` is open.
TRAIN = """
import sys
from unittest import mock
import jax.numpy as jnp
from colajax import axes
from colajax.errors import UserError
from colajax.stages import joint
from colajax.train import __main__, setup

def exchanged(x):
    return x if axes._layout.get() is None else x[jnp.arange(len(x)).at[1].set(2).at[2].set(1)]

def check_and_end(*args, check=setup.check_layout):
    check(*args)
    raise UserError("healthy")

cross_entropy, interpolate, kl_between = joint.elbo.cross_entropy, joint.fm.interpolate, joint.elbo.kl_between
FAULTS = {
    "none": (joint.elbo, "cross_entropy", cross_entropy),
    "logits": (joint.elbo, "cross_entropy", lambda logits, targets: cross_entropy(exchanged(logits), targets)),
    "flow": (joint.fm, "interpolate", lambda z, noise, t: interpolate(z, exchanged(noise), t)),
    "reference": (joint.elbo, "kl_between",
                  lambda mean, logvar, *reference: kl_between(mean, logvar, *map(exchanged, reference))),
}
setup.check_layout, __main__.join = check_and_end, lambda: None
joint.JointStage.check_start = lambda self, found: None  # there is no stage 1 here, and a reference all the same
for fault in sys.argv.pop(1).split(","):
    with mock.patch.object(*FAULTS[fault]):
        try:
            __main__.main()
        except UserError as error:
            print(f"refused: {error}")
"""


@pytest.mark.parametrize(
    ("stage", "refused"),
    [
        ("joint", {"logits": "term 'reconstruction'", "flow": "term 'flow'", "reference": "term 'kl_reference'"}),
        ("llada", {"none": None}),
        ("ar", {"logits": "term 'next_token'"}),
    ],
)  # fmt: skip
def test_an_exchange_of_samples_is_refused_before_anything_is_written(stage, refused, records, tmp_path):
    workdir = tmp_path / "run"
    more = ("total_steps=5", "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", f"records={records}")
    given = [f"--config.{override}" for override in (*overrides(stage), *more)]
    command = [sys.executable, "-c", TRAIN, ",".join(refused), "--config", spec(stage), "--workdir", str(workdir)]
    result = subprocess.run(
        [*command, *given], cwd=ROOT, env=environment(8, NPROC="32"), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert not workdir.exists()
    lines = [line for line in result.stdout.splitlines() if line.startswith("refused: ")]
    for line, message in zip(lines, refused.values(), strict=True):
        if message is None:
            assert line == "refused: healthy"
        else:
            assert line.startswith("refused: config.mesh (data 2, fsdp 2, tensor 2): ")
            assert message in line


# python -c SAMPLE CASE. "without": without the guards of colajax/axes.py XLA's own partitioner exchanges Cola's samples
# on this mesh; should a later one not do it, the guards may go. "exchanged": those of the baselines, on purpose.
SAMPLE = """
import sys
import jax.numpy as jnp
import tiny_models
from colajax.errors import UserError, run_main
from colajax.models import decoder, dit, text_vae, vae_block
from colajax.parallel.mesh import make_mesh
from colajax.sampling.load import SAMPLERS
from colajax.sampling.self_check import check_sampler

def main():
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    configs = {"vae": tiny_models.VAE, "dit": tiny_models.DIT, "llama": tiny_models.LLAMA}
    for stage in CASES[sys.argv[1]]:
        of_family = {g: configs[g] for g in SAMPLERS[stage].CONFIGS}
        try:
            check_sampler(SAMPLERS[stage], of_family, pad_id=0, dtype=jnp.float32, mesh=mesh)
        except UserError as error:
            print(f"refused: {error}")

def exchanging(probe):
    def exchanged(self, prompts):
        found = probe(self, prompts)
        order = jnp.arange(len(prompts)).at[1].set(2).at[2].set(1)
        return {name: x[order] if self.mesh.size > 1 else x for name, x in found.items()}
    return exchanged

CASES = {"with": SAMPLERS, "without": ("joint",), "exchanged": ("ar", "llada")}
if sys.argv[1] == "without":
    for module in (decoder, dit, text_vae, vae_block):
        module.by_sample = lambda x: x
elif sys.argv[1] == "exchanged":
    for stage in CASES["exchanged"]:
        SAMPLERS[stage].probe = exchanging(SAMPLERS[stage].probe)
run_main(main)
"""


@pytest.mark.parametrize(("case", "refused"), [("with", 0), ("without", 1), ("exchanged", 2)])
def test_a_sampler_whose_samples_the_compiler_exchanges_is_refused(case, refused):
    where = environment(8, optimised=True, NPROC="32", PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    result = subprocess.run(
        [sys.executable, "-c", SAMPLE, case], cwd=ROOT, env=where, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    lines = [line for line in result.stdout.splitlines() if line.startswith("refused: ")]
    assert len(lines) == refused
    assert all(line.startswith("refused: 8 devices: the logits of ") for line in lines)


@pytest.mark.parametrize(("places", "kinds"), [(1, 1), (2, 2), (8, 4), (352, 4), (7, 3)])
def test_any_two_places_hold_different_rows_once(places, kinds):
    found = np.stack(list(orders(places, kinds)))
    assert len(np.unique(found, axis=1).T) == places
    assert found.max() == kinds - 1
