"""The real avrdude writes the panel's firmware through real boot loaders in the simulated part."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import serial

from firmware_bridge import flash as flash_module
from firmware_bridge.errors import PanelBusyError, PanelError, PanelMissingError, PanelSilentError
from firmware_bridge.flash import flash
from firmware_bridge.ports import SerialPort
from firmware_bridge.simulator import SimulatedPanel
from firmware_bridge.wire import BAUD, FrameReader, Hello
from tests.conftest import need
from tests.firmware_bridge.patience import PATIENCE, in_step
from tests.firmware_bridge.test_simulator import FIRMWARE, WATCHDOG, build_echo, need_simulator

BOOT_LOADERS = Path("/usr/share/arduino/hardware/arduino/avr/bootloaders")
OLD = BOOT_LOADERS / "atmega" / "ATmegaBOOT_168_atmega328.hex"
"""57600 baud, in the upper 2 KB."""


@pytest.fixture(scope="module")
def optiboot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """115200 baud, in the upper 512 bytes. Built without its blinking: Debian's own image, blinking and all,
    has grown to 532 bytes and fits no more."""
    need_boot_loaders()
    elf = tmp_path_factory.mktemp("boot") / "optiboot.elf"
    flags = ["-Os", "-mrelax", "-mmcu=atmega328p", "-nostartfiles", "-nostdlib", "-w", "-Wl,--relax"]
    defines = ["-DF_CPU=16000000L", "-DLED_START_FLASHES=0", "-DBAUD_RATE=115200"]
    places = ["-Wl,--section-start=.text=0x7e00", "-Wl,--section-start=.version=0x7ffe"]
    source = BOOT_LOADERS / "optiboot" / "optiboot.c"
    subprocess.run(["avr-gcc", *flags, *defines, *places, "-o", elf, source], check=True, timeout=60)
    return as_hex(elf)


@pytest.fixture(scope="module")
def panel_hex() -> Path:
    need_simulator()
    subprocess.run(["make", "--silent", "-C", FIRMWARE], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return FIRMWARE / "build" / "panel.hex"


@pytest.fixture
def board(optiboot: Path, tmp_path: Path) -> Iterator[SimulatedPanel]:
    with SimulatedPanel(optiboot, tmp_path / "panel") as board:
        yield board


def need_boot_loaders() -> None:
    need_simulator()
    need(BOOT_LOADERS.is_dir(), "Arduino's boot loaders", "arduino-core-avr")
    need(shutil.which("avrdude"), "avrdude", "avrdude")


def as_hex(elf: Path) -> Path:
    image = elf.with_suffix(".hex")
    subprocess.run(["avr-objcopy", "-O", "ihex", "-R", ".eeprom", elf, image], check=True, timeout=60)
    return image


def test_an_empty_board_gets_the_firmware_and_gets_it_again(
    board: SimulatedPanel, panel_hex: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def gets_it() -> None:
        capsys.readouterr()
        said = flash(str(board.port), panel_hex)
        assert "panel.hex is written and verified; the panel answers: firmware 1." in said
        told = capsys.readouterr().out.splitlines()
        assert [line.partition(": ")[2][:37] for line in told] == ["writing panel.hex at 115200 baud (new"]

    assert board.level("D13") == 0
    for _ in range(2):
        in_step(board, gets_it)
    board.unplug()
    board.plug()
    with closing(SerialPort(str(board.port)).open()):
        board.wait_for("D10", 1, PATIENCE)  # it has kept it, and shows that there is no link


def test_an_old_boot_loader_is_tried_at_its_own_rate_and_the_panel_outlives_a_hang(
    panel_hex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_boot_loaders()
    monkeypatch.setattr(flash_module, "SECOND_ATTEMPT", "attempt 1 of")  # 5 s less
    with SimulatedPanel(OLD, tmp_path / "panel") as board:

        def gets_it() -> None:
            capsys.readouterr()
            said = flash(str(board.port), panel_hex)
            assert re.search(r"the panel answers: .* replace it by Optiboot", said)
            told = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines()]
            assert [line[:33] for line in told] == [
                "writing panel.hex at 115200 baud ",
                "no boot loader answers at 115200 ",
                "writing panel.hex at 57600 baud (",
            ]

        in_step(board, gets_it)
        with serial.Serial(str(board.port), BAUD, timeout=0.05) as port:
            board.hang(interrupts=True)
            assert hello(port).reset_cause == WATCHDOG


def hello(port: serial.Serial) -> Hello:
    """The panel's next."""
    reader, until = FrameReader(), time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for message, _ in reader.feed(port.read(100)):
            if isinstance(message, Hello):
                return message
    pytest.fail("the panel did not come back")


def test_without_a_boot_loader_it_says_so(
    panel_hex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_boot_loaders()
    monkeypatch.setattr(flash_module, "SECOND_ATTEMPT", "attempt 1 of")
    with (
        SimulatedPanel(panel_hex, tmp_path / "panel") as board,
        pytest.raises(PanelSilentError, match=r"no boot loader answers; .*capacitor"),
    ):
        flash(str(board.port), panel_hex)


def test_a_firmware_that_does_not_answer_is_no_success(
    board: SimulatedPanel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flash_module, "HELLO_DEADLINE", 1.0)
    said = "written and verified, but the new firmware does not answer"

    def does_not_answer() -> None:
        with pytest.raises(PanelSilentError, match=said):
            flash(str(board.port), as_hex(build_echo(tmp_path)))

    in_step(board, does_not_answer)


def test_what_is_wrong_is_said_in_one_line(
    board: SimulatedPanel, panel_hex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        PanelError, match=r"absent.hex: not there; build it: make -C firmware_bridge/firmware"
    ):
        flash(str(board.port), tmp_path / "absent.hex")
    with pytest.raises(PanelMissingError, match="plug the panel in"):
        flash(str(tmp_path / "absent"), panel_hex)
    with (
        closing(SerialPort(str(board.port)).open()),
        pytest.raises(PanelBusyError, match="another program"),
    ):
        flash(str(board.port), panel_hex)
    (tmp_path / "text.hex").write_text("no firmware\n")

    def is_no_firmware() -> None:
        with pytest.raises(
            PanelError, match=r"panel: avrdude error: no valid record found in Intel Hex file .*text\.hex"
        ) as error:
            flash(str(board.port), tmp_path / "text.hex")
        assert "\n" not in str(error.value)

    in_step(board, is_no_firmware)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PanelError, match="avrdude is not installed: sudo apt-get install avrdude"):
        flash(str(board.port), panel_hex)
