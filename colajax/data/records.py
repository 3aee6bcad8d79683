"""Records: the one on-disk form of training data. A folder, complete in itself:

    metadata.json                          what is in it, written last
    tokenizer.model or tokenizer.json      a copy of the tokenizer that made it
    train-00000-of-00004.array_record      rows: sequence_length token ids each, little-endian uint32
    validation-00000-of-00001.array_record

metadata.json: {format_version, sequence_length, tokenizer: {digest, file, vocab_size, pad_id, eos_id},
settings: {validation_fraction, text_field, seed, rows_per_shard, and what else is not as usual}, inputs: of files that
have neither moved nor changed the same, source: [{file, files, bytes, sha256}] of each part (see `parts`), left_out:
{reason: documents}, divided_by, splits: {train and validation: {rows, tokens, documents, padding_share, cut_share,
shards: [{file, rows, bytes}]}}}.
`tokens` are those that are not padding; padding_share is of all entries, cut_share of tokens (see `packing.Packed`),
both from 0 to 1. divided_by is "document" where whole documents are held out, "section" where stretches of a single
document are (see `division`); that one counts in each split.

Formats 1 and 2, which are read but no longer written, packed a text as a whole and knew it by the digests of its files;
a text of one part has the same rows in 2 and 3. Format 1 has no divided_by: sections of every long document were dealt
to both splits, and an end of text stands after each stretch of one split.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from colajax.data.shards import Shards
from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError, refusal_of, warn
from colajax.files import in_bucket, lengths, move

FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, 3)
SPLITS = ("train", "validation")
AGAIN = "copy or prepare the records again"
DAMAGED = ("stop", "skip")  # what a row that is damaged is to lead to
FEW = 10  # of them are skipped in any records, of large ones so many:
SHARE = 0.001


class DamagedRow(UserError):
    """A row that is not what was written."""


class ShardWriter:
    """Writes the rows of one split into shards of at most `rows_per_shard`; `close` gives them their names."""

    def __init__(self, directory: epath.Path, split: str, rows_per_shard: int):
        self._directory, self._split, self._rows_per_shard = directory, split, rows_per_shard
        self._writer: ArrayRecordWriter | None = None
        # array_record reads from a bucket, but writes to local files alone.
        self._local = tempfile.TemporaryDirectory(prefix="shards-") if in_bucket(directory) else None
        self._rows: list[int] = []  # of each shard so far

    def _unfinished(self, index: int) -> epath.Path:
        return self._directory / f"{self._split}-{index:05d}.unfinished"

    def _written(self) -> epath.Path:
        """Where the library writes the last shard."""
        unfinished = self._unfinished(len(self._rows) - 1)
        return epath.Path(self._local.name) / unfinished.name if self._local else unfinished

    def write(self, rows: np.ndarray) -> None:
        """Appends rows, uint32 [rows, sequence_length]."""
        for row in rows:
            if self._writer is None:
                # One row a group: a random read decompresses one row.
                self._rows.append(0)
                self._writer = ArrayRecordWriter(str(self._written()), "group_size:1")
            self._library(self._writer.write, row.astype("<u4").tobytes())
            self._rows[-1] += 1
            if self._rows[-1] == self._rows_per_shard:
                self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self._library(self._writer.close)
            self._writer = None
            if self._local:
                self._written().copy(self._unfinished(len(self._rows) - 1))
                self._written().unlink()

    def _library(self, function, *args) -> None:
        try:
            function(*args)
        except RuntimeError as error:
            raise UserError(f"{self._directory}: cannot write a shard ({_one_line(error)})") from error

    def close(self) -> list[dict]:
        """Finishes the last shard and returns the metadata of all: [{file, rows, bytes}]."""
        self._finish_shard()
        shards = []
        for index, rows in enumerate(self._rows):
            file = self._directory / f"{self._split}-{index:05d}-of-{len(self._rows):05d}.array_record"
            move(self._unfinished(index), file)
            shards.append({"file": file.name, "rows": rows, "bytes": file.stat().length})
        return shards


class Records:
    """The rows of one split, in random access: len(records), records[i] -> int32 [sequence_length]. Thread-safe."""

    def __init__(self, directory: epath.Path, split: str, metadata: Mapping, damaged: str = "stop"):
        self.directory, self.split, self.metadata = directory, split, metadata
        self._skips, self._skipped = damaged == "skip", set()
        shards = metadata["splits"][split]["shards"]
        self._shards = Shards([f"{directory}/{s['file']}" for s in shards], [s["rows"] for s in shards])

    @classmethod
    def open(cls, directory: epath.PathLike, split: str, damaged: str = "stop", *, check: bool = True) -> "Records":
        """Opens "train" or "validation": looks whether every shard is there in its length, and reads the first row.

        A start thus costs one listing and not a read of every shard; what is inside a shard is checked with every row.

        Args:
            damaged: of DAMAGED; with "skip", `read` has the next row that is whole in place of one that is damaged.
            check: of many processes that open the same folder one needs to look at its shards; the others trust the
                metadata, and a shard that is not as it says is named when a row of it is read.

        Raises:
            UserError: not a records folder, a version this code does not know, or a shard that is missing or has not
                the bytes or the row length that the metadata states.
        """
        directory = epath.Path(directory)
        metadata = read_metadata(directory)
        if split not in metadata["splits"]:
            raise UserError(f"{directory}: no split {split!r}; it has {', '.join(metadata['splits'])}")
        if check:
            _check_shards(directory, metadata["splits"][split]["shards"])
        records = cls(directory, split, metadata, damaged)
        records.read([0])
        return records

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        try:
            (record,) = self._shards.begin([index])()
        except RuntimeError as error:
            if refused := refusal_of(error):  # what is away for now, as a bucket may be, is no damage
                raise type(refused)(f"{self._place(index)} cannot be read ({refused})") from error
            kind = DamagedRow if "Corrupted" in str(error) else UserError
            raise kind(f"{self._place(index)} is damaged ({_one_line(error)}); {AGAIN}") from error
        if len(record) != 4 * self.metadata["sequence_length"]:
            expected = self.metadata["sequence_length"]
            found = f"has {len(record) / 4:g} tokens, metadata.json says {expected}"
            raise UserError(f"{self._place(index)} {found}; {AGAIN}")
        return np.frombuffer(record, "<u4").astype(np.int32)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Some rows, each shard's in one go and the shards beside each other: int32 [len(indices), sequence_length]."""
        return self.begin(indices)()

    def begin(self, indices: Sequence[int]) -> Callable[[], np.ndarray]:
        """Begins `read`; what is returned waits for the rows."""
        reading = self._shards.begin(indices)

        def finish() -> np.ndarray:
            try:
                found = reading()
            except RuntimeError:
                found = []
            if len(found) != len(indices) or any(len(row) != 4 * self.metadata["sequence_length"] for row in found):
                return np.stack([self._whole(index) for index in indices])  # which says what is wrong with which row
            return np.stack([np.frombuffer(row, "<u4") for row in found]).astype(np.int32)

        return finish

    def _whole(self, index: int) -> np.ndarray:
        """A row, or where damaged ones are skipped the next that is whole: a function of the files alone, so that every
        process has the same. Raises DamagedRow where there are too many."""
        while True:
            try:
                return self[index]
            except DamagedRow as error:
                if not self._skips:
                    raise
                if index not in self._skipped:
                    self._skipped.add(index)
                    warn(f"{str(error).removesuffix(f'; {AGAIN}')}: the next one takes its place")
                if len(self._skipped) > max(FEW, SHARE * len(self)):
                    raise DamagedRow(f"{error} ({len(self._skipped)} rows of {self.split}: too many to skip)") from None
                index = (index + 1) % len(self)

    def _place(self, index: int) -> str:
        return f"{self._shards.files[self._shards.of(index)]}: row {index} of {self.split}"

    def tokenizer(self) -> Tokenizer:
        """The tokenizer in the folder. UserError if it is missing or is not the one the records were made with."""
        tokenizer = load_tokenizer(self.directory / self.metadata["tokenizer"]["file"])
        check_tokenizer(self.metadata, tokenizer)
        return tokenizer


