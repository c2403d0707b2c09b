"""The simulated panel, on a small firmware that echoes (echo.c) and on the panel's own.

python -m tests.firmware_bridge.test_simulator prints the figures of the serial line over 40,000 bytes.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import serial

from firmware_bridge.simulator import SimulatedPanel, SimulatorError
from firmware_bridge.wire import BAUD, FrameReader, Hello
from tests.conftest import ROOT, need
from tests.firmware_bridge.patience import PATIENCE, until

FIRMWARE = ROOT / "firmware_bridge" / "firmware"
POWER, RESET_PIN, WATCHDOG = 1, 2, 8
"""Bits of the ATmega's MCUSR."""


class Echo:
    """The host's side of the echoing firmware."""

    def __init__(self, panel: SimulatedPanel, baud: int = BAUD) -> None:
        self.panel = panel
        self.serial = serial.Serial(str(panel.port), baud, timeout=PATIENCE)
        self.await_start()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.serial.close()

    def send(self, sent: bytes) -> bytes:
        self.serial.write(sent)
        return self.serial.read(len(sent))

    def ask(self, command: bytes, length: int = 1) -> list[int]:
        self.panel.set_pin("D4", 0)
        self.serial.write(command)
        answer = list(self.serial.read(length))
        self.panel.set_pin("D4", 1)
        return answer

    @property
    def cause(self) -> int:
        return self.ask(b"c")[0]

    @property
    def starts_in_eeprom(self) -> int:
        return self.ask(b"b")[0]

    @property
    def starts_in_ram(self) -> int:
        return self.ask(b"r")[0]

    def await_start(self) -> None:
        """The opening may reset the part, which hears nothing before it has set up its UART. Echoes come in
        order: with that of the last mark, nothing is on its way any more."""
        marks = itertools.count()

        def echoed() -> bool:
            mark = bytes([next(marks) % 256])
            self.serial.write(mark)
            return mark in iter(lambda: self.serial.read(1), b"")

        self.serial.timeout = 0.1
        until(echoed)
        self.serial.timeout = PATIENCE


def build_echo(folder: Path) -> Path:
    elf = folder / "echo.elf"
    source = Path(__file__).parent / "echo.c"
    flags = ["-mmcu=atmega328p", "-DF_CPU=16000000", "-Os", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["avr-gcc", *flags, "-o", elf, source], check=True, timeout=60)
    return elf


def need_simulator() -> None:
    need(shutil.which("avr-gcc"), "avr-gcc", "gcc-avr avr-libc")
    need(Path("/usr/include/simavr").is_dir(), "simavr's library", "gcc make libsimavr-dev libelf-dev")


@pytest.fixture(scope="module")
def echo_elf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_simulator()
    return build_echo(tmp_path_factory.mktemp("firmware"))


