"""The firmware into the panel: avrdude, by way of the boot loader that every Arduino has."""

from __future__ import annotations

import os
import subprocess
import sys
import termios
import threading
import time
from contextlib import closing
from pathlib import Path

from firmware_bridge.errors import PanelError, PanelRefusedError, PanelSilentError
from firmware_bridge.link import PanelLink
from firmware_bridge.ports import SerialPort
from firmware_bridge.wire import Hello

BUILT = Path(__file__).parent / "firmware" / "build" / "panel.hex"
CARRIED = Path(sys.prefix) / "box" / "firmware" / "panel.hex"
"""The firmware that came to a box with its program, where there is no compiler."""
OLD_BAUD = 57600
BAUDS = {
    115200: "new boot loaders: Uno, Nano since 2018",
    OLD_BAUD: "old boot loaders: older Nanos and copies",
}
"""In the order in which they are tried."""
RENEW = (
    "Its old boot loader cannot start a panel that its watchdog has reset, until it is unplugged: replace it "
    "by Optiboot (docs/panel.md)"
)
LONGEST = 120.0
"""Seconds for avrdude: it needs 5 for a full flash, and may hang where a driver does."""
HELLO_DEADLINE = 15.0
"""Seconds for the new firmware to answer: the opening resets the board, and an old boot loader waits for a
program for 2 before it starts what it has."""
SECOND_ATTEMPT = "attempt 2 of"
"""avrdude tries ten times, 5 s each. It has given up twice when it says this."""
TALKS = "ready to accept"
"""What it says once a boot loader has answered."""
DEAF = ("not in sync", "not responding", "cannot communicate")
"""What avrdude says of a port behind which no boot loader answers."""


def default_image() -> Path:
    """The firmware to write where none is named: what came with the program, else what was built here."""
    return CARRIED if CARRIED.is_file() else BUILT


def flash(port: str, hex_file: Path) -> str:
    """Write ``hex_file`` through the boot loader at ``port`` (a path), verify it, and hear the new firmware's
    hello. Prints what it does; gives the last line, which says what the panel is now.

    Raises PanelError: no avrdude, no such file, the port missing, busy or not permitted, no boot loader, what
    avrdude complains about, or a firmware that does not answer.
    """
    if not hex_file.is_file():
        raise PanelError(f"{hex_file}: not there; build it: make -C firmware_bridge/firmware")
    _let_it_reset(port)
    for baud, boards in BAUDS.items():
        print(f"{port}: writing {hex_file.name} at {baud} baud ({boards})", flush=True)
        if _written(port, hex_file, baud):
            hello = _hello(port)
            return (
                f"{port}: {hex_file.name} is written and verified; the panel answers: "
                f"firmware {hello.major}.{hello.minor}, protocol {hello.version}"
                + (f". {RENEW}" if baud == OLD_BAUD else "")
            )
        print(f"{port}: no boot loader answers at {baud} baud", flush=True)
    raise PanelSilentError(
        f"{port}: no boot loader answers; it must be an Arduino Nano or Uno (ATmega328P). A capacitor at its "
        "RESET keeps it from resetting: take it off, or press the reset button just when writing begins"
    )


def _let_it_reset(port: str) -> None:
    """Have DTR go down now, so that it rises, which resets the board, when avrdude opens the port. Raises
    PanelError where the port cannot be used at all."""
    with closing(SerialPort(port).open()) as connection:
        attributes = termios.tcgetattr(connection.fileno())
        attributes[2] |= termios.HUPCL
        termios.tcsetattr(connection.fileno(), termios.TCSANOW, attributes)


def _written(port: str, hex_file: Path, baud: int) -> bool:
    """Whether it is; False where no boot loader talks at this rate. Raises PanelError for all else."""
    # -D: a boot loader erases page by page. No rewriting of fuses, no asking.
    command = ["avrdude", "-q", "-c", "arduino", "-p", "m328p", "-P", port, "-b", str(baud), "-D"]
    try:
        process = subprocess.Popen(
            [*command, "-U", f"flash:w:{hex_file}:i"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise PanelRefusedError("avrdude is not installed: sudo apt-get install avrdude") from None
    watchdog = threading.Timer(LONGEST, process.kill)
    watchdog.start()
    try:
        said = _listen(process)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
    if process.returncode == 0:
        return True
    if not any(TALKS in line for line in said) and any(word in line for line in said for word in DEAF):
        return False
    complaints = [line for line in said if "error" in line] or [f"avrdude ended with {process.returncode}"]
    raise PanelError(f"{port}: {complaints[0]}")


def _listen(process: subprocess.Popen[str]) -> list[str]:
    """avrdude's lines, until it ends or has tried twice to wake a boot loader."""
    assert process.stderr is not None, "opened as a pipe"
    said = []
    with process.stderr:
        for line in process.stderr:
            if "TIOCMGET" not in line:  # a simulated panel's port has no modem lines
                said.append(line.strip())
            if SECOND_ATTEMPT in line:
                return said
    process.wait()
    return said


def _hello(port: str) -> Hello:
    """Raises PanelError."""
    until = time.monotonic() + HELLO_DEADLINE
    with closing(PanelLink(SerialPort(port))) as link:
        while (hello := link.state.hello) is None:
            if time.monotonic() > until:
                raise PanelSilentError(f"{port}: written and verified, but the new firmware does not answer")
            time.sleep(0.05)
    return hello
