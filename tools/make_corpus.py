"""Writes a corpus that needs no download, as .jsonl with one {"text": ...} a line.

    python tools/make_corpus.py --kind stories --out stories.jsonl --count 60000 --seed 0
    python tools/make_corpus.py --kind probes --out probes.jsonl --count 60000 --seed 0
    python tools/make_corpus.py --kind docstrings --out docstrings.jsonl

"stories" are `--count` distinct stories of a closed world, made from `--seed`; "probes" are stories and, three times
as many, questions about such with their answers, for models that are asked what make_probes.py writes; "docstrings" are
about 3 MB of prose from the Python installation. Prints the number of documents and characters and the first document;
takes seconds.
"""

import json

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from etils import epath

from colajax.data.docstrings import gather_docstrings
from colajax.data.jsonl import write_jsonl
from colajax.errors import UserError, run_main
from colajax.evals.tasks.probes import corpus
from colajax.stories.grammar import stories

MOST_STORIES = 10_000_000  # more would fill memory, and the world has not without end


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--kind", choices=("stories", "probes", "docstrings"), required=True)
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="local path or gs:// address")
    parser.add_argument("--count", type=int, help="number of documents (default 60000)")
    parser.add_argument("--seed", type=int, help="seed of the documents (default 0)")
    args = parser.parse_args()

    if args.kind != "docstrings":
        count = 60_000 if args.count is None else args.count
        if not 1 <= count <= MOST_STORIES:
            raise UserError(f"--count {count}: expected 1 to {MOST_STORIES} documents")
        make = stories if args.kind == "stories" else corpus
        write_jsonl(args.out, make(args.seed or 0, count))
    elif args.count is not None or args.seed is not None:
        raise UserError("--count and --seed are not for --kind docstrings, which are what is installed; leave them out")
    else:
        write_jsonl(args.out, gather_docstrings())

    with epath.Path(args.out).open() as lines:
        texts = [json.loads(line)["text"] for line in lines]
    print(f"{args.out}: {len(texts):,} documents, {sum(map(len, texts)):,} characters; the first:\n{texts[0]}")


if __name__ == "__main__":
    run_main(main)
