"""Small files of a run, written by a thread that the run does not wait for: where a disk is full or hangs, or a bucket
is away, it goes on."""

import atexit
import threading

from etils import epath

from colajax.errors import refusal_of, warn
from colajax.files import write_whole

EVERY = 20.0  # seconds after which what could not be written is tried again
PATIENCE = 30.0  # seconds that a checkpoint, or the end of a run, waits for what is still to be written


class Behind:
    """A file that is to be written again before it was is written once, with the newer content."""

    def __init__(self):
        self._waiting: dict[epath.Path, str] = {}
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="files", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # of a run that ends with an error

    def write(self, path: epath.Path, content: str) -> None:
        """Has the file written now, without waiting for it."""
        with self._changed:
            self._waiting[path] = content
            self._changed.notify_all()

    def wait(self) -> bool:
        """Until all has been written, or as long as that is worth it; whether it has been."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, PATIENCE)

    def close(self) -> None:
        """Waits, and tells of what is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(PATIENCE)
        atexit.unregister(self.close)
        for path in list(self._waiting):  # the thread may live on, and hang
            warn(f"{path}: not written as it is at the end of the run")

    def _work(self) -> None:
        failed = False
        while True:
            with self._changed:
                if failed and not self._closed:
                    self._changed.wait(EVERY)
                closed = self._changed.wait_for(lambda: self._waiting or self._closed) and self._closed
                waiting = dict(self._waiting)
            left = [path for path, content in waiting.items() if not self._written(path, content, failed)]
            failed = bool(left)
            if closed:
                return

    def _written(self, path: epath.Path, content: str, failed: bool) -> bool:
        """failed: whether it has been said that there are such."""
        try:
            write_whole(path, content)
        except Exception as error:  # of whatever is behind the path
            if not failed:
                warn(f"{path}: {refusal_of(error) or repr(error)}; the run goes on, and tries again")
            return False
        with self._changed:
            if self._waiting.get(path) is content:
                del self._waiting[path]
            self._changed.notify_all()
        return True
