from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from functools import partial
from pathlib import Path
from struct import pack

import pytest
import serial

from firmware_bridge.simulator import SimulatedPanel
from firmware_bridge.wire import (
    BAUD,
    Ask,
    Button,
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
from tests.conftest import ROOT, need

FIRMWARE = ROOT / "firmware_bridge" / "firmware"
PROTOCOL = (ROOT / "firmware_bridge" / "PROTOCOL.md").read_text()
FLASH, RAM = 32 * 1024, 2 * 1024
"""Bytes, of the ATmega328P."""
POWER, RESET_PIN, WATCHDOG = 1, 2, 8
"""Bits of the ATmega's MCUSR."""
PATIENCE = 20.0
"""Seconds for what takes a fraction of one, on a machine however busy."""
NAMES = {kind.__name__: kind for kind in (Ask, Show, Got, Hello, Event, Status, Shown, Button, Kind)}


def make(*targets: str) -> str:
    run = subprocess.run(["make", "-C", FIRMWARE, *targets], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wiretool() -> None:
    need(shutil.which("gcc") and shutil.which("make"), "gcc", "gcc libc6-dev make")
    make("build/wiretool")


def test_the_firmware_fills_less_than_half_of_its_part(firmware: Path) -> None:
    make("build/stack")
    sizes = subprocess.run(["avr-size", "-A", firmware], capture_output=True, text=True, check=True).stdout
    section = {name: int(size) for name, size in re.findall(r"^\.(\w+) +(\d+)", sizes, re.M)}
    assert section["text"] + section["data"] < FLASH / 2
    assert section["data"] + section["bss"] + section["noinit"] + most_stack() < RAM / 2


def most_stack() -> int:
    """Bytes, by the compiler's own count: of all functions, as if each were called by the one before it."""
    used = (FIRMWARE / "build" / "stack").read_text()
    rows = re.findall(r"\t(\d+)\tstatic$", used, re.M)
    assert len(rows) == len(used.splitlines()) > 10, "a function whose stack has no bound"
    return sum(int(size) for size in rows)


def test_the_logic_passes_its_own_tests_under_sanitizers_and_cppcheck() -> None:
    need(shutil.which("gcc") and shutil.which("make"), "gcc", "gcc libc6-dev make")
    need(shutil.which("cppcheck"), "cppcheck", "cppcheck")
    assert "all as it should be" in make("check")


def firmware_reads(stream: bytes) -> tuple[list[str], int]:
    """The frames that the firmware's decoder finds, as ``line``, and how many pieces it refuses."""
    run = subprocess.run([FIRMWARE / "build" / "wiretool"], input=stream, capture_output=True, check=True)
    *frames, refused = run.stdout.decode().splitlines()
    return frames, int(refused.removeprefix("refused "))


def line(message: Message, sequence: int) -> str:
    """Code, sequence and payload in hexadecimal."""
    return pack("<BB" + message.LAYOUT[1:], message.CODE, sequence, *astuple(message)).hex()


def test_the_examples_of_the_protocol_are_read_as_they_are_explained(wiretool: None) -> None:
    rows = re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \| (\d+) \| `(\w+\(.*\))`", PROTOCOL, re.M)
    assert len(rows) == 9
    for wire, sequence, written in rows:
        message: Message = eval(written, {"__builtins__": {}}, NAMES)
        assert firmware_reads(bytes.fromhex(wire)) == ([line(message, int(sequence))], 0), written


def test_the_damaged_examples_are_refused_once_and_the_next_frame_is_read(wiretool: None) -> None:
    rows = re.findall(r"^\| `((?:[0-9a-f]{2} ?)+)` \| ([^\d].*) \|$", PROTOCOL, re.M)
    assert len(rows) == 19
    for wire, why in rows:
        assert firmware_reads(bytes.fromhex(wire) + encode(Ask(), 5)) == ([line(Ask(), 5)], 1), why


class Box:
    """The host's side of a simulated panel, plainly."""

    def __init__(self, panel: SimulatedPanel) -> None:
        self.serial = serial.Serial(str(panel.port), BAUD, timeout=0.05)
        self._reader = FrameReader()
        self._readings = 0
        self.say(Ask())  # what it said before the port was open is lost

    def say(self, *messages: Message) -> None:
        self.serial.write(b"".join(encode(message, 0) for message in messages))

    def show(self, asked: Shown) -> None:
        """Ask for it, for a reading just made."""
        self._readings += 1
        self.say(Show(asked, self._readings, 0))

    def hear(self, wanted: Callable[[Message], object]) -> Message:
        """The next message that is wanted."""
        until = time.monotonic() + PATIENCE
        while True:
            assert time.monotonic() < until, "nothing of the kind was heard"
            for message, _ in self._reader.feed(self.serial.read(64)):
                if wanted(message):
                    return message

    def hello(self, known: list[Hello] | None = None) -> Hello:
        """The next hello of a start that is not known yet."""
        boots = [hello.boot for hello in known or []]
        message = self.hear(lambda message: isinstance(message, Hello) and message.boot not in boots)
        assert isinstance(message, Hello)
        return message

    def event(self, *kinds: Kind) -> Event:
        message = self.hear(lambda message: isinstance(message, Event) and message.kind in kinds)
        assert isinstance(message, Event)
        return message

    def status(self, wanted: Callable[[Status], object]) -> None:
        self.hear(lambda message: isinstance(message, Status) and wanted(message))


@pytest.fixture
def box(simulated: SimulatedPanel) -> Iterator[Box]:
    """Connected to the simulated panel, which has just started (opening its port resets it)."""
    box = Box(simulated)
    yield box
    box.serial.close()


def test_every_start_has_another_number_and_tells_its_cause(simulated: SimulatedPanel, box: Box) -> None:
    hellos = [box.hello()]
    for accident in (partial(simulated.hang, interrupts=True), simulated.hang, simulated.reset):
        accident()
        hellos.append(box.hello(hellos))
    box.serial.close()
    simulated.unplug()
    simulated.plug()
    box = Box(simulated)
    hellos.append(box.hello(hellos))
    box.serial.close()
    assert [hello.reset_cause for hello in hellos[1:4]] == [WATCHDOG, WATCHDOG, RESET_PIN]
    assert hellos[4].reset_cause in (POWER, RESET_PIN)  # the latter where opening the port came second


@pytest.mark.parametrize(("interrupts", "within"), [(True, 0.15), (False, 0.3)])
def test_a_firmware_that_hangs_leaves_no_lamp_lit_and_starts_anew(
    simulated: SimulatedPanel, box: Box, interrupts: bool, within: float
) -> None:
    """Within a watchdog's time-out, or two, which pass after the order to hang at the latest."""
    first = box.hello()
    box.show(Shown.NORMAL)
    simulated.wait_for("D7", 1, PATIENCE)
    simulated.hang(interrupts)
    begun = time.monotonic()
    assert simulated.wait_for("D7", 0, PATIENCE).at - begun < within
    box.status(lambda status: status.boot != first.boot and status.shown == Shown.NO_LINK)
    simulated.wait_for("D10", 1, PATIENCE)
    box.show(Shown.NORMAL)
    assert simulated.wait_for("D7", 1, PATIENCE).at > begun


def test_dial_and_battery_are_told_and_the_lamps_never_wholly_dark(
    simulated: SimulatedPanel, box: Box
) -> None:
    simulated.analog(0, 2500)
    simulated.analog(1, 7400 // 16)
    box.status(lambda status: abs(status.dial - 128) <= 2 and abs(status.battery_mv - 7400) < 50)
    assert 0.4 < simulated.brightness() < 0.6
    simulated.analog(0, 0)
    simulated.analog(1, 0)
    box.status(lambda status: status.dial == 0 and status.battery_mv == 0)
    assert 0.05 < simulated.brightness() < 0.3
    simulated.analog(0, 5000)
    box.status(lambda status: status.dial == 255)
    assert simulated.brightness() > 0.95


def test_opacity_sounds_unless_the_switch_says_mute(simulated: SimulatedPanel, box: Box) -> None:
    box.hello()
    began = time.monotonic()
    box.show(Shown.OPACITY)
    box.status(lambda status: status.shown == Shown.OPACITY)
    until = time.monotonic() + PATIENCE
    while not any(change.pin == "D11" and change.level for change in simulated.changes(began)):
        assert time.monotonic() < until
    simulated.set_pin("D12", 0)
    box.status(lambda status: status.flags & Condition.MUTED)
    began = time.monotonic()
    box.status(lambda status: status.shown == Shown.NO_LINK)
    box.status(lambda _: True)
    assert not any(change.pin == "D11" and change.level for change in simulated.changes(began))


def test_a_wrong_rate_is_refused_and_the_right_one_obeyed_again(simulated: SimulatedPanel, box: Box) -> None:
    box.hello()
    box.show(Shown.NORMAL)
    box.status(lambda status: status.shown == Shown.NORMAL)
    box.serial.baudrate = 2400  # its bytes are breaks and framing errors to the panel
    for _ in range(20):
        box.show(Shown.OPACITY)
    box.serial.flush()
    simulated.wait_for("D13", 0, PATIENCE)
    box.serial.baudrate = BAUD
    box.serial.reset_input_buffer()
    box.serial.write(b"\0")
    box.show(Shown.NORMAL)
    box.status(lambda status: status.shown == Shown.NORMAL and status.refused > 0)
    lit = {change.pin for change in simulated.changes() if change.level}
    assert {"D7", "D13"} <= lit
    assert "D8" not in lit


def test_a_press_is_repeated_until_it_is_got(simulated: SimulatedPanel, box: Box) -> None:
    box.hello()
    simulated.press("record")
    heard = [box.event(Kind.PRESS) for _ in range(3)]
    assert {(event.number, event.button) for event in heard} == {(0, Button.RECORD)}
    box.say(Got(heard[0].boot, heard[0].number))
    simulated.release("record")
    assert box.event(Kind.CLICK, Kind.LONG).number == 1
