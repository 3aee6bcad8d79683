"""Trains a SentencePiece tokenizer (BPE with byte fallback, lossless) on text files.

    python tools/train_tokenizer.py --input corpus/ --out tokenizer.model --vocab_size 4096

Reads what prepare_data.py reads, all text in memory. Prints the number of pieces, which is smaller than --vocab_size if
the text supports no more. A megabyte takes about a second.
"""

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.data.inputs import left_out
from colajax.data.text import read_documents
from colajax.data.tokenizer import train_sentencepiece
from colajax.errors import run_main


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--input", nargs="+", required=True, help="files or folders")
    parser.add_argument("--out", required=True, help="the .model file to write")
    parser.add_argument("--vocab_size", type=int, required=True, help="upper bound, 256 bytes and 3 specials included")
    parser.add_argument("--text_field", default="text", help="key or column, a.b of one in another (default: text)")
    args = parser.parse_args()

    if note := left_out(args.input):
        print(note)
    tokenizer = train_sentencepiece(read_documents(args.input, args.text_field), args.out, args.vocab_size)
    fewer = tokenizer.vocab_size < args.vocab_size
    note = f" ({args.vocab_size} asked for: the text supports no more)" if fewer else ""
    print(f"{args.out}: {tokenizer.vocab_size} pieces{note}, sha256 {tokenizer.digest[:12]}…")


if __name__ == "__main__":
    run_main(main)
