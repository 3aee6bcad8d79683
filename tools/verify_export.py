"""Compares an export with its run: the same inputs through JAX and through the exported PyTorch classes.

python tools/verify_export.py --workdir RUN --hf DIR [--tolerance 1e-4]

Prints the largest difference of encoding, decoding, velocity and a short generation from the same noise, or of a
baseline's logits and greedy text (as a share of the largest value where that is above 1), and writes certificate.json
into DIR. Status 2 above the tolerance; a generation may differ by more where the run itself magnifies rounding. Needs
torch and transformers (pip install '.[torch]').
"""

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import UserError, run_main
from colajax.evals.export_parity import CERTIFICATE, TOLERANCE, verify


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--workdir", required=True, help="the run that was exported")
    parser.add_argument("--hf", required=True, help="what tools/export_hf.py wrote")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"default {TOLERANCE:g}")
    args = parser.parse_args()
    if not 0 <= args.tolerance < float("inf"):
        raise UserError(f"--tolerance {args.tolerance}: expected a number of at least 0")
    verify(args.workdir, args.hf, tolerance=args.tolerance)
    print(f"{args.hf}/{CERTIFICATE}: passed")


if __name__ == "__main__":
    run_main(main)
