"""Where a panel is attached: a serial port, or the box's own pins by way of a process that speaks the same.

Nothing here blocks, but for the opening. Linux only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import serial

from firmware_bridge.errors import PanelBusyError, PanelError, PanelMissingError, PanelRefusedError
from firmware_bridge.gpio_panel import EXIT_BUSY, EXIT_NO_GPIO, GpioPins
from firmware_bridge.wire import BAUD, FrameReader

AUTO = "auto"
"""Instead of a port's path: whichever serial adapter a panel is heard on."""
BY_ID = Path("/dev/serial/by-id")
"""Where udev names USB's serial adapters by maker and serial number."""
TTYS = Path("/sys/class/tty")
"""Where the kernel tells what device a serial port belongs to."""
VENDORS = frozenset(("2341", "2a03", "1a86", "0403", "10c4"))
"""USB's numbers of those who make Arduinos (Arduino SA and its former other half) and the serial adapters on
their clones (QinHeng's CH340, FTDI, Silicon Labs). ``auto`` opens nobody else's ports."""
LISTEN = 3.0
"""Seconds to listen to ports that may not be ours: the opening may have reset a board, whose boot loader
keeps silent for up to 2.5; then a panel speaks four times a second."""
LOOK_EVERY = 0.1
"""Seconds between two looks for new ports while listening."""
TRIES = 3
"""How often a port is listened to before it is let alone until it is plugged in anew; one on which a panel
was heard is never given up."""
FIRST_REST, LONGEST_REST = 0.2, 2.0
"""Seconds between two tries of a port on ``auto``; twice as long every time."""
STALLED_AFTER = 0.15
"""Seconds for which something has been unsent, at every look, after which nothing more is sent: two
heartbeats. The fifo of a USB adapter's driver would keep seconds of them, and no flush reaches it."""
CLOSING_WAIT_AT, CLOSING_WAIT_NONE = 40, 65535
"""Where in serial_struct (linux/serial.h) a close is told how long to wait for what is unsent, and not to."""
READ_SIZE = 4096
EXIT_DEADLINE = 1.0
"""Seconds in which the pins' process ends by itself, its lamps dark, when its connection closes; and in which
it ends when it is killed, unless the kernel keeps it."""
GPIO_HUNG_AFTER = 1.0
"""Seconds of silence after which the pins' process must hang. It then leaves a lamp as it was, so that it is
killed at once: its successor puts it out."""
FIRST_RESPAWN, LONGEST_RESPAWN = 0.25, 5.0
"""Seconds after which a process that ended without a word is started anew; twice as long every time."""

_REASONS = {
    errno.ENOENT: (PanelMissingError, "not there; plug the panel in"),
    errno.ENODEV: (PanelMissingError, "not there; plug the panel in"),
    errno.ENXIO: (PanelMissingError, "not there; plug the panel in"),
    errno.EIO: (PanelMissingError, "gone; plug the panel in"),
    errno.EBUSY: (PanelBusyError, "another program has it open"),
    errno.EAGAIN: (PanelBusyError, "another program has it open"),
    errno.EACCES: (PanelRefusedError, "no permission: add this user to the group that owns it (dialout)"),
    errno.EPERM: (PanelRefusedError, "no permission: add this user to the group that owns it (dialout)"),
    errno.ENOTTY: (PanelRefusedError, "not a serial port"),
    errno.EINVAL: (PanelRefusedError, "not a serial port that can be set to 57600 baud"),
    errno.EISDIR: (PanelRefusedError, "not a serial port"),
}


class Connection(Protocol):
    """An opened panel. Its bytes may be damaged or lost, in both directions."""

    name: str
    """Where it was found: a path, or ``gpio``."""
    hung_after: float
    """Seconds of silence after its first word after which it must hang; infinite where it may be the line."""

    def fileno(self) -> int:
        """For select and poll."""

    def read(self) -> bytes:
        """What has come; ``b""`` when nothing has. Raises PanelError where the panel is gone."""

    def write(self, frame: bytes) -> None:
        """Send, or lose, what is not taken at once: later it would be out of date. Raises PanelError."""

    def close(self) -> None:
        """Let go of it."""


