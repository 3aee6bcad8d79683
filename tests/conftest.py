"""What several test files read: a small records folder."""

import os
import tempfile

import pytest
import tiny_runs

from colajax.data.prepare import prepare
from colajax.data.stories import stories, write_corpus
from colajax.data.tokenizer import train_sentencepiece

# Where transformers puts the classes of an export that it loads: each test process a place of its own.
_modules = tempfile.TemporaryDirectory(prefix="hf_modules")
os.environ["HF_MODULES_CACHE"] = _modules.name


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Stories as rows of tiny_runs.SEQUENCE_LENGTH tokens."""
    folder = tmp_path_factory.mktemp("stories")
    write_corpus(folder / "stories.jsonl", 200, seed=3)
    tokenizer = train_sentencepiece(stories(3, 200), folder / "tokenizer.model", 500)
    out = folder / "records"
    prepare([folder / "stories.jsonl"], tokenizer.path, out, tiny_runs.SEQUENCE_LENGTH, validation_fraction=0.2)
    return out


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Each golden folder imported as a run and exported again: see exports.export_goldens."""
    from exports import export_goldens  # torch is imported by the tests that need it alone

    return export_goldens(tmp_path_factory.mktemp("exported"))
