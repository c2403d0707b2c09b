"""Reading beside capture and drawing, in the way of neither: newest frame in, newest reading out."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from device.capture.live import Arrived, Capture
from device.clock import now
from device.results import Results
from reader.reader import Reader, Reading

FRAME_DEADLINE = 0.1
"""Seconds between two looks at whether anything is to be done."""
JOIN_DEADLINE = 2.0
"""Seconds to wait for the thread to end; one that hangs in the network is left behind."""
MOST_UNSEEN = 16
"""Readings kept for a screen that is slow to take them; older ones are in the results all the same."""
HELD = "held"


@dataclass(frozen=True)
class Taken:
    """A reading, the monotonic second at which its frame reached this host, and the milliseconds that
    it took to read."""

    reading: Reading
    at: float
    read_ms: float


class FrameReader:
    """Reads one frame after another of one source and writes a results line for each."""

    def __init__(self, reader: Reader, results: Results, file: str | None) -> None:
        self.held = False
        self._reader, self._results, self._file = reader, results, file
        self._first_at: float | None = None

    def read(self, arrived: Arrived) -> Taken:
        """Read a frame, or only hold it while the user holds the picture.

        Raises OSError where the results cannot be written.
        """
        frame, began = arrived.frame, time.perf_counter()
        reading = Reading(HELD, frame, self._reader.beam) if self.held else self._reader.read(frame)
        taken = Taken(reading, arrived.at, 1e3 * (time.perf_counter() - began))
        if self._first_at is None:
            self._first_at = frame.captured_at
        age_ms = 1e3 * (now() - arrived.at)
        self._results.write(reading, frame.captured_at - self._first_at, age_ms, taken.read_ms, self._file)
        return taken

    def interrupted(self) -> None:
        """The source went away: what comes back may be another scanner or setting."""
        self._reader.interrupted()


class ReadingThread:
    """Takes the newest frame of a capture whenever the last one is read.

    ``ticks`` counts its looks at the capture, so that others can tell its pace from the clock's.
    ``reads`` counts frames. ``error``: what ended it, if anything did.
    """

    def __init__(self, capture: Capture, frames: FrameReader) -> None:
        self.ticks = self.reads = 0
        self.error: Exception | None = None
        self._capture, self._frames = capture, frames
        self._changed = threading.Condition()
        self._unseen: deque[Taken] = deque(maxlen=MOST_UNSEEN)
        self._reading_since: float | None = None
        self._stop = self._woken = False
        self._thread = threading.Thread(target=self._run, name="reading", daemon=True)
        self._thread.start()

    def take(self, deadline: float) -> list[Taken]:
        """The readings made since the last call, oldest first; waits up to ``deadline`` seconds for one, or
        until ``wake`` is called."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._unseen or self._woken or not self._thread.is_alive(), timeout=deadline
            )
            unseen = list(self._unseen)
            self._unseen.clear()
            self._woken = False
            return unseen

    def wake(self) -> None:
        """Have ``take`` return at once: something else wants to be done."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    @property
    def busy_for(self) -> float:
        """Seconds for which the present frame has been in the network; 0 between frames."""
        since = self._reading_since
        return 0.0 if since is None else now() - since

    @property
    def ended(self) -> bool:
        """Whether the source is through, or reading failed, and every reading was taken."""
        with self._changed:
            return not self._thread.is_alive() and not self._unseen

    def close(self) -> None:
        """Stop reading."""
        self._stop = True
        self._thread.join(JOIN_DEADLINE)

    def _run(self) -> None:
        try:
            while not self._stop and not self._capture.ended:
                self.ticks += 1
                arrived = self._capture.take(FRAME_DEADLINE)
                if arrived is not None:
                    self._read(arrived)
                elif self._capture.trouble is not None:
                    self._frames.interrupted()
        except Exception as error:  # noqa: BLE001  carried to the screen's thread, which names it
            self.error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _read(self, arrived: Arrived) -> None:
        self._reading_since = now()
        taken = self._frames.read(arrived)
        self._reading_since = None
        self.reads += 1
        with self._changed:
            self._unseen.append(taken)
            self._changed.notify_all()
