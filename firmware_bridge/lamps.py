"""What the lamps show: firmware/lamps.def read in Python, and a panel's obedience to it as a pure class.

The firmware compiles the same file, so that the two panels cannot differ in a number.
"""

from __future__ import annotations

import re
from pathlib import Path

from firmware_bridge.wire import NO_AGE, Show, Shown

STEPS = 16
"""Of a lamp's pattern."""
STEPS_A_SECOND = 16

_TABLE = re.sub(r"/\*.*?\*/", "", (Path(__file__).parent / "firmware" / "lamps.def").read_text(), flags=re.S)


def _rows(kind: str) -> list[list[str]]:
    return [row.replace(" ", "").split(",") for row in re.findall(rf"^{kind}\((.*)\)", _TABLE, re.M)]


SHOWN = {
    Shown[name]: (int(normal, 16), int(opacity, 16), int(no_reading, 16))
    for _, name, normal, opacity, no_reading in _rows("SHOWN")
}
"""The patterns of the lamps normal, opacity and no reading; a pattern's first step is its highest bit."""
RULES = tuple((condition, then) for condition, then in _rows("RULE"))
"""Conditions and what is then shown; the first that holds decides. ASKED is whatever the box asks for."""
LIMITS = {name: int(milliseconds) for name, milliseconds in _rows("LIMIT")}
"""The times that the conditions speak of, in milliseconds."""


class Lamps:
    """What a panel shows, from what it heard and when; every ``at`` is in seconds of one clock."""

    def __init__(self) -> None:
        self._show: Show | None = None
        self._heard_at = self._number_since = self._entered_at = 0.0
        self._shown: Shown | None = None

    def heard(self, show: Show, at: float) -> None:
        """Take a heartbeat of the box, one of our version."""
        if self._show is None or self._show.reading != show.reading:
            self._number_since = at
        self._show, self._heard_at = show, at

    def shown(self, at: float) -> Shown:
        """What is shown now. Ask in the order of time: a change is dated to the call that finds it."""
        shown = self._decide(at)
        if shown != self._shown:
            self._shown, self._entered_at = shown, at
        return shown

    def lit(self, at: float) -> tuple[bool, bool, bool]:
        """Whether the lamps normal, opacity and no reading are lit now."""
        patterns = SHOWN[self.shown(at)]
        bit = STEPS - 1 - _milliseconds(self._entered_at, at) * STEPS_A_SECOND // 1000 % STEPS
        normal, opacity, no_reading = (bool(pattern >> bit & 1) for pattern in patterns)
        return normal, opacity, no_reading

    def _decide(self, at: float) -> Shown:
        if self._show is None:
            return Shown.NO_LINK
        silent = _milliseconds(self._heard_at, at)
        age = self._show.age_ms
        holds = {
            "LINK_SILENT": silent >= LIMITS["LINK_SILENT_MS"],
            "ASKED_TEST": self._show.asked == Shown.TEST,
            "READING_OLD": age == NO_AGE or age + silent >= LIMITS["READING_OLD_MS"],
            "NUMBER_STUCK": _milliseconds(self._number_since, at) >= LIMITS["READING_OLD_MS"],
            "OTHERWISE": True,
        }
        then = next(then for condition, then in RULES if holds[condition])
        return Shown(self._show.asked) if then == "ASKED" else Shown[then]


def _milliseconds(since: float, until: float) -> int:
    return round(1e3 * (until - since))
