"""What is in a records folder.

python tools/inspect_records.py RECORDS
  How many rows, tokens and documents, what was cut, by which tokenizer and from which files.
python tools/inspect_records.py RECORDS --row N [--split validation]
  A row as text, a document or piece of one a paragraph, with its place and length.
python tools/inspect_records.py RECORDS --stats [--rows N] [--out FILE.png]
  Of N rows of each split at even distances (all, where there are fewer): lengths of documents, or of what a row holds
  of one, the most frequent tokens, and what both splits have; --out draws the lengths.
"""

import io
from collections.abc import Iterator

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.data.inspection import LONG, Stats, bins_of, draw, pieces_of, stats_of
from colajax.data.records import SPLITS, Records
from colajax.data.tokenizer import Tokenizer
from colajax.errors import UserError, run_main
from colajax.files import absolute, check_writable, write_whole

FREQUENT = 20  # tokens
BAR = 40  # characters of the longest


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("records", metavar="RECORDS", help="a folder")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help="of --row")
    parser.add_argument("--row", type=int, metavar="N", help="from 0")
    parser.add_argument("--stats", action="store_true")
    parser.add_argument("--rows", type=int, default=20_000, metavar="N", help="that --stats reads of a split at most")
    parser.add_argument("--out", metavar="FILE.png", help="of the histogram, with --stats")
    args = parser.parse_args()
    if args.rows < 1:
        raise UserError(f"--rows {args.rows}: expected at least 1")
    if args.out is not None:
        if not args.stats or absolute(args.out).suffix != ".png":
            raise UserError(f"--out {args.out}: expected the name of a file that ends in .png, and --stats")
        check_writable(args.out)
    splits = {split: Records.open(args.records, split) for split in SPLITS}
    if args.row is not None:
        print("\n".join(_row(splits[args.split], args.row)))
    elif args.stats:
        stats = {split: stats_of(records, args.rows) for split, records in splits.items()}
        print("\n".join(_stats(stats, splits["train"].tokenizer())))
        if args.out is not None:
            content = io.BytesIO()
            draw(stats).savefig(content, format="png", dpi=150)
            write_whole(args.out, content.getvalue())
            print(args.out)
    else:
        print("\n".join(_summary(splits["train"].metadata)))


def _summary(metadata: dict) -> Iterator[str]:
    tokenizer = metadata["tokenizer"]
    yield f"rows of {metadata['sequence_length']:,} tokens, format {metadata['format_version']}"
    yield f"tokenizer: {tokenizer['vocab_size']:,} tokens, sha256 {tokenizer['digest'][:12]}, {tokenizer['file']}"
    yield "settings: " + ", ".join(f"{name} {value}" for name, value in metadata["settings"].items())
    for name, split in metadata["splits"].items():
        yield (
            f"{name}: {split['rows']:,} rows in {len(split['shards']):,} shards, {split['documents']:,} documents, "
            f"{split['tokens']:,} tokens, {split['cut_share']:.2%} cut, {split['padding_share']:.2%} padding"
        )
    yield "source: " + ", ".join(f"{file['file']} ({file['bytes']:,} bytes)" for file in metadata["source"])


def _row(records: Records, row: int) -> Iterator[str]:
    if not 0 <= row < len(records):
        raise UserError(f"--row {row}: {records.split} has rows 0 to {len(records) - 1:,}")
    tokenizer, found = records.tokenizer(), records.read([row])[0]
    end = 0
    for piece in pieces_of(found, tokenizer.eos_id, tokenizer.pad_id):
        end = piece.start + len(piece.tokens) + piece.ends
        said = "" if piece.ends else ", its end of text is not in this row"
        yield f"[{piece.start} to {end - 1}: {len(piece.tokens)} tokens{said}]"
        yield tokenizer.decode(piece.tokens.tolist())
    if end < len(found):
        yield f"[{end} to {len(found) - 1}: padding]"


def _stats(stats: dict[str, Stats], tokenizer: Tokenizer) -> Iterator[str]:
    for split, found in stats.items():
        pieces, used = found.lengths.total(), found.tokens.total()
        yield (
            f"{split}: {found.rows:,} rows, {used:,} tokens, {1 - used / found.entries:.2%} padding; {pieces:,} "
            f"documents or pieces of some, {found.unended / max(pieces, 1):.2%} without their end"
        )
        bins = bins_of(found.lengths)
        most = max((count for *_, count in bins), default=1)
        for low, high, count in bins:
            yield f"  {low:>9,} to {high:>9,} tokens {count:>12,}  {'#' * round(BAR * count / most)}".rstrip()
        unused = tokenizer.vocab_size - len(found.tokens)
        yield f"  {unused:,} of {tokenizer.vocab_size:,} tokens of the vocabulary do not occur; the most frequent:"
        for token, count in found.tokens.most_common(FREQUENT):
            yield f"  {token:>9,} {count / used:>7.2%}  {_shown(token, tokenizer)}"
    train, held_out = (stats[split].digests for split in ("train", "validation"))
    both = {split: sum(count for digest, count in digests.items() if digest in other)
            for split, digests, other in (("train", train, held_out), ("validation", held_out, train))}  # fmt: skip
    yield (
        f"in both splits: {both['validation']:,} of {held_out.total():,} of validation, {both['train']:,} of "
        f"{train.total():,} of train ({LONG} tokens or more, of the rows that were read)"
    )


def _shown(token: int, tokenizer: Tokenizer) -> str:
    return "end of text" if token == tokenizer.eos_id else repr(tokenizer.decode_continuation([token]))


if __name__ == "__main__":
    run_main(main)
