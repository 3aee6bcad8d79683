"""Every command line on damaged files of every kind: no traceback; status 2 is one line that names the thing, and
nothing is left behind.

COLAJAX_DAMAGES: how often each file is damaged for each command (default 3); COLAJAX_SEED: another choice of damages.
"""

import os
import shutil

import damage
import hypothesis
import pytest
from command_lines import COMMANDS, assert_refused, given, run, tree
from hypothesis import HealthCheck, Phase, seed, settings

from colajax.evals.export_parity import CERTIFICATE

COUNT = int(os.environ.get("COLAJAX_DAMAGES", "3"))
SEED = int(os.environ.get("COLAJAX_SEED", "4"))

_ON_RUN = ("generate", "export_hf", "train")
FILES = {
    "joint/config.json": ("generate", "evaluate", "export_hf", "train"),
    "joint/metrics.jsonl": ("evaluate", "train", "report"),
    "joint/tokenizer.model": _ON_RUN,
    "joint/checkpoints/2/_CHECKPOINT_METADATA": _ON_RUN,
    "joint/checkpoints/2/state/_METADATA": _ON_RUN,
    "joint/checkpoints/2/state/manifest.ocdbt": _ON_RUN,
    "joint/checkpoints/2/state/d/*": _ON_RUN,
    "joint/skipped/2-2.json": ("replay",),
    "ar/config.json": ("generate ar", "export_hf ar"),
    "llada/config.json": ("generate llada",),
    "vae/config.json": ("train begun",),
    "vae/checkpoints/2/state/_METADATA": ("train begun",),
    "vae/checkpoints/2/state/manifest.ocdbt": ("train begun",),
    "records/metadata.json": ("train", "evaluate", "prepare_data again"),
    "records/tokenizer.model": ("train",),
    "records/train-*": ("train", "evaluate", "prepare_data again"),
    "records/validation-*": ("train", "evaluate"),
    "hf/cola_vae/config.json": ("import_hf",),
    "hf/cola_vae/model.safetensors": ("import_hf",),
    "hf/cola_dit/config.json": ("import_hf", "evaluate hf"),
    "hf/cola_dit/model.safetensors": ("import_hf", "evaluate hf"),
    "ar_hf/config.json": ("import_hf ar", "evaluate ar_hf"),
    "ar_hf/model.safetensors": ("import_hf ar",),
    "ar_hf/manifest.json": ("verify_export ar",),
    "llada_hf/config.json": ("import_hf llada",),
    "hf/tokenizer.model": ("import_hf",),
    "hf/manifest.json": ("verify_export",),
    "sharded/cola_dit/model.safetensors.index.json": ("import_hf sharded",),
    "sharded/cola_vae/model-*": ("import_hf sharded",),
    "tasks/mmlu.jsonl": ("evaluate tasks",),
    "tasks/lambada.parquet": ("evaluate tasks",),
    "tasks/story_cloze.csv": ("evaluate tasks",),
    "tasks/prompts.json": ("evaluate tasks",),
    "outputs/mmlu.jsonl": ("evaluate rescore",),
    "curves/runs/ar/config.json": ("scaling plot",),
    "curves/runs/ar/metrics.jsonl": ("scaling plot",),
    "curves/runs/ar/tasks/1/tasks.json": ("scaling plot", "report"),
    "text/a.txt": ("prepare_data", "train_tokenizer"),
    "text/a.jsonl": ("prepare_data", "train_tokenizer"),
    "text/a.jsonl.gz": ("prepare_data",),
    "text/a.jsonl.zst": ("prepare_data",),
    "text/a.parquet": ("prepare_data", "train_tokenizer"),
    "tokenizers/tokenizer.model": ("prepare_data",),
    "tokenizers/tokenizer.json": ("prepare_data json",),
}


def without_certificates(folder) -> list[str]:
    """What lies in a folder, but for what verify_export says of an export that is not its run's."""
    return [path for path in tree(folder) if not path.endswith(CERTIFICATE)]


# Of a restoration that failed TensorStore has threads that come to their end later, and find nobody who waits for it.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("pattern", "command"), [(pattern, command) for pattern, commands in FILES.items() for command in commands]
)
def test_a_damaged_file_is_no_traceback(pattern, command, things, tmp_path):
    thing = pattern.split("/")[0]
    for other in things.iterdir():
        if other.name != thing:
            (tmp_path / other.name).symlink_to(other)
    strategy = damage.JSON_DAMAGES if pattern.endswith((".json", ".jsonl", "_METADATA")) else damage.DAMAGES

    @seed(SEED)
    @settings(
        max_examples=COUNT, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @hypothesis.given(how=strategy)
    def check(how):
        damage.copy(things / thing, tmp_path / thing)
        file = sorted(tmp_path.glob(pattern))[0]
        damage.apply(how, file)
        before = without_certificates(tmp_path)
        try:
            status, _, errors = run(command.split()[0], given(command, tmp_path))
            assert status in (0, 2)
            if status:
                assert_refused(errors)
                # Of records that are others than the run's it is the run that says so.
                named = (str(tmp_path / thing), "config.", "facts.records was")
                assert any(name in errors for name in named)
                assert without_certificates(tmp_path) == before
        finally:
            for left in ("out", "out.model", "out.html"):
                path = tmp_path / left
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    check()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_on_whole_files_comes_to_its_end(command, things, tmp_path):
    shutil.copytree(things, tmp_path / "things")
    status, _, errors = run(command.split()[0], given(command, tmp_path / "things"))
    assert (status, errors) == (0, "")


def test_what_opens_but_cannot_be_read_is_named(things, tmp_path):
    damage.copy(things / "joint", tmp_path / "joint")
    damage.apply(("unreadable",), tmp_path / "joint" / "config.json")
    _, _, errors = run("generate", ["--workdir", str(tmp_path / "joint"), "--prompt", "Anna"])
    assert errors == f"error: {tmp_path}/joint/config.json: Input/output error\n"
