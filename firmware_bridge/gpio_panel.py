"""The panel of a box without the microcontroller: buttons, lamps and buzzer on a Raspberry Pi's own pins.

It is a process of its own that speaks PROTOCOL.md over a socket, so that the lamps keep telling the truth
when the box hangs, and go out when it dies:

    python -m firmware_bridge.gpio_panel '{"socket": 7, "pins": {"freeze": 5, ..., "mute": 23}}'

with the inherited descriptor of one end of a stream socket pair, and the fields of ``GpioPins``. The process
ends, its lamps dark, when the other end closes and on SIGTERM. Errors are one line on standard error; exit
codes: 0 done, 2 the call was wrong, 69 no GPIO to be had, 75 another program has a pin, which may pass.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firmware_bridge.lamps import Lamps
from firmware_bridge.wire import (
    VERSION,
    Ask,
    Button,
    Capability,
    Condition,
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

if TYPE_CHECKING:
    from gpiozero import InputDevice, PWMOutputDevice

LOOK_EVERY = 0.005
"""Seconds between two looks at the buttons; a pattern's step is much longer."""
SETTLED_AFTER = 0.009
"""Seconds for which a contact must have been the same to count: what ten samples of the firmware's span."""
HELD_AFTER = 0.8
"""Seconds after which a press is a long one."""
REPEAT_EVERY = 0.05
STATUS_EVERY = 0.25
HUNG_AFTER = 0.7
"""Seconds after which a process that has not looked at its pins is ended by its own alarm."""
DROP_AFTER = 2.0
"""Seconds after which nobody wants an event any more."""
MOST_WAITING = 8
LOSS_TOLD_FOR = 10.0
"""Seconds for which it is told that events were lost because too many waited."""
OPACITY_BEEP_EVERY = 5.0


class Sound(IntEnum):
    """What the buzzer can say; the more pressing, the later."""

    NONE = 0
    TICK = 1
    DROPPED = 2
    OPACITY = 3
    VERDICT_ENDED = 4
    TEST = 5


TUNES: dict[Sound, tuple[tuple[int, float], ...]] = {
    Sound.NONE: (),
    Sound.TICK: ((2500, 0.012),),
    Sound.DROPPED: ((440, 0.7),),
    Sound.OPACITY: ((2500, 0.25),),
    Sound.VERDICT_ENDED: ((1250, 0.15), (0, 0.1), (1250, 0.15)),
    Sound.TEST: ((2500, 0.5),),
}
"""Hertz (0: a rest) and seconds, one after the other; as in firmware/buzzer.c."""
EXIT_WRONG_CALL, EXIT_NO_GPIO, EXIT_BUSY = 2, os.EX_UNAVAILABLE, os.EX_TEMPFAIL
VERDICTS = (Shown.NORMAL, Shown.OPACITY, Shown.CANNOT_TELL)
FIRMWARE = (1, 0)
"""Major and minor of the firmware that this behaves like."""
PERSISTING = "pinctrl_*/parameters/persist_gpio_outputs"
"""In /sys/module: whether Raspberry Pi's kernel keeps a pin's level when the process that had it is gone."""
STAYS_LIT = (
    "a lamp stays lit when this process is killed: add dtparam=strict_gpiod to /boot/firmware/config.txt"
)
_LARGEST = 0xFFFF


@dataclass(frozen=True)
class GpioPins:
    """Which pins, by their BCM numbers, 0 to 27; ``buzzer`` and ``mute`` may be None.

    Raises ValueError, in one line, for a number that is no pin and for a pin that is named twice.
    """

    freeze: int = 5
    next: int = 6
    back: int = 13
    record: int = 19
    confirm: int = 26
    normal: int = 17
    opacity: int = 27
    no_reading: int = 22
    buzzer: int | None = 18
    mute: int | None = 23

    def __post_init__(self) -> None:
        """Refuse what cannot be wired."""
        taken: dict[int, str] = {}
        for name, pin in asdict(self).items():
            if pin is None and name in ("buzzer", "mute"):
                continue
            if type(pin) is not int or not 0 <= pin <= 27:
                raise ValueError(f"GPIO pin of {name}: {pin} is not a BCM number from 0 to 27")
            if pin in taken:
                raise ValueError(f"GPIO pin {pin} is given to both {taken[pin]} and {name}")
            taken[pin] = name


