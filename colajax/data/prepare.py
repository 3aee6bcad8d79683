"""Text files to a records folder: divide into parts, each read, tokenised, packed and written by itself; then merge.

The result depends on the text and the settings alone, not on what the parts were run by. No JAX here: workers start
quickly.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain

from etils import epath

from colajax.data.division import choose_division, divide_tokens
from colajax.data.engines import in_beam, in_processes
from colajax.data.inputs import find_files, left_out
from colajax.data.merge import counts_of, give_names, said_of_left_out, totals_of
from colajax.data.part_records import COUNTS, Job, digest_part, find_copies, hash_part, prepare_part
from colajax.data.parts import Part, Reading, digest_of_ranges, parts_of, read_part
from colajax.data.records import FORMAT_VERSION, SPLITS, Records, identity, read_metadata
from colajax.data.token_files import TYPES, find_token_files
from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError, tell
from colajax.files import whole

LONGEST_ROW = 2**20  # packing keeps a list of so many; a row is read whole
MOST_WORKERS = 1024  # processes
USUAL = Reading()


def prepare(
    inputs: Sequence[epath.PathLike],
    tokenizer_path: epath.PathLike,
    out: epath.PathLike,
    sequence_length: int,
    *,
    validation_fraction: float = 0.02,
    reading: Reading = USUAL,
    deduplicate: bool = False,
    workers: int = 1,
    seed: int = 0,
    rows_per_shard: int = 65536,
    beam_flags: Sequence[str] | None = None,
) -> dict:
    """Writes a records folder and returns its metadata (see `records`).

    Whole documents are held out, chosen by a hash of their text; of a single document, stretches (see `division`). An
    end of text stands where a document ends and nowhere else.

    The folder is there whole or not at all; parts that are done are kept in OUT.parts until then, so that the same call
    goes on after any end. If the folder is already there, made from the same text with the same settings, nothing is
    done. Prints what is unusual in the corpus, and progress.

    Args:
        inputs: what `text.read_documents` takes or, with reading.token_type, `token_files.find_token_files`.
        tokenizer_path: what `load_tokenizer` takes; it must have a pad and an end-of-text token.
        sequence_length: tokens a row.
        deduplicate: leave out documents that are the same as an earlier one.
        workers: processes, each with a part at a time.
        beam_flags: have Apache Beam run the parts, with these flags, and not this machine.

    Raises:
        UserError: a setting is out of range, an input is bad, a split would be empty, or `out` holds something else.
    """
    _check_ranges(sequence_length, validation_fraction, workers, rows_per_shard, reading)
    if reading.token_type is None and (note := left_out(inputs)):
        print(note, flush=True)
    out, tokenizer = epath.Path(out), load_tokenizer(tokenizer_path)
    _check_tokenizer(tokenizer)
    find = partial(find_token_files, kind=reading.token_type) if reading.token_type else find_files
    files = {str(path): find(path) for path in inputs}
    parts = parts_of([file for path in inputs for file in files[str(path)]], reading.token_type)
    settings = {
        "validation_fraction": validation_fraction, "text_field": reading.text_field, "seed": seed,
        "rows_per_shard": rows_per_shard, **_unusual(reading, deduplicate),
    }  # fmt: skip
    metadata = {
        "format_version": FORMAT_VERSION, "sequence_length": sequence_length, "tokenizer": _facts_of(tokenizer),
        "settings": settings, "inputs": digest_of_ranges(parts),
    }  # fmt: skip
    work = out.parent / f"{out.name}.parts"
    job = Job(str(work), str(tokenizer.path), tokenizer.digest, reading, sequence_length, rows_per_shard)
    if out.exists():
        return _existing(out, metadata, job, parts, workers)
    if beam_flags is None:
        run = partial(in_processes, workers=workers)
    else:
        run = partial(in_beam, flags=beam_flags, folder=work)
    try:
        with _keeping(work):
            if deduplicate and parts:
                run(partial(hash_part, job), parts)
                job = job._replace(corpus=metadata["inputs"])
                find_copies(job, parts)
            job = _divided(job, parts, tokenizer, validation_fraction, seed)
            run(partial(prepare_part, job), parts)
            metadata |= _merge(job, parts, files, metadata, out)
            work.rmtree()
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); name another --out") from error
    return metadata


def _merge(
    job: Job, parts: Sequence[Part], files: dict[str, list[epath.Path]], metadata: dict, out: epath.Path
) -> dict:
    """Writes the records folder of parts that are done, and returns what its metadata says of them."""
    counts = counts_of(job, parts)
    try:
        totals = totals_of(parts, counts, files, job.sequence_length) | {"divided_by": job.division.of}
    except UserError:
        epath.Path(job.folder).rmtree()  # there is nothing in it to go on with
        raise
    if said := said_of_left_out(counts):
        print(said, flush=True)
    with whole(out, last="metadata.json") as unfinished:
        unfinished.mkdir()
        give_names(job, parts, counts, totals["splits"], unfinished)
        epath.Path(job.tokenizer).copy(unfinished / metadata["tokenizer"]["file"])
        (unfinished / "metadata.json").write_text(json.dumps(metadata | totals, indent=1) + "\n")
    return totals


def _check_ranges(
    sequence_length: int, validation_fraction: float, workers: int, rows_per_shard: int, reading: Reading
) -> None:
    if not 2 <= sequence_length <= LONGEST_ROW:
        raise UserError(f"sequence_length {sequence_length}: expected 2 to {LONGEST_ROW}")
    if not 0 < validation_fraction < 1:
        raise UserError(f"validation_fraction {validation_fraction}: expected a number between 0 and 1")
    if not 1 <= workers <= MOST_WORKERS:
        raise UserError(f"workers {workers}: expected 1 to {MOST_WORKERS}")
    if not 1 <= rows_per_shard < 2**31:
        raise UserError(f"rows_per_shard {rows_per_shard}: expected at least 1, less than 2**31")
    if reading.token_type not in (None, *TYPES):
        raise UserError(f"token_type {reading.token_type!r}: expected {' or '.join(TYPES)}")
    if reading.bad_documents not in ("stop", "skip"):
        raise UserError(f"bad_documents {reading.bad_documents!r}: expected stop or skip")
    if reading.shortest < 0 or (reading.longest is not None and reading.longest < max(1, reading.shortest)):
        raise UserError(f"shortest {reading.shortest}, longest {reading.longest}: no document is as long as that")


def _check_tokenizer(tokenizer: Tokenizer) -> None:
    for name, token_id in (("padding", tokenizer.pad_id), ("end-of-text", tokenizer.eos_id)):
        if token_id is None:
            raise UserError(f"{tokenizer.path}: has no {name} token, which packing needs; use another tokenizer")
    for word in tokenizer.lost_words:
        raise UserError(
            f"{tokenizer.path}: {word!r} is an ordinary word in it too, and a text would lose it; use another tokenizer"
        )


def _facts_of(tokenizer: Tokenizer) -> dict:
    return {
        "digest": tokenizer.digest,
        "file": f"tokenizer{tokenizer.path.suffix}",
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
    }


def _unusual(reading: Reading, deduplicate: bool) -> dict:
    """Settings that are not what they were before they could be set, so that those of older records stay the same."""
    chosen, usual = (r._asdict() | {"deduplicate": d} for r, d in ((reading, deduplicate), (USUAL, False)))
    return {name: value for name, value in chosen.items() if value != usual[name] and name != "text_field"}


@contextlib.contextmanager
def _keeping(work: epath.Path) -> Iterator[None]:
    """The folder of parts, which stays where the block raises, if there is a part in it to go on with."""
    work.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        done = [folder for folder in work.iterdir() if (folder / COUNTS).exists()] if work.exists() else []
        if done:
            tell(f"{len(done)} parts are done and kept in {work}; the same command goes on")
        elif work.exists():
            work.rmtree()
        raise


def _divided(job: Job, parts: Sequence[Part], tokenizer: Tokenizer, validation_fraction: float, seed: int) -> Job:
    """With the division, for which as a rule the first documents are read."""

    def read():
        return chain.from_iterable(read_part(part, job.reading, tokenizer) for part in parts)

    divide = divide_tokens if job.reading.token_type else choose_division
    division, note = divide(read, validation_fraction, seed)
    if note:
        print(note, flush=True)
    return job._replace(division=division)


def _existing(out: epath.Path, wanted: dict, job: Job, parts: Sequence[Part], workers: int) -> dict:
    """The metadata of the folder that is there, if it is what is wanted."""
    found, remedy = read_metadata(out), "remove it or choose another --out"
    version, now = found["format_version"], wanted["format_version"]
    ours, theirs = identity(wanted | {"format_version": version, "source": []}), identity(found)
    for key in dict.fromkeys([*ours, *theirs]):
        if key != "source" and (value := ours.get(key)) != (other := theirs.get(key)):
            raise UserError(f"{out}: already there with another {key} ({other}, now {value}); {remedy}")
    if found.get("inputs") != wanted["inputs"]:  # moved, written anew, or another text
        if version < 3:
            source = [_digest(epath.Path(span.file)) for part in parts for span in part.ranges if not span.start]
        else:
            source = [count["sha256"] for count in in_processes(partial(digest_part, job), parts, workers)]
        if source != theirs["source"]:
            raise UserError(f"{out}: already there with another source; {remedy}")
    for split in SPLITS:
        Records.open(out, split)
    older = f" (of format {version}, which is read; remove it to have format {now}, see records.py)"
    print(f"{out} is up to date{older if version < now else ''}", flush=True)
    return found


def _digest(file: epath.Path) -> str:
    """Of a file as it lies there, by which the formats before 3 knew their text."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
