"""The panel without the panel: the real firmware image in a simulated ATmega328P (simavr), paced to the
clock, its serial port a pseudo-terminal, its pins at hand.

Linux with gcc, make, libsimavr-dev and libelf-dev. What the simulated part does as the real one does, beside
running its program: it takes and gives bytes at the line's rate, loses those that it reads too late, hears
rubbish at another rate, keeps its RAM over a reset and its EEPROM and flash over a loss of power, and is
reset by its watchdog, and when its port is opened (DTR) unless HUPCL was cleared before the last close.

What it does not: DTR and RTS cannot be set on a pseudo-terminal, there is no brown-out, no boot loader unless
one is loaded, the clock is exact, and a byte is at the host when the real one would still be sending it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import queue
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

__all__ = ["BUTTONS", "LineCounts", "PinChange", "SimulatedPanel", "SimulatorError"]

BUTTONS = {"freeze": "D2", "next": "D3", "back": "D4", "record": "D5", "confirm": "D6"}
"""Where the panel's buttons are."""
CLOCK = 16_000_000
"""Hertz, of the microcontroller."""
ANSWER_DEADLINE = 10.0
"""Seconds for the runner to start, or to answer, on a busy machine."""
_FOLDER = Path(__file__).parent


class SimulatorError(OSError):
    """The simulator cannot be built, cannot be started, or refuses what it is told."""


@dataclass(frozen=True)
class PinChange:
    """A pin, by Arduino's name, is at another ``level`` since ``at`` (CLOCK_MONOTONIC, seconds): when a real
    part's pin would have changed, however late the simulation was."""

    pin: str
    level: int
    at: float


@dataclass(frozen=True)
class LineCounts:
    """Bytes since the start. ``to_part`` and ``to_host``: sent; ``flipped`` and ``lost``: by the noise asked
    for; ``garbled``: sent at another rate than the other side's; ``overrun``: read too late by the firmware,
    so lost."""

    to_part: int
    to_host: int
    flipped: int
    lost: int
    garbled: int
    overrun: int