class _Key:
    """One button: its contact as it is seen now and then, and what was done to it."""

    def __init__(self, pressed: bool, at: float) -> None:
        # Down at the start: nobody pressed it for us, so it does nothing until it was let go.
        self.down = self._contact = pressed
        self._since = at
        self._long_at: float | None = None

    def see(self, pressed: bool, at: float) -> Kind | None:
        """What this look at the contact makes of the button."""
        if pressed != self._contact:
            self._contact, self._since = pressed, at
        if pressed != self.down and at - self._since >= SETTLED_AFTER:
            self.down = pressed
            clicked = self._long_at is not None
            self._long_at = at + HELD_AFTER if pressed else None
            return Kind.PRESS if pressed else Kind.CLICK if clicked else None
        if self._long_at is not None and at >= self._long_at:
            self._long_at = None
            return Kind.LONG
        return None


@dataclass(frozen=True)
class _Happened:
    number: int
    button: Button
    kind: Kind
    at: float


class _Outbox:
    """Events on their way: the first is repeated until the box has got it, the others wait."""

    def __init__(self, boot: int) -> None:
        self._lost_until = 0.0
        self._boot = boot
        self._count = 0
        self._due = 0.0
        self._waiting: deque[_Happened] = deque()

    def add(self, button: Button, kind: Kind, at: float) -> bool:
        """Whether there was room for it."""
        if len(self._waiting) == MOST_WAITING:
            self._lost_until = at + LOSS_TOLD_FOR
            return False
        self._waiting.append(_Happened(self._count & 0xFF, button, kind, at))
        self._count += 1
        return True

    def lost(self, at: float) -> bool:
        """Whether it is to be told that some were lost."""
        return at < self._lost_until

    def got(self, message: Got) -> Kind | None:
        """The kind of the first, where this ended its wait."""
        if not self._waiting or (message.boot, message.number) != (self._boot, self._waiting[0].number):
            return None
        kind = self._waiting[0].kind
        self._next()
        return kind

    def drop_old(self, at: float) -> bool:
        """Whether one had to be given up."""
        dropped = False
        while self._waiting and at - self._waiting[0].at > DROP_AFTER:
            self._next()
            dropped = True
        return dropped

    def due(self, at: float) -> Event | None:
        """The event to be sent now."""
        if not self._waiting or at < self._due:
            return None
        self._due = at + REPEAT_EVERY
        first = self._waiting[0]
        age = round(1e3 * (at - first.at))
        return Event(self._boot, first.number, first.button, first.kind, age)

    def _next(self) -> None:
        self._waiting.popleft()
        self._due = 0.0


class _Buzzer:
    """What is being sounded, and the output that sounds it, if there is one."""

    def __init__(self, output: PWMOutputDevice | None) -> None:
        self._output = output
        self._hertz = 0
        self._sound = Sound.NONE
        self._since = 0.0

    def say(self, sound: Sound, at: float) -> None:
        """Begin a sound, unless a more pressing one is being made."""
        if sound >= self._sound:
            self._sound, self._since = sound, at

    def go_on(self, silent: bool, at: float) -> None:
        """Do what is due; ``silent`` keeps all but the test quiet."""
        tone = self._tone(at)
        hertz = 0 if silent and self._sound != Sound.TEST else tone
        if self._output is not None and hertz != self._hertz:
            self._hertz = hertz
            # At rest it has no frequency: lgpio would go on waking the processor for pulses of no length.
            self._output.frequency = hertz or None
            self._output.value = 0.5 if hertz else 0

    def _tone(self, at: float) -> int:
        elapsed = at - self._since
        for hertz, seconds in TUNES[self._sound]:
            if elapsed < seconds:
                return hertz
            elapsed -= seconds
        self._sound = Sound.NONE
        return 0


