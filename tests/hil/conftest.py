from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from device.runners import NO_ACCELERATOR, open_runner
from firmware_bridge.simulator import SimulatedPanel
from reader.bundle import CHECKSUMS, FAMILIARITY, Bundle, load_bundle, write_bundle
from reader.runner import Runner
from tests.conftest import ROOT, need
from tests.hil import scanner
from tests.hil.bedside import BedsideProcess
from tests.hil.options import PART
from tests.hil.rig import MockPinsRig, Powered, Rig, WiredRig

SIMULATED = "panel: simulated, the firmware's image in simavr"
MOCKED = "GPIO panel: simulated, on mock pins"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.hil)


@dataclass(frozen=True)
class Attached:
    """A panel as ``--panel`` wants it, and its pins. ``part``: what the report says of it. ``variables``:
    what the box needs in its environment."""

    connection: str
    rig: Rig
    part: str
    variables: Mapping[str, str] = field(default_factory=dict)

    def press(self, button: str, seconds: float = 0.3) -> None:
        """Press a button and let it go."""
        self.rig.press(button)
        time.sleep(seconds)
        self.rig.release(button)


@dataclass(frozen=True)
class Microcontroller(Attached):
    """One with a microcontroller. ``has_power``: whether it can be reset and unplugged here."""

    rig: Powered
    has_power: bool = True


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    """The network."""
    return load_bundle(request.config.getoption("hil_bundle"))


@pytest.fixture(scope="session")
def firmware() -> Path:
    """The image, built from the sources as they are."""
    need(shutil.which("avr-gcc"), "avr-gcc", "gcc-avr avr-libc")
    folder = ROOT / "firmware_bridge" / "firmware"
    subprocess.run(["make", "-s", "-C", folder], check=True, stdout=subprocess.DEVNULL)
    return folder / "build" / "panel.elf"


@pytest.fixture
def runner(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Runner]:
    """What the network runs on, self-tested on the golden vectors."""
    with open_runner(bundle, request.config.getoption("hil_runner"), 1) as (opened, badges):
        assert NO_ACCELERATOR not in badges, "the accelerator does not start: it says why in the log"
        yield opened


@pytest.fixture(scope="module")
def microcontroller(
    request: pytest.FixtureRequest, firmware: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Microcontroller]:
    """The microcontroller's panel, simulated or real."""
    port, wiring = request.config.getoption("hil_port"), request.config.getoption("hil_gpio")
    if port is None:
        need(Path("/usr/include/simavr").is_dir(), "simavr", "libsimavr-dev libelf-dev")
        with SimulatedPanel(firmware, tmp_path_factory.mktemp("panel") / "port") as panel:
            yield Microcontroller(str(panel.port), panel, SIMULATED)
    elif wiring is None:
        pytest.skip("a real panel's buttons and lamps need --hil-gpio: nothing else can press and see them")
    else:
        with closing(WiredRig(wiring)) as rig:
            yield Microcontroller(port, rig, f"panel: real, {port}", has_power=rig.has_power)


@pytest.fixture(scope="module", params=["microcontroller", "gpio"])
def attached(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attached]:
    """Each kind of panel."""
    if request.param == "microcontroller":
        yield request.getfixturevalue("microcontroller")
    else:
        with closing(MockPinsRig(tmp_path_factory.mktemp("pins"))) as rig:
            yield Attached("gpio", rig, MOCKED, rig.variables)


@pytest.fixture(scope="session")
def picture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A ``--source`` that shows one round of the phantom after another, and what the report says of it."""
    folder, grabber = tmp_path_factory.mktemp("picture"), request.config.getoption("hil_video")
    scanner.store_round(folder)
    if grabber is None:
        yield scanner.simulated(folder), "grabber: simulated"
    else:
        with scanner.on_screen(folder, grabber) as source:
            yield source, f"grabber: real, {grabber}"


@pytest.fixture(scope="module")
def bedside(
    request: pytest.FixtureRequest,
    attached: Attached,
    picture: tuple[str, str],
    bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[BedsideProcess]:
    """The bedside reader on the picture and the panel."""
    runner, folder = request.config.getoption("hil_runner"), tmp_path_factory.mktemp("bedside")
    # Without its not-lung test, which would rightly refuse the phantom seen by a real grabber.
    files = {k: v for k, v in bundle.files.items() if k not in (FAMILIARITY, CHECKSUMS)}
    write_bundle(folder / "bundle", files)
    arguments = ["--source", picture[0], "--bundle", folder / "bundle", "--runner", runner]
    arguments += ["--panel", attached.connection]
    with closing(BedsideProcess(folder / "run", arguments, attached.variables)) as run:
        yield run


@pytest.fixture
def noted(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Have the report say what a test ran on."""
    said: dict[str, Callable[[Any], str]] = {
        "attached": lambda attached: attached.part,
        "picture": lambda picture: picture[1],
        "bare_port": lambda port: (
            SIMULATED if request.config.getoption("hil_port") is None else f"panel: real, {port}"
        ),
    }
    if "attached" not in request.fixturenames:
        said["microcontroller"] = said["attached"]
    for name, part in said.items():
        if name in request.fixturenames:
            record_property(PART, part(request.getfixturevalue(name)))
    if {"bedside", "runner"} & set(request.fixturenames):
        record_property(PART, f"network: {request.config.getoption('hil_runner')}")
