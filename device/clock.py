"""The clock that everything at the bedside is timed by."""

from __future__ import annotations

import time


def now() -> float:
    """Monotonic seconds: the clock that V4L2 stamps frames with."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
