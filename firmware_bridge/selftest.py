"""Every part of a panel in turn, with a person as eyes and hands: ``sonoglance panel selftest``."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from firmware_bridge.link import LINKED, LinkState, PanelLink, words
from firmware_bridge.wire import Button, Capability, Kind, Shown, Status

LINK_DEADLINE = 10.0
FOLLOW_DEADLINE = 2.0
"""Seconds in which a panel must show what it is asked."""
PERSON_DEADLINE = 30.0
"""Seconds that somebody has to press a button or turn the dial."""
DIAL_SPAN = 200
"""How far, of 255, the dial must turn to be called whole."""
READING_EVERY = 0.04
LOOK_EVERY = 0.01
WATCHDOG_BIT = 8
CAUSES = {1: "power on", 2: "reset pin", 4: "brown-out", WATCHDOG_BIT: "watchdog"}
"""Bits of the ATmega328P's MCUSR (datasheet 11.9.1)."""
LOOKS = {
    Shown.NORMAL: "only the lamp NORMAL, steady",
    Shown.OPACITY: "only the lamp OPACITY, flickering",
    Shown.CANNOT_TELL: "only the lamp NO READING, slowly on and off",
    Shown.NO_READING: "only the lamp NO READING, in short flashes",
    Shown.TEST: "all three lamps together",
}


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    what: str
    passed: bool
    told: str

    def __str__(self) -> str:
        return f"{'ok' if self.passed else 'FAILED':<8}{self.what:<20}{self.told}"


class SelfTest:
    """The test of a panel over its link. ``hands_off`` leaves out what needs a person."""

    def __init__(self, link: PanelLink, hands_off: bool) -> None:
        self._link, self._hands_off = link, hands_off
        self._readings = itertools.count(1)

    def run(self) -> int:
        """Print a row for each part as it is tested: 0 where all passed, else 1."""
        results = []
        for result in self._results():
            print(result, flush=True)
            results.append(result)
        return 0 if all(result.passed for result in results) else 1

    def _results(self) -> Iterator[Result]:
        self._until(_settled, LINK_DEADLINE)
        state = self._link.state
        yield Result("link", _settled(state), state.detail)
        if state.hello is None or state.status is None:
            return
        first, has = state.status, Capability(state.hello.capabilities)
        yield Result("protocol", True, f"version {state.hello.version}")
        yield _parts(has)
        if Capability.WATCHDOG in has:
            yield _last_start(state.hello.reset_cause)
        if Capability.BATTERY in has:
            volts = f"{first.battery_mv / 1e3:.1f} V" if first.battery_mv else "none connected"
            yield Result("battery", True, volts)
        yield _at_rest(first)
        yield from self._follows()
        if not self._hands_off:
            yield from self._seen(Capability.BUZZER in has)
            yield from map(self._pressed, Button)
            if Capability.DIAL in has:
                yield self._turned()
        yield self._line(first)

    def _follows(self) -> Iterator[Result]:
        for asked in LOOKS:
            if asked != Shown.TEST:  # it sounds
                with self._showing(asked):
                    begun = time.monotonic()
                    followed = self._until(lambda state: _shows(state, asked), FOLLOW_DEADLINE)  # noqa: B023
                    took = 1e3 * (time.monotonic() - begun)
                yield Result(
                    f"shows {words(asked)}",
                    followed,
                    f"after {took:.0f} ms" if followed else self._link.state.detail,
                )

    def _seen(self, buzzer: bool) -> Iterator[Result]:
        for asked, look in LOOKS.items():
            with self._showing(asked):
                yield Result(f"lamps: {words(asked)}", _yes(f"Do you see {look}?"), look)
                if asked == Shown.TEST and buzzer:
                    yield Result("buzzer", _yes("Did the buzzer sound as they came on?"), "one tone")

    def _pressed(self, button: Button) -> Result:
        name = button.name.lower()
        print(f"Press {name.upper()} shortly.", flush=True)
        self._link.events()
        wanted = [(button, Kind.PRESS), (button, Kind.CLICK)]
        seen: list[tuple[Button, Kind]] = []

        def done(_: LinkState) -> bool:
            seen.extend((event.button, event.kind) for event in self._link.events())
            return len(seen) >= len(wanted)

        self._until(done, PERSON_DEADLINE)
        told = ", ".join(f"{which.name.lower()} {kind.name.lower()}" for which, kind in seen)
        return Result(f"button {name}", seen == wanted, told or "nothing was pressed")

    def _turned(self) -> Result:
        print("Turn the dial from one end to the other.", flush=True)
        dials: set[int] = set()

        def done(state: LinkState) -> bool:
            dials.update([state.status.dial] if state.status else [])
            return bool(dials) and max(dials) - min(dials) >= DIAL_SPAN

        turned = self._until(done, PERSON_DEADLINE)
        return Result("dial", turned, f"from {min(dials)} to {max(dials)} of 255" if dials else "not heard")

    def _line(self, first: Status) -> Result:
        state = self._link.state
        if state.status is None:
            return Result("line", False, state.detail)
        if state.status.boot != first.boot:
            return Result("line", False, "the panel was reset during the test: check its supply and cable")
        damaged = state.status.refused - first.refused
        return Result(
            "line", damaged == 0, f"{damaged} damaged frames" + (": check the cable" if damaged else "")
        )

    def _until(self, holds: Callable[[LinkState], bool], seconds: float) -> bool:
        """Whether something came to hold within some time."""
        until = time.monotonic() + seconds
        while not holds(self._link.state):
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_EVERY)
        return True

    @contextmanager
    def _showing(self, asked: Shown) -> Iterator[None]:
        """Have it asked for, with reading after reading, as only what is new is shown."""
        ended = threading.Event()

        def read() -> None:
            while not ended.wait(READING_EVERY):
                self._link.show(asked, next(self._readings), time.monotonic())

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        try:
            yield
        finally:
            ended.set()
            reading.join()
            self._link.show(Shown.NO_READING, next(self._readings), None)


def _settled(state: LinkState) -> bool:
    """Whether it is linked, and has run for long enough to know its buttons, dial and battery."""
    return state.name == LINKED and state.status is not None and state.status.uptime_s >= 1


def _parts(has: Capability) -> Result:
    needed = Capability.BUTTONS | Capability.LAMPS
    names = [part.name.lower() for part in Capability if part in has and part.name]
    return Result("parts", has & needed == needed, ", ".join(names) or "none")


def _last_start(cause: int) -> Result:
    names = [name for bit, name in CAUSES.items() if cause & bit]
    told = f"by {', '.join(names)}" if names else "by a boot loader, which keeps the cause to itself"
    hung = bool(cause & WATCHDOG_BIT)
    return Result("last start", not hung, told + (": its program had hung" if hung else ""))


def _at_rest(status: Status) -> Result:
    down = [button.name.lower() for button in Button if status.down >> (button - 1) & 1]
    return Result("buttons at rest", not down, f"down: {', '.join(down)}" if down else "none is down")


def _shows(state: LinkState, asked: Shown) -> bool:
    return state.status is not None and state.status.shown == asked


def _yes(question: str) -> bool:
    """Ask the person at the keyboard; an end of input is a no."""
    print(f"{question} [y/n] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
