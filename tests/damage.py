"""Files damaged in every way that a disk, a transfer or a user damages them, as hypothesis strategies."""

import json
import shutil
from pathlib import Path

from hypothesis import strategies as st

HOSTILE = (None, True, -1, 0, 1e308, 10**30, "", "x", "../x", [], [[]], {}, {"x": 1})
PLACES = st.floats(0, 1, exclude_max=True)  # of a file or a tree, as a share of it
DAMAGES = st.one_of(
    st.sampled_from([("empty",), ("folder",), ("dangling",), ("loop",), ("removed",), ("unreadable",)]),
    st.tuples(st.just("truncated"), PLACES),
    st.tuples(st.just("flipped"), st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=8)),
    st.tuples(st.just("random"), st.binary(min_size=1, max_size=200)),
)
# Well-formed, with one value that does not belong there, or without one.
JSON_DAMAGES = st.one_of(DAMAGES, st.tuples(st.just("value"), PLACES, st.sampled_from([*HOSTILE, "delete"])))


def apply(damage: tuple, file: Path) -> None:
    """Damages the file in place."""
    kind, *how = damage
    blob = file.read_bytes()
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind in ("dangling", "loop", "unreadable"):  # of the last, root can open but not read what it names
        file.symlink_to({"dangling": "nowhere", "loop": file.name, "unreadable": "/proc/self/mem"}[kind])
    elif kind != "removed":
        file.write_bytes(_damaged(kind, how, blob))


def _damaged(kind: str, how: list, blob: bytes) -> bytes:
    if kind == "empty":
        return b""
    if kind == "truncated":
        return blob[: int(how[0] * len(blob))]
    if kind == "random":
        return how[0]
    if kind == "flipped":
        changed = bytearray(blob)
        for place, bits in how[0]:
            changed[int(place * len(blob))] ^= bits
        return bytes(changed)
    place, value = how
    lines = blob.decode().splitlines() if blob.count(b"\n{") else [blob.decode()]
    trees = [json.loads(line) for line in lines]
    places = [x for tree in trees for x in _places(tree)]
    node, key = places[int(place * len(places))]
    if value == "delete":
        del node[key]
    else:
        node[key] = value
    return "".join(json.dumps(tree) + "\n" for tree in trees).encode()


def _places(tree):
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from _places(tree[key])


def copy(thing: Path, to: Path) -> None:
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(thing, to, symlinks=True)
