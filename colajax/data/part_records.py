"""A part of the input to records of its own: a pure function of the part and the job, wherever it is run.

What is done lies in the job's folder under the name of the part, whole or not at all, and is not done again.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from colajax.data.division import Division, Passage
from colajax.data.engines import count
from colajax.data.packing import pack, sections
from colajax.data.parts import Part, Reading, Tally, content_of, name_of, read_part
from colajax.data.records import SPLITS, ShardWriter
from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError
from colajax.files import read_json, whole, write_whole

WINDOW_TOKENS = 2**24  # packed together; 64 MiB a split
COUNTS = "part.json"
HASH_BYTES = 16  # of a document, by which copies are found: 1e9 documents meet by chance once in 1e20 corpora


class Job(NamedTuple):
    """What decides the records of a part, beside its text.

    Attributes:
        folder: of what is done, local or in a bucket; every process sees it.
        tokenizer, tokenizer_digest: its file, and what that has to be.
        division: None where nothing but hashes is asked for.
        corpus: what tells this corpus from others, where copies of documents in other parts are left out; else "".
    """

    folder: str
    tokenizer: str
    tokenizer_digest: str
    reading: Reading
    sequence_length: int
    rows_per_shard: int
    division: Division | None = None
    corpus: str = ""

    def path(self, part: Part) -> epath.Path:
        """The folder of its records."""
        settings = (self.tokenizer_digest, self.reading, self.sequence_length, self.rows_per_shard, self.division)
        return epath.Path(self.folder) / name_of(part, *settings, self.corpus)

    def hashes(self, part: Part) -> epath.Path:
        """The file of its documents' hashes, uint64 [documents, 2]."""
        return epath.Path(self.folder) / f"{name_of(part, self.tokenizer_digest, self.reading)}.hashes"

    def copies(self, part: Part) -> epath.Path:
        """The file of which of its documents are copies: numbers of them, int64."""
        return epath.Path(self.folder) / f"{name_of(part, self.tokenizer_digest, self.reading, self.corpus)}.copies"


def prepare_part(job: Job, part: Part) -> dict:
    """Writes the shards of a part and returns what is counted of it, which is written beside them, last:

    {"sha256", "found", "left_out", "bad": see `parts.Tally`; "splits": {name: {rows, tokens, cut, documents, shards}}}
    """
    folder = job.path(part)
    if not (folder / COUNTS).exists():
        try:
            with whole(folder, last=COUNTS) as unfinished:
                unfinished.mkdir()
                (unfinished / COUNTS).write_text(json.dumps(_write(job, part, unfinished)) + "\n")
        except OSError:
            if not (folder / COUNTS).exists():  # or another process was faster, and has written the same
                raise
    return read_json(folder / COUNTS, "sha256", "found", "left_out", "bad", "splits")


def _write(job: Job, part: Part, folder: epath.Path) -> dict:
    tokenizer, tally = _tokenizer_of(job), Tally()
    documents = read_part(part, job.reading, tokenizer, tally)
    if job.corpus:
        documents = _without(documents, set(_load(job.copies(part)).tolist()), tally)
    splits = {name: _Split(name, folder, job, tokenizer) for name in SPLITS}
    stream = _given(documents, job.division) if job.reading.token_type else _tokenised(documents, job, tokenizer)
    for passage, tokens in stream:
        splits[passage.split].add(passage.document, tokens, ends=passage.ends)
    return {
        "splits": {name: split.close() for name, split in splits.items()},
        "sha256": tally.digest, "found": tally.found, "left_out": dict(tally.left_out), "bad": tally.bad,
    }  # fmt: skip


def hash_part(job: Job, part: Part) -> dict:
    """Writes the hashes of a part's documents."""
    file, tally = job.hashes(part), Tally()
    if not file.exists():
        documents = read_part(part, job.reading, _tokenizer_of(job), tally)
        hashes = [hashlib.blake2b(content_of(document), digest_size=HASH_BYTES).digest() for document in documents]
        _save(file, np.frombuffer(b"".join(hashes), "<u8").reshape(-1, 2))
    return {}


