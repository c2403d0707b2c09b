"""A panel in Python on a real pty, for what the firmware never does: other versions, silence, deafness."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import threading
import time
import tty
from math import inf
from pathlib import Path

from firmware_bridge.wire import (
    VERSION,
    Ask,
    Button,
    Event,
    FrameReader,
    Got,
    Hello,
    Kind,
    Message,
    Show,
    Shown,
    Status,
    encode,
)
from tests.firmware_bridge.patience import PATIENCE

__all__ = ["PATIENCE", "PtyPanel"]
REPEAT_EVERY, STATUS_EVERY = 0.02, 0.25


class PtyPanel:
    """Plugged from its making on. ``ttys``: the folder where it is said to be a USB device of ``vendor``, as
    /sys/class/tty says it. ``received``: what came, and when. Set at will: ``silent`` (says nothing),
    ``deaf`` (does not take what comes), ``version``, ``shown`` (None: what it is asked), ``down``, ``flags``,
    and ``waiting`` (an event that is repeated until it is got)."""

    def __init__(
        self,
        port: Path,
        version: int = VERSION,
        silent: bool = False,
        ttys: Path | None = None,
        vendor: str = "2341",
    ) -> None:
        self.port, self.version, self.silent, self.deaf = port, version, silent, False
        self.shown: Shown | None = None
        self._ttys, self._vendor = ttys, vendor
        self.down = self.flags = 0
        self.received: list[tuple[Message, float]] = []
        self.raw = b""
        self.boot, self._number, self._sequence = 1, 0, 0
        self._asked = Shown.NO_READING
        self.waiting: Event | None = None
        self._plugged = self._ended = False
        self._using = threading.Lock()
        """Held while the thread uses the port, which must not be closed meanwhile."""
        self.plug()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> PtyPanel:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join()
        self.unplug()

    def plug(self) -> None:
        self._master, slave = os.openpty()
        tty.setraw(slave)
        name = os.ttyname(slave)
        os.close(slave)
        if self._ttys is not None:
            self._enlist(self._ttys, Path(name).name)
        self.port.symlink_to(name)
        os.set_blocking(self._master, False)
        self._frames = FrameReader()
        self._said_at = self._repeated_at = -inf
        self._plugged = True

    def _enlist(self, ttys: Path, name: str) -> None:
        device = ttys / f"usb-of-{name}"
        shutil.rmtree(device, ignore_errors=True)  # of an earlier pty of this name
        (device / "1-1:1.0").mkdir(parents=True)
        (device / "idVendor").write_text(f"{self._vendor}\n")
        (ttys / name).mkdir(exist_ok=True)
        (ttys / name / "device").unlink(missing_ok=True)
        (ttys / name / "device").symlink_to(device / "1-1:1.0")

    def unplug(self) -> None:
        with self._using:
            if self._plugged:
                self._plugged = False
                self.port.unlink()
                os.close(self._master)

    def reset(self) -> None:
        self.boot += 1
        self._number = 0
        self.say(self._hello())

    def press(self, button: Button, age_ms: int = 0) -> None:
        """Send an event again and again until it is got."""
        self.waiting = Event(self.boot, self._number, button, Kind.PRESS, age_ms)
        self._number = (self._number + 1) & 0xFF

    def say(self, message: Message) -> None:
        self._sequence = (self._sequence + 1) & 0xFF
        self.babble(encode(message, self._sequence))

    def babble(self, what: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(self._master, what)

    def shows(self) -> list[tuple[Show, float]]:
        return [(message, at) for message, at in self.received if isinstance(message, Show)]

    def _hello(self) -> Hello:
        return Hello(self.version, 63, self.boot, 1, 1, 0)

    def _run(self) -> None:
        while not self._ended:
            with self._using:
                if self._plugged and not self.deaf and select.select([self._master], [], [], 0)[0]:
                    self._hear()
                if self._plugged and not self.silent:
                    self._speak()
            time.sleep(0.002)

    def _hear(self) -> None:
        try:
            raw = os.read(self._master, 65536)
        except OSError:  # nobody has it open
            return
        self.raw += raw
        for message, _ in self._frames.feed(raw):
            self.received.append((message, time.monotonic()))
            if isinstance(message, Ask) and not self.silent:
                self.say(self._hello())
            elif isinstance(message, Show):
                self._asked = Shown(message.asked)
            elif isinstance(message, Got) and self.waiting and message.number == self.waiting.number:
                self.waiting = None

    def _speak(self) -> None:
        at = time.monotonic()
        if self.waiting and at - self._repeated_at >= REPEAT_EVERY:
            self._repeated_at = at
            self.say(self.waiting)
        if at - self._said_at >= STATUS_EVERY:
            self._said_at = at
            shown = self._asked if self.shown is None else self.shown
            self.say(Status(self.boot, 1, 7400, 200, shown, 0, self.down, self.flags, 0))
