from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware_bridge.simulator import SimulatedPanel
from tests.conftest import ROOT, need


@pytest.fixture(scope="session")
def firmware() -> Path:
    """The panel's image, built from the sources as they are; for the simulator."""
    need(shutil.which("avr-gcc"), "avr-gcc", "gcc-avr avr-libc")
    need(Path("/usr/include/simavr").is_dir(), "simavr", "libsimavr-dev libelf-dev")
    folder = ROOT / "firmware_bridge" / "firmware"
    subprocess.run(["make", "-s", "-C", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "build" / "panel.elf"


@pytest.fixture
def simulated(firmware: Path, tmp_path: Path) -> Iterator[SimulatedPanel]:
    """The real firmware, running, its serial port at ``port``."""
    with SimulatedPanel(firmware, tmp_path / "port") as panel:
        yield panel