class Port(Protocol):
    """Where a panel is, or will be."""

    name: str
    """As people know it."""

    def open(self) -> Connection:
        """Open it now, wherever it now is. Raises PanelError."""


class SerialPort:
    """A serial port by its path, or ``auto``: whichever USB adapter a panel is heard on.

    Other people's devices live on such ports, too. On ``auto`` only those of ``VENDORS`` are opened, nothing
    is written before a panel was heard, and a port that is let go has its settings back. But opening a port
    resets an Arduino on it, and what is heard there is lost to a program that shares it: hence ``TRIES``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._records: dict[_Adapter, _Record] = {}

    def open(self) -> Connection:
        """The port, for us alone. Raises PanelError; on ``auto`` after little more than ``LISTEN``."""
        return self._search() if self.name == AUTO else _SerialConnection(self.name)

    def _search(self) -> Connection:
        until = time.monotonic() + LISTEN + LOOK_EVERY
        candidates: dict[_Adapter, _Candidate] = {}
        try:
            while True:
                self._open_others(candidates)
                for adapter, candidate in list(candidates.items()):
                    if candidate.is_panel():
                        candidate.record.heard()
                        return candidates.pop(adapter).connection
                    if time.monotonic() > candidate.until:
                        candidates.pop(adapter).connection.let_go()
                        candidate.record.not_heard()
                if not candidates or time.monotonic() > until:
                    raise self._why_none()
                poll = select.poll()
                for candidate in candidates.values():
                    poll.register(candidate.connection, select.POLLIN)
                poll.poll(1e3 * LOOK_EVERY)
        finally:
            for candidate in candidates.values():
                candidate.connection.let_go()

    def _open_others(self, candidates: dict[_Adapter, _Candidate]) -> None:
        """Open the adapters that are neither open nor let alone."""
        self._records = {adapter: self._records.get(adapter, _Record()) for adapter in _adapters()}
        for adapter, record in self._records.items():
            if adapter not in candidates and record.is_due():
                try:
                    candidates[adapter] = _Candidate(adapter.path, record)
                except PanelError as error:
                    record.not_opened(error)

    def _why_none(self) -> PanelError:
        errors = [record.error for record in self._records.values() if record.error is not None]
        if errors:
            return type(errors[-1])(str(errors[-1]))
        if not self._records:
            return PanelMissingError(f"{AUTO}: no Arduino or serial adapter of its kind is there; plug it in")
        heard_on = f"none of the serial adapters ({len(self._records)}) is a panel"
        return PanelMissingError(f"{AUTO}: {heard_on}; plug it in, anew if it is in")


class _Adapter(NamedTuple):
    """``plugged``: when its name came to be, in nanoseconds: another time, another device."""

    path: str
    plugged: int


@dataclass
class _Record:
    """What came of the tries of an adapter. ``error``: why it could not be opened, the last time."""

    error: PanelError | None = None
    _is_panel: bool = False
    _in_vain: int = 0
    _rest: float = FIRST_REST
    _until: float = 0.0

    def is_due(self) -> bool:
        """Whether it is time for another try."""
        return time.monotonic() >= self._until and (self._is_panel or self._in_vain < TRIES)

    def heard(self) -> None:
        self._is_panel, self.error = True, None
        self._rest, self._until = FIRST_REST, 0.0

    def not_heard(self) -> None:
        self.error = None
        self._in_vain += 1
        self._let_alone()

    def not_opened(self, error: PanelError) -> None:
        self.error = error
        self._let_alone()

    def _let_alone(self) -> None:
        self._until = time.monotonic() + self._rest
        self._rest = min(2 * self._rest, LONGEST_REST)


def _adapters() -> list[_Adapter]:
    """Those that may be a panel's."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # udev takes the folder away with the last of them
        for path in sorted(BY_ID.glob("*")):
            with contextlib.suppress(FileNotFoundError):  # it was pulled meanwhile
                if _vendor(path) in VENDORS:
                    found.append(_Adapter(str(path), path.lstat().st_ctime_ns))
    return found


