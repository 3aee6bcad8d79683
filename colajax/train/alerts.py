"""What in a run's evaluations a person should know of, or a run should end at: config.alerts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from colajax.errors import UserError

KINDS, ACTIONS = ("below", "above", "stalled"), ("warn", "keep", "stop")
EXPECTED = (
    'entries such as ("mean_variance", "below", 0.5, "warn"): a figure of the evaluation, '
    f"{' or '.join(KINDS)}, a number, {' or '.join(ACTIONS)}"
)


class Alert(NamedTuple):
    figure: str  # of an evaluation; a stage that does not report it has no such alert
    kind: str  # below or above the bound; stalled: in so many evaluations no higher than it had been
    bound: float
    action: str  # warn; keep: this checkpoint too, for good; stop: the run ends, when it has saved


def alerts_of(entries: Sequence) -> tuple[Alert, ...]:
    """Of config.alerts. Raises UserError on what is no alert."""
    found = []
    for entry in entries:
        if not isinstance(entry, tuple | list) or len(entry) != 4 or not isinstance(entry[0], str):
            raise UserError(f"config.alerts: {entry!r}: expected {EXPECTED}")
        alert = Alert(*entry)
        number = type(alert.bound) in (int, float) and math.isfinite(alert.bound)
        if alert.kind == "stalled":
            number = type(alert.bound) is int and alert.bound > 0
        if alert.kind not in KINDS or alert.action not in ACTIONS or not number:
            raise UserError(f"config.alerts: {entry!r}: expected {EXPECTED}")
        found.append(alert)
    return tuple(found)


def raised_by(alerts: Sequence[Alert], evaluations: Sequence[dict]) -> dict[Alert, str]:
    """Those that the last of these evaluations raises, with what is to be said of them."""
    found = {}
    for alert in alerts:
        values = [line[alert.figure] for line in evaluations if alert.figure in line]
        if not values or alert.figure not in evaluations[-1]:
            continue
        if alert.kind == "stalled":
            before, recent = values[: -alert.bound], values[-alert.bound :]
            if before and max(recent) <= max(before):
                found[alert] = f"{alert.figure} was {max(before):.4g}, no higher in the last {alert.bound} evaluations"
        elif values[-1] < alert.bound if alert.kind == "below" else values[-1] > alert.bound:
            found[alert] = f"{alert.figure} is {values[-1]:.4g}, {alert.kind} {alert.bound:g}"
    return found