def read_metadata(directory: epath.PathLike) -> dict:
    """The metadata of a records folder (see the head of this file). UserError if it has none of this version."""
    file = epath.Path(directory) / "metadata.json"
    if not file.is_file():
        raise UserError(f"{directory}: not a records folder (no metadata.json); make one with tools/prepare_data.py")
    try:
        metadata = json.loads(file.read_text())
        version = metadata["format_version"]
        if version in READ_VERSIONS:  # then what every reader needs is there
            _check_complete(metadata)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"{file}: damaged ({error!r}); prepare the records again") from error
    if version not in READ_VERSIONS:
        read = ", ".join(map(str, READ_VERSIONS))
        raise UserError(f"{file}: format_version {version}, but this code reads {read}; prepare it again")
    return metadata


def _check_complete(metadata: Mapping) -> None:
    """Raises KeyError, TypeError, AttributeError or ValueError where what a reader needs is missing or wrong."""
    identity(metadata)
    tokenizer = metadata["tokenizer"]
    numbers = [metadata["sequence_length"], tokenizer["vocab_size"], tokenizer["pad_id"], tokenizer["eos_id"]]
    names = [tokenizer["file"], tokenizer["digest"]]
    for name, split in metadata["splits"].items():
        numbers += [number for shard in split["shards"] for number in (shard["rows"], shard["bytes"])]
        names += [shard["file"] for shard in split["shards"]]
        if split["rows"] != sum(shard["rows"] for shard in split["shards"]):
            raise ValueError(f"the shards of {name} have not its {split['rows']} rows")
    for number in numbers:
        if type(number) is not int or number < 0:
            raise ValueError(f"{str(number)[:50]!r} where a number is expected")
    for name in names:
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"{str(name)[:50]!r} where a name is expected")


def identity(metadata: Mapping) -> dict:
    """What decides the rows: records that agree in all of this hold the same, wherever they and their text lie."""
    version = metadata["format_version"]
    return {
        **({"format_version": version} if version > 1 else {}),  # a run on records of format 1 knows them without it
        "sequence_length": metadata["sequence_length"],
        "tokenizer": metadata["tokenizer"]["digest"],
        **metadata["settings"],
        "source": [part["sha256"] for part in metadata["source"]],
    }


def digest(metadata: Mapping) -> str:
    """The identity as one sha256."""
    return hashlib.sha256(json.dumps(identity(metadata), sort_keys=True).encode()).hexdigest()


def check_tokenizer(metadata: Mapping, tokenizer: Tokenizer) -> None:
    """UserError unless records with this metadata were made with this tokenizer."""
    expected = metadata["tokenizer"]["digest"]
    if tokenizer.digest != expected:
        raise UserError(
            f"{tokenizer.path}: sha256 {tokenizer.digest[:12]}…, but the records were made with {expected[:12]}…; "
            f"use the {metadata['tokenizer']['file']} in their folder"
        )


def _check_shards(directory: epath.Path, shards: Sequence[Mapping]) -> None:
    for shard, length in zip(shards, lengths(directory, [shard["file"] for shard in shards]), strict=True):
        file = f"{directory}/{shard['file']}"
        if length is None:
            raise UserError(f"{file}: missing; {AGAIN}")
        if length != shard["bytes"]:
            raise UserError(f"{file}: {length} bytes, metadata.json says {shard['bytes']}; {AGAIN}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
