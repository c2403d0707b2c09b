"""What the panel's lamps and buttons mean at the bedside, over a real pseudo-terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device import panel as module
from device.clock import now
from device.panel import KEYS, Panel, Press, lamp
from device.reading import Taken
from device.screen.drawing import Screen, draw
from device.screen.exam_drawing import PHASES
from device.screen.words import load_words
from firmware_bridge.link import ON_THE_WAY
from firmware_bridge.ports import SerialPort
from firmware_bridge.wire import Button, Condition, Event, Kind, Shown
from reader.clips import Frame
from reader.reader import Reading
from reader.verdict import Verdict
from tests.device.test_exam_screen import panel as exam_panel
from tests.firmware_bridge.pty_panel import PATIENCE, PtyPanel

FRAME = Frame(np.zeros((8, 8), np.uint8), 0.0, 0)
HALF = np.full(2, 0.5, np.float32)


def reading(state: str, said: bool = True) -> Reading:
    if not said:
        return Reading(state, FRAME, None)
    p = {"normal": 0.5, "opacity": 0.5}
    return Reading(state, FRAME, None, p=p, verdict=Verdict(state, HALF, True))


def screen(state: str, said: bool = True, **more: Any) -> Screen:
    return Screen(reading(state, said), "normal", "here", 20.0, 25.0, **more)


def until(holds: Callable[[], object], panel: Panel) -> None:
    """Go on like the loop until something holds."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < give_up, panel.badges
        panel.pressed()
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("shown", "lamps"),
    [
        (screen("normal"), Shown.NORMAL),
        (screen("opacity"), Shown.OPACITY),
        (screen("tuberculosis"), Shown.OPACITY),
        (screen("uncertain"), Shown.CANNOT_TELL),
        (screen("no-signal", said=False), Shown.NO_READING),
        (screen("stale", said=False), Shown.NO_READING),
        (screen("opacity", held=True), Shown.NO_READING),
        (replace(screen("normal"), age_ms=5000.0), Shown.NO_READING),
        (screen("opacity", alarm="int8-failed"), Shown.NO_READING),
        (screen("normal", alarm="config-broken"), Shown.NO_READING),
    ],
)
def test_which_lamp_a_screen_means(shown: Screen, lamps: Shown) -> None:
    assert lamp(shown) is lamps


@pytest.mark.parametrize("phase", PHASES)
def test_in_an_exam_the_lamps_speak_only_where_the_screen_speaks_of_the_live_picture(phase: str) -> None:
    normal, opacity = (screen(state, exam=exam_panel(phase)) for state in ("normal", "opacity"))
    spoken_of = not np.array_equal(draw(normal), draw(opacity))
    assert (lamp(normal) is Shown.NORMAL) == (lamp(opacity) is Shown.OPACITY) == spoken_of


def test_ending_an_exam_by_the_button_accepts_nothing() -> None:
    held_long = [KEYS.get((Button.CONFIRM, kind)) for kind in (Kind.PRESS, Kind.LONG)]
    assert held_long == [None, "e"]
    assert KEYS[Button.CONFIRM, Kind.CLICK] == "a"


def test_the_number_and_age_of_the_last_reading_reach_the_panel(tmp_path: Path) -> None:
    with PtyPanel(tmp_path / "port") as there:
        panel = Panel(SerialPort(str(there.port)))
        try:
            read_at = now() - 0.5
            panel.saw(Taken(reading("opacity"), read_at, 3.0))
            panel.saw(Taken(reading("no-signal", said=False), now(), 3.0))
            panel.saw(Taken(replace(reading("opacity"), verdict=None), now(), 3.0))
            panel.light(screen("opacity"))
            until(lambda: any(show.asked == Shown.OPACITY for show, _ in there.shows()), panel)
            show, heard_at = there.shows()[-1]
            assert show.reading == 1, "neither silence nor a repetition is a reading"
            assert 500 <= show.age_ms <= 1e3 * (heard_at - read_at + ON_THE_WAY) + 1
        finally:
            panel.close()


def test_the_screen_says_how_the_panel_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STUCK_AFTER", 0.3)
    monkeypatch.setattr(module, "TOLD_FOR", 0.5)
    panel = Panel(SerialPort(str(tmp_path / "port")), battery_low=7500)
    try:
        until(lambda: panel.badges == ("panel-missing",), panel)
        with PtyPanel(tmp_path / "port") as there:
            until(lambda: "panel-linked" in panel.badges, panel)
            # The battery of this one stands at 7.4 V.
            until(lambda: panel.badges == ("panel-battery 7.4",), panel)
            there.down = 1 << (Button.RECORD - 1)
            until(lambda: "panel-stuck record" in panel.badges, panel)
            there.down = 0
            until(lambda: "panel-stuck record" not in panel.badges, panel)
            there.flags = Condition.EVENTS_LOST
            until(lambda: "panel-lost" in panel.badges, panel)
            there.silent = True
            until(lambda: panel.badges == ("panel-silent",), panel)
        until(lambda: panel.badges == ("panel-missing",), panel)
    finally:
        panel.close()
    for code in ("en", "fr", "pt", "sw"):
        for badge in ("panel-missing", "panel-silent", "panel-battery 7.4", "panel-stuck record"):
            assert load_words(code).badge(badge) != badge


def test_every_button_wakes_the_loop_and_means_its_key(tmp_path: Path) -> None:
    with PtyPanel(tmp_path / "port") as there:
        panel = Panel(SerialPort(str(there.port)))
        woken = []
        panel.woken = lambda: woken.append(now())
        try:
            until(lambda: "panel-linked" in panel.badges, panel)
            for number, ((button, kind), key) in enumerate(KEYS.items()):
                there.waiting = Event(there.boot, number, button, kind, 0)
                found: list[Press] = []
                give_up = time.monotonic() + PATIENCE
                while not found and time.monotonic() < give_up:
                    found = panel.pressed()
                    time.sleep(0.005)
                assert [press.key for press in found] == [key]
                # A press can be taken a moment before it wakes.
                until(lambda number=number: len(woken) > number, panel)
                assert len(woken) == number + 1
        finally:
            panel.close()
