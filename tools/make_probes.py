"""Writes the eight tasks as small models can be asked them: questions about stories of people and places that no
document of `make_corpus.py --kind probes` has together.

    python tools/make_corpus.py --kind probes --out corpus.jsonl --count 60000
    python tools/make_probes.py --out PROBES --corpus corpus.jsonl [--count 200] [--seed 0]
    python tools/evaluate.py --workdir RUN --tasks all --data PROBES --prompts PROBES/prompts.json

--corpus (a file or a folder): is looked through, and refused where it tells of them.
"""

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import UserError, run_main
from colajax.evals.tasks.probes import count_contaminated, write_probes
from colajax.files import check_writable

MOST = 2000  # of a task; the smallest has not many more


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--out", required=True, help="folder to make, local path or gs:// address")
    parser.add_argument("--count", type=int, default=200, help="records of each task; default 200")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--corpus", help="text that a model is trained on")
    args = parser.parse_args()
    if not 1 <= args.count <= MOST:
        raise UserError(f"--count {args.count}: expected 1 to {MOST}")
    check_writable(args.out)
    if args.corpus is not None:
        found, total = count_contaminated(args.corpus)
        if found:
            raise UserError(
                f"{args.corpus}: {found:,} of {total:,} documents are about people and places of the probes; expected "
                f"none; make it with make_corpus.py --kind probes"
            )
        print(f"{args.corpus}: none of {total:,} documents is about people and places of the probes")
    write_probes(args.out, args.seed, args.count)
    print(f"{args.out}: {args.count:,} records of each of the eight tasks, and prompts.json")


if __name__ == "__main__":
    run_main(main)
