from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from device.displays import open_display, screen_reachable
from device.errors import DisplayError
from device.screen import ABNORMAL, NORMAL, Screen, draw, language
from reader.beam import find_beam
from reader.clips import Frame
from reader.phantom import Phantom
from reader.reader import Reading
from tests.conftest import ROOT

IMAGE = Phantom().frame(7.0)
BEAM = find_beam(IMAGE)


def screen(state: str, image: np.ndarray = IMAGE, opacity: float | None = 0.5, **more: object) -> Screen:
    p = None if opacity is None else {"normal": 1 - opacity, "opacity": opacity}
    class_map = None if opacity is None else np.full((7, 7), opacity, np.float32)
    reading = Reading(state, Frame(image, 1.0, 25), BEAM, p, class_map, full=True)
    return Screen(reading, "normal", "phantom", age_ms=40, fps=25, **more)  # type: ignore[arg-type]


def has_colour(picture: np.ndarray, colour: tuple[int, int, int], least: int = 500) -> bool:
    return int((np.abs(picture.astype(int) - colour).max(axis=2) < 12).sum()) > least


def test_the_same_reading_draws_the_same_screen() -> None:
    assert np.array_equal(draw(screen("opacity", opacity=0.9)), draw(screen("opacity", opacity=0.9)))


def test_verdicts_differ_by_shape_and_not_by_colour_alone() -> None:
    panels = []
    for state in ("normal", "opacity", "uncertain", "no-signal"):
        picture = draw(screen(state))[20:190, 820:1250]
        panels.append(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) > 60)
    for i, a in enumerate(panels):
        for b in panels[i + 1 :]:
            assert (a ^ b).sum() > 2000


def test_colours_stand_for_verdicts() -> None:
    assert has_colour(draw(screen("normal", opacity=0.1)), NORMAL)
    assert has_colour(draw(screen("opacity", opacity=0.9)), ABNORMAL)
    assert not has_colour(draw(screen("normal", opacity=0.1)), ABNORMAL)


def test_nothing_outside_the_beam_is_ever_drawn() -> None:
    assert BEAM is not None
    other = IMAGE.copy()
    other[BEAM.mask() == 0] = (17, 203, 91)
    assert np.array_equal(draw(screen("normal")), draw(screen("normal", image=other)))


@pytest.mark.parametrize("state", sorted(language()["states"]))
def test_every_state_has_its_words_and_they_fit(state: str) -> None:
    title, hint = language()["states"][state]
    assert title
    assert hint
    picture = draw(screen(state, opacity=None))
    edge = picture[40:320, [0, 1, -2, -1]]
    assert (edge == picture[0, 0]).all(), "words run over the screen's edge"


def test_research_use_is_always_said() -> None:
    a = draw(screen("normal"))[-44:]
    assert np.array_equal(a, draw(screen("no-signal", opacity=None))[-44:])
    assert (a > 200).sum() > 1000


def test_a_window_without_a_screen_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPLAY", ":987")
    assert not screen_reachable()
    with pytest.raises(DisplayError, match="no screen"):
        open_display("window")


@pytest.fixture
def x_server() -> str:
    if not shutil.which("Xvfb"):
        assert not os.environ.get("CI"), "CI must have Xvfb"
        pytest.skip("needs Xvfb: apt-get install xvfb x11-xkb-utils x11-apps")
    display = ":93"
    server = subprocess.Popen(["Xvfb", display, "-screen", "0", "1280x800x24"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not Path("/tmp/.X11-unix/X93").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    yield display
    server.terminate()
    server.wait(10)


def test_the_window_shows_the_screen_on_a_real_x_server(x_server: str, tmp_path: Path) -> None:
    environment = {**os.environ, "DISPLAY": x_server}
    command = [sys.executable, "-m", "sonoglance", "demo", "--display", "window", "--out", str(tmp_path)]
    child = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 40
        seen = False
        while not seen and time.monotonic() < deadline and child.poll() is None:
            time.sleep(1.0)
            shot = screenshot(x_server, tmp_path)
            seen = has_colour(shot, NORMAL) or has_colour(shot, ABNORMAL)
        assert seen, "no verdict appeared in the window"
        cv2.imwrite(str(tmp_path / "window.png"), shot)
    finally:
        child.terminate()
        child.wait(20)


def screenshot(display: str, folder: Path) -> np.ndarray:
    """The root window of a real X server, through xwd."""
    raw = subprocess.run(
        ["xwd", "-root", "-silent", "-display", display], capture_output=True, check=True
    ).stdout
    header = np.frombuffer(raw[:100], ">u4")
    size, width, height, bits, stride, colours = (int(header[i]) for i in (0, 4, 5, 11, 12, 19))
    rows = np.frombuffer(raw[size + 12 * colours :], np.uint8)[: stride * height].reshape(height, stride)
    pixels = rows[:, : width * bits // 8].reshape(height, width, bits // 8)
    return np.ascontiguousarray(pixels[:, :, :3])
