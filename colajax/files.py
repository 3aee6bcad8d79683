"""Files and folders that are there whole or not at all, on local disk or in a bucket."""

import contextlib
import os
import socket
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def whole(path: epath.PathLike, *, last: str | None = None) -> Iterator[epath.Path]:
    """Yields a path beside `path` that does not exist, to write a file or a folder to; it takes the name `path` when
    the block ends, and is removed when the block raises.

    last: of a folder, the file without which readers take the folder for unfinished. A local folder is renamed at
    once; in a bucket objects are moved one by one, this one last. What blocks of this machine left behind that were
    killed is cleared first. Raises OSError where the place cannot be written.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    partial = path.parent / f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}"
    try:
        yield partial
        if _in_bucket(path):
            _move_objects(partial, path, last)
        else:
            _to_disk(partial)
            partial.replace(path)
    finally:
        _remove(partial)


def write_whole(path: epath.PathLike, content: str | bytes) -> None:
    """Writes a small file: a reader meets the old content or the new. In a bucket an object is whole by itself."""
    path = epath.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if _in_bucket(path):
        path.write_bytes(content)
        return
    with whole(path) as partial:
        partial.write_bytes(content)


def _in_bucket(path: epath.Path) -> bool:
    return "://" in os.fspath(path)


def _move_objects(partial: epath.Path, path: epath.Path, last: str | None) -> None:
    if not partial.is_dir():
        partial.replace(path)
        return
    files = [folder / name for folder, _, names in partial.walk() for name in names]
    for file in sorted(files, key=lambda file: os.fspath(file.relative_to(partial)) == last):
        target = path / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)


def _to_disk(partial: epath.Path) -> None:
    """Without this a power failure may leave the name without the content."""
    files = [partial] if partial.is_file() else [folder / name for folder, _, names in partial.walk() for name in names]
    for file in files:
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())


def _remove(path: epath.Path) -> None:
    if path.is_dir():
        path.rmtree()
    else:
        path.unlink(missing_ok=True)


def _clear_abandoned(path: epath.Path) -> None:
    """Removes what processes of this machine left beside `path` that are no more."""
    mine = f"{path.name}.tmp-{socket.gethostname()}-"
    for found in path.parent.glob(f"{path.name}.tmp-*"):
        number = found.name.removeprefix(mine)
        if found.name.startswith(mine) and number.isdigit() and not _runs(int(number)):
            _remove(found)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
