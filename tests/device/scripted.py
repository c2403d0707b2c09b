"""Drivers that act out a script behind the real process boundary of a grabber."""

from __future__ import annotations

import time
from pathlib import Path

from device.capture.driver import CaptureError, GrabberSpec, Mode, Picture
from device.clock import now
from reader.phantom import Act, Phantom

RATE = 25.0


class Scripted:
    """The phantom's lung, live, until ``Path(spec.device)`` says otherwise: the file holds one word."""

    lost = damaged = 0

    def __init__(self, spec: GrabberSpec) -> None:
        self.mode = Mode(spec.width, spec.height, "drawn", spec.rate)
        self._script = Path(spec.device)
        self._refuse_if_unplugged()
        phantom = Phantom((Act("normal", 60.0),))
        self._frames = [phantom.frame(i / RATE) for i in range(20)]
        self._given = 0

    def take(self, deadline: float) -> Picture | None:
        self._refuse_if_unplugged()
        word = self._script.read_text()
        if word == "hang":
            time.sleep(3600)
        if word == "silent":
            time.sleep(deadline)
            return None
        time.sleep(1 / RATE)
        self._given += 1
        # There and back, so that no two neighbours are far apart.
        place = self._given % 38
        return Picture(self._frames[min(place, 38 - place)], now())

    def _refuse_if_unplugged(self) -> None:
        if self._script.read_text() == "unplugged":
            raise CaptureError("no-device", "unplugged", "it is not plugged in")

    def close(self) -> None:
        pass
