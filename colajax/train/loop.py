"""The training loop, for every stage."""

import time
from collections import deque
from collections.abc import Callable

import jax
from etils import epath

from colajax.parallel.agreement import share_errors
from colajax.parallel.batch import global_batch, local_rows
from colajax.train.budgets import with_total_steps
from colajax.train.evaluation import held_out_batches, make_evaluation
from colajax.train.reporter import Reporter
from colajax.train.setup import say, set_up
from colajax.train.signals import StopSignals
from colajax.train.state import is_finite
from colajax.train.step import make_train_step

# Updates that may be under way at once. JAX would begin some thirty, and a machine that is told to end in 30 seconds
# would spend them on those before it could save.
AHEAD = 2


def train(config, make_stage: Callable, workdir: epath.PathLike) -> int:
    """Trains until config.total_steps, from whatever `workdir` holds. make_stage(config, pad_id) -> Stage.

    Every process of a run calls this alike; the first alone writes what people read. Returns 0 when the run is
    complete, or 128 + the number of the signal (SIGINT, SIGTERM) that stopped it, after saving. Raises UserError on a
    configuration that does not fit itself, the devices, the records, or the run in workdir.
    """
    config = share_errors(lambda: with_total_steps(config, make_stage))
    run = set_up(config, make_stage, epath.Path(workdir))
    stage, mesh, state = run.stage, run.mesh, run.state
    train_step = make_train_step(
        stage, run.optimizer, run.like, seed=config.seed, parts=config.accumulation_steps,
        reduction=config.gradient_reduction,
    )  # fmt: skip
    evaluate = make_evaluation(stage, mesh)
    eval_batches = held_out_batches(
        run.held_out, mesh, wanted=config.eval_rows, batch_size=config.batch_size, pad_id=stage.pad_id,
        seed=config.data_seed,
    )  # fmt: skip
    reporter = Reporter(run, config)

    if run.owed:
        with reporter.evaluating(run.start) as found:
            found(evaluate(state, eval_batches))
    pending = None  # (step, means) of a step whose numbers are fetched once the next one is under way
    under_way = deque()  # means of updates that may not be done
    with StopSignals() as stop:
        batches = run.loader.iterate(run.start, local_rows(mesh, config.batch_size))
        for step in range(run.start, config.total_steps):
            trainable = stage.trainable(step)
            began = time.perf_counter()
            local = next(batches)
            reporter.waited_for_data(time.perf_counter() - began)
            state, means = train_step(state, global_batch(mesh, local, config.batch_size), trainable)
            under_way.append(means)
            if len(under_way) > AHEAD:
                jax.block_until_ready(under_way.popleft())
            if pending:
                reporter.train(*pending)
                pending = None
            reporter.updated(trainable)
            done = step + 1
            if done % config.log_every == 0:
                pending = (done, means)
            marked = done in (*run.budgets, config.total_steps)
            last, stopping = done == config.total_steps, stop.agreed(done)  # once: a signal may come at any line
            evaluating = marked or done % config.eval_every == 0
            saving = marked or stopping or done % config.checkpoint_every == 0
            if evaluating or saving:
                jax.block_until_ready(means)  # or their seconds would have the update's in them
            if pending and (evaluating or saving):
                reporter.train(*pending)
                pending = None
            if evaluating:
                with reporter.evaluating(done) as found:
                    found(evaluate(state, eval_batches))
            if saving:
                with reporter.saving(done, bool(is_finite(state))):
                    run.checkpoints.save(state, stage.ledger(config.batch_size, done))
            if stopping and not last:
                say(f"{run.workdir}: stopped at step {done}, saved; the same command goes on from there")
                break
        reporter.close()
        run.checkpoints.close()
    complete = int(state.step) == config.total_steps
    return 0 if complete else 128 + stopping
