"""Exports of the goldens, for the tests of what is in them (the fixture `exported`)."""

import pathlib

import torch
import transformers

from colajax.evals.export_parity import verify
from colajax.hf.export import export
from colajax.hf.import_run import import_run
from colajax.sampling.load import run_tokenizer
from colajax.train.config import load_config

torch.set_num_threads(1)  # threads cost more than they bring at this size
ROOT = pathlib.Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
FOLDERS = ("released_shape", "patch2")
SETTINGS = {"max_new_tokens": 8, "temperature": 0.0}


def config_of(stage: str):
    return load_config(f"{ROOT}/configs/cola_{stage}.py", ["sequence_length=64", "compute_dtype=float32"])


def load(folder, **options):
    return transformers.AutoModel.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True, **options)


def export_goldens(base: pathlib.Path) -> dict:
    """Golden folder -> (run imported from it, at step 3, and the verified export of that run)."""
    found = {}
    for name in FOLDERS:
        run, hf = base / f"{name}_run", base / name
        import_run(GOLDEN / name, run, config_of("joint"), step=3)
        export(run, hf, run_tokenizer(run), SETTINGS, check=lambda folder, run=run: verify(run, folder))
        found[name] = (run, hf)
    return found
