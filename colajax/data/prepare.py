"""Text files to a records folder: read, divide into train and validation, tokenise in parallel, pack, write.

The result depends on the text and the settings alone, not on the number of workers. No JAX here: workers start quickly.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby

import numpy as np
from etils import epath

from colajax.data.division import Division, Passage, choose_division, divide_tokens
from colajax.data.packing import pack, sections
from colajax.data.records import FORMAT_VERSION, SPLITS, Records, ShardWriter, identity, read_metadata
from colajax.data.text import find_files, left_out, read_documents
from colajax.data.token_files import TYPES, find_token_files, read_token_documents
from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.data.workers import tokenise
from colajax.errors import UserError
from colajax.files import whole

WINDOW_TOKENS = 2**24  # packed together; 64 MiB a split
PROGRESS_SECONDS = 10
LONGEST_ROW = 2**20  # packing keeps a list of so many; a row is read whole
MOST_WORKERS = 1024  # processes


def prepare(
    inputs: Sequence[epath.PathLike],
    tokenizer_path: epath.PathLike,
    out: epath.PathLike,
    sequence_length: int,
    *,
    validation_fraction: float = 0.02,
    text_field: str = "text",
    token_type: str | None = None,
    workers: int = 1,
    seed: int = 0,
    rows_per_shard: int = 65536,
) -> dict:
    """Writes a records folder and returns its metadata (see `records`).

    Whole documents are held out, chosen by a hash of their text; of a single document, stretches (see `division`). An
    end of text stands where a document ends and nowhere else.

    The folder is there whole or not at all. If it is already there, made from the same text with the same settings,
    nothing is done. Prints what is unusual in the corpus, and progress.

    Args:
        inputs: what `read_documents` takes.
        tokenizer_path: what `load_tokenizer` takes; it must have a pad and an end-of-text token.
        sequence_length: tokens a row.
        token_type: "uint16" or "uint32" where the inputs are the tokenizer's ids (see `token_files`), and not text.
        workers: processes that tokenise.

    Raises:
        UserError: a setting is out of range, an input is bad, a split would be empty, or `out` holds something else.
    """
    _check_ranges(sequence_length, validation_fraction, workers, rows_per_shard)
    if token_type not in (None, *TYPES):
        raise UserError(f"token_type {token_type!r}: expected {' or '.join(TYPES)}")
    if token_type is None and (note := left_out(inputs)):
        print(note, flush=True)
    out, tokenizer = epath.Path(out), load_tokenizer(tokenizer_path)
    for name, token_id in (("padding", tokenizer.pad_id), ("end-of-text", tokenizer.eos_id)):
        if token_id is None:
            raise UserError(f"{tokenizer.path}: has no {name} token, which packing needs; use another tokenizer")
    for word in tokenizer.lost_words:
        raise UserError(
            f"{tokenizer.path}: {word!r} is an ordinary word in it too, and a text would lose it; use another tokenizer"
        )
    find = partial(find_token_files, kind=token_type) if token_type else find_files
    files = [file for path in inputs for file in find(path)]
    metadata = {
        "format_version": FORMAT_VERSION,
        "sequence_length": sequence_length,
        "tokenizer": {
            "digest": tokenizer.digest,
            "file": f"tokenizer{tokenizer.path.suffix}",
            "vocab_size": tokenizer.vocab_size,
            "pad_id": tokenizer.pad_id,
            "eos_id": tokenizer.eos_id,
        },
        "settings": {
            "validation_fraction": validation_fraction,
            "text_field": text_field,
            "seed": seed,
            "rows_per_shard": rows_per_shard,
            **({"token_type": token_type} if token_type else {}),
        },
        "source": [_describe(file) for file in files],
    }
    if out.exists():
        return _existing(out, metadata)
    try:
        with whole(out, last="metadata.json") as unfinished:
            unfinished.mkdir()
            if token_type:
                documents = partial(read_token_documents, inputs, token_type, tokenizer)
                division, note = divide_tokens(documents, validation_fraction, seed)
                stream = _given(documents(), division)
            else:
                documents = partial(read_documents, inputs, text_field)
                division, note = choose_division(documents, validation_fraction, seed)
                stream = _tokenised(division.passages(documents()), tokenizer, workers)
            if note:
                print(note, flush=True)
            metadata["divided_by"] = division.of
            metadata["splits"] = _write_splits(stream, unfinished, metadata)
            tokenizer.path.copy(unfinished / metadata["tokenizer"]["file"])
            (unfinished / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); name another --out") from error
    return metadata


def _check_ranges(sequence_length: int, validation_fraction: float, workers: int, rows_per_shard: int) -> None:
    if not 2 <= sequence_length <= LONGEST_ROW:
        raise UserError(f"sequence_length {sequence_length}: expected 2 to {LONGEST_ROW}")
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction {validation_fraction}: expected a number between 0 and 1")
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"workers {workers}: expected 1 to {MOST_WORKERS}")
    if not 1 <= rows_per_shard < 2**31:
        raise UserError(f"rows_per_shard {rows_per_shard}: expected at least 1, less than 2**31")


def _describe(file: epath.Path) -> dict:
    try:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"file": str(file), "bytes": stream.tell(), "sha256": digest}
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error


def _existing(out: epath.Path, wanted: dict) -> dict:
    """The metadata of the folder that is there, if it is what is wanted."""
    found, remedy = read_metadata(out), "remove it or choose another --out"
    version, now = found["format_version"], wanted["format_version"]
    for key, value in identity(wanted | {"format_version": version}).items():
        if (other := identity(found).get(key)) != value:
            detail = "" if isinstance(value, list) else f" ({other}, now {value})"
            raise UserError(f"{out}: already there with another {key}{detail}; {remedy}")
    for split in SPLITS:
        Records.open(out, split)
    older = f" (of format {version}, which is read; remove it to have format {now}, see records.py)"
    print(f"{out} is up to date{older if version < now else ''}", flush=True)
    return found


class _Split:
    """What one split gathers while the corpus streams by."""

    def __init__(self, name: str, directory: epath.Path, metadata: dict):
        self._length, self._tokenizer = metadata["sequence_length"], metadata["tokenizer"]
        self._shards = ShardWriter(directory, name, metadata["settings"]["rows_per_shard"])
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
        eos_id, pad_id = self._tokenizer["eos_id"], self._tokenizer["pad_id"]
        packed = pack(self._window, self._length, eos_id, pad_id, self._unfinished)
        self._shards.write(packed.rows)
        self._rows += len(packed.rows)
        self._tokens += packed.tokens
        self._cut += packed.cut
        self._window, self._unfinished, self._window_tokens = [], set(), 0

    def close(self) -> dict:
        """The split's part of metadata.json."""
        if self._window:
            self._pack_window()
        return {
            "rows": self._rows,
            "tokens": self._tokens,
            "documents": self._documents,
            "padding_share": 1 - self._tokens / max(1, self._rows * self._length),
            "cut_share": self._cut / max(1, self._tokens),
            "shards": self._shards.close(),
        }


