from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from device.capture.live import Capture, PacedCapture
from device.capture.sources import FileSource, open_sources
from device.loop import Bedside
from device.results import Results
from device.screen.displays import Nowhere
from device.screen.drawing import Screen
from reader.bundle import Bundle
from reader.clips import Frame

PATIENCE = 60.0


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


class Endless:
    """A hundred frames a second, of one pixel each."""

    name = "endless"

    def frames(self) -> Iterator[Frame]:
        return (Frame(np.zeros((1, 1), np.uint8), number / 100, number) for number in itertools.count())

    def close(self) -> None:
        pass


def take_until_some_are_left_out(capture: Capture, frames: int) -> int:
    """Take frames, slowly, until one is so many further than the one before; returns how many were taken."""
    last = None
    for count in itertools.count(1):
        arrived = capture.take(PATIENCE)
        assert arrived is not None
        if last is not None and arrived.frame.sequence - last > frames:
            return count
        last = arrived.frame.sequence
        assert count < 100, "they queue"
        time.sleep(0.3)
    raise AssertionError("there is no end to counting")


def test_the_newest_frame_wins_and_nothing_queues() -> None:
    capture = PacedCapture(Endless())
    taken = 1 + take_until_some_are_left_out(capture, 10)
    last = capture.take(PATIENCE)
    capture.close()
    assert last is not None
    assert capture.dropped >= last.frame.sequence + 1 - taken


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
