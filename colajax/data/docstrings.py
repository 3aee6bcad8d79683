"""A corpus of real prose that every machine with Python has: the docstrings of the installation itself."""

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

MIN_CHARACTERS = 200
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def gather_docstrings(limit_characters: int = 3_000_000) -> Iterator[str]:
    """Distinct docstrings of at least MIN_CHARACTERS characters, cleaned as by `inspect.cleandoc`.

    Standard library first, then site-packages, by path, until `limit_characters` are gathered. The source is parsed,
    not imported; a file that cannot be read or parsed is skipped. One installation always gives the same texts in the
    same order.
    """
    seen, characters = set(), 0
    for path in _source_files():
        for text in _docstrings(path):
            if len(text) < MIN_CHARACTERS or text in seen:
                continue
            if characters + len(text) > limit_characters:
                return
            seen.add(text)
            characters += len(text)
            yield text


def _source_files() -> Iterator[Path]:
    standard, *packages = dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    for root in (standard, *packages):
        for folder, subfolders, files in os.walk(root):
            # Inside the standard library, site-packages is a root of its own and the tests hold no prose.
            subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "test", "tests"})
            yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))


def _docstrings(path: Path) -> list[str]:
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    # An escape such as \ud800 is legal in a string literal, but no text: UTF-8 cannot hold it.
    return [doc.encode(errors="ignore").decode() for doc in docs]
