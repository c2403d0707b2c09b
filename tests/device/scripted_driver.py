"""A driver that does what a file says, for a grabber's process to hold."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from device.capture.driver import CaptureError, GrabberSpec, Mode, Picture


class ScriptedDriver:
    """``GrabberSpec.device`` is a folder; its file ``order`` says what happens, anew before each frame.

    The orders: ``go``, ``size WIDTH HEIGHT``, ``crash``, ``spin`` and ``trouble STATE CAUSE``; at ``trouble
    no-device ...`` it cannot be opened either. Every pixel of a frame is the frame's number, modulo 256.
    """

    def __init__(self, spec: GrabberSpec) -> None:
        self._order = Path(spec.device) / "order"
        self.mode: Mode | None = Mode(spec.width, spec.height, "GREY", spec.rate)
        self._rate = spec.rate
        self.lost = self.damaged = 0
        self._number = 0
        if self._order.read_text().startswith("trouble no-device"):
            self._obey()

    def take(self, deadline: float) -> Picture | None:
        time.sleep(min(deadline, 1 / self._rate))
        self._obey()
        assert self.mode is not None
        self._number += 1
        shape = self.mode.height, self.mode.width, 3
        return Picture(np.full(shape, self._number % 256, np.uint8), time.monotonic())

    def close(self) -> None:
        pass

    def _obey(self) -> None:
        match self._order.read_text().split():
            case ["size", width, height]:
                self.mode = Mode(int(width), int(height), "GREY", self._rate)
            case ["crash"]:
                os.abort()
            case ["spin"]:
                while True:
                    pass
            case ["trouble", state, cause]:
                raise CaptureError(state, cause, f"{state} as ordered")