def _vendor(path: Path) -> str | None:
    """USB's number of who made it, in hexadecimal; None where that is not to be had."""
    device = (TTYS / path.resolve().name / "device").resolve()
    for folder in (device, *device.parents):
        with contextlib.suppress(OSError):
            return (folder / "idVendor").read_text().strip()
    return None


class _Candidate:
    """A port that is listened to until it is known to be a panel's."""

    def __init__(self, path: str, record: _Record) -> None:
        """Raises PanelError."""
        self.record = record
        self.connection = _SerialConnection(path)
        self.until = time.monotonic() + LISTEN
        self._frames = FrameReader()

    def is_panel(self) -> bool:
        try:
            return bool(self._frames.feed(self.connection.read()))
        except PanelError:
            self.until = 0.0
            return False


class _Line:
    """The way out of a descriptor: does it move?"""

    def __init__(self) -> None:
        self._moved_at = time.monotonic()

    def stands(self, descriptor: int) -> bool:
        """Whether what was sent before has been unsent for long. Raises OSError."""
        at = time.monotonic()
        # On a socket (unix(7): SIOCOUTQ is the same number) what the other end has not read.
        (unsent,) = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))
        if not unsent:
            self._moved_at = at
        return at - self._moved_at > STALLED_AFTER


class _SerialConnection:
    hung_after = math.inf

    def __init__(self, name: str) -> None:
        self.name = name
        self._line = _Line()
        try:
            # Kept open until it is open again: between two openings the line DTR may fall.
            with os.fdopen(os.open(name, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK), "rb", 0) as first:
                self._found = termios.tcgetattr(first)
                self._serial = serial.Serial(name, BAUD, exclusive=True)
        except (OSError, termios.error) as error:
            raise _reason(name, error) from error
        try:
            self._set_up()
        except (OSError, termios.error) as error:
            self.close()
            raise _reason(name, error) from error

    def _set_up(self) -> None:
        attributes = termios.tcgetattr(self._serial)
        # Without HUPCL the line DTR, which resets an Arduino, stays up from one opening to the next.
        attributes[2] &= ~termios.HUPCL
        # With VMIN 1 a read of nothing means a hang-up, and nothing else.
        attributes[6][termios.VMIN] = 1
        termios.tcsetattr(self._serial, termios.TCSANOW, attributes)
        if not os.ttyname(self._serial.fileno()).startswith("/dev/pts/"):
            # pyserial's lock is heeded by those who ask for it. A pty would stay locked after our death.
            fcntl.ioctl(self._serial, termios.TIOCEXCL)

    def fileno(self) -> int:
        return int(self._serial.fileno())

    def read(self) -> bytes:
        try:
            received = os.read(self.fileno(), READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise PanelMissingError(f"{self.name}: unplugged") from error
        if not received:
            raise PanelMissingError(f"{self.name}: unplugged")
        return received

    def write(self, frame: bytes) -> None:
        try:
            if self._line.stands(self.fileno()):
                return
            taken = os.write(self.fileno(), frame)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise PanelMissingError(f"{self.name}: unplugged") from error
        if taken < len(frame):
            self._drop_unsent()

    def let_go(self) -> None:
        """Close it and leave it as it was found; nothing was written."""
        with contextlib.suppress(OSError, termios.error):  # it is gone
            termios.tcsetattr(self._serial, termios.TCSANOW, self._found)
            fcntl.ioctl(self._serial, termios.TIOCNXCL)
        self._serial.close()

    def close(self) -> None:
        # A close waits for what is unsent, for half a minute where an adapter hangs.
        self._drop_unsent()
        with contextlib.suppress(OSError):  # only root may, and not every port can
            driver = bytearray(128)
            fcntl.ioctl(self._serial, termios.TIOCGSERIAL, driver)
            struct.pack_into("H", driver, CLOSING_WAIT_AT, CLOSING_WAIT_NONE)
            fcntl.ioctl(self._serial, termios.TIOCSSERIAL, driver)
        self._serial.close()

    def _drop_unsent(self) -> None:
        with contextlib.suppress(termios.error):  # it is gone, and what was unsent with it
            termios.tcflush(self._serial, termios.TCOFLUSH)


def _reason(name: str, error: BaseException) -> PanelError:
    """Why a port could not be opened; pyserial keeps the number of some errors, hides that of others."""
    number = getattr(error, "errno", None)
    cause = error.__context__
    if number is None and isinstance(error, termios.error):
        number = error.args[0]
    elif number is None and isinstance(cause, termios.error):
        number = cause.args[0]
    # What else a USB driver may say, it says while a plug is halfway in.
    kind, why = _REASONS.get(number or 0, (PanelMissingError, str(error)))
    return kind(f"{name}: {why}")


class GpioPort:
    """The panel on the box's own pins: a process of its own, so that a library that hangs hangs alone."""

    name = "gpio"

    def __init__(self, pins: GpioPins) -> None:
        self._pins = pins
        self._failure: PanelError | None = None
        self._rest, self._again_at = FIRST_RESPAWN, 0.0

    def open(self) -> Connection:
        """Start the process. Raises PanelError where the system gives none; and where the last one ended
        without a word not long ago."""
        if self._failure is not None and time.monotonic() < self._again_at:
            raise type(self._failure)(str(self._failure))
        try:
            return _GpioConnection(self._pins, self._ended)
        except OSError as error:
            raise PanelMissingError(f"gpio: no process can be started ({error})") from error

    def _ended(self, failure: PanelError, spoke: bool) -> None:
        if spoke:
            self._failure, self._rest = None, FIRST_RESPAWN
            return
        self._failure, self._again_at = failure, time.monotonic() + self._rest
        self._rest = min(2 * self._rest, LONGEST_RESPAWN)


class _GpioConnection:
    name = GpioPort.name
    hung_after = GPIO_HUNG_AFTER

    def __init__(self, pins: GpioPins, ended: Callable[[PanelError, bool], None]) -> None:
        self._ended = ended
        self._heard_at: float | None = None
        self._line = _Line()
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        job = json.dumps({"socket": theirs.fileno(), "pins": asdict(pins)})
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "firmware_bridge.gpio_panel", job],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,  # a Ctrl-C is for us
            )

    def fileno(self) -> int:
        return self._ours.fileno()

    def read(self) -> bytes:
        try:
            received = self._ours.recv(READ_SIZE)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._ending() from error
        if not received:
            raise self._ending()
        self._heard_at = time.monotonic()
        return received

    def write(self, frame: bytes) -> None:
        try:
            if not self._line.stands(self.fileno()):
                self._ours.send(frame)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._ending() from error

    def close(self) -> None:
        if self._hangs():
            self._process.kill()
        self._ours.close()
        self._await_end()
        self._said.close()

    def _hangs(self) -> bool:
        """Whether it has said nothing for long; not so where it did, and only we stood still."""
        if self._heard_at is None or time.monotonic() - self._heard_at < self.hung_after:
            return False
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        return not poll.poll(0)

    def _await_end(self) -> int | None:
        """Its exit code; None where even a kill does not end it, as long as the kernel waits for the pins."""
        for _ in range(2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(EXIT_DEADLINE)
            self._process.kill()
        return None

    def _ending(self) -> PanelError:
        """Why the process ended, by its last line."""
        code = self._await_end()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"its process ended (code {code})"
        kinds = {EXIT_NO_GPIO: PanelRefusedError, EXIT_BUSY: PanelBusyError}
        kind = PanelMissingError if code is None else kinds.get(code, PanelMissingError)
        failure = kind(f"gpio: {why}")
        self._ended(failure, self._heard_at is not None)
        return failure
