"""What runs a function of a part on every part of an input: processes of this machine, or Apache Beam."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from etils import epath

from colajax.data.parts import Part
from colajax.errors import UserError

Function = Callable[[Part], dict]  # picklable; what it makes it writes itself
PROGRESS_SECONDS = 10
REFUSED = ".refused"  # ends the names of files in which workers leave what they refuse


class Progress:
    """Lines of what is done, every few seconds, while a block runs."""

    def __init__(self, parts: Sequence[Part], tokens):
        """tokens: a shared counter of those that are packed."""
        self._parts, self._size, self._tokens = len(parts), sum(part.size for part in parts), tokens
        self._began, self._done, self._done_size = time.monotonic(), 0, 0
        self._ended = threading.Event()

    def __enter__(self):
        threading.Thread(target=self._go_on, daemon=True).start()
        return self

    def __exit__(self, *exc):
        self._ended.set()

    def add(self, part: Part) -> None:
        self._done, self._done_size = self._done + 1, self._done_size + part.size

    def _go_on(self) -> None:
        while not self._ended.wait(PROGRESS_SECONDS):
            print(self.line(), flush=True)

    def line(self) -> str:
        spent, tokens = time.monotonic() - self._began, self._tokens.value
        share = self._done_size / max(1, self._size)
        rate = f", {tokens:,} tokens, {tokens / spent:,.0f} tokens/s" if tokens else ""
        left = round(spent * (1 - share) / share) if share else None
        to_go = "" if left is None else f", {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} to go"
        return f"{share:.0%}, {self._done} of {self._parts} parts{rate}{to_go}"


_tokens = None  # the shared counter, where progress is told


def count(tokens: int) -> None:
    """To be called by what works on a part."""
    if _tokens is not None:
        with _tokens.get_lock():
            _tokens.value += tokens


def in_processes(function: Function, parts: Sequence[Part], workers: int) -> list[dict]:
    """Of this machine, or with one worker or one part in this process. They end with this one, however it ends.

    Returns what the function does of each part, in order. Raises what it raises, and UserError when a process is
    killed.
    """
    spawn = multiprocessing.get_context("spawn")
    tokens, ended = spawn.Value("q", 0), spawn.Event()
    with Progress(parts, tokens) as progress:
        if min(workers, len(parts)) < 2:
            return _here(function, parts, progress, tokens)
        pool = ProcessPoolExecutor(min(workers, len(parts)), spawn, _start, (ended, tokens))
        try:
            futures = {pool.submit(function, part): part for part in parts}
            for future in as_completed(futures):
                future.result()
                progress.add(futures[future])
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise UserError(
                f"one of the {workers} processes was killed, as a machine does that runs out of memory; give fewer "
                f"--workers or take a machine with more memory"
            ) from error
        except BaseException:
            ended.set()  # or what they have begun would be waited for
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _here(function: Function, parts: Sequence[Part], progress: Progress, tokens) -> list[dict]:
    global _tokens
    _tokens, found = tokens, []
    for part in parts:
        found.append(function(part))
        progress.add(part)
    return found


def _start(ended, tokens) -> None:
    global _tokens
    _tokens = tokens
    # Ctrl-C reaches every process; the first one says what there is to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(ended,), daemon=True).start()


def _end_with_parent(ended) -> None:
    """A worker of a killed parent would wait for its next part for ever: it holds the pipe's other end itself."""
    parent = multiprocessing.parent_process()
    while parent.is_alive() and not ended.wait(0.2):
        pass
    os._exit(1)


def in_beam(function: Function, parts: Sequence[Part], flags: Sequence[str], folder: epath.Path) -> None:
    """By Apache Beam, on the runner that its flags name. folder: one that every worker sees, in which they leave what
    they refuse, to be raised here."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--engine beam: Apache Beam is not here; pip install 'colajax[beam]'") from None
    for refusal in _refusals(folder):
        refusal.unlink()
    with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        alone = pipeline | beam.Create(list(enumerate(parts))) | beam.Reshuffle()
        _ = alone | beam.Map(partial(_refused_to, str(folder), function))
    for refusal in _refusals(folder):
        raise UserError(refusal.read_text())


def _refusals(folder: epath.Path) -> list[epath.Path]:
    found = folder.iterdir() if folder.exists() else []  # in a bucket a folder is there when something is in it
    return sorted(path for path in found if path.name.endswith(REFUSED))


def _refused_to(folder: str, function: Function, numbered: tuple[int, Part]) -> None:
    """Beam would do again what is refused, and raise it with everything around it."""
    number, part = numbered
    try:
        function(part)
    except UserError as error:
        (epath.Path(folder) / f"{number:05d}{REFUSED}").write_text(str(error))