@pytest.fixture(scope="module")
def panel_elf() -> Path:
    need_simulator()
    subprocess.run(["make", "--silent", "-C", FIRMWARE], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return FIRMWARE / "build" / "panel.elf"


@pytest.fixture
def panel(echo_elf: Path, tmp_path: Path) -> Iterator[SimulatedPanel]:
    with SimulatedPanel(echo_elf, tmp_path / "panel") as panel:
        yield panel


@pytest.fixture
def echo(panel: SimulatedPanel) -> Iterator[Echo]:
    with Echo(panel) as echo:
        yield echo


def echoed(echo: Echo, length: int, seed: int = 1) -> tuple[bytes, bytes, float]:
    """What was sent, what came back of it but for what the line has lost, and in how many seconds. At most
    30,000 bytes: the host's rate is 0.8 % above the part's, and the firmware has room for 256 that wait."""
    sent, came = random.Random(seed).randbytes(length), b""
    lost = echo.panel.counts().lost
    begun = time.monotonic()
    writer = threading.Thread(target=echo.serial.write, args=[sent])
    writer.start()
    echo.serial.timeout = 0.1
    while len(came) + echo.panel.counts().lost - lost < length:
        assert time.monotonic() < begun + PATIENCE, f"{len(came)} bytes of {length}"
        came += echo.serial.read(length - len(came))
    echo.serial.timeout = PATIENCE
    writer.join()
    return sent, came, time.monotonic() - begun


def test_no_byte_is_lost_at_full_rate_both_ways(echo: Echo) -> None:
    sent, came, seconds = echoed(echo, 10_000)
    assert came == sent
    assert seconds > 0.95 * 10 * len(sent) / BAUD, "faster than the line"
    counts = echo.panel.counts()
    assert counts.overrun == counts.garbled == counts.flipped == counts.lost == 0
    assert counts.to_part >= len(sent)


def test_what_the_firmware_has_ready_leaves_at_the_lines_rate(echo: Echo) -> None:
    begun = time.monotonic()
    assert echo.ask(b"f", 250) == list(range(250))
    assert time.monotonic() - begun > 0.95 * 10 * 250 / BAUD


def test_a_byte_that_is_read_too_late_is_lost(echo: Echo) -> None:
    echo.panel.hang()
    echo.serial.write(b"0123456789")
    until(lambda: echo.panel.counts().overrun)


def test_another_rate_gives_rubbish(panel: SimulatedPanel) -> None:
    with serial.Serial(str(panel.port), 115200, timeout=0.3) as port:
        port.write(bytes(50))
        until(lambda: panel.counts().garbled >= 50)
        assert port.read(50) != bytes(50)


def test_noise_is_as_asked(echo: Echo) -> None:
    echo.panel.noise(flipped=0.02, lost=0.0, seed=7)
    sent, came, _ = echoed(echo, 5000)
    wrong = [a ^ b for a, b in zip(sent, came, strict=True) if a != b]
    assert 130 < len(wrong) < 270  # 198 expected of 5000, each way 2 %
    assert sum(one.bit_count() == 1 for one in wrong) > 0.9 * len(wrong)
    counts = echo.panel.counts()
    assert counts.lost == 0
    assert 130 < counts.flipped < 270
    echo.panel.noise(flipped=0.0, lost=0.02, seed=7)
    sent, came, _ = echoed(echo, 5000)
    lost = echo.panel.counts().lost
    assert len(sent) - len(came) == lost
    assert 130 < lost < 270
    assert echo.panel.counts().flipped == counts.flipped


def test_the_same_seed_is_the_same_noise(echo: Echo) -> None:
    came = []
    for _ in range(2):
        echo.panel.noise(flipped=0.05, lost=0.0, seed=3)
        # One at a time: else the order of the two directions depends on the host.
        came.append(b"".join(echo.send(bytes([i])) for i in range(150)))
    assert came[0] == came[1] != bytes(range(150))


def test_pins_change_when_the_real_ones_would(panel: SimulatedPanel) -> None:
    panel.wait_for("D2", 1, PATIENCE)  # its pull-up
    for _ in range(20):
        panel.press("freeze")
        pressed, lit = panel.wait_for("D2", 0, PATIENCE), panel.wait_for("D7", 1, PATIENCE)
        assert 0 <= lit.at - pressed.at < 0.0011, "the firmware looks every millisecond"
        assert panel.level("D7") == 1
        panel.release("freeze")
        panel.wait_for("D7", 0, PATIENCE)
    changes = panel.changes(since=pressed.at - 1e-9)
    assert [(change.pin, change.level) for change in changes] == [("D2", 0), ("D7", 1), ("D2", 1), ("D7", 0)]
    with pytest.raises(TimeoutError, match="D7 is not at 1"):
        panel.wait_for("D7", 1, 0.05)


def test_simulated_time_is_real_time(panel: SimulatedPanel) -> None:
    panel.lag()
    cycles, begun = panel.cycles(), time.monotonic()
    time.sleep(1.0)
    passed = (panel.cycles() - cycles) / 16e6
    assert abs(passed - (time.monotonic() - begun)) < 0.1 + panel.lag()


def test_a_sleeping_microcontroller_costs_little(panel: SimulatedPanel) -> None:
    def used() -> float:
        fields = Path(f"/proc/{panel._process.pid}/stat").read_text().split()
        return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")

    before = used()
    time.sleep(1.0)
    assert used() - before < 0.3
    assert panel.level("D2")


def test_analog_inputs(echo: Echo) -> None:
    echo.panel.analog(0, 2500)
    echo.panel.analog(1, 550)
    low, high, low1, high1 = echo.ask(b"a", 4)
    assert abs(low + 256 * high - 512) <= 2, "half of 5 V"
    assert abs(low1 + 256 * high1 - 512) <= 2, "half of the internal 1.1 V"


def test_brightness_and_tone(panel: SimulatedPanel) -> None:
    panel.wait_for("D9", 1, PATIENCE)
    assert panel.brightness() == pytest.approx(0.5, abs=0.01)
    assert panel.tone() == 0.0
    panel.press("next")
    panel.wait_for("D11", 1, PATIENCE)
    assert panel.tone() == pytest.approx(16e6 / 64 / 63 / 2)
    panel.release("next")
    panel.wait_for("D11", 0, PATIENCE)


def test_the_reset_pin_keeps_ram_and_eeprom_and_darkens_the_pins(echo: Echo) -> None:
    ram, eeprom = echo.starts_in_ram, echo.starts_in_eeprom
    echo.panel.press("freeze")
    lit = echo.panel.wait_for("D7", 1, PATIENCE)
    echo.panel.reset()
    assert (echo.cause, echo.starts_in_ram, echo.starts_in_eeprom) == (RESET_PIN, ram + 1, eeprom + 1)
    levels = [change.level for change in echo.panel.changes(lit.at) if change.pin == "D7"]
    assert levels == [0, 1], "dark, and lit by the firmware that started again: the button is still down"


def test_a_lost_supply_loses_the_ram_and_keeps_the_eeprom(panel: SimulatedPanel) -> None:
    with Echo(panel) as echo:
        eeprom = echo.starts_in_eeprom
        panel.unplug()
        assert not panel.port.is_symlink()
        with pytest.raises((OSError, serial.SerialException)):
            echo.serial.read(1)
    assert all(panel.level(f"D{number}") == 0 for number in range(14))
    with pytest.raises(SimulatorError, match="unplugged"):
        panel.reset()
    panel.plug()
    with Echo(panel) as echo:
        # Twice: power, and the reset by opening the port.
        assert echo.starts_in_ram == 2
        assert echo.starts_in_eeprom == eeprom + 2


@pytest.mark.parametrize("by", ["the test", "the firmware"])
def test_a_hang_ends_by_the_watchdog(echo: Echo, by: str) -> None:
    ram = echo.starts_in_ram
    if by == "the test":
        echo.panel.hang()
    else:
        echo.ask(b"h")
    echo.await_start()
    assert (echo.cause, echo.starts_in_ram) == (WATCHDOG, ram + 1)


def test_interrupts_are_served_in_an_endless_loop(echo: Echo) -> None:
    """The echo's interrupts keep its watchdog quiet and do all of its work."""
    ram = echo.starts_in_ram
    echo.panel.hang(interrupts=True)
    assert echo.send(b"x" * 100) == b"x" * 100
    echo.panel.press("freeze")
    echo.panel.wait_for("D7", 1, PATIENCE)
    time.sleep(0.5)
    assert echo.starts_in_ram == ram


def test_opening_resets_unless_the_last_close_left_dtr_up(panel: SimulatedPanel) -> None:
    with Echo(panel) as echo:
        assert echo.cause == RESET_PIN
        starts = echo.starts_in_eeprom
    with Echo(panel) as echo:
        assert echo.starts_in_eeprom == starts + 1
        attributes = termios.tcgetattr(echo.serial.fileno())
        attributes[2] &= ~termios.HUPCL
        termios.tcsetattr(echo.serial.fileno(), termios.TCSANOW, attributes)
    for _ in range(3):
        with Echo(panel) as echo:
            assert echo.starts_in_eeprom == starts + 1


def test_nothing_is_left_when_its_parent_is_killed(echo_elf: Path, tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from firmware_bridge.simulator import SimulatedPanel\n"
        f"panel = SimulatedPanel(Path({str(echo_elf)!r}), Path({str(tmp_path / 'panel')!r}))\n"
        "print(panel._process.pid, flush=True); time.sleep(100)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert (tmp_path / "panel").is_symlink()
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    until(lambda: not Path(f"/proc/{pid}").exists() and not (tmp_path / "panel").is_symlink())


def test_what_is_wrong_is_said(panel: SimulatedPanel, tmp_path: Path) -> None:
    known = set(children())
    with pytest.raises(SimulatorError, match=r"no firmware at .*make -C firmware_bridge/firmware"):
        SimulatedPanel(tmp_path / "absent.elf", tmp_path / "other")
    (tmp_path / "text.elf").write_text("no firmware")
    with pytest.raises(SimulatorError, match="has ended"):
        SimulatedPanel(tmp_path / "text.elf", tmp_path / "other")
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SimulatorError, match="has ended"):
        SimulatedPanel(tmp_path / "text.elf", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"
    with pytest.raises(SimulatorError, match="D0 to D13"):
        panel.set_pin("A7", 1)
    assert set(children()) <= known, "a process was left behind"


def test_the_panels_firmware_says_hello_and_comes_back_from_a_hang(panel_elf: Path, tmp_path: Path) -> None:
    with (
        SimulatedPanel(panel_elf, tmp_path / "panel") as panel,
        serial.Serial(str(panel.port), BAUD, timeout=0.05) as port,
    ):
        reader = FrameReader()

        def hello() -> Hello:
            give_up = time.monotonic() + PATIENCE
            while True:
                assert time.monotonic() < give_up
                for message, _ in reader.feed(port.read(100)):
                    if isinstance(message, Hello):
                        return message

        first = hello()
        panel.hang()
        second = hello()
        assert second.reset_cause == WATCHDOG
        assert second.boot != first.boot
        panel.reset()
        assert hello().reset_cause == RESET_PIN
        assert panel.counts().overrun == 0


def test_what_the_firmware_says_while_the_port_is_closed_is_gone(panel_elf: Path, tmp_path: Path) -> None:
    with SimulatedPanel(panel_elf, tmp_path / "panel") as panel:
        until(lambda: panel.counts().to_host >= 200)
        # Not by pyserial, which throws away what waits.
        port = os.open(panel.port, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        with os.fdopen(port, "rb", buffering=0) as stream:
            assert len(stream.read(4096) or b"") < 64


def children() -> list[int]:
    own = os.getpid()
    return [int(child) for child in Path(f"/proc/{own}/task/{own}/children").read_text().split()]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with SimulatedPanel(build_echo(folder), folder / "panel") as panel, Echo(panel) as echo:
            panel.lag()
            blocks = [echoed(echo, 10_000, seed) for seed in range(4)]
            counts, lag = panel.counts(), panel.lag()
    back = sum(sent == came for sent, came, _ in blocks)
    seconds = sum(seconds for _, _, seconds in blocks)
    print(f"{back} of 4 blocks of 10,000 bytes came back as sent, {40_000 / seconds:.0f} bytes/s; {counts}")
    print(f"the simulation was {1e3 * lag:.1f} ms late at the most")


if __name__ == "__main__":
    main()