class GpioPanel:
    """The panel on its pins: bytes in, bytes out, with the time given in (seconds of one clock).

    On gpiozero's default pin factory; raises what that raises for pins that are not to be had. ``boot``
    must be another at every start.
    """

    def __init__(self, pins: GpioPins, boot: int, at: float) -> None:
        self._boot, self._started_at = boot, at
        self._open(pins)
        self._keys = {button: _Key(contact.is_active, at) for button, contact in self._contacts.items()}
        self._events = _Outbox(boot)
        self._state = Lamps()
        self._shown = Shown.NO_LINK
        self._lit: tuple[bool, ...] = (False, False, False)
        self._reading, self._quiet = 0, False
        self._frames = FrameReader()
        self._sequence = 0
        self._status_due = self._opacity_beep_due = at

    def _open(self, pins: GpioPins) -> None:
        from gpiozero import LED, InputDevice, PWMOutputDevice

        with contextlib.ExitStack() as opened:
            # The lamps first: those that a killed process left lit go out.
            lamps = pins.normal, pins.opacity, pins.no_reading
            self._lamps = [opened.enter_context(LED(pin)) for pin in lamps]

            # Not gpiozero's Button: contacts that one loop looks at, as the firmware does, need no threads.
            def contact(pin: int) -> InputDevice:
                return opened.enter_context(InputDevice(pin, pull_up=True))

            self._contacts = {button: contact(getattr(pins, button.name.lower())) for button in Button}
            self._mute = None if pins.mute is None else contact(pins.mute)
            piezo = None if pins.buzzer is None else opened.enter_context(PWMOutputDevice(pins.buzzer))
            self._capabilities = Capability.BUTTONS | Capability.LAMPS
            if piezo is not None:
                piezo.frequency = None
                self._capabilities |= Capability.BUZZER
            self._buzzer = _Buzzer(piezo)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Put the lamps out and give the pins back."""
        self._opened.close()

    def hello(self) -> bytes:
        """What is to be sent first; its zero ends whatever came before."""
        return b"\0" + self._encode(self._introduction())

    def step(self, received: bytes, at: float) -> bytes:
        """Do what is due, after these bytes have come, and say what is to be sent. Call it every 5 ms."""
        answers = [answer for message, _ in self._frames.feed(received) for answer in self._heed(message, at)]
        self._look(at)
        changed = self._display(at)
        self._buzzer.go_on(self._muted() or self._quiet, at)
        event = self._events.due(at)
        if event is not None:
            answers.append(event)
        if changed or at >= self._status_due:
            self._status_due = at + STATUS_EVERY
            answers.append(self._status(at))
        return b"".join(map(self._encode, answers))

    def _encode(self, message: Message) -> bytes:
        frame = encode(message, self._sequence)
        self._sequence = (self._sequence + 1) & 0xFF
        return frame

    def _introduction(self) -> Hello:
        return Hello(VERSION, self._capabilities, self._boot, 0, *FIRMWARE)

    def _heed(self, message: Message, at: float) -> Iterator[Message]:
        if isinstance(message, Ask):
            yield self._introduction()
        elif isinstance(message, Show) and message.version == VERSION:
            self._reading, self._quiet = message.reading, bool(message.quiet)
            self._state.heard(message, at)
        elif isinstance(message, Got) and self._events.got(message) in (Kind.PRESS, Kind.LONG):
            self._buzzer.say(Sound.TICK, at)  # not at a click: its press has ticked

    def _look(self, at: float) -> None:
        for button, contact in self._contacts.items():
            kind = self._keys[button].see(contact.is_active, at)
            if kind is not None and not self._events.add(button, kind, at):
                self._buzzer.say(Sound.DROPPED, at)
        if self._events.drop_old(at):
            self._buzzer.say(Sound.DROPPED, at)

    def _display(self, at: float) -> bool:
        """Whether something else is shown than before."""
        before, self._shown = self._shown, self._state.shown(at)
        lit = self._state.lit(at)
        if lit != self._lit:
            self._lit = lit
            for lamp, on in zip(self._lamps, lit, strict=True):
                lamp.value = on
        if before != self._shown:
            self._announce(before, at)
        return before != self._shown

    def _announce(self, before: Shown, at: float) -> None:
        if self._shown == Shown.TEST:
            self._buzzer.say(Sound.TEST, at)
        elif self._shown == Shown.OPACITY and at >= self._opacity_beep_due:
            self._opacity_beep_due = at + OPACITY_BEEP_EVERY
            self._buzzer.say(Sound.OPACITY, at)
        elif before in VERDICTS and self._shown in (Shown.NO_READING, Shown.NO_LINK):
            self._buzzer.say(Sound.VERDICT_ENDED, at)

    def _muted(self) -> bool:
        return self._mute is not None and bool(self._mute.is_active)

    def _status(self, at: float) -> Status:
        flags = Condition.MUTED if self._muted() else Condition(0)
        if self._events.lost(at):
            flags |= Condition.EVENTS_LOST
        return Status(
            boot=self._boot,
            uptime_s=min(int(at - self._started_at), _LARGEST),
            battery_mv=0,
            dial=0,
            shown=self._shown,
            reading=self._reading,
            down=sum(1 << (button - 1) for button, key in self._keys.items() if key.down),
            flags=flags,
            refused=min(self._frames.refused, _LARGEST),
        )


def serve(panel: GpioPanel, connection: socket.socket) -> None:
    """Speak for the panel until the other end closes."""
    connection.setblocking(False)
    answer = panel.hello()
    with contextlib.suppress(ConnectionError):
        while True:
            # This process's watchdog: SIGALRM, unhandled, ends what hangs in Python or in a library.
            signal.setitimer(signal.ITIMER_REAL, HUNG_AFTER)
            # What a box that hangs does not take is lost: later it would be out of date.
            with contextlib.suppress(BlockingIOError):
                connection.send(answer)
            readable, _, _ = select.select([connection], [], [], LOOK_EVERY)
            received = connection.recv(4096) if readable else b""
            if readable and not received:
                return
            answer = panel.step(received, time.monotonic())


def main(arguments: list[str]) -> int:
    """Be the process; its exit code."""
    try:
        job = json.loads(arguments[0])
        pins = GpioPins(**job["pins"])
        connection = socket.socket(fileno=job["socket"])
    except (LookupError, TypeError, ValueError, OSError) as error:
        return _end(EXIT_WRONG_CALL, f"{type(error).__name__}: {error}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    factory = os.environ.setdefault("GPIOZERO_PIN_FACTORY", "lgpio")
    try:
        from gpiozero.exc import GPIOZeroError

        refusals = (GPIOZeroError, _import_lgpio().error) if factory == "lgpio" else (GPIOZeroError,)
    except ImportError as error:
        return _end(EXIT_NO_GPIO, f"{error}; apt-get install python3-gpiozero python3-lgpio")
    except OSError as error:
        return _end(EXIT_NO_GPIO, f"lgpio needs a temporary folder (PrivateTmp=yes in the unit): {error}")
    boot = os.getpid() & _LARGEST  # another at every start
    if lamps_stay_lit():
        # Where this process is killed, it is the last that it has said.
        print(STAYS_LIT, file=sys.stderr, flush=True)
    try:
        with contextlib.closing(GpioPanel(pins, boot, time.monotonic())) as panel:
            serve(panel, connection)
    except refusals as error:
        return _end(*_explain(str(error) or type(error).__name__))
    return 0


def lamps_stay_lit(modules: Path = Path("/sys/module")) -> bool:
    """Whether a lamp stays lit, by the kernel's settings, when the process that lit it is killed."""
    return any(setting.read_text().strip() == "Y" for setting in modules.glob(PERSISTING))


def _import_lgpio() -> Any:
    """lgpio, in whose import a named pipe is made in the working folder: in one that is gone afterwards."""
    os.environ.pop("LG_WD", None)  # its C half would heed it, its Python half would not
    with tempfile.TemporaryDirectory(prefix="gpio-panel-") as folder:
        os.chdir(folder)
        try:
            import lgpio
        finally:
            os.chdir("/")
    return lgpio


def _explain(said: str) -> tuple[int, str]:
    """Exit code and line for what gpiozero or lgpio said."""
    if "busy" in said:
        return EXIT_BUSY, "another program has one of the pins; gpioinfo (package gpiod) tells which and who"
    if "can not open gpiochip" in said and list(Path("/dev").glob("gpiochip*")):
        return EXIT_NO_GPIO, "no permission for /dev/gpiochip0: add this user to the group gpio"
    if "can not open gpiochip" in said or "Pi revision" in said:
        return EXIT_NO_GPIO, "this machine has no GPIO of a Raspberry Pi: attach a panel by USB instead"
    return EXIT_NO_GPIO, said


def _end(code: int, line: str) -> int:
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
