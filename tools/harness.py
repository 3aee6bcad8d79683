"""Starts lm-evaluation-harness with the model "colajax": a run or an export of any family.

    python tools/harness.py run --model colajax --model_args workdir=RUN --tasks TASK --include_path DIR

Everything else is the harness's own (pip install "colajax[harness]"; --help shows it). --model_args: workdir=RUN and
step=N, or hf=EXPORT, and settings of the sampler such as guidance=1. Cola and LLaDA answer tasks that generate; AR
those of log-likelihoods too.
"""

from colajax.command_line import begin

if __name__ == "__main__":
    begin()

from colajax.errors import UserError, run_main


def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise UserError(f'no lm-evaluation-harness here ({error}); pip install "colajax[harness]"') from None
    from colajax.evals import harness  # noqa: F401  (registers the model)

    cli_evaluate()


if __name__ == "__main__":
    run_main(main)
