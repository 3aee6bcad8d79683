"""A training of colajax that meets batches which are not sound, or whose data does not have them:

python -m colajax.chaos.unsound FACTOR with|without N,... ARGUMENTS of colajax.train

The losses of these batches are so many times as large: nan, or a number.
"""

import runpy
import sys

from colajax.command_line import begin

if __name__ == "__main__":
    begin()

import jax.numpy as jnp
import numpy as np

from colajax import stages
from colajax.data.loader import Loader
from colajax.stages.base import Stage
from colajax.train.setup import loader_of


def with_unsound(stage: type[Stage], config, batches: tuple[int, ...], factor: float) -> type[Stage]:
    """The stage, but that the terms of these batches' loss are `factor` times as large; none of an evaluation are."""
    loader = loader_of(config, "train")
    marked = np.array([loader.batch(index) for index in batches])

    class Unsound(stage):
        def terms(self, params, frozen, examples, trainable, diagnostics):
            terms = super().terms(params, frozen, examples, trainable, diagnostics)
            if diagnostics or not batches:
                return terms
            hit = (examples["tokens"] == marked).all((1, 2)).any()
            return {name: term * jnp.where(hit, factor, 1.0) for name, term in terms.items()}

    return Unsound


def iterate_without(batches: tuple[int, ...]):
    """Loader.iterate of data that does not have these batches."""

    def iterate(self, start, rows=None, failed=None):
        kept = (index for index in range(10**9) if index not in batches)
        for position, index in enumerate(kept):
            if position >= start:
                yield self.batch(index, rows)

    return iterate


def main() -> None:
    factor, how = float(sys.argv.pop(1)), sys.argv.pop(1)
    batches = tuple(map(int, sys.argv.pop(1).split(",")))
    stage_of = stages.stage_of
    # The same program for both, so that bits can be compared; without them it never meets them.
    stages.stage_of = lambda config: with_unsound(stage_of(config), config, batches, factor)
    if how == "without":
        Loader.iterate = iterate_without(batches)
    runpy.run_module("colajax.train", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
