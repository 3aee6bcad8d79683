"""Tokenises and packs text files into a records folder, which is what training reads.

    python tools/prepare_data.py --input corpus/ --tokenizer tokenizer.model --out records/ --sequence_length 512

Reads .txt and .jsonl files (also with .gz, .zst, .bz2 or .xz behind it; a .json.gz holds lines too), .parquet and
.arrow, or folders of them, and names what in the folders is of another kind; with --token_type .bin and .npy files of
the tokenizer's ids, an end of text behind each document. Whole documents are held out; of a single text, stretches.
The same command goes on where it was killed. With --engine beam Apache Beam does the work, by the flags behind --.
Prints progress, then for each split its documents, tokens, rows, the share of tokens that lie beyond the first row of a
document longer than a row ("cut"), and the share of padding: below 1 %, unless most documents fill more than half a row
and none is short enough to go with them. Run again with the same text and settings, it says that the folder is up to
date.
"""

import os

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.data.parts import Reading
from colajax.data.prepare import prepare
from colajax.data.tokenizer import load_tokenizer
from colajax.errors import UserError, run_main
from colajax.hf.tokenizer_json import tokenizer_json


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="files or folders")
    parser.add_argument("--tokenizer", required=True, help="SentencePiece .model or Hugging Face tokenizer.json")
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--sequence_length", type=int, required=True, help="tokens a row")
    parser.add_argument("--validation_fraction", type=float, default=0.02, help="share held out (default: 0.02)")
    parser.add_argument("--text_field", default="text", help="key or column, a.b of one in another (default: text)")
    parser.add_argument("--token_type", metavar="TYPE", help="uint16 or uint32: of ids, in place of text")
    parser.add_argument("--shortest", type=int, default=0, metavar="N", help="characters (of ids, tokens) a document")
    parser.add_argument("--longest", type=int, metavar="N", help="beyond these two documents are left out")
    parser.add_argument("--deduplicate", action="store_true", help="leave out copies of earlier documents")
    parser.add_argument("--bad_documents", default="stop", metavar="WHAT", help="stop (default), or skip and count")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a CPU)")
    parser.add_argument("--seed", type=int, default=0, help="of the division in train and validation (default: 0)")
    parser.add_argument("--rows_per_shard", type=int, default=65536, help="(default: 65536)")
    parser.add_argument("--engine", default="local", help="local (default): processes of this machine; or beam")
    parser.add_argument("flags", nargs="*", metavar="-- FLAGS", help="of Apache Beam: --runner ...")
    args = parser.parse_args()

    if args.engine not in ("local", "beam") or (args.flags and args.engine == "local"):
        raise UserError(f"--engine {args.engine}: expected local or beam; flags behind -- are Beam's")
    if not epath.Path(args.out).exists():
        tokenizer_json(load_tokenizer(args.tokenizer))  # what no export could take is refused before the training
    metadata = prepare(
        args.input,
        args.tokenizer,
        args.out,
        args.sequence_length,
        validation_fraction=args.validation_fraction,
        reading=Reading(args.text_field, args.token_type, args.bad_documents, args.shortest, args.longest),
        deduplicate=args.deduplicate,
        workers=args.workers,
        seed=args.seed,
        rows_per_shard=args.rows_per_shard,
        beam_flags=args.flags if args.engine == "beam" else None,
    )
    for name, split in metadata["splits"].items():
        print(
            f"{name}: {split['documents']:,} documents, {split['tokens']:,} tokens, {split['rows']:,} rows of "
            f"{metadata['sequence_length']}, {split['cut_share']:.2%} cut, {split['padding_share']:.2%} padding"
        )


if __name__ == "__main__":
    run_main(main)
