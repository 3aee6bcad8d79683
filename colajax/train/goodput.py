"""Where the time of a run goes: each second to one kind, over all its starts.

A process keeps a Clock; what it has spent is a line of timeline.jsonl ("spent") whenever a checkpoint is saved. From
these lines alone `totals` says what all the starts of a run have spent, and what was lost."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import jax

# Until the first update, but for what follows: imports, other processes, data, the check of the layout; reading the
# arrays of a checkpoint; XLA, at any time; waiting for data; updates; evaluations; saves, as far as they hold updates
# up; work that was done again, and the time in which nothing ran.
KINDS = ("start", "restore", "compile", "data", "updates", "evaluation", "save", "lost")
_REPEATED = ("data", "updates", "evaluation", "save")  # what a start from an older checkpoint does again

_compiled = 0.0  # seconds that XLA has taken in this process


def _listen(event: str, seconds: float, **_) -> None:
    global _compiled
    if event == "/jax/core/compile/backend_compile_duration":
        _compiled += seconds


jax.monitoring.register_event_duration_secs_listener(_listen)


class Clock:
    """Of a process that trains. began: time.time() when it did."""

    def __init__(self, began: float | None = None):
        now = time.time()
        self.began = now if began is None else began
        self._spent, self._kind = Counter(start=now - self.began), "start"
        self._since, self._compiled = time.perf_counter(), _compiled

    def turn(self, kind: str) -> None:
        """From here on time is spent on `kind`."""
        now, compiled = time.perf_counter(), _compiled
        seconds = now - self._since
        compiling = min(compiled - self._compiled, seconds)
        self._spent += Counter({"compile": compiling}) + Counter({self._kind: seconds - compiling})
        self._kind, self._since, self._compiled = kind, now, compiled

    @contextlib.contextmanager
    def spending(self, kind: str) -> Iterator[None]:
        """While this is open."""
        before = self._kind
        self.turn(kind)
        try:
            yield
        finally:
            self.turn(before)

    def spent(self) -> dict[str, float]:
        """Seconds by kind since this was last asked."""
        self.turn(self._kind)
        found, self._spent = self._spent, Counter()
        return dict(found)


def totals(timeline: Iterable[dict]) -> dict[str, float]:
    """Seconds by kind that a run has spent, from the lines of its timeline.jsonl: all the time from its first start to
    the last line that says what was spent. {} where no line does."""
    accounts: list[tuple[int, dict[str, float]]] = []  # (step, seconds by kind) since the first start
    until = None  # seconds of the clock up to which there is an account
    for line in timeline:
        event, step = line.get("event"), line["step"]
        if event == "start" and "began" in line:
            accounts = _behind(accounts, step)
            until = line["began"] if until is None else until
            accounts.append((0, {"lost": max(line["began"] - until, 0.0)}))
            until = max(until, line["began"])
        elif event == "went back":
            accounts = _behind(accounts, step)
        elif event == "spent" and until is not None:
            seconds = {kind: line[kind] for kind in KINDS if kind in line}
            accounts.append((step, seconds))
            until += sum(seconds.values())
    found = Counter()
    for _, seconds in accounts:
        found.update(seconds)
    return {kind: found[kind] for kind in KINDS} if any(found.values()) else {}


def _behind(accounts: list, step: int) -> list:
    """The accounts of a run that goes on from `step`: what it did behind that is lost."""
    return [(at, _lost(seconds) if at > step else seconds) for at, seconds in accounts]


def _lost(seconds: dict[str, float]) -> dict[str, float]:
    kept = {kind: value for kind, value in seconds.items() if kind not in _REPEATED}
    return kept | {"lost": kept.get("lost", 0.0) + sum(seconds.values()) - sum(kept.values())}


def shares(found: dict[str, float]) -> str:
    """For people: the whole time, and the share of each kind, largest first."""
    whole = sum(found.values())
    minutes, seconds = divmod(round(whole), 60)
    hours, minutes = divmod(minutes, 60)
    parts = sorted(((value / whole, kind) for kind, value in found.items() if value), reverse=True)
    return f"{hours:d}:{minutes:02d}:{seconds:02d} in all: " + ", ".join(f"{kind} {share:.1%}" for share, kind in parts)
