"""What a training costs: tokens, EFLOPs of the compute axis, and exact EFLOPs by part of the model.

python tools/flops.py --config configs/cola_joint.py [--steps N | --eflops X] [--config.KEY=VALUE ...]

The axis of the paper's curves is 6 N tokens / 1e18 for every model, N being config.compute_params. Exact are the matrix
products of the training program (linear layers, attention; forward and backward; without what rematerialisation
repeats): the prior's two copies, masked views, the reference encoder, the unembedding. Attention multiplies all keys of
a row, those that masks forbid too; how much that is is said. --steps is config.total_steps by default.
"""

import math

from colajax.command_line import Parser, begin

if __name__ == "__main__":
    begin()

from colajax.errors import UserError, run_main
from colajax.stages import stage_of
from colajax.stages.flops import Keys
from colajax.train.budgets import with_total_steps
from colajax.train.config import load_config


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--config", required=True, metavar="FILE[:VARIANT]")
    goal = parser.add_mutually_exclusive_group()
    goal.add_argument("--steps", type=int, help="config.total_steps by default")
    goal.add_argument("--eflops", type=float, help="of the compute axis: the first step that reaches them")
    args, overrides = parser.parse_with_config()
    config = load_config(args.config, overrides)
    for name in ("steps", "eflops"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: expected more than 0")
    config = with_total_steps(config, stage_of(config))
    stage = stage_of(config)(config, 0, 0)
    steps = config.total_steps if args.steps is None else args.steps
    if args.eflops is not None:
        steps = stage.step_of(args.eflops, config.batch_size)
    if not 0 < steps < 2**31:
        raise UserError(f"{steps} steps: expected 1 to 2**31 - 1, by --steps, --eflops or config.total_steps")

    ledger = stage.ledger(config.batch_size, steps)
    computed, allowed = (stage.flops_until(config.batch_size, steps, keys) for keys in (Keys.COMPUTED, Keys.ALLOWED))
    exact, useful = sum(computed.values()), sum(allowed.values())
    print(f"{args.config}, {steps:,} steps of {config.batch_size} x {config.sequence_length}")
    rows = [
        ("tokens", f"{ledger['tokens']:,}", ""),
        ("EFLOPs (6 N tokens)", _shown(ledger["eflops"]), f"N = {stage.compute_params():,}"),
        ("EFLOPs, exact", _shown(exact / 1e18), f"{exact / 1e18 / ledger['eflops']:.2f} times the axis"),
        *((f"  {part}", _shown(flops / 1e18), f"{flops / exact:.1%}")
          for part, flops in sorted(computed.items(), key=lambda row: -row[1])),
        ("of these, keys that masks forbid", _shown((exact - useful) / 1e18), f"{1 - useful / exact:.1%}"),
    ]  # fmt: skip
    print("\n".join(f"  {label:<34}{value:>22}  {note}".rstrip() for label, value, note in rows))


def _shown(value: float) -> str:
    return f"{value:,.2f}" if 1 <= value < 1e9 else f"{value:.4g}"


if __name__ == "__main__":
    run_main(main)
