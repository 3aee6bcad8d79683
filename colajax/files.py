"""Files and folders that are there whole or not at all, on local disk or in a bucket."""

import contextlib
import glob
import json
import logging
import os
import socket
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from colajax.errors import UserError

# gcsfs asks another service of Google's what kind of bucket it meets; where an identity may not ask that, at every call
# again, with a warning. What it would do better for other kinds (folders that are objects) is not needed here.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
# What they raise they also log, with the traceback, and the places where no credentials were.
logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
logging.getLogger("google.auth").setLevel(logging.CRITICAL)

AT_ONCE = 16  # requests to a bucket or a file server


@contextlib.contextmanager
def whole(path: epath.PathLike, *, last: str | None = None) -> Iterator[epath.Path]:
    """Yields a path beside `path` that does not exist, to write a file or a folder to; it takes the name `path` when
    the block ends, and is removed when the block raises.

    last: of a folder, the file without which readers take the folder for unfinished. A local folder is renamed at
    once; in a bucket objects are moved one by one, this one last. What blocks of this machine left behind that were
    killed is cleared first. Raises OSError where the place cannot be written, UserError where it is a device.
    """
    path = epath.Path(path)
    _check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_abandoned(path)
    partial = path.parent / f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}"
    try:
        yield partial
        if in_bucket(path):
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
    if in_bucket(path):
        path.write_bytes(content)
        return
    with whole(path) as partial:
        partial.write_bytes(content)


def check_writable(path: epath.PathLike) -> None:
    """Raises OSError or UserError where a file or folder could not be put at `path`; for before the work that makes it.
    Leaves nothing behind."""
    path = absolute(path)
    _check_place(path)
    folder = path.parent
    while not in_bucket(path) and not folder.exists():
        folder = folder.parent
    probe = folder / f"{path.name}.tmp-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror or error})", os.fspath(path)) from None


def _check_place(path: epath.Path) -> None:
    """Before anything is made: a name that no file may have raises OSError; what root may replace by a file, and must
    not, such as /dev/null, UserError."""
    try:
        kind = 0 if in_bucket(path) else os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if kind and not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise UserError(f"{path}: a device, a pipe or a socket; expected a place for a file or a folder")


def absolute(path: epath.PathLike) -> epath.Path:
    """An address as it is; a local path with the working directory before it (`epath` puts it before both)."""
    path = epath.Path(path)
    return path if in_bucket(path) else path.absolute()


def in_bucket(path: epath.PathLike) -> bool:
    """Whether it is an address such as gs://BUCKET/NAME."""
    return "://" in os.fspath(path)


def files_under(folder: epath.Path) -> list[epath.Path]:
    """Every file in a folder and the folders below, in no order (`epath` walks a bucket, but forgets the gs://)."""
    if in_bucket(folder):
        system, name = _file_system(folder)
        scheme = os.fspath(folder).partition("://")[0]
        return [epath.Path(f"{scheme}://{found}") for found in system.find(name)]
    return [parent / name for parent, _, names in folder.walk() for name in names]


def lengths(folder: epath.Path, names: Sequence[str]) -> list[int | None]:
    """The bytes of each of these files of a folder, None of one that is not there: in a bucket by one listing, on a
    disk by a look at each, several at a time, as a file server answers many at once."""
    if in_bucket(folder):
        system, name = _file_system(folder)
        found = {file["name"].rpartition("/")[2]: file["size"] for file in system.ls(name, detail=True, refresh=True)}
        return [found.get(name) for name in names]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda name: _length(f"{folder}/{name}"), names))


def _length(file: str) -> int | None:
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return None


def fetch(source: epath.Path, target: epath.Path) -> None:
    """Copies a file to a local disk, a bucket's in one request, and has it written there."""
    if in_bucket(source):
        system, name = _file_system(source)
        system.get_file(name, os.fspath(target))
    else:
        source.copy(target, overwrite=True)
    _to_disk(target)


def move(source: epath.Path, target: epath.Path) -> None:
    """Gives a file another name beside its own, or in the same bucket, where that is a copy and a removal."""
    if not in_bucket(source):
        source.replace(target)
        return
    system, name = _file_system(source)
    system.cp_file(name, _file_system(target)[1])
    source.unlink()  # by `epath`, which remembers what is in a folder


def give_name(source: epath.Path, target: epath.Path) -> None:
    """Gives a file another name in the same file system, which on a local disk costs no copy; it keeps its own."""
    if in_bucket(source):
        system, name = _file_system(source)
        system.cp_file(name, _file_system(target)[1])
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        source.copy(target)


def _file_system(path: epath.Path):
    import fsspec  # of epath's extras: there where there are addresses

    return fsspec.core.url_to_fs(os.fspath(path))


def _move_objects(partial: epath.Path, path: epath.Path, last: str | None) -> None:
    """One request an object: `epath` makes some fifteen. What was moved is removed with the rest of `partial`."""
    system, source = _file_system(partial)
    target = _file_system(path)[1]
    names = [name.removeprefix(source) for name in system.find(source)]  # "" for a file
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: system.cp_file(source + name, target + name), [n for n in names if n != f"/{last}"]))
    if f"/{last}" in names:
        system.cp_file(f"{source}/{last}", f"{target}/{last}")


def _to_disk(partial: epath.Path) -> None:
    """Without this a power failure may leave the name without the content."""
    for file in [partial] if partial.is_file() else files_under(partial):
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
    for found in path.parent.glob(f"{glob.escape(path.name)}.tmp-*"):
        number = found.name.removeprefix(mine)
        if not (found.name.startswith(mine) and number.isdecimal()):
            continue
        # This process' own number: a container that is started again has the name and the number it had before.
        if int(number) == os.getpid() or not process_runs(int(number)):
            _remove(found)


def process_runs(process: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read_json(path: epath.PathLike, *keys: str) -> dict:
    """The JSON object in a file. Raises UserError, naming the file, where it holds something else or lacks a key."""
    try:
        found = json.loads(epath.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); expected JSON; copy it again") from None
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing or not isinstance(found, dict):
        what = f" with {', '.join(missing)}" if missing else ""
        raise UserError(f"{path}: damaged; expected a JSON object{what}; copy it again")
    return found