def digest_part(job: Job, part: Part) -> dict:
    """Only reads a part: {"sha256"} as of `prepare_part`."""
    tally = Tally()
    for _ in read_part(part, job.reading, _tokenizer_of(job), tally):
        pass
    return {"sha256": tally.digest}


def find_copies(job: Job, parts: Sequence[Part]) -> None:
    """Writes of each part which of its documents have come before, in it or in an earlier part; its hashes are there.
    Takes some 40 bytes of memory a document of the corpus."""
    hashes = [_load(job.hashes(part)) for part in parts]
    ends = np.cumsum([len(of_part) for of_part in hashes])
    together = np.concatenate(hashes)
    order = np.lexsort(together.T)  # stable: of equal ones the first comes first
    equal = (together[order[1:]] == together[order[:-1]]).all(axis=1)
    copies = np.sort(order[1:][equal])
    for part, end, of_part in zip(parts, ends, hashes, strict=True):
        first = end - len(of_part)
        _save(job.copies(part), copies[np.searchsorted(copies, first) : np.searchsorted(copies, end)] - first)


def _save(file: epath.Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    write_whole(file, content.getvalue())


def _load(file: epath.Path) -> np.ndarray:
    return np.load(io.BytesIO(file.read_bytes()))


def _without(documents: Iterable, copies: set[int], tally: Tally) -> Iterator:
    for number, document in enumerate(documents):
        if number in copies:
            tally.left_out["copy"] += 1
        else:
            yield document


def _tokenizer_of(job: Job) -> Tokenizer:
    tokenizer = _load_tokenizer(job.tokenizer, job.tokenizer_digest)
    if tokenizer.digest != job.tokenizer_digest:
        raise UserError(f"{job.tokenizer}: changed since the preparation began; run the same command again")
    return tokenizer


@functools.lru_cache(maxsize=1)
def _load_tokenizer(path: str, digest: str) -> Tokenizer:
    """Once a process and content."""
    return load_tokenizer(path)


def _given(documents: Iterable[np.ndarray], division: Division) -> Iterator[tuple[Passage, np.ndarray]]:
    for index, document in enumerate(documents):
        yield Passage(index, division.split(document.tobytes()), "", ends=True), document


def _tokenised(documents: Iterable[str], job: Job, tokenizer: Tokenizer) -> Iterator[tuple[Passage, np.ndarray]]:
    # A long passage is tokenised in sections, which is quicker, unless that would change its text.
    cut = sections if tokenizer.joins else lambda text: [text]
    for passage in job.division.passages(documents):
        pieces = [np.array(tokenizer.encode(section), np.uint32) for section in cut(passage.text)]
        yield passage, pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class _Split:
    """What one split gathers while a part streams by."""

    def __init__(self, name: str, directory: epath.Path, job: Job, tokenizer: Tokenizer):
        self._length, self._tokenizer = job.sequence_length, tokenizer
        self._shards = ShardWriter(directory, name, job.rows_per_shard)
        self._window: list[np.ndarray] = []
        self._unfinished: set[int] = set()  # in the window: stretches that do not end their document
        self._window_tokens = self._rows = self._tokens = self._cut = self._documents = 0
        self._last_document = -1

    def add(self, document: int, tokens: np.ndarray, *, ends: bool) -> None:
        self._documents += document != self._last_document
        self._last_document = document
        if not ends:
            self._unfinished.add(len(self._window))
        self._window.append(tokens)
        self._window_tokens += len(tokens)
        if self._window_tokens >= WINDOW_TOKENS:
            self._pack_window()

    def _pack_window(self) -> None:
        eos_id, pad_id = self._tokenizer.eos_id, self._tokenizer.pad_id
        packed = pack(self._window, self._length, eos_id, pad_id, self._unfinished)
        self._shards.write(packed.rows)
        count(packed.tokens)
        self._rows += len(packed.rows)
        self._tokens += packed.tokens
        self._cut += packed.cut
        self._window, self._unfinished, self._window_tokens = [], set(), 0

    def close(self) -> dict:
        if self._window:
            self._pack_window()
        return {
            "rows": self._rows, "tokens": self._tokens, "cut": self._cut, "documents": self._documents,
            "shards": self._shards.close(),
        }  # fmt: skip
