"""What the screen shows while things go wrong, with a real grabber process, reader and screens."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device.capture.driver import GrabberSpec
from device.capture.sources import DeviceSource
from device.errors import SourceError
from device.loop import Bedside
from device.results import Results
from device.screen.displays import Nowhere
from device.screen.drawing import Screen, shown_state
from device.screen.virtual import virtual_screen
from device.settings.config import ConfigWatch, load_config
from reader.bundle import Bundle
from reader.runner import Runner
from tests.conftest import ROOT, need

READINGS = {"normal", "opacity", "uncertain"}
PATIENCE = 120.0


class Playing(Nowhere):
    """A display that plays a story: each step waits for a screen, then does something."""

    def __init__(self, *story: tuple[Callable[[Screen], bool], Callable[[], object]]) -> None:
        self.screens: list[Screen] = []
        self._story, self._give_up = list(story), time.monotonic() + PATIENCE

    def show(self, screen: Screen) -> str:
        self.screens.append(screen)
        assert time.monotonic() < self._give_up, f"{len(self._story)} steps of the story never came"
        if self._story and self._story[0][0](screen):
            _, act = self._story.pop(0)
            key = act()
            return key if isinstance(key, str) and len(key) == 1 else ""
        return ""


def state(*names: str) -> Callable[[Screen], bool]:
    return lambda screen: screen.reading.state in names


def reading(screen: Screen) -> bool:
    return screen.reading.state in READINGS


def quitting() -> str:
    return "q"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "script"
    path.write_text("live")
    return path


def scripted(script: Path) -> DeviceSource:
    return DeviceSource(GrabberSpec(str(script), driver="tests.device.scripted:Scripted"), drawn=True)


def bedside(bundle: Bundle, display: Playing, tmp_path: Path, runner: Runner | None = None) -> Bedside:
    return Bedside(bundle, runner or bundle.runner(1), display, Results(tmp_path / "r.jsonl"), tmp_path)


def test_a_grabber_pulled_and_put_back_is_named_and_read_again(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    display = Playing(
        (reading, lambda: script.write_text("unplugged")),
        (state("no-device"), lambda: script.write_text("live")),
        (reading, quitting),
    )
    bedside(default_bundle, display, tmp_path).run(scripted(script), live=True)
    away = [screen for screen in display.screens if screen.reading.state == "no-device"]
    assert {screen.reading.cause for screen in away} == {"unplugged"}
    assert all(screen.reading.p is None for screen in away)
    times = [json.loads(line)["t"] for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert times[0] == 0.0
    assert times == sorted(times)


@pytest.mark.parametrize("word", ["silent", "hang"])
def test_a_picture_that_stopped_coming_is_never_shown_as_live(
    default_bundle: Bundle, tmp_path: Path, script: Path, word: str
) -> None:
    display = Playing(
        (reading, lambda: script.write_text(word)),
        (state("stale"), lambda: script.write_text("live")),
        (reading, quitting),
    )
    bedside(default_bundle, display, tmp_path).run(scripted(script), live=True)
    for screen in display.screens:
        assert shown_state(screen) not in READINGS or screen.age_ms <= 1500
        if screen.reading.state == "stale":
            assert screen.reading.p is None


def test_a_grabber_that_was_never_there_is_an_error_unless_it_is_waited_for(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    script.write_text("unplugged")
    hurried = bedside(default_bundle, Playing(), tmp_path)
    hurried.settings = replace(hurried.settings, source=replace(hurried.settings.source, wait=False))
    with pytest.raises(SourceError, match="not plugged in"):
        hurried.run(scripted(script), live=True)
    display = Playing((state("no-device"), lambda: script.write_text("live")), (reading, quitting))
    bedside(default_bundle, display, tmp_path).run(scripted(script), live=True)


class Hanging:
    """A runner that hangs in one frame until it is let go."""

    name, badge = "hanging", ""

    def __init__(self, runner: Runner) -> None:
        self.input_shape, self.map_shape = runner.input_shape, runner.map_shape
        self.hang, self.let_go = threading.Event(), threading.Event()
        self._runner = runner

    def class_map(self, pixels: np.ndarray) -> np.ndarray:
        if self.hang.is_set():
            self.let_go.wait(PATIENCE)
        return self._runner.class_map(pixels)


def test_a_reader_that_hangs_is_named_while_the_screen_goes_on(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    runner = Hanging(default_bundle.runner(1))

    def let_go() -> None:
        runner.hang.clear()
        runner.let_go.set()

    display = Playing((reading, runner.hang.set), (state("no-reader"), let_go), (reading, quitting))
    bedside(default_bundle, display, tmp_path, runner).run(scripted(script), live=True)
    hung = [screen for screen in display.screens if screen.reading.state == "no-reader"]
    assert all(screen.reading.p is None for screen in hung)


def test_what_the_user_holds_stays_until_it_is_let_go(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    display = Playing(
        (reading, lambda: "f"),
        (lambda screen: screen.held, lambda: None),
        (lambda screen: sum(shown.held for shown in display.screens) > 20, lambda: "f"),
        (lambda screen: reading(screen) and not screen.held, quitting),
    )
    bedside(default_bundle, display, tmp_path).run(scripted(script), live=True)
    kept = {screen.reading.frame.sequence for screen in display.screens if screen.held}
    assert len(kept) == 1, "a held picture moved"
    assert '"held"' in (tmp_path / "r.jsonl").read_text()


def test_nothing_is_held_where_there_is_no_picture(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    script.write_text("unplugged")
    display = Playing((state("no-device"), lambda: "f"), (state("no-device"), quitting))
    bedside(default_bundle, display, tmp_path).run(scripted(script), live=True)
    assert not any(screen.held for screen in display.screens)


def test_a_snapshot_that_cannot_be_kept_is_said_and_nothing_stops(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    taken = bedside(default_bundle, Playing(), tmp_path)
    taken.snapshots = script
    taken.display = Playing(
        (reading, lambda: "s"),
        (lambda screen: "snapshot-failed" in screen.badges, lambda: setattr(taken, "snapshots", tmp_path)),
        (reading, lambda: "s"),
        (lambda screen: any(badge.startswith("snapshot-saved") for badge in screen.badges), quitting),
    )
    taken.run(scripted(script), live=True)
    assert list(tmp_path.glob("snapshot-*.png"))


def test_the_settings_are_followed_and_a_broken_file_is_said(
    default_bundle: Bundle, tmp_path: Path, script: Path
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('language = "en"\n')
    followed = bedside(default_bundle, Playing(), tmp_path)
    followed.watch = ConfigWatch(file, tmp_path)
    followed.settings = load_config(file, tmp_path).config
    followed.display = Playing(
        (reading, lambda: file.write_text('language = "fr"\n[screen]\ntheme = "light"\n')),
        (lambda screen: screen.language == "fr", lambda: file.write_text("language = 7\n")),
        (lambda screen: screen.alarm == "config-broken", lambda: file.write_text('language = "sw"\n')),
        (lambda screen: screen.language == "sw", lambda: file.write_text("[source]\nrate = 60\n")),
        (lambda screen: "config-restart" in screen.badges, quitting),
    )
    followed.run(scripted(script), live=True)
    broken = [screen for screen in followed.display.screens if screen.alarm]
    assert {screen.language for screen in broken} == {"fr"}, "the last good settings stay in use"


def test_a_screen_that_hangs_ends_the_program(tmp_path: Path) -> None:
    need(shutil.which("Xvfb"), "Xvfb", "xvfb x11-xkb-utils")
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "sonoglance", "demo", "--display", "window", "--out", str(tmp_path)]
    with virtual_screen(tmp_path) as screen:
        environment = {**os.environ, "DISPLAY": screen.name}
        child = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + PATIENCE
        while not results.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        screen.process.send_signal(signal.SIGSTOP)
        try:
            _, said = child.communicate(timeout=PATIENCE)
        finally:
            screen.process.send_signal(signal.SIGCONT)
    assert child.returncode == 1
    assert "the screen hangs" in said
