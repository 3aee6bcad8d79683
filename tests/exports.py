"""Exports of the goldens, for the tests of what is in them (the fixture `exported`)."""

import pathlib
import shutil

import tiny_runs
import torch
import transformers

from colajax.evals.export_parity import verify
from colajax.hf.export import export
from colajax.hf.import_run import import_run
from colajax.hf.pytorch.configuration_llada import LladaConfig
from colajax.hf.pytorch.modeling_llada import LladaModel
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


def save_baseline(stage: str, folder: pathlib.Path, tokenizer: pathlib.Path):
    """A model as PyTorch makes and transformers saves it, of the shape of tiny_config(stage); returns it. AR's is
    transformers' own."""
    shape = tiny_runs.tiny_config(stage).llama.to_dict()
    if stage == "ar":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    else:
        model = LladaModel(LladaConfig(**shape))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.2 if "norm" in name else 0.3) + ("norm" in name))
    model.save_pretrained(folder)
    shutil.copy(tokenizer, folder)
    return model.eval()


def export_baselines(base: pathlib.Path, tokenizer: pathlib.Path) -> dict:
    """Stage -> (what transformers saved, the run imported from it, at step 3, and the verified export of that run)."""
    found = {}
    for stage in ("ar", "llada"):
        saved, run, hf = base / f"{stage}_saved", base / f"{stage}_run", base / stage
        save_baseline(stage, saved, tokenizer)
        import_run(saved, run, tiny_runs.tiny_config(stage), step=3)
        export(run, hf, run_tokenizer(run), SETTINGS, check=lambda folder, run=run: verify(run, folder))
        found[stage] = (saved, run, hf)
    return found


def export_goldens(base: pathlib.Path) -> dict:
    """Golden folder -> (run imported from it, at step 3, and the verified export of that run)."""
    found = {}
    for name in FOLDERS:
        run, hf = base / f"{name}_run", base / name
        import_run(GOLDEN / name, run, config_of("joint"), step=3)
        export(run, hf, run_tokenizer(run), SETTINGS, check=lambda folder, run=run: verify(run, folder))
        found[name] = (run, hf)
    return found
