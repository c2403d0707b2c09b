from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from device.capture import PacedCapture
from device.displays import Nowhere
from device.errors import SourceError
from device.loop import Bedside
from device.results import Results
from device.screen import Screen
from device.sources import FileSource, now, open_sources
from reader.bundle import Bundle
from reader.clips import Frame
from reader.phantom import Phantom


class Stalling:
    """A source that gives a few frames, then nothing, then fails: a cable pulled by hand."""

    name = "stalling"
    paced_by_us = False
    beam = None
    span = None
    length = None
    drawn = False

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = threading.Event()
        self.closed = False
        self._error = error

    def frames(self) -> Iterator[Frame]:
        phantom = Phantom()
        for i in range(5):
            yield Frame(phantom.frame(6 + i / 25), now(), i)
            time.sleep(0.02)
        self.go_on.wait(10)
        if self._error:
            raise self._error

    def close(self) -> None:
        self.closed = True


class Watching(Nowhere):
    """Keeps what was shown, presses keys at set moments, and lets the source go on."""

    def __init__(self, source: Stalling | None = None, keys: Sequence[str] = ()) -> None:
        self.states: list[str] = []
        self.screens: list[Screen] = []
        self._source, self._keys = source, list(keys)

    def show(self, screen: Screen) -> str:
        self.states.append(screen.reading.state)
        self.screens.append(screen)
        if self._source and screen.reading.state == "stale":
            self._source.go_on.set()
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


def test_a_stale_picture_is_never_shown_as_live(phantom_bundle: Bundle, tmp_path: Path) -> None:
    source = Stalling()
    display = Watching(source)
    bedside(phantom_bundle, display, tmp_path).run(source, live=True)
    assert display.states[-1] == "stale"
    assert display.screens[-1].reading.p is None
    assert display.screens[-1].age_ms > 500
    assert source.closed


def test_times_count_from_the_first_frame_whatever_the_devices_clock_says(
    phantom_bundle: Bundle, tmp_path: Path
) -> None:
    source = Stalling()
    results = tmp_path / "r.jsonl"
    bedside(phantom_bundle, Watching(source), tmp_path, results).run(source, live=True)
    times = [json.loads(line)["t"] for line in results.read_text().splitlines()]
    assert times[0] == 0.0
    assert times == sorted(times)


def test_a_device_that_vanishes_ends_with_its_own_words(phantom_bundle: Bundle, tmp_path: Path) -> None:
    source = Stalling(SourceError("/dev/video0: the device is gone"))
    display = Watching(source)
    with pytest.raises(SourceError, match="gone"):
        bedside(phantom_bundle, display, tmp_path).run(source, live=True)
    assert source.closed


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
    ages = np.array([screen.age_ms for screen in display.screens])
    assert (ages > 0).all()
    assert display.screens[-1].fps > 0