class SimulatedPanel:
    """A running microcontroller. A context manager: its process ends with the block, or with this process."""

    def __init__(self, firmware: Path, port: Path) -> None:
        """Plug it in: ``port`` becomes a symbolic link to its serial port.

        ``firmware``: an ``.elf``, or an Intel ``.hex``, which is started at its lowest address (as a boot
        loader is). Raises SimulatorError.
        """
        if not firmware.is_file():
            raise SimulatorError(f"no firmware at {firmware}: build it with make -C firmware_bridge/firmware")
        self.port = port
        self._changes: list[PinChange] = []
        self._changed = threading.Condition()
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._asking = threading.Lock()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            [_build(), firmware, port],
            stdin=subprocess.PIPE,  # it ends when this closes
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for us
        )
        self._reader = threading.Thread(target=self._read, name="simulated panel", daemon=True)
        self._reader.start()
        try:
            self._answer()
        except SimulatorError:
            self.close()
            raise

    def __enter__(self) -> SimulatedPanel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it; the port is gone."""
        assert self._process.stdin is not None, "opened as a pipe"
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(ANSWER_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()

    def press(self, button: str) -> None:
        """Hold a button down: freeze, next, back, record or confirm."""
        self.set_pin(BUTTONS[button], 0)

    def release(self, button: str) -> None:
        """Let a button go."""
        self.set_pin(BUTTONS[button], 1)

    def set_pin(self, pin: str, level: int) -> None:
        """Close the switch between a pin and ground (0), or open it (1: the firmware's pull-up decides)."""
        self._ask(f"ground {_number(pin)} {int(level == 0)}")

    def analog(self, channel: int, millivolts: int) -> None:
        """Set the voltage at A0 (dial) or A1 (a sixteenth of the battery's, by 150k and 10k)."""
        self._ask(f"analog {channel} {millivolts}")

    def level(self, pin: str) -> int:
        """What a pin is at now: 0 or 1, and 1 while a timer drives it (D9: PWM, D11: a tone)."""
        return int(self._ask(f"level {_number(pin)}"))

    def brightness(self) -> float:
        """Share of the time for which D9, the lamps' common return, is on: 0 to 1."""
        if self._peek(0x80) >> 6 == 0:  # TCCR1A: no PWM
            return float(self.level("D9"))
        mode = (self._peek(0x81) >> 1 & 0b1100) | self._peek(0x80) & 0b11
        tops = {1: 255, 2: 511, 3: 1023, 5: 255, 6: 511, 7: 1023}  # datasheet table 15-5
        top = tops.get(mode) or self._peek(0x86) | self._peek(0x87) << 8  # else ICR1
        compare = self._peek(0x88) | self._peek(0x89) << 8  # OCR1A
        return min((compare + (mode & 0b1100 > 4)) / (top + (mode & 0b1100 > 4)), 1.0)

    def tone(self) -> float:
        """Hertz that the buzzer at D11 sounds at, 0 when silent. Timer 2 must be in its CTC mode."""
        if not self.level("D11"):
            return 0.0
        divider = (1, 8, 32, 64, 128, 256, 1024)[(self._peek(0xB1) & 7) - 1]  # TCCR2B
        return CLOCK / (2 * divider * (self._peek(0xB3) + 1))  # OCR2A

    def changes(self, since: float = -math.inf) -> list[PinChange]:
        """All changes of pins after ``since`` (CLOCK_MONOTONIC, seconds), in order."""
        with self._changed:
            found = len(self._changes)
            while found and self._changes[found - 1].at > since:
                found -= 1
            return self._changes[found:]

    def wait_for(self, pin: str, level: int, seconds: float) -> PinChange:
        """The change that brought a pin to ``level``, which it is at now or within ``seconds``. A pin that
        has never changed is at 0 since the start. Raises TimeoutError."""
        until = time.monotonic() + seconds
        with self._changed:
            while True:
                last = self._last(pin)
                if last.level == level:
                    return last
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise TimeoutError(f"{pin} is not at {level} within {seconds} s")

    def reset(self) -> None:
        """As by the reset pin."""
        self._ask("reset")

    def hang(self, interrupts: bool = False) -> None:
        """Let the firmware hang until its watchdog or a reset ends that; ``interrupts``: with interrupts on,
        as in an endless loop, else off."""
        self._ask(f"hang {int(interrupts)}")

    def unplug(self) -> None:
        """Pull the cable: the port is gone, the microcontroller without power."""
        self._ask("unplug")

    def plug(self) -> None:
        """Put the cable back: a port anew, and the microcontroller starts."""
        self._ask("plug")

    def noise(self, flipped: float, lost: float, seed: int) -> None:
        """From now on these shares of the bytes, both ways, have one bit flipped or are lost. The draws
        follow from ``seed`` and the order of the bytes."""
        self._ask(f"noise {flipped} {lost} {seed}")

    def counts(self) -> LineCounts:
        """What has become of the bytes so far."""
        return LineCounts(*map(int, self._ask("counts").split()))

    def cycles(self) -> int:
        """Clock cycles since the start: 16 million a second, also while it sleeps."""
        return int(self._ask("cycles"))

    def lag(self) -> float:
        """Seconds by which the simulation was late at the most since this was last asked: 1 to 2 ms on an
        idle machine. What the host does is heeded that much later; time stamps of pins are free of it."""
        return int(self._ask("lag")) / CLOCK

    def _peek(self, address: int) -> int:
        return int(self._ask(f"peek {address}"))

    def _last(self, pin: str) -> PinChange:
        for change in reversed(self._changes):
            if change.pin == pin:
                return change
        return PinChange(pin, 0, self._started)

    def _ask(self, command: str) -> str:
        with self._asking:
            assert self._process.stdin is not None, "opened as a pipe"
            try:
                self._process.stdin.write(command + "\n")
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                raise SimulatorError("the simulator has ended") from None
            return self._answer()

    def _answer(self) -> str:
        try:
            answer = self._answers.get(timeout=ANSWER_DEADLINE)
        except queue.Empty:
            raise SimulatorError(f"the simulator has not answered for {ANSWER_DEADLINE:g} s") from None
        if answer is None:
            raise SimulatorError("the simulator has ended; standard error tells why")
        state, _, text = answer.partition(" ")
        if state != "ok":
            raise SimulatorError(f"the simulator: {text}")
        return text

    def _read(self) -> None:
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            if not line.startswith("pin "):
                self._answers.put(line.rstrip())
                continue
            _, pin, level, nanoseconds = line.split()
            with self._changed:
                self._changes.append(PinChange(f"D{pin}", int(level), int(nanoseconds) / 1e9))
                self._changed.notify_all()
        self._answers.put(None)


def _number(pin: str) -> int:
    if pin[:1] != "D" or not pin[1:].isdecimal() or int(pin[1:]) > 13:
        raise SimulatorError(f"no pin {pin!r}: D0 to D13")
    return int(pin[1:])


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One build at a time, also of several test processes."""
    folder = _FOLDER / "build"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build() -> Path:
    """The runner, built where it is missing or older than its source."""
    try:
        with _alone():
            subprocess.run(
                ["make", "--silent", "-C", _FOLDER], check=True, capture_output=True, text=True, timeout=120
            )
    except FileNotFoundError:
        raise SimulatorError("no make: sudo apt-get install make gcc libsimavr-dev libelf-dev") from None
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["make failed"]
        raise SimulatorError(
            f"the simulator cannot be built ({lines[0]}): sudo apt-get install gcc libsimavr-dev libelf-dev"
        ) from None
    return _FOLDER / "build" / "simulated_panel"
