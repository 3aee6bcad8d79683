"""Texts for tests of the data path: many short documents, a long one; and what they become."""

import json
import random
from pathlib import Path

from colajax.data.prepare import prepare
from colajax.data.tokenizer import train_sentencepiece

WORDS = ["the", "river", "was", "cold", "and", "she", "<pad>", "</s>", "日本", "said:\n", "\n\n", "  "]
DOCUMENTS = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) + f" {i}." for i in range(120)]
LONG = "\n\n".join(" ".join(random.Random(i).choices(WORDS, k=300)) for i in range(90))


def write_corpus(path: Path, texts: list[str]) -> Path:
    """Writes the texts as .jsonl and returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def make_records(path: Path, texts: list[str], length: int, *, vocab_size: int = 400, **settings) -> Path:
    """Records of the texts with a tokenizer of their own, path / "t.model"; returns their folder, path / "r"."""
    train_sentencepiece(texts, path / "t.model", vocab_size)
    prepare([write_corpus(path / "a.jsonl", texts)], path / "t.model", path / "r", length, **settings)
    return path / "r"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
