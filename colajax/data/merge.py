"""The records of all parts as one folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from etils import epath

from colajax.data.part_records import COUNTS, Job, prepare_part
from colajax.data.parts import Part, documents_of_inputs
from colajax.data.records import SPLITS
from colajax.data.text import no_text
from colajax.errors import UserError
from colajax.files import AT_ONCE, give_name

REASONS = {"copy": "copies of earlier ones", "short": "too short", "long": "too long", "bad": "bad"}


def counts_of(job: Job, parts: Sequence[Part]) -> list[dict]:
    """Of each part, all of which were run, what `prepare_part` has counted."""

    def counts(part: Part) -> dict:
        if not (job.path(part) / COUNTS).exists():
            raise UserError(f"{job.path(part)}: not there though it was made; do all workers write to one place?")
        return prepare_part(job, part)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(counts, parts))


def totals_of(
    parts: Sequence[Part], counts: Sequence[dict], files: Mapping[str, Sequence[epath.Path]], sequence_length: int
) -> dict:
    """What metadata.json says of all parts together. Raises UserError where one of the inputs, whose `files` these are,
    has no text, or a split has nothing."""
    for path, documents in documents_of_inputs(files, parts, [count["found"] for count in counts]).items():
        if not documents:
            raise no_text(path)
    source = [
        {"file": part.ranges[0].file, "files": len(part.ranges), "bytes": part.size, "sha256": count["sha256"]}
        for part, count in zip(parts, counts, strict=True)
    ]
    splits = {name: _total_of([count["splits"][name] for count in counts], name, sequence_length) for name in SPLITS}
    return {"source": source, "left_out": dict(_left_out(counts)), "splits": splits}


def _total_of(split: Sequence[dict], name: str, sequence_length: int) -> dict:
    keys = ("rows", "tokens", "cut", "documents")
    rows, tokens, cut, documents = (sum(of_part[key] for of_part in split) for key in keys)
    if not rows:
        raise UserError(f"nothing fell to {name}: the text is too short to be divided; give more text")
    shards = [shard for of_part in split for shard in of_part["shards"]]
    named = [shard | {"file": f"{name}-{i:05d}-of-{len(shards):05d}.array_record"} for i, shard in enumerate(shards)]
    return {
        "rows": rows,
        "tokens": tokens,
        "documents": documents,
        "padding_share": 1 - tokens / (rows * sequence_length),
        "cut_share": cut / max(1, tokens),
        "shards": named,
    }


def _left_out(counts: Sequence[dict]) -> Counter[str]:
    return sum((Counter(count["left_out"]) for count in counts), Counter())


def said_of_left_out(counts: Sequence[dict]) -> str:
    """One line on the documents that were; empty where none was."""
    reasons = _left_out(counts)
    told = ", ".join(f"{reasons[reason]:,} {words}" for reason, words in REASONS.items() if reasons[reason])
    bad = next((f" (the first: {count['bad']})" for count in counts if count["bad"]), "")
    return f"documents left out: {told}{bad}" if reasons else ""


def give_names(
    job: Job, parts: Sequence[Part], counts: Sequence[dict], splits: Mapping[str, dict], folder: epath.Path
) -> None:
    """Gives the parts' shards their names in the records, and leaves them where they are as well: whoever is killed
    here has lost nothing."""
    for name, split in splits.items():
        written = [
            job.path(part) / shard["file"]
            for part, count in zip(parts, counts, strict=True)
            for shard in count["splits"][name]["shards"]
        ]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(give_name, written, [folder / shard["file"] for shard in split["shards"]]))
