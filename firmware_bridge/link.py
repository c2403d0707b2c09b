"""The link to a panel: a thread that keeps it, whatever becomes of port, cable and microcontroller.

Nothing that the reading loop calls here waits. PROTOCOL.md says who says what when.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from firmware_bridge.errors import (
    PanelBusyError,
    PanelError,
    PanelMissingError,
    PanelRefusedError,
    PanelSilentError,
)
from firmware_bridge.ports import Connection, Port
from firmware_bridge.wire import (
    NO_AGE,
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

LINKED, SEARCHING, OLD_FIRMWARE = "linked", "searching", "old-firmware"
MISSING, BUSY = PanelMissingError.state, PanelBusyError.state
REFUSED, SILENT = PanelRefusedError.state, PanelSilentError.state
"""What ``LinkState.name`` may be."""
HEARTBEAT = 0.1
ASK_EVERY = 1.0
SILENT_AFTER = 1.0
"""Seconds without a valid frame after which the panel is said to be silent, and hears nothing from us."""
BOOT_LOADER = 2.5
"""Seconds for which a port that has said nothing is not written to. The opening may have reset an Arduino,
whose boot loader then listens for a program; an old one takes any byte for a command."""
REOPEN_AFTER = 3.0
"""Seconds of silence after which the port is opened anew, unless it is known to hang before that: a driver
may have lost it."""
START_DEADLINE = 15.0
"""The same where the panel has not yet spoken: a process for the pins takes a while on a slow box."""
RETRY_AFTER = 0.25
PERMANENT_AFTER = 3.0
"""Seconds after which an error counts as permanent: udev gives permissions some time after the device."""
RETRY_PERMANENT_AFTER = 5.0
CLOSE_DEADLINE = 5.0
"""Seconds in which ``close`` returns, whatever a driver or a process does: more than any of our own waits."""
TOO_OLD = 2.0
"""Seconds after which nobody wants a press any more."""
MOST_EVENTS = 64
HELD_UP = 0.5
"""Seconds between two looks at the port from which this process, or the whole box, must have stood still:
what is then read may have waited for as long."""
DIFFERS_AFTER = 1.0
"""Seconds for which the panel may show something else than was asked before this is told."""
ON_THE_WAY = 0.03
"""Seconds that are added to every age, for its way to the lamps: they must be out of a verdict at 2 s."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pressed:
    """What was done to a button. ``at``: when, in monotonic seconds."""

    button: Button
    kind: Kind
    at: float


@dataclass(frozen=True)
class LinkState:
    """How the link is.

    ``name``: ``linked``; ``searching`` (open, nothing heard yet); ``missing``; ``busy`` (another program has
    the port); ``refused`` (until somebody mends it); ``silent`` (open, but nothing is heard);
    ``old-firmware`` (the panel speaks another version). ``detail``: one line. ``status``, ``hello``: the
    last that the panel said, None where there is none that is up to date.
    """

    name: str
    detail: str
    status: Status | None = None
    hello: Hello | None = None


@dataclass(frozen=True)
class _Wanted:
    asked: Shown = Shown.NO_READING
    reading: int = 0
    read_at: float | None = None


def _nobody() -> None:
    """Wake nobody."""


