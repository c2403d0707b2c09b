"""The clocks of the bedside: one that everything is timed by, and what is known of the time of day."""

from __future__ import annotations

import ctypes
import time
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
UNSYNCHRONIZED = 5
"""What adjtimex(2) answers while the clock is not in step with a time source (TIME_ERROR)."""


def now() -> float:
    """Monotonic seconds: the clock that V4L2 stamps frames with."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wall_time() -> str:
    """UTC as the box's clock has it, ISO 8601 with milliseconds. It may be wrong: see ``time_verified``."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


@lru_cache
def boot_id() -> str:
    """The kernel's id of this boot; empty where the kernel tells none."""
    return BOOT_ID.read_text(encoding="ascii").strip() if BOOT_ID.exists() else ""


def time_verified() -> bool:
    """Whether the kernel's clock is in step with a time source, which NTP daemons tell it (adjtimex(2))."""
    # Room for struct timex on every architecture; modes 0 changes nothing.
    asked = ctypes.create_string_buffer(512)
    state = int(ctypes.CDLL(None).adjtimex(asked))
    return 0 <= state < UNSYNCHRONIZED
