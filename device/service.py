"""The bedside reader as a service: the heartbeat that systemd's watchdog lives from, and the file in which
other services read how it fares.

The heartbeat comes from what was shown, and from nothing else: a thread that is well says nothing of a reader
that hangs.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from device.clock import now, wall_time
from device.reading import Taken
from device.screen.compositor import CompositorWatch
from device.state import write_whole
from reader.reader import Reading

RUNTIME_VARIABLE, NOTIFY_VARIABLE = "RUNTIME_DIRECTORY", "NOTIFY_SOCKET"
"""Where systemd says that a service's own folder is, and where it is told how the service fares
(sd_notify(3))."""
HEALTH_FILE = "health.json"
NO_READER = "no-reader"
HUNG = "hung"
"""The cause of a trouble that a new start may mend; every other of the capture's lies before this program."""
OUT_OF_REACH = frozenset({"busy", "refused", "not-capture"})
"""Causes for which a device that is there gives nothing: a release that brings them about is not well."""
FRESH = 2.0
"""Seconds since its frame's arrival for which a reading counts as news."""
LATE = 5.0
"""Seconds since the last beat from which the box is not well: a second before systemd loses patience."""
NOTIFY_DEADLINE, NOTIFY_EVERY = 0.2, 0.5
"""Seconds that systemd may take to hear, and between two beats that it is told of."""
TOLD_EVERY = 1.0
"""Seconds between two writings of the health file."""


def notify(line: str) -> None:
    """Tell systemd something, where it asked for it: ``READY=1``, ``WATCHDOG=1``, ``STATUS=...``.

    Raises OSError where its socket does not take it within a moment.
    """
    address = os.environ.get(NOTIFY_VARIABLE, "")
    if not address:
        return
    if address.startswith("@"):  # an abstract one (unix(7))
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as told:
        told.settimeout(NOTIFY_DEADLINE)
        told.connect(address)
        told.sendall(line.encode())


def runtime_folder() -> Path | None:
    """The service's folder under /run; None where this is no service."""
    named = os.environ.get(RUNTIME_VARIABLE, "").partition(":")[0]
    return Path(named) if named else None


def release_name() -> str:
    """The release that this program runs as (docs/technician.md); empty where it was not installed as one."""
    return os.environ.get("SONOGLANCE_RELEASE", "")


class Heartbeat:
    """Beats with each new thing that the screen has shown."""

    def __init__(self, folder: Path | None) -> None:
        """``folder``: where the health file goes; None for nowhere."""
        self._file = folder / HEALTH_FILE if folder is not None else None
        self._compositor = CompositorWatch()
        self._program = version("sonoglance")
        self._last_read_at = -1.0
        self._beat_at: float | None = None
        self._healthy_since = 0.0
        self._due = self._notify_due = 0.0
        self._complaint = ""
        self._ready = False

    @property
    def fed(self) -> bool:
        """Whether the last beat was in time."""
        return self._beat_at is not None and now() - self._beat_at < LATE

    @property
    def healthy_for(self) -> float:
        """Seconds since when every beat was in time, and nothing was out of reach."""
        return now() - self._healthy_since if self.fed else 0.0

    def shown(
        self, reading: Reading, newest: Taken | None, troubled: bool, health: Callable[[], dict[str, Any]]
    ) -> None:
        """``reading`` is on the screen; ``newest``: the last that was made. ``troubled``: the capture says
        why it has no picture. ``health``: what the health file says beside the heartbeat, asked for when it
        is written."""
        try:
            if self._is_news(reading, newest, troubled) and self._compositor.lives:
                self._beat(reading)
            if now() >= self._due:
                self._due = now() + TOLD_EVERY
                self._write(reading, health())
        except OSError as error:
            # Reading goes on: where it is systemd that was not reached, it will start this program anew.
            self._complain(f"heartbeat: {error.filename or NOTIFY_VARIABLE}: {error.strerror or error}")

    def _complain(self, line: str) -> None:
        if line != self._complaint:
            print(f"\n{line}", file=sys.stderr)
        self._complaint = line

    def _is_news(self, reading: Reading, newest: Taken | None, troubled: bool) -> bool:
        if newest is None or reading is not newest.reading:
            return troubled and reading.state != NO_READER and reading.cause != HUNG
        new = newest.at > self._last_read_at and now() - newest.at < FRESH
        self._last_read_at = max(self._last_read_at, newest.at)
        return new

    def _beat(self, reading: Reading) -> None:
        if not self.fed or reading.cause in OUT_OF_REACH:
            self._healthy_since = now()
        self._beat_at = now()
        if not self._ready:
            notify(f"READY=1\nSTATUS=first shown: {reading.state}")
            self._ready = True
        elif now() >= self._notify_due:
            notify("WATCHDOG=1")
            self._notify_due = now() + NOTIFY_EVERY

    def _write(self, reading: Reading, health: dict[str, Any]) -> None:
        if self._file is None:
            return
        told = {
            "at": now(),
            "wall": wall_time(),
            "pid": os.getpid(),
            "release": release_name(),
            "program": self._program,
            "state": reading.state,
            "cause": reading.cause,
            "fed": self.fed,
            "healthy_s": round(self.healthy_for, 1),
        }
        write_whole(self._file, json.dumps(told | health).encode())
