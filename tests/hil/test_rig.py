"""The rig itself: what watches the lamps, presses the buttons, shows the picture, and reports."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from device.screen.virtual import virtual_screen
from firmware_bridge.lamps import SHOWN
from firmware_bridge.simulator import PinChange
from firmware_bridge.wire import Shown
from tests.conftest import ROOT, need
from tests.hil import scanner
from tests.hil.rig import WiredRig, read_wiring
from tests.hil.watch import LAMPS, oldest_verdict, showed, verdict_lit

WIRING = {
    "D2": 12,
    "D3": 13,
    "D4": 16,
    "D5": 19,
    "D6": 26,
    "D7": 17,
    "D8": 27,
    "D10": 22,
    "RESET": 20,
    "POWER": 21,
}


def pattern(patterns: tuple[int, ...], began: float, jitter: float = 0.0) -> list[PinChange]:
    """Three seconds of a state's lamps, from a moment on, each change late by up to ``jitter`` seconds."""
    random, changes = np.random.default_rng(1), []
    for pin, steps in zip(LAMPS.values(), patterns, strict=True):
        before = 0
        for step in range(48):
            level = steps >> (15 - step % 16) & 1
            if level != before:
                late = float(random.uniform(0, jitter)) if jitter else 0.0
                changes.append(PinChange(pin, level, began + step / 16 + late))
            before = level
    return sorted(changes, key=lambda change: change.at)


@pytest.mark.parametrize("shown", list(Shown))
def test_every_state_is_told_by_its_lamps_at_any_moment_of_its_pattern(shown: Shown) -> None:
    changes = pattern(SHOWN[shown], 100.0, jitter=0.004)
    assert {showed(changes, moment) for moment in np.arange(101.1, 103.0, 0.07)} == {shown}


def test_lamps_that_are_dark_or_change_midway_are_not_told_as_a_state() -> None:
    assert showed([], 100.0) is None
    changed = [*pattern(SHOWN[Shown.NORMAL], 100.0), PinChange("D7", 0, 101.5), PinChange("D8", 1, 101.5)]
    assert showed(changed, 102.0) is None


LIT = [PinChange("D7", 1, 10.0), PinChange("D7", 0, 13.5), PinChange("D8", 1, 20.0), PinChange("D8", 0, 20.5)]


@pytest.mark.parametrize(
    ("readings", "oldest"),
    [
        ([(9.9, 9.8), (11.0, 10.9), (19.9, 19.8)], 13.5 - 10.9),
        ([(9.9, 9.8), (13.4, 13.3), (19.9, 19.8)], 13.4 - 9.8),
        ([(9.9, 9.8), (11.5, 11.5), (13.0, 13.0)], 20.5 - 13.0),
        ([(10.1, 10.0), (12.0, 12.0), (19.9, 19.8)], math.inf),
    ],
)
def test_the_oldest_verdict_is_found(readings: list[tuple[float, float]], oldest: float) -> None:
    assert oldest_verdict(LIT, readings, 5.0, 25.0) == pytest.approx(oldest)


def test_only_the_stretch_that_is_asked_for_counts() -> None:
    assert verdict_lit(LIT, 11.0, 20.2) == [(11.0, 13.5), (20.0, 20.2)]
    assert oldest_verdict(LIT, [(9.9, 9.8)], 14.0, 19.0) == 0.0


@pytest.fixture
def wiring(tmp_path: Path) -> Path:
    path = tmp_path / "rig.toml"
    path.write_text("".join(f"{pin} = {bcm}\n" for pin, bcm in WIRING.items()))
    return path


@pytest.fixture
def pi(monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A Raspberry Pi's pins, mocked."""
    from gpiozero import Device
    from gpiozero.pins.mock import MockFactory

    factory = MockFactory()
    monkeypatch.setattr(Device, "pin_factory", factory)
    yield factory
    factory.close()


def test_a_wired_rig_presses_by_its_pins_and_notes_the_lamps(wiring: Path, pi: object) -> None:
    with closing(WiredRig(wiring)) as rig:
        pins = {name: pi.pin(number) for name, number in WIRING.items()}  # type: ignore[attr-defined]
        assert not any(pins[name].state for name in ("D2", "D6", "RESET", "POWER")), "nothing is pressed yet"
        rig.press("freeze")
        assert (pins["D2"].state, pins["D3"].state) == (1, 0)
        rig.release("freeze")
        assert pins["D2"].state == 0
        began = time.monotonic()
        pins["D8"].drive_high()
        assert began <= rig.wait_for("D8", 1, 5.0).at <= time.monotonic()
        pins["D8"].drive_low()
        assert [(change.pin, change.level) for change in rig.changes(began)] == [("D8", 1), ("D8", 0)]
        with pytest.raises(TimeoutError, match="D7 is not at 1"):
            rig.wait_for("D7", 1, 0.05)
        rig.unplug()
        assert pins["POWER"].state == 1
        rig.plug()
        rig.reset()
        assert (pins["POWER"].state, pins["RESET"].state) == (0, 0)


@pytest.mark.parametrize(
    ("line", "replaced", "words"),
    [
        ("D2 = 12", "", "no BCM number for D2"),
        ("D2 = 12", "D2 = 13", "D2 = 13: must be a BCM number from 0 to 27, used once"),
        ("D2 = 12", "D2 = 28", "D2 = 28: must be"),
        ("D2 = 12", "D2 = true", "D2 = True: must be"),
        ("POWER = 21", "HUB = 21", "unknown HUB"),
        ("D2 = 12", "D2 = ", "rig.toml"),
    ],
)
def test_a_wiring_that_does_not_fit_is_refused_in_one_line(
    wiring: Path, line: str, replaced: str, words: str
) -> None:
    wiring.write_text(wiring.read_text().replace(line, replaced))
    with pytest.raises(ValueError, match=words) as refused:
        read_wiring(wiring)
    assert "\n" not in str(refused.value)


def test_the_picture_is_on_the_screen_for_a_grabber_to_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(shutil.which("Xvfb"), "Xvfb", "xvfb x11-xkb-utils")
    with virtual_screen(tmp_path) as screen:
        monkeypatch.setenv("DISPLAY", screen.name)
        scanner.store_round(tmp_path)
        with scanner.on_screen(tmp_path, "/dev/video9") as source:
            assert source == "v4l2:/dev/video9"
            until = time.monotonic() + 30
            while screen.pixels.mean() < 5:
                assert time.monotonic() < until
                time.sleep(0.05)
            np.testing.assert_equal(screen.pixels.shape[:2], (720, 1280))


def pytest_run(*arguments: str) -> str:
    """A run of a few of these tests, in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-m", "hil", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120).stdout


def test_the_report_says_what_was_simulated_and_what_is_skipped_why() -> None:
    said = pytest_run(
        "tests/hil/test_exam.py",
        "tests/hil/test_network.py::test_the_golden_vectors_read_as_on_the_processor",
        "--hil-port",
        "/dev/nothing",
    )
    assert "network: litert: 1 tests" in said
    assert "a real panel's buttons and lamps need --hil-gpio" in said
    assert "simulated" not in said
