"""Tokenising in several processes, in order."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from colajax.data.tokenizer import Tokenizer, load_tokenizer
from colajax.errors import UserError

BATCH_CHARACTERS = 2**18  # of a worker's task


def tokenise(texts: Iterable[tuple], tokenizer: Tokenizer, workers: int) -> Iterator[tuple]:
    """Yields each (label, text) as (label, its tokens, uint32 [length]), in order.

    The processes end with this one, however it ends. Raises UserError when one of them is killed.
    """
    if workers == 1:
        yield from ((label, np.array(tokenizer.encode(text), np.uint32)) for label, text in texts)
        return
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, spawn, _start, (str(tokenizer.path),))
    try:
        pending = deque()
        for batch in _batches(texts):
            pending.append((batch, pool.submit(_encode, [text for _, text in batch])))
            if len(pending) > 4 * workers:  # enough to keep them busy, and the corpus out of memory
                yield from _finished(*pending.popleft())
        for batch, future in pending:
            yield from _finished(batch, future)
    except BrokenProcessPool as error:
        raise UserError(
            f"one of the {workers} tokenising processes was killed, as a machine does that runs out of memory; "
            f"give fewer --workers or take a machine with more memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: list[tuple], future) -> Iterator[tuple]:
    return zip((label for label, _ in batch), future.result(), strict=True)


def _batches(texts: Iterable[tuple]) -> Iterator[list[tuple]]:
    batch, characters = [], 0
    for label, text in texts:
        batch.append((label, text))
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


_tokenizer: Tokenizer


def _start(tokenizer_path: str) -> None:
    global _tokenizer
    # Ctrl-C reaches every process; the first one says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _tokenizer = load_tokenizer(tokenizer_path)


def _end_with_parent() -> None:
    """A worker of a killed parent would wait for its next task for ever: it holds the pipe's other end itself."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _encode(texts: list[str]) -> list[np.ndarray]:
    return [np.array(_tokenizer.encode(text), np.uint32) for text in texts]
