"""``sonoglance panel``: watch a panel, test it, write its firmware."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from firmware_bridge.errors import PanelError, PanelMissingError
from firmware_bridge.flash import default_image, flash
from firmware_bridge.gpio_panel import GpioPins
from firmware_bridge.link import LinkState, PanelLink, words
from firmware_bridge.ports import AUTO, GpioPort, Port, SerialPort
from firmware_bridge.selftest import SelfTest
from firmware_bridge.wire import Button, Condition, Status

LOOK_EVERY = 0.02
LINK_DEADLINE = 10.0
DIAL_STEP, BATTERY_STEP = 8, 100
"""What the monitor tells of dial and battery, in steps of 1/255 and mV: less is noise."""


def panel(arguments: list[str]) -> int:
    """``sonoglance panel monitor|selftest|flash``: 0 done, 1 something failed. Raises PanelError."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.job == "flash":
        return _flash(asked.port, asked.hex)
    try:
        port = _port(asked.port, asked.pin)
    except ValueError as error:
        parser.error(str(error))
    with closing(PanelLink(port)) as link:
        if asked.job == "monitor":
            return _monitor(link, asked.json, asked.seconds)
        return SelfTest(link, asked.hands_off).run()


def _parser() -> argparse.ArgumentParser:
    about = "The console panel beside the screen."
    parser = argparse.ArgumentParser(prog="sonoglance panel", description=about)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="monitor|selftest|flash")
    monitor = jobs.add_parser("monitor", help="live: the link, the buttons, battery, dial, what is shown")
    monitor.add_argument("--json", action="store_true", help="one JSON object a line")
    monitor.add_argument("--seconds", type=float, help="stop after this time (default: at Ctrl-C)")
    selftest = jobs.add_parser("selftest", help="every part in turn, with you as eyes and hands")
    selftest.add_argument("--hands-off", action="store_true", help="leave out what needs a person")
    for job in (monitor, selftest):
        job.add_argument("--port", default=AUTO, help="a serial port's path, or gpio, or auto (default)")
        pin = "with --port gpio, as often as needed: another pin than the default, -1 for no buzzer or mute"
        job.add_argument("--pin", action="append", default=[], metavar="NAME=BCM", help=pin)
    writing = jobs.add_parser("flash", help="write the firmware with avrdude")
    writing.add_argument("--port", default=AUTO, help="a serial port's path, or auto (default)")
    built = "default: what came with the program, or what make -C firmware_bridge/firmware built"
    writing.add_argument("hex", nargs="?", type=Path, default=default_image(), help=built)
    return parser


def _port(name: str, pins: list[str]) -> Port:
    """Raises ValueError for pins that are none."""
    if name != GpioPort.name:
        if pins:
            raise ValueError("--pin goes with --port gpio")
        return SerialPort(name)
    numbers = asdict(GpioPins())
    for given in pins:
        pin, _, number = given.partition("=")
        if pin not in numbers or not number.removeprefix("-").isdecimal():
            raise ValueError(f"--pin {given}: give NAME=BCM with one of these names: {', '.join(numbers)}")
        numbers[pin] = None if number == "-1" else int(number)
    return GpioPort(GpioPins(**numbers))


def _flash(port: str, hex_file: Path) -> int:
    if port == GpioPort.name:
        raise PanelError("gpio: a panel on the box's own pins has no firmware")
    print(flash(_found() if port == AUTO else port, hex_file))
    return 0


def _found() -> str:
    """The path of the port that a panel is heard on. Raises PanelError: no other port is ever flashed."""
    until = time.monotonic() + LINK_DEADLINE
    port = SerialPort(AUTO)
    while True:
        try:
            with closing(port.open()) as connection:
                return connection.name
        except PanelError as error:
            if time.monotonic() > until:
                hint = "name the port of a board without our firmware: --port /dev/serial/by-id/..."
                raise PanelMissingError(f"{error} ({hint})") from error
        time.sleep(LOOK_EVERY)


def _monitor(link: PanelLink, as_json: bool, seconds: float | None) -> int:
    until = time.monotonic() + seconds if seconds is not None else None
    state: LinkState | None = None
    status: Status | None = None
    while until is None or time.monotonic() < until:
        before, state = state, link.state
        if before is None or (before.name, before.detail) != (state.name, state.detail):
            _line(as_json, f"{state.name}: {state.detail}", {"link": state.name, "detail": state.detail})
        if state.status is not None and _news(status, state.status):
            status = state.status
            _line(as_json, _in_words(status), {"status": asdict(status)})
        for pressed in link.events():
            button, kind = pressed.button.name.lower(), pressed.kind.name.lower()
            age_ms = round(1e3 * (time.monotonic() - pressed.at))
            _line(
                as_json,
                f"{button} {kind}, {age_ms} ms ago",
                {"button": button, "kind": kind, "age_ms": age_ms},
            )
        time.sleep(LOOK_EVERY)
    return 0


def _line(as_json: bool, told: str, fields: dict[str, object]) -> None:
    at = time.time()
    clock = f"{time.strftime('%H:%M:%S', time.localtime(at))}.{int(at % 1 * 1e3):03d}"
    print(json.dumps({"time": round(at, 3)} | fields) if as_json else f"{clock}  {told}", flush=True)


def _news(old: Status | None, new: Status) -> bool:
    """Whether there is more than time and noise between two statuses."""
    if old is None or (old.boot, old.shown, old.down, old.flags) != (
        new.boot,
        new.shown,
        new.down,
        new.flags,
    ):
        return True
    turned = abs(old.dial - new.dial) >= DIAL_STEP
    return turned or abs(old.battery_mv - new.battery_mv) >= BATTERY_STEP or old.refused != new.refused


def _in_words(status: Status) -> str:
    down = [button.name.lower() for button in Button if status.down >> (button - 1) & 1]
    battery = f"battery {status.battery_mv / 1e3:.1f} V" if status.battery_mv else "no battery"
    parts = [f"shows {words(status.shown)}", battery, f"dial {status.dial * 100 // 255} %"]
    parts += ["muted"] if status.flags & Condition.MUTED else []
    parts += ["events were lost"] if status.flags & Condition.EVENTS_LOST else []
    parts += [f"{status.refused} damaged frames"] if status.refused else []
    parts += [f"down: {', '.join(down)}"] if down else []
    return ", ".join(parts)