class PanelLink:
    """The link, from now until ``close``; the panel need not be there. Every method may be called from any
    thread, and none but ``close`` waits.

    ``woken`` is called from the link's own thread when there are ``events``; ``quiet`` keeps the buzzer
    silent.
    """

    def __init__(self, port: Port, woken: Callable[[], None] = _nobody, quiet: bool = False) -> None:
        self._port, self._woken, self._quiet = port, woken, quiet
        self._wanted = _Wanted()
        self._events: deque[Pressed] = deque(maxlen=MOST_EVENTS)
        self._last_event: tuple[int, int] | None = None
        self._state = LinkState(SEARCHING, f"{port.name}: not yet opened")
        self._refused_since: float | None = None
        self._closed = threading.Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="panel", daemon=True)
        self._thread.start()

    @property
    def state(self) -> LinkState:
        """How the link is now."""
        return self._state

    def show(self, asked: Shown, reading: int, read_at: float | None) -> None:
        """What the lamps are to show. ``reading``: number of the last reading, modulo 2**32; ``read_at``:
        when its frame arrived, in monotonic seconds, None for no reading."""
        changed = asked != self._wanted.asked
        self._wanted = _Wanted(asked, reading, read_at)
        if changed and not self._closed.is_set():
            os.eventfd_write(self._wake, 1)

    def events(self) -> list[Pressed]:
        """What was done to the buttons since the last call, the last 2 s of it."""
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return [pressed for pressed in taken if time.monotonic() - pressed.at <= TOO_OLD]

    def close(self) -> None:
        """End the link; the panel then shows that there is none. A thread that a driver holds fast ends when
        it is let go."""
        if self._closed.is_set():
            return
        self._closed.set()
        os.eventfd_write(self._wake, 1)
        self._thread.join(CLOSE_DEADLINE)
        if not self._thread.is_alive():
            os.close(self._wake)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                with closing(self._port.open()) as connection:
                    self._converse(_Conversation(connection))
            except PanelError as error:
                self._tell(LinkState(error.state, str(error)))
                self._closed.wait(self._patience(error))
            except Exception as error:  # noqa: BLE001 (a thread that ended would leave a link that tells nothing)
                _log.exception("%s: the link is begun anew", self._port.name)
                told = f"{self._port.name}: {type(error).__name__}: {error}"
                self._tell(LinkState(REFUSED, " ".join(told.split())))
                self._closed.wait(RETRY_PERMANENT_AFTER)

    def _patience(self, error: PanelError) -> float:
        """Seconds until the next try."""
        if not error.permanent:
            self._refused_since = None
            return 0.0 if isinstance(error, PanelSilentError) else RETRY_AFTER  # the silence was wait enough
        self._refused_since = self._refused_since or time.monotonic()
        lasting = time.monotonic() - self._refused_since > PERMANENT_AFTER
        return RETRY_PERMANENT_AFTER if lasting else RETRY_AFTER

    def _converse(self, talk: _Conversation) -> None:
        """Keep a conversation until it or the link ends. Raises PanelError."""
        poll = select.poll()
        poll.register(talk.connection, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._closed.is_set():
            talk.speak(self._wanted, self._quiet)
            self._tell(talk.state())
            ready = [descriptor for descriptor, _ in poll.poll(1e3 * max(talk.due - time.monotonic(), 0.0))]
            if self._wake in ready:
                os.eventfd_read(self._wake)
                talk.due = 0.0
            if talk.connection.fileno() in ready:
                for event in talk.listen():
                    self._take(event)

    def _take(self, event: Event) -> None:
        """Hand an event on, once."""
        known, self._last_event = self._last_event, (event.boot, event.number)
        if known != self._last_event:
            at = time.monotonic() - event.age_ms / 1e3
            self._events.append(Pressed(Button(event.button), Kind(event.kind), at))
            self._woken()

    def _tell(self, state: LinkState) -> None:
        before = self._state
        if state.name == SEARCHING and before.name in (SILENT, BUSY, REFUSED):
            return  # another try; nothing is known to be better yet
        self._state = state
        if state.name != before.name:
            _log.info("%s: %s", state.name, state.detail)


class _Conversation:
    """One opened port, from its opening to its end. ``due``: when to ``speak`` next, monotonic seconds."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.due = connection, 0.0
        self._name = connection.name
        self._frames = FrameReader()
        self._sequence = 0
        self._heard = False
        self._heard_at = self._agreed_at = time.monotonic()
        self._looked_before = self._looked_at = self._heard_at
        self._asked_at = -ASK_EVERY
        self._hello: Hello | None = None
        self._status: Status | None = None
        self._asked: Shown | None = None

    def speak(self, wanted: _Wanted, quiet: bool) -> None:
        """Ask and beat, if it is time and the panel is heard. Raises PanelError."""
        at = time.monotonic()
        if at - self._looked_at > HELD_UP:
            # We have not listened, and where the whole box stood still, the panel could not speak.
            self._heard_at = min(self._heard_at + at - self._looked_at, at)
        self._looked_before, self._looked_at = self._looked_at, at
        silence = at - self._heard_at
        if silence > (min(REOPEN_AFTER, self.connection.hung_after) if self._heard else START_DEADLINE):
            raise PanelSilentError(f"{self._name}: nothing is heard from the panel; opened anew")
        if at < self.due:
            return
        self.due = at + HEARTBEAT
        alive = self._heard and silence < SILENT_AFTER
        if (alive or silence > BOOT_LOADER) and not self._introduced() and at - self._asked_at >= ASK_EVERY:
            self._asked_at = at
            self._send(Ask())
        if alive:
            self._send(_show(wanted, quiet, at))
            if self._asked != wanted.asked:
                self._asked, self._agreed_at = wanted.asked, at

    def listen(self) -> list[Event]:
        """Take what has come and answer the events, which are returned. Raises PanelError."""
        events, received = [], self.connection.read()
        # It may have come at any moment since the look before this one.
        waited = time.monotonic() - self._looked_before
        for message, _ in self._frames.feed(received):
            if not self._heard:
                self._heard, self.due = True, 0.0
            self._heard_at = time.monotonic()
            if isinstance(message, Hello):
                self._meet(message)
            elif isinstance(message, Status):
                self._note(message)
            elif isinstance(message, Event) and not self._other_version():
                self._send(Got(message.boot, message.number))
                age_ms = message.age_ms + (round(1e3 * waited) if waited > HELD_UP else 0)
                events.append(replace(message, age_ms=age_ms))
        return events

    def state(self) -> LinkState:
        """How the link is, as long as the port is open."""
        silence = time.monotonic() - self._heard_at
        if self._hello is not None and self._other_version():
            what = f"the panel speaks version {self._hello.version}, not {VERSION}: sonoglance panel flash"
            return LinkState(OLD_FIRMWARE, f"{self._name}: {what}", hello=self._hello)
        if silence > (SILENT_AFTER if self._heard else BOOT_LOADER):
            return LinkState(SILENT, f"{self._name}: nothing is heard from the panel")
        if self._hello is None:
            return LinkState(SEARCHING, f"{self._name}: open, listening")
        return LinkState(LINKED, self._linked_detail(self._hello), self._status, self._hello)

    def _linked_detail(self, hello: Hello) -> str:
        told = f"{self._name}: panel with firmware {hello.major}.{hello.minor}"
        if self._status is None or self._asked is None or time.monotonic() - self._agreed_at < DIFFERS_AFTER:
            return told
        return f"{told} shows {words(self._status.shown)}, asked for {words(self._asked)}"

    def _other_version(self) -> bool:
        return self._hello is not None and self._hello.version != VERSION

    def _introduced(self) -> bool:
        return self._hello is not None and self._status is not None and self._hello.boot == self._status.boot

    def _meet(self, hello: Hello) -> None:
        if self._hello is not None and self._hello.boot != hello.boot:
            _log.warning("%s: the panel was reset (cause %d)", self._name, hello.reset_cause)
        self._hello = hello

    def _note(self, status: Status) -> None:
        if self._status is not None and self._status.boot != status.boot:
            self._asked_at, self.due = -ASK_EVERY, 0.0
        self._status = status
        if status.shown == self._asked:
            self._agreed_at = time.monotonic()

    def _send(self, message: Message) -> None:
        # With a zero at both ends, what damages one frame cannot take the next with it.
        self.connection.write(b"\0" + encode(message, self._sequence))
        self._sequence = (self._sequence + 1) & 0xFF


def words(shown: int) -> str:
    """What the lamps show, in words."""
    return Shown(shown).name.lower().replace("_", " ")


def _show(wanted: _Wanted, quiet: bool, at: float) -> Show:
    age = NO_AGE
    if wanted.read_at is not None:
        age = min(max(round(1e3 * (at - wanted.read_at + ON_THE_WAY)), 0), NO_AGE)
    return Show(wanted.asked, wanted.reading & 0xFFFFFFFF, age, int(quiet))
