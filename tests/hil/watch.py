"""What the lamps showed, told from nothing but when their pins changed."""

from __future__ import annotations

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence

from firmware_bridge.lamps import SHOWN
from firmware_bridge.simulator import PinChange
from firmware_bridge.wire import Shown

LAMPS = {"normal": "D7", "opacity": "D8", "no reading": "D10"}
VERDICTS = ("D7", "D8")
"""The lamps that say something of a lung."""
STALE_AFTER = 2.0
"""Seconds from the arrival of the last frame that was read, after which no such lamp may be lit."""
STEPS = 16
"""Of a pattern, which takes a second."""
LOOKS = 256
"""At a lamp, in a second."""
ODD_AT_EDGE = 2
"""Looks that may differ from a pattern at each of its edges."""


def levels(changes: Sequence[PinChange], pin: str, times: Sequence[float]) -> list[int]:
    """A pin's level at each moment; low before its first change."""
    of_pin = [change for change in changes if change.pin == pin]
    at = [change.at for change in of_pin]
    return [of_pin[place - 1].level if (place := bisect_right(at, moment)) else 0 for moment in times]


def showed(changes: Sequence[PinChange], until: float) -> Shown | None:
    """What the lamps showed in the second that ended at ``until``, by all three patterns; None for
    nothing that the table has."""
    times = [until - 1 + i / LOOKS for i in range(LOOKS)]
    seen = [_as_number(levels(changes, pin, times)) for pin in LAMPS.values()]
    odd, shown = min((_odd(seen, patterns), shown) for shown, patterns in SHOWN.items())
    edges = sum((pattern ^ _turned(pattern, 1, STEPS)).bit_count() for pattern in SHOWN[shown])
    return shown if odd <= ODD_AT_EDGE * (1 + edges) else None


def _as_number(looks: Sequence[int]) -> int:
    return int("".join(map(str, looks)), 2)


def _odd(seen: Sequence[int], patterns: Sequence[int]) -> int:
    """Looks that differ from a state's patterns, wherever in them the second began."""
    meant = [_as_number([p >> (STEPS - 1 - i * STEPS // LOOKS) & 1 for i in range(LOOKS)]) for p in patterns]
    return min(
        sum((one ^ _turned(other, by, LOOKS)).bit_count() for one, other in zip(seen, meant, strict=True))
        for by in range(LOOKS)
    )


def _turned(number: int, by: int, bits: int) -> int:
    return (number << by | number >> (bits - by)) & ((1 << bits) - 1)


def await_shown(changes: Callable[[], Sequence[PinChange]], wanted: Shown, seconds: float) -> None:
    """Wait until the lamps have shown something for a second. Raises TimeoutError."""
    give_up = time.monotonic() + seconds
    while (seen := showed(changes(), time.monotonic())) != wanted:
        if time.monotonic() > give_up:
            raise TimeoutError(f"after {seconds:g} s the lamps show {seen!r}, not {wanted!r}")
        time.sleep(0.05)


def verdict_lit(changes: Sequence[PinChange], since: float, until: float) -> list[tuple[float, float]]:
    """From when to when a lamp that says something of a lung was lit, between two moments."""
    spans = []
    for pin in VERDICTS:
        lit_at = since if levels(changes, pin, [since])[0] else None
        for change in changes:
            if change.pin != pin or not since < change.at <= until:
                continue
            if change.level and lit_at is None:
                lit_at = change.at
            elif not change.level and lit_at is not None:
                spans.append((lit_at, change.at))
                lit_at = None
        if lit_at is not None:
            spans.append((lit_at, until))
    return sorted(spans)


def oldest_verdict(
    changes: Sequence[PinChange], readings: Sequence[tuple[float, float]], since: float, until: float
) -> float:
    """The greatest age in seconds, between two moments, that the last reading had while a lamp that says
    something of a lung was lit.

    ``readings``: when each reading with a verdict was made and when its frame had arrived, in order.
    Infinite where such a lamp was lit before there was any.
    """
    made = [reading[0] for reading in readings]
    oldest = 0.0
    for began, ended in verdict_lit(changes, since, until):
        # A reading is oldest when the next one is made, or when the lamp goes out.
        first, last = bisect_right(made, began), bisect_right(made, ended)
        for place, moment in [*enumerate(made[first:last], first), (last, ended)]:
            oldest = max(oldest, moment - readings[place - 1][1] if place else math.inf)
    return oldest
