"""Files and folders that may be in a bucket, as local ones: safetensors writes and transformers reads no others.

What is in a bucket goes through a temporary folder (TMPDIR says where) and is removed from there at once.
"""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from colajax.files import files_under, in_bucket

_COPIED_AT_ONCE = 16 * 2**20  # bytes


@contextlib.contextmanager
def written_to(path: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yields a local path to write a file to, which is at `path` when the block ends."""
    path = epath.Path(path)
    if not in_bucket(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="colajax_") as folder:
        local = epath.Path(folder) / path.name
        yield pathlib.Path(local)
        _copy(local, path)


@contextlib.contextmanager
def fetched(folder: epath.PathLike) -> Iterator[pathlib.Path]:
    """Yields `folder` as a local one; the whole of it is copied where it is in a bucket."""
    folder = epath.Path(folder)
    if not in_bucket(folder):
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="colajax_") as local:
        for file in files_under(folder):
            target = epath.Path(local) / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(file, target)
        yield pathlib.Path(local)


def _copy(source: epath.Path, target: epath.Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, _COPIED_AT_ONCE)
