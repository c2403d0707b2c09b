"""Where a panel is attached: a serial port, or the box's own pins by way of a process that speaks the same.

Nothing here blocks, but for the opening. Linux only.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import asdict
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
LISTEN = 1.5
"""Seconds to listen to ports that may not be ours: a panel speaks four times a second."""
LOOK_EVERY = 0.1
"""Seconds between two looks for new ports while listening."""
FIRST_REST, LONGEST_REST = 0.2, 10.0
"""Seconds for which a port that is not ours, as it seems, is let alone; twice as long every time. The first
rest is short: the opening may have reset a board, whose boot loader keeps silent for as long as we listen."""
READ_SIZE = 4096
EXIT_DEADLINE = 1.0
"""Seconds in which the pins' process ends by itself, its lamps dark, when its connection closes."""

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

    On ``auto`` nothing is written to a port before a panel was heard there: other people's devices live on
    such ports, too. Opening a port resets an Arduino on it, if nobody has held it open before.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._rests: dict[_Adapter, tuple[float, float]] = {}

    def open(self) -> Connection:
        """The port, for us alone. Raises PanelError."""
        return self._search() if self.name == AUTO else _SerialConnection(self.name)

    def _search(self) -> Connection:
        candidates: dict[_Adapter, _Candidate] = {}
        try:
            while True:
                self._open_others(candidates)
                for adapter, candidate in list(candidates.items()):
                    if candidate.is_panel():
                        del candidates[adapter]
                        self._rests.pop(adapter, None)
                        return candidate.connection
                    if time.monotonic() > candidate.until:
                        candidates.pop(adapter).connection.close()
                        _, rest = self._rests.get(adapter, (0.0, FIRST_REST))
                        self._rests[adapter] = (time.monotonic() + rest, min(2 * rest, LONGEST_REST))
                if not candidates:
                    raise PanelMissingError(f"{AUTO}: {_nobody(len(_adapters()))}")
                select.select([candidate.connection for candidate in candidates.values()], [], [], LOOK_EVERY)
        finally:
            for candidate in candidates.values():
                candidate.connection.close()

    def _open_others(self, candidates: dict[_Adapter, _Candidate]) -> None:
        """Open the adapters that are neither open nor at rest. Raises PanelError where it is the only one."""
        present = _adapters()
        self._rests = {adapter: rest for adapter, rest in self._rests.items() if adapter in present}
        for adapter in present:
            until, _ = self._rests.get(adapter, (0.0, FIRST_REST))
            if adapter in candidates or time.monotonic() < until:
                continue
            try:
                candidates[adapter] = _Candidate(adapter.path)
            except PanelError:
                if len(present) == 1:
                    raise


class _Adapter(NamedTuple):
    """``plugged``: when its name came to be, in nanoseconds: another time, another device."""

    path: str
    plugged: int


def _adapters() -> list[_Adapter]:
    found = []
    for path in sorted(BY_ID.glob("*")):
        with contextlib.suppress(FileNotFoundError):  # it was pulled meanwhile
            found.append(_Adapter(str(path), path.lstat().st_ctime_ns))
    return found


def _nobody(count: int) -> str:
    if not count:
        return "no serial adapter is there; plug the panel in"
    return f"none of the serial adapters ({count}) is a panel; plug it in"


class _Candidate:
    """A port that is listened to until it is known to be a panel's."""

    def __init__(self, path: str) -> None:
        """Raises PanelError."""
        self.connection = _SerialConnection(path)
        self.until = time.monotonic() + LISTEN
        self._frames = FrameReader()

    def is_panel(self) -> bool:
        try:
            return bool(self._frames.feed(self.connection.read()))
        except PanelError:
            self.until = 0.0
            return False


class _SerialConnection:
    def __init__(self, name: str) -> None:
        self.name = name
        try:
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
            taken = os.write(self.fileno(), frame)
        except BlockingIOError:
            taken = 0
        except OSError as error:
            raise PanelMissingError(f"{self.name}: unplugged") from error
        if taken < len(frame):
            self._drop_unsent()

    def close(self) -> None:
        # A close waits for what is unsent, for half a minute where an adapter hangs.
        self._drop_unsent()
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

    def open(self) -> Connection:
        """Start the process. Raises PanelError where the system gives none."""
        try:
            return _GpioConnection(self._pins)
        except OSError as error:
            raise PanelMissingError(f"gpio: no process can be started ({error})") from error


class _GpioConnection:
    name = GpioPort.name

    def __init__(self, pins: GpioPins) -> None:
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
        return received

    def write(self, frame: bytes) -> None:
        try:
            self._ours.send(frame)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._ending() from error

    def close(self) -> None:
        self._ours.close()
        self._await_end()
        self._said.close()

    def _await_end(self) -> int:
        try:
            return self._process.wait(EXIT_DEADLINE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _ending(self) -> PanelError:
        """Why the process ended, by its last line."""
        code = self._await_end()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"its process ended (code {code})"
        kinds = {EXIT_NO_GPIO: PanelRefusedError, EXIT_BUSY: PanelBusyError}
        return kinds.get(code, PanelMissingError)(f"gpio: {why}")
