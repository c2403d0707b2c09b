"""Capture beside the reader: the newest frame wins, nothing queues, and every wait has a deadline."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from device.clock import now
from reader.clips import Frame

if TYPE_CHECKING:
    from device.capture.sources import Source

JOIN_DEADLINE = 2.0
"""Seconds to wait for the capture thread to end."""


@dataclass(frozen=True)
class Arrived:
    """A frame and the monotonic second at which it reached this host: the kernel's own time stamp
    where a device gave one."""

    frame: Frame
    at: float


@dataclass(frozen=True)
class Trouble:
    """Why a live source gives no frames at present.

    ``state``: a no-reading state. ``cause``: what brought it about, a key of the language files.
    ``detail``: the same for the log, in English.
    """

    state: str
    cause: str
    detail: str


class Capture(Protocol):
    """Frames of one live source as they come.

    ``name``: what a person calls the source, with its mode where it has one. ``trouble``: why none
    come at present; None while they do. ``badge``: what the screen must say of it, often empty.
    ``dropped``: frames that came and were never taken. ``restarts``: how often the source was opened
    anew.
    """

    name: str
    badge: str
    trouble: Trouble | None
    dropped: int
    restarts: int

    def take(self, deadline: float) -> Arrived | None:
        """The newest frame not yet taken, or None after ``deadline`` seconds without one."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the source is through for good and its last frame was taken."""
        ...

    def close(self) -> None:
        """Let go of the source."""
        ...


class PacedCapture:
    """Takes frames from a file or the phantom in a thread of its own, paced by their own times."""

    trouble: Trouble | None = None
    badge = ""
    restarts = 0

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._changed = threading.Condition()
        self._newest: Arrived | None = None
        self._error: Exception | None = None
        self._ended = False
        self._stop = threading.Event()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def take(self, deadline: float) -> Arrived | None:
        """The newest frame not yet taken, or None after ``deadline`` seconds without one.

        Raises the source's own error, once every frame before it was taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._newest or self._ended, timeout=deadline)
            arrived, self._newest = self._newest, None
            if arrived is None and self._error is not None:
                raise self._error
            return arrived

    @property
    def ended(self) -> bool:
        """Whether the source is through and its last frame was taken."""
        with self._changed:
            return self._ended and self._newest is None and self._error is None

    def close(self) -> None:
        """Stop taking frames and let go of the source."""
        self._stop.set()
        self._thread.join(JOIN_DEADLINE)
        self._source.close()

    def _run(self) -> None:
        began = now()
        try:
            for frame in self._source.frames():
                self._stop.wait(max(0.0, began + frame.captured_at - now()))
                if self._stop.is_set():
                    break
                self._put(Arrived(frame, now()))
        except Exception as error:  # noqa: BLE001  carried to the loop, which names it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _put(self, arrived: Arrived) -> None:
        with self._changed:
            self.dropped += self._newest is not None
            self._newest = arrived
            self._changed.notify_all()
