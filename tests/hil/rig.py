"""Panels whose pins can be pressed and watched: the simulated microcontroller, a real one on a bench rig, and
the GPIO panel on mock pins. They are all used alike; pins have the microcontroller board's names.
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Protocol

from firmware_bridge.gpio_panel import GpioPins
from firmware_bridge.simulator import BUTTONS, PinChange
from tests.conftest import ROOT
from tests.hil import mock_pins
from tests.hil.watch import LAMPS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NEEDED = (*BUTTONS.values(), *LAMPS.values())
OPTIONAL = ("RESET", "POWER")
LOW = PinChange("", 0, 0.0)
"""Of a pin that has never changed."""
LOOK_EVERY = 0.005
RESET_SECONDS = 0.1


class Rig(Protocol):
    """A panel with its pins in reach."""

    def press(self, button: str) -> None:
        """Close a button's contact."""

    def release(self, button: str) -> None:
        """Open it."""

    def changes(self, since: float = -math.inf) -> list[PinChange]:
        """The changes of pins after ``since``, monotonic seconds, in order."""

    def wait_for(self, pin: str, level: int, seconds: float) -> PinChange:
        """The change that brought a pin to a level. Raises TimeoutError."""

    def lag(self) -> float:
        """Seconds by which a simulator was late at the most since this was last asked."""


class Powered(Rig, Protocol):
    """One that can be reset, unplugged and plugged in again."""

    def reset(self) -> None:
        """As by the reset button."""

    def unplug(self) -> None:
        """Take port and power away."""

    def plug(self) -> None:
        """Give them back."""


class _Noting:
    """What rigs have in common that look at pins themselves."""

    def __init__(self) -> None:
        self._changes: list[PinChange] = []

    def lag(self) -> float:
        return 0.0

    def _note(self, pin: str, level: int, at: float) -> None:
        self._changes.append(PinChange(pin, level, at))

    def changes(self, since: float = -math.inf) -> list[PinChange]:
        return [change for change in self._changes if change.at > since]

    def wait_for(self, pin: str, level: int, seconds: float) -> PinChange:
        give_up = time.monotonic() + seconds
        while True:
            last = next((change for change in reversed(self.changes()) if change.pin == pin), LOW)
            if last.level == level:
                return last
            if time.monotonic() > give_up:
                raise TimeoutError(f"{pin} is not at {level} within {seconds:g} s")
            time.sleep(LOOK_EVERY)


class WiredRig(_Noting):
    """A real panel whose pins are wired to this Raspberry Pi's, as docs/bench-rig.md shows.

    Outputs press (a transistor or optocoupler closes the contact while one is high); inputs watch the lamps
    behind voltage dividers. ``RESET`` and ``POWER``, where they are wired: high resets, and cuts the power.
    """

    def __init__(self, wiring: Path) -> None:
        """Raises ValueError, in one line, for a file that does not fit."""
        from gpiozero import DigitalInputDevice, DigitalOutputDevice

        super().__init__()
        pins = read_wiring(wiring)
        self._watched = {pin: DigitalInputDevice(pins[pin]) for pin in LAMPS.values()}
        self._driven = {
            pin: DigitalOutputDevice(bcm) for pin, bcm in pins.items() if pin not in self._watched
        }
        for pin, device in self._watched.items():
            self._note(pin, int(device.value), time.monotonic())
            device.when_activated = lambda pin=pin: self._note(pin, 1, time.monotonic())
            device.when_deactivated = lambda pin=pin: self._note(pin, 0, time.monotonic())

    @property
    def has_power(self) -> bool:
        """Whether it can be reset and unplugged."""
        return self._driven.keys() >= set(OPTIONAL)

    def press(self, button: str) -> None:
        self._driven[BUTTONS[button]].on()

    def release(self, button: str) -> None:
        self._driven[BUTTONS[button]].off()

    def reset(self) -> None:
        self._driven["RESET"].blink(RESET_SECONDS, 0, n=1, background=False)

    def unplug(self) -> None:
        self._driven["POWER"].on()

    def plug(self) -> None:
        self._driven["POWER"].off()

    def close(self) -> None:
        """Let go of all pins."""
        for device in (*self._watched.values(), *self._driven.values()):
            device.close()


def read_wiring(path: Path) -> dict[str, int]:
    """The Raspberry Pi's BCM number for each pin of the panel. Raises ValueError, in one line."""
    try:
        pins = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := sorted(pins.keys() - {*NEEDED, *OPTIONAL}):
        raise ValueError(f"{path}: unknown {', '.join(unknown)}; known: {', '.join((*NEEDED, *OPTIONAL))}")
    if missing := [pin for pin in NEEDED if pin not in pins]:
        raise ValueError(f"{path}: no BCM number for {', '.join(missing)}")
    for pin, bcm in pins.items():
        if type(bcm) is not int or not 0 <= bcm <= 27 or list(pins.values()).count(bcm) > 1:
            raise ValueError(f"{path}: {pin} = {bcm!r}: must be a BCM number from 0 to 27, used once")
    return pins


class MockPinsRig(_Noting):
    """The GPIO panel's pins: gpiozero's mock pins in whatever process has opened them, tests.hil.mock_pins.

    ``variables``: what that process needs in its environment. gpiozero finds pins that are not its own by
    an entry point.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        package = folder / "rig-0.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: rig\nVersion: 0\n")
        (package / "entry_points.txt").write_text(
            "[gpiozero_pin_factories]\nrig = tests.hil.mock_pins:RigFactory\n"
        )
        self.variables = {
            "GPIOZERO_PIN_FACTORY": "rig",
            mock_pins.FOLDER: str(folder),
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        }
        self._outputs = (folder / "outputs").open("a+")
        os.mkfifo(folder / "inputs")
        # For reading, too, so that it opens before the panel does and stays open after it.
        self._inputs = (folder / "inputs").open("r+b", buffering=0)
        self._names = {getattr(GpioPins(), name.replace(" ", "_")): pin for name, pin in LAMPS.items()}

    def press(self, button: str) -> None:
        self._inputs.write(f"{getattr(GpioPins(), button)} 0\n".encode())

    def release(self, button: str) -> None:
        self._inputs.write(f"{getattr(GpioPins(), button)} 1\n".encode())

    def changes(self, since: float = -math.inf) -> list[PinChange]:
        for line in self._outputs:
            number, level, at = line.split()
            if int(number) in self._names:
                self._note(self._names[int(number)], int(level), float(at))
        return super().changes(since)

    def close(self) -> None:
        """Let go of the files."""
        self._outputs.close()
        self._inputs.close()
