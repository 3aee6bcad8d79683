"""Copies of records on a local disk, made once for all processes of a machine and all runs there."""

import contextlib
import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from colajax.data.records import AGAIN, read_metadata
from colajax.errors import UserError, tell
from colajax.files import AT_ONCE, fetch, in_bucket, lengths, write_whole


def local_copies(
    folders: Sequence[epath.PathLike], cache: epath.PathLike, moved: Callable[[], None] = lambda: None
) -> list[epath.Path]:
    """The folders under `cache` that hold copies of these records folders, whole; made where they are not there yet.

    A folder's name has a digest of the metadata, so that records which were prepared again are copied again. A shard
    is there in its length or not at all, and metadata.json comes last: what was killed is gone on with. Of a machine's
    processes one copies and the others wait. moved() is called whenever there is something new, and while they wait.

    Raises UserError where `cache` is in a bucket or has not the room for all that is missing, which is seen before
    anything is copied, and where a shard has not the bytes that the metadata states.
    """
    cache = epath.Path(cache)
    if in_bucket(cache):
        raise UserError(f"config.records_cache is {cache}: expected a folder on a local disk")
    of = {epath.Path(folder): read_metadata(folder) for folder in folders}
    copies = {folder: cache / f"{folder.name}-{_digest(metadata)}" for folder, metadata in of.items()}
    if not all(map(_is_whole, copies.values())):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / "lock", moved):
            missing = {folder: _missing(of[folder], copy) for folder, copy in copies.items() if not _is_whole(copy)}
            _check_room(cache, missing)
            for folder, shards in missing.items():
                _copy(folder, copies[folder], of[folder], shards, moved)
    return list(copies.values())


def _digest(metadata: Mapping) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()[:12]


def _is_whole(copy: epath.Path) -> bool:
    return (copy / "metadata.json").exists()


def _missing(metadata: Mapping, copy: epath.Path) -> dict[str, int]:
    """The bytes of each shard that is not there yet."""
    shards = {shard["file"]: shard["bytes"] for split in metadata["splits"].values() for shard in split["shards"]}
    found = lengths(copy, list(shards))
    return {name: size for (name, size), length in zip(shards.items(), found, strict=True) if length != size}


def _check_room(cache: epath.Path, missing: Mapping[epath.Path, Mapping[str, int]]) -> None:
    needed, free = sum(sum(shards.values()) for shards in missing.values()), shutil.disk_usage(cache).free
    if needed > free:
        raise UserError(
            f"{cache}: {free / 1e9:,.2f} GB free, and a copy of {', '.join(map(str, missing))} takes "
            f"{needed / 1e9:,.2f} GB more; name a larger disk as config.records_cache, or none"
        )


def _copy(
    folder: epath.Path, copy: epath.Path, metadata: Mapping, shards: Mapping[str, int], moved: Callable[[], None]
) -> None:
    tell(f"{folder}: {len(shards):,} shards, {sum(shards.values()) / 1e9:,.2f} GB, to {copy}")
    copy.mkdir(exist_ok=True)

    def copied(name: str) -> None:
        _fetch_whole(folder / name, copy / name, shards.get(name))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            for _ in pool.map(copied, [*shards, metadata["tokenizer"]["file"]]):
                moved()
        finally:
            pool.shutdown(cancel_futures=True)  # or all the others would be copied before an error is told
    write_whole(copy / "metadata.json", json.dumps(metadata))


def _fetch_whole(source: epath.Path, target: epath.Path, expected: int | None) -> None:
    unfinished = target.parent / f"{target.name}.unfinished"
    fetch(source, unfinished)
    length = unfinished.stat().length
    if expected not in (None, length):
        unfinished.unlink()
        raise UserError(f"{source}: {length} bytes, metadata.json says {expected}; {AGAIN}")
    unfinished.replace(target)


@contextlib.contextmanager
def _alone(lock: epath.Path, moved: Callable[[], None]) -> Iterator[None]:
    """For as long as no other process of this machine is in such a block, or has been killed in it."""
    with open(lock, "w") as file:
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            moved()
            time.sleep(0.5)
        yield
