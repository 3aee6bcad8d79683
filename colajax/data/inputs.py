"""Which files are read as text."""

import os
from collections.abc import Sequence

from etils import epath

from colajax.errors import UserError
from colajax.files import files_under, in_bucket

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}  # as Arrow calls them; xz it does not read
# A compressed .json file holds lines, as web corpora have it; a plain one is as likely to hold one value, or settings.
SUFFIXES = (
    ".txt", ".jsonl", *(f"{kind}{by}" for kind in (".txt", ".jsonl", ".json") for by in COMPRESSIONS), ".parquet",
    ".arrow",
)  # fmt: skip
READ = f".txt, .jsonl, these and .json with {', '.join(COMPRESSIONS)} behind it, .parquet, .arrow"
CACHE = "cache-"  # begins the names of .arrow files in which the datasets library keeps what it has computed
NAMED = 10  # files in the line of what is left out


def find_files(path: epath.PathLike) -> list[epath.Path]:
    """The text files of a path: itself, or everything with one of SUFFIXES, in any case, anywhere below a folder.

    Sorted by name. Links are followed, and a folder that is reached twice is read once; what is hidden (a name that
    begins with a dot, in a hidden folder too) is left out.
    """
    path = epath.Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir():
        files = [file for file in _visible_files(path) if kind_of(file)]
        if not files:
            raise UserError(f"{path}: this folder holds no file that is read: {READ}")
        return files
    if not kind_of(path):
        raise UserError(f"{path}: unknown kind of file; expected {READ}")
    return [path]


def left_out(paths: Sequence[epath.PathLike]) -> str:
    """One line that names the visible files of these folders that `find_files` does not give; empty where it gives all.

    Of many files the first are named.
    """
    folders = [epath.Path(path) for path in paths if epath.Path(path).is_dir()]
    files = [str(file) for folder in folders for file in _visible_files(folder) if not kind_of(file)]
    if not files:
        return ""
    more = f", ... ({len(files) - NAMED} more)" if len(files) > NAMED else ""
    count = "1 file of another kind" if len(files) == 1 else f"{len(files)} files of other kinds"
    return f"left out: {count}: {', '.join(files[:NAMED])}{more}; read are {READ}"


def _visible_files(folder: epath.Path) -> list[epath.Path]:
    if in_bucket(folder):
        found = ((str(file), file) for file in files_under(folder))
        return [file for name, file in sorted(found) if "/." not in name.removeprefix(str(folder))]
    seen, files = set(), []
    for where, below, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (real := os.path.realpath(where)) in seen:  # a link back up, or a second one to the same place
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith("."))
        files += [epath.Path(where) / name for name in names if not name.startswith(".")]
    return sorted(files, key=str)


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be read ({error.strerror}); name folders that can") from error


def kind_of(file: epath.Path) -> str | None:
    """Which of SUFFIXES a file's name has; None where it is of no kind that is read."""
    kind = next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)
    return None if kind == ".arrow" and file.name.startswith(CACHE) else kind
