from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from device.capture.live import PacedCapture
from device.capture.sources import FileSource, open_sources
from device.loop import Bedside
from device.results import Results
from device.screen.displays import Nowhere
from device.screen.drawing import Screen
from reader.bundle import Bundle


class Watching(Nowhere):
    """Keeps what was shown and presses keys at set moments."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self.screens: list[Screen] = []
        self._keys = list(keys)

    def show(self, screen: Screen) -> str:
        self.screens.append(screen)
        return self._keys.pop(0) if self._keys else ""


def bedside(bundle: Bundle, display: Nowhere, tmp_path: Path, results: Path | None = None) -> Bedside:
    return Bedside(bundle, bundle.runner(1), display, Results(results), tmp_path)


def test_the_newest_frame_wins_and_nothing_queues(phantom_clip: Path) -> None:
    capture = PacedCapture(FileSource(phantom_clip))
    first = capture.take(2.0)
    time.sleep(0.6)
    second = capture.take(2.0)
    third = capture.take(2.0)
    capture.close()
    assert first is not None
    assert second is not None
    assert third is not None
    assert second.frame.sequence - first.frame.sequence >= 10
    assert third.frame.sequence - second.frame.sequence <= 3
    assert capture.dropped >= 9


def test_keys_hold_the_picture_and_quit(phantom_bundle: Bundle, tmp_path: Path, phantom_clip: Path) -> None:
    display = Watching(keys=[*[""] * 4, "f", *[""] * 5, "s", *[""] * 4, "q"])
    run = bedside(phantom_bundle, display, tmp_path, tmp_path / "r.jsonl")
    run.run(open_sources(str(phantom_clip))[0], live=False)
    assert len(display.screens) == 16, "q did not end the run"
    held = [screen for screen in display.screens if screen.held]
    assert held
    assert len({screen.reading.frame.sequence for screen in held}) == 1, "a held picture moved"
    assert list(tmp_path.glob("snapshot-*.png")), "no snapshot was saved"
    assert '"held"' in (tmp_path / "r.jsonl").read_text()


def test_the_age_of_a_picture_is_known(phantom_bundle: Bundle, tmp_path: Path, phantom_clip: Path) -> None:
    display = Watching()
    bedside(phantom_bundle, display, tmp_path).run(FileSource(phantom_clip), live=True)
    ages = np.array([screen.age_ms for screen in display.screens if screen.reading.state != "starting"])
    assert (ages > 0).all()
    assert display.screens[-1].fps > 0
