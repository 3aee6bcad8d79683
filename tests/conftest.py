"""What several test files read: a small records folder."""

import pytest
import tiny_runs

from colajax.data.prepare import prepare
from colajax.data.stories import stories, write_corpus
from colajax.data.tokenizer import train_sentencepiece


@pytest.fixture(scope="session")
def records(tmp_path_factory):
    """Stories as rows of tiny_runs.SEQUENCE_LENGTH tokens."""
    folder = tmp_path_factory.mktemp("stories")
    write_corpus(folder / "stories.jsonl", 200, seed=3)
    tokenizer = train_sentencepiece(stories(3, 200), folder / "tokenizer.model", 500)
    out = folder / "records"
    prepare([folder / "stories.jsonl"], tokenizer.path, out, tiny_runs.SEQUENCE_LENGTH, validation_fraction=0.2)
    return out
