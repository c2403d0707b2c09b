"""gpiozero's mock pins with the outside world on them: found by gpiozero in the GPIO panel's own process.

In the folder ``$SONOGLANCE_RIG`` the file ``outputs`` gets a line ``BCM level monotonic-seconds`` for every
change of an output, and what is written to the pipe ``inputs`` as ``BCM level`` drives an input.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from gpiozero.pins.mock import MockFactory, MockPWMPin

FOLDER = "SONOGLANCE_RIG"


class RigPin(MockPWMPin):  # type: ignore[misc]
    def _change_state(self, value: float) -> bool:
        changed = bool(super()._change_state(value))
        if changed and self.function == "output":
            self.factory.note(
                f"{self.info.name.removeprefix('GPIO')} {int(value > 0)} {time.monotonic():.6f}\n"
            )
        return changed


class RigFactory(MockFactory):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(pin_class=RigPin)
        # A machine that stands still under its tests must not end a process for having hung.
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        folder = Path(os.environ[FOLDER])
        self._outputs = os.open(folder / "outputs", os.O_WRONLY | os.O_APPEND)
        threading.Thread(target=self._follow, args=(folder / "inputs",), daemon=True).start()

    def note(self, line: str) -> None:
        os.write(self._outputs, line.encode())

    def _follow(self, inputs: Path) -> None:
        with inputs.open() as lines:
            for line in lines:
                number, level = line.split()
                pin: Any = self.pin(int(number))
                # An input that is not open yet has no contact.
                with contextlib.suppress(AssertionError):
                    (pin.drive_high if level == "1" else pin.drive_low)()
