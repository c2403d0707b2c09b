from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from firmware_bridge import link, ports
from firmware_bridge.simulator import SimulatedPanel
from tests.conftest import ROOT, need
from tests.firmware_bridge.patience import PATIENCE
from tests.hil.rig import MockPinsRig


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No press is too old, and no process hangs, because this machine stood still for a while."""
    monkeypatch.setattr(link, "TOO_OLD", PATIENCE)
    monkeypatch.setattr(ports._GpioConnection, "hung_after", PATIENCE)


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


@pytest.fixture
def pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MockPinsRig]:
    """Mock pins for every panel's process that is started meanwhile."""
    with closing(MockPinsRig(tmp_path / "rig")) as rig:
        monkeypatch.syspath_prepend(str(tmp_path / "rig"))
        for name, value in rig.variables.items():
            monkeypatch.setenv(name, value)
        yield rig
