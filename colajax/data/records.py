"""Records: the one on-disk form of training data. A folder, complete in itself:

    metadata.json                          what is in it, written last
    tokenizer.model or tokenizer.json      a copy of the tokenizer that made it
    train-00000-of-00004.array_record      rows: sequence_length token ids each, little-endian uint32
    validation-00000-of-00001.array_record

metadata.json: {format_version, sequence_length, tokenizer: {digest, file, vocab_size, pad_id, eos_id},
settings: {validation_fraction, text_field, seed, rows_per_shard}, source: [{file, bytes, sha256}],
splits: {train and validation: {rows, tokens, documents, padding_share, cut_share, shards: [{file, rows, bytes}]}}}.
`tokens` are those that are not padding; padding_share is of all entries, cut_share of tokens (see `packing.Packed`),
both from 0 to 1. A document divided between the splits counts in each.
"""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from etils import epath

from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")


class ShardWriter:
    """Writes the rows of one split into shards of at most `rows_per_shard`; `close` gives them their names."""

    def __init__(self, directory: epath.Path, split: str, rows_per_shard: int):
        self._directory, self._split, self._rows_per_shard = directory, split, rows_per_shard
        self._writer: ArrayRecordWriter | None = None
        self._rows: list[int] = []  # of each shard so far

    def _unfinished(self, index: int) -> epath.Path:
        return self._directory / f"{self._split}-{index:05d}.unfinished"

    def write(self, rows: np.ndarray) -> None:
        """Appends rows, uint32 [rows, sequence_length]."""
        for row in rows:
            if self._writer is None:
                # One row a group: a random read decompresses one row.
                self._writer = ArrayRecordWriter(str(self._unfinished(len(self._rows))), "group_size:1")
                self._rows.append(0)
            self._library(self._writer.write, row.astype("<u4").tobytes())
            self._rows[-1] += 1
            if self._rows[-1] == self._rows_per_shard:
                self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is not None:
            self._library(self._writer.close)
            self._writer = None

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
            self._unfinished(index).rename(file)
            shards.append({"file": file.name, "rows": rows, "bytes": file.stat().length})
        return shards


class Records:
    """The rows of one split, in random access: len(records), records[i] -> int32 [sequence_length]. Thread-safe."""

    def __init__(self, directory: epath.Path, split: str, metadata: Mapping, source: ArrayRecordDataSource):
        self.directory, self.split, self.metadata, self._source = directory, split, metadata, source

    @classmethod
    def open(cls, directory: epath.PathLike, split: str) -> "Records":
        """Opens "train" or "validation" after checking every shard of it against metadata.json.

        Raises:
            UserError: not a records folder, a version this code does not know, or a shard that is missing or has not
                the bytes, the rows or the row length that the metadata states.
        """
        directory = epath.Path(directory)
        metadata = read_metadata(directory)
        if split not in metadata["splits"]:
            raise UserError(f"{directory}: no split {split!r}; it has {', '.join(metadata['splits'])}")
        for shard in metadata["splits"][split]["shards"]:
            _check_shard(directory / shard["file"], shard, metadata["sequence_length"])
        files = [str(directory / shard["file"]) for shard in metadata["splits"][split]["shards"]]
        return cls(directory, split, metadata, ArrayRecordDataSource(files))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> np.ndarray:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        try:
            record = self._source[index]
        except RuntimeError as error:
            where = f"{self.directory}: row {index} of {self.split}"
            raise UserError(f"{where} is damaged ({_one_line(error)}); prepare the records again") from error
        return np.frombuffer(record, "<u4").astype(np.int32)

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
        if version == FORMAT_VERSION:  # then what every reader needs is there
            identity(metadata), metadata["splits"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error!r}); prepare the records again") from error
    if version != FORMAT_VERSION:
        raise UserError(f"{file}: format_version {version}, but this code reads {FORMAT_VERSION}; prepare it again")
    return metadata


def identity(metadata: Mapping) -> dict:
    """What decides the rows: records that agree in all of this hold the same, wherever they and their text lie."""
    return {
        "sequence_length": metadata["sequence_length"],
        "tokenizer": metadata["tokenizer"]["digest"],
        **metadata["settings"],
        "source": [file["sha256"] for file in metadata["source"]],
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


def _check_shard(file: epath.Path, expected: Mapping, sequence_length: int) -> None:
    again = "copy or prepare the records again"
    if not file.is_file():
        raise UserError(f"{file}: missing; {again}")
    if (size := file.stat().length) != expected["bytes"]:
        raise UserError(f"{file}: {size} bytes, metadata.json says {expected['bytes']}; {again}")
    try:
        shard = ArrayRecordDataSource(str(file))
        rows, row_bytes = len(shard), len(shard[0]) if len(shard) else 0
    except RuntimeError as error:
        raise UserError(f"{file}: damaged ({_one_line(error)}); {again}") from error
    if rows != expected["rows"]:
        raise UserError(f"{file}: {rows} rows, metadata.json says {expected['rows']}; {again}")
    if row_bytes != 4 * sequence_length:
        raise UserError(f"{file}: rows of {row_bytes / 4:g} tokens, metadata.json says {sequence_length}; {again}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