def _given(documents: Iterable[np.ndarray], division: Division) -> Iterator[tuple]:
    """As `_tokenised`."""
    for index, document in enumerate(documents):
        yield (index, Passage(index, division.split(document.tobytes()), "", ends=True)), document


def _tokenised(passages: Iterable[Passage], tokenizer: Tokenizer, workers: int) -> Iterator[tuple]:
    """((number of the passage, the passage without its text), tokens of a part of it)."""
    # A long passage is tokenised in sections, by several processes, unless that would change its text.
    parts = sections if tokenizer.joins else lambda text: [text]
    texts = (
        ((i, passage._replace(text="")), text) for i, passage in enumerate(passages) for text in parts(passage.text)
    )
    yield from tokenise(texts, tokenizer, workers)


def _write_splits(stream: Iterable[tuple], directory: epath.Path, metadata: dict) -> dict:
    splits = {name: _Split(name, directory, metadata) for name in SPLITS}
    tokens_so_far, started = 0, time.monotonic()
    next_report = started + PROGRESS_SECONDS
    for (_, (document, split, _, ends)), run in groupby(stream, key=lambda item: item[0]):
        tokens = np.concatenate([tokens for _, tokens in run])
        splits[split].add(document, tokens, ends=ends)
        tokens_so_far += len(tokens)
        if (now := time.monotonic()) > next_report:
            rate = tokens_so_far / (now - started)
            print(f"{document + 1:,} documents, {tokens_so_far:,} tokens, {rate:,.0f} tokens/s", flush=True)
            next_report = now + PROGRESS_SECONDS
    written = {name: split.close() for name, split in splits.items()}
    for name, split in written.items():
        if not split["rows"]:
            raise UserError(f"nothing fell to {name}: the text is too short to be divided; give more text")
    return written
