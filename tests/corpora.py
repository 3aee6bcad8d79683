"""Texts for tests of the data path: many short documents, a long one."""

import json
import random
from pathlib import Path

WORDS = ["the", "river", "was", "cold", "and", "she", "<pad>", "</s>", "日本", "said:\n", "\n\n", "  "]
DOCUMENTS = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) + f" {i}." for i in range(120)]
LONG = "\n\n".join(" ".join(random.Random(i).choices(WORDS, k=300)) for i in range(90))


def write_corpus(path: Path, texts: list[str]) -> Path:
    """Writes the texts as .jsonl and returns the path."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path
