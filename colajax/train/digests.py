"""Digests of the files of a checkpoint: the last thing written before it gets its name, compared before it is read.

Orbax keeps none, and a flipped bit in an array is another number to it.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from colajax.errors import UserError
from colajax.files import files_under, read_json, write_whole

FILE = "digests.json"
# Of a checkpoint as a whole: a change of what TrainState holds or of how it is stored is another one. In every format
# "digest" is of "files", or what is newer would be taken for damaged.
FORMAT = 1
THREADS = 8
PIECE = 8 * 2**20  # bytes that are read at once
METADATA = "_CHECKPOINT_METADATA"  # JSON, to which Orbax adds the last of TIMES afterwards
TIMES = ("init_timestamp_nsecs", "commit_timestamp_nsecs")
NO_STATE = (FILE, "commit_success.txt")  # the other is Orbax's mark, empty or not


def write_digests(folder: epath.Path) -> None:
    """FOLDER/digests.json: {"format": 1, "files": {name: sha256}, "digest": of files} of all that is in the folder."""
    files = dict(sorted(_digests(folder).items()))
    content = {"format": FORMAT, "files": files, "digest": _digest_of(files)}
    write_whole(folder / FILE, json.dumps(content, indent=1) + "\n")


def has_digests(folder: epath.Path) -> bool:
    """Not so of a checkpoint that is older than they are."""
    return (folder / FILE).exists()


def damage_of(folder: epath.Path) -> str | None:
    """What is wrong with a file, None where all are as they were written. Raises UserError on a format that this
    version does not know."""
    try:
        kept = read_json(folder / FILE, "format", "files", "digest")
    except UserError:
        return f"{FILE} is not what was written"
    if kept["digest"] != _digest_of(kept["files"]):
        return f"{FILE} is not what was written"
    if kept["format"] != FORMAT:
        raise UserError(f"{folder / FILE}: format {kept['format']!r}; this version of colajax reads {FORMAT}")
    found = _digests(folder)
    for name, digest in kept["files"].items():
        if found.get(name) != digest:
            return f"{name} is {'not what was written' if name in found else 'missing'}"
    return None


def _digest_of(value) -> str:
    """SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _digests(folder: epath.Path) -> dict[str, str]:
    """{name: SHA-256} of what is in the folder, but for NO_STATE."""
    found = {str(file.relative_to(folder)): file for file in files_under(folder)}
    files = {name: found[name] for name in found.keys() - set(NO_STATE)}
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(files, pool.map(_digest, files.values()), strict=True))


def _digest(file: epath.Path) -> str:
    if file.name == METADATA:
        return _digest_of(_without_times(file.read_bytes()))
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _without_times(content: bytes) -> dict | None:
    try:
        return {key: value for key, value in json.loads(content).items() if key not in TIMES}
    except (ValueError, AttributeError, RecursionError):  # no JSON object: it is not what was written
        return None
