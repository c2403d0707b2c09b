"""The console panel beside the screen: what its lamps say, what its buttons do, what is to be said of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from device.clock import now
from device.reading import Taken
from device.screen.drawing import Screen, shown_state, shows_live_verdict
from device.settings.config import GPIO_PANEL, NO_PIN, Config, GpioTable
from firmware_bridge.gpio_panel import STAYS_LIT, GpioPins, lamps_stay_lit
from firmware_bridge.link import LINKED, SEARCHING, LinkState, PanelLink
from firmware_bridge.ports import GpioPort, Port, SerialPort
from firmware_bridge.wire import Button, Condition, Kind, Shown
from reader.verdict import UNCERTAIN

KEYS = {
    (Button.FREEZE, Kind.PRESS): "f",
    (Button.NEXT, Kind.PRESS): "n",
    (Button.BACK, Kind.PRESS): "b",
    (Button.RECORD, Kind.PRESS): "r",
    # Accepting is a clinician's act: whoever holds the button to end the exam has not accepted anything.
    (Button.CONFIRM, Kind.CLICK): "a",
    (Button.CONFIRM, Kind.LONG): "e",
}
"""What is done to a button, and the key that means the same."""
LONG_PRESS = 0.8
"""Seconds for which a button is held for another meaning (firmware_bridge/PROTOCOL.md)."""
STUCK_AFTER = 10.0
"""Seconds for which a button may be down before the screen names it."""
TOLD_FOR = 4.0
"""Seconds for which the screen says that the panel is there."""


@dataclass(frozen=True)
class Press:
    """A key that a button stands for. ``since``: when the button went down, in monotonic seconds."""

    key: str
    since: float


def lamp(screen: Screen) -> Shown:
    """What the lamps are to show beside a screen: what it says of the live picture, where that may be relied
    on, and nothing of an exam's clip."""
    state = shown_state(screen)
    said = screen.reading.p is not None and state == screen.reading.state
    if not said or screen.alarm or not shows_live_verdict(screen):
        return Shown.NO_READING
    return {UNCERTAIN: Shown.CANNOT_TELL, screen.negative: Shown.NORMAL}.get(state, Shown.OPACITY)


class Panel:
    """The panel as the bedside loop sees it. ``woken``: called from another thread when a button was
    pressed."""

    def __init__(self, port: Port, quiet: bool = False, battery_low: int = 0) -> None:
        """``port``: where it is reached. ``battery_low``: millivolts from which its battery is named."""
        self.woken: Callable[[], None] = lambda: None
        self._battery_low = battery_low
        self._reading = 0
        self._read_at: float | None = None
        self._state, self._told_until = LinkState(SEARCHING, ""), 0.0
        self._down_since: dict[Button, float] = {}
        self._went_down: dict[Button, float] = {}
        self._link = PanelLink(port, lambda: self.woken(), quiet)

    def saw(self, taken: Taken) -> None:
        """Take in a reading: its number and age are what the lamps live from."""
        # A frame that the network did not read repeats the last reading, and has no verdict of its own.
        if taken.reading.verdict is not None:
            self._reading += 1
            self._read_at = taken.at

    @property
    def state(self) -> LinkState:
        """The link as ``pressed`` last found it."""
        return self._state

    def light(self, screen: Screen) -> None:
        """Have the lamps show what is about to be drawn."""
        self._link.show(lamp(screen), self._reading, self._read_at)

    def pressed(self) -> list[Press]:
        """What was pressed since the last call, in order."""
        self._follow(self._link.state)
        presses = []
        for event in self._link.events():
            if event.kind == Kind.PRESS:
                self._went_down[event.button] = event.at
            key = KEYS.get((event.button, event.kind))
            if key is not None:
                # Where its press was lost, it counts as the oldest that it can be.
                presses.append(Press(key, self._went_down.get(event.button, event.at - LONG_PRESS)))
        return presses

    @property
    def badges(self) -> tuple[str, ...]:
        """What the screen must say of the panel, as ``pressed`` last found it."""
        name, status = self._state.name, self._state.status
        if name != LINKED or status is None:
            return () if name == SEARCHING else (f"panel-{name}",)
        low = 0 < status.battery_mv < self._battery_low
        stuck = [b.name.lower() for b, since in self._down_since.items() if now() - since > STUCK_AFTER]
        return (
            *(["panel-linked"] if now() < self._told_until else []),
            *([f"panel-battery {status.battery_mv / 1000:.1f}"] if low else []),
            *(f"panel-stuck {button}" for button in stuck),
            *(["panel-lost"] if status.flags & Condition.EVENTS_LOST else []),
        )

    def close(self) -> None:
        """Leave the panel to itself: its lamps end every verdict within two seconds."""
        self._link.close()

    def _follow(self, state: LinkState) -> None:
        if state.name != self._state.name:
            print(f"\npanel: {state.name}: {state.detail}", file=sys.stderr)
            self._told_until = now() + TOLD_FOR
        self._state = state
        down = state.status.down if state.status is not None and state.name == LINKED else 0
        self._down_since = {
            button: self._down_since.get(button, now()) for button in Button if down >> (button - 1) & 1
        }


@contextmanager
def open_panel(settings: Config) -> Iterator[Panel | None]:
    """The panel of the configuration; None where there is none. It is looked for as long as it is away."""
    asked = settings.panel
    if not asked.connection:
        yield None
        return
    port: Port
    if asked.connection == GPIO_PANEL:
        port = GpioPort(_pins(settings.gpio))
        if lamps_stay_lit():
            print(f"note: {STAYS_LIT}", file=sys.stderr)
    else:
        port = SerialPort(asked.connection)
    panel = Panel(port, asked.quiet, asked.battery_low)
    try:
        yield panel
    finally:
        panel.close()


def _pins(gpio: GpioTable) -> GpioPins:
    wired: dict[str, Any] = {
        name: None if number == NO_PIN else number for name, number in vars(gpio).items()
    }
    return GpioPins(**wired)
