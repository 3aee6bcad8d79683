"""One self-contained page about runs of any stage, from their workdirs: opens in any browser, without a network.

python tools/report.py RUN... --out report.html [--records RECORDS]
  Summary, losses, loss by time, latents and prior with their healthy ranges, throughput and where the time went,
  evaluations, tasks, samples by step, and what differs in the configurations. With --records also where the latents of
  held-out text lie, by the latest checkpoint of each run that has a text VAE.
"""

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import UserError, run_main
from colajax.files import absolute, check_writable, write_whole
from colajax.reporting.latents import TEXT_VAES, latents_of
from colajax.reporting.page import page
from colajax.reporting.workdir import read_workdirs


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="workdirs")
    parser.add_argument("--out", required=True, metavar="FILE", help="of the page, .html")
    parser.add_argument("--records", metavar="DIR", help="whose held-out rows are encoded")
    args = parser.parse_args()
    out = absolute(args.out)
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"--out {args.out}: expected the name of a file that ends in .html")
    check_writable(out)
    runs = read_workdirs(args.runs)
    with_vae = [run for run in runs if run.config["stage"] in TEXT_VAES] if args.records is not None else []
    latents = {run.name: latents_of(run.workdir, run.config, args.records) for run in with_vae}
    reason = "Left out: --records was not given." if args.records is None else ""
    if args.records is not None and not latents:
        reason = "Left out: no run here has a text VAE."
    write_whole(out, page(runs, latents, reason))
    print(out)


if __name__ == "__main__":
    run_main(main)
