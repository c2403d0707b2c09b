"""The bedside loop: newest frame in, reading out, screen drawn, line written."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from tqdm import tqdm

from device.capture import Arrived, PacedCapture
from device.displays import Display, save_snapshot
from device.results import Results
from device.screen import TREND_SECONDS, Screen, abnormal_probability
from device.sources import Source, now
from reader.bundle import Bundle
from reader.clips import Frame
from reader.reader import Reader, Reading
from reader.runner import Runner

FRAME_DEADLINE = 0.25
"""Seconds that the loop waits for a frame before it draws the screen without a new one."""
STALE_AFTER = 0.5
"""Seconds after which the last picture is no longer shown as live."""
PHANTOM_BADGE = "drawn phantom: not-lung test off"
HELD, STALE, STARTING = "held", "stale", "starting"
NO_FRAME = Frame(np.zeros((0, 0), np.uint8), 0.0, -1)


@dataclass
class Bedside:
    """One run of the reader over one source after another, with everything that shows it.

    ``seconds_by_state`` counts how long each state was shown, in the source's time.
    """

    bundle: Bundle
    runner: Runner
    display: Display
    results: Results
    snapshots: Path
    badges: tuple[str, ...] = ()
    alarm: str = ""
    overlay: bool = True
    held: bool = False
    quitting: bool = False
    seconds_by_state: dict[str, float] = field(default_factory=dict)
    screen: Screen | None = None
    _trend: deque[tuple[float, float | None]] = field(default_factory=deque)
    _arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=26))
    _shown: Reading | None = None
    _first_at: float | None = None
    _source_badges: tuple[str, ...] = ()

    def run(self, source: Source, live: bool, file: str | None = None) -> None:
        """Read a source to its end or until the user quits.

        ``live``: in the source's own time, newest frame first; otherwise every frame, flat out.
        ``file``: named in each results line. Raises what the source raises.
        """
        reads = self.bundle.manifest.reads
        if source.drawn:
            # The phantom is a drawing: the not-lung test would rightly refuse it.
            reads = replace(reads, familiarity=None)
        self._source_badges = (PHANTOM_BADGE,) if source.drawn else ()
        reader = Reader(reads, self.runner, beam=source.beam, span=source.span)
        self._trend.clear()
        self._shown = self._first_at = None
        if live:
            self._run_live(source, reader, file)
        else:
            self._run_through(source, reader, file)

    def _run_live(self, source: Source, reader: Reader, file: str | None) -> None:
        capture = PacedCapture(source)
        last = now()
        try:
            with self._progress(source) as bar:
                while not self.quitting and not capture.ended:
                    arrived = capture.take(FRAME_DEADLINE)
                    if arrived is not None:
                        last = arrived.at
                        self._read(reader, arrived, source.name, file)
                        bar.update(arrived.frame.sequence + 1 - bar.n)
                    elif now() - last > STALE_AFTER:
                        self._show_waiting(source.name, now() - last)
        finally:
            capture.close()

    def _run_through(self, source: Source, reader: Reader, file: str | None) -> None:
        try:
            with self._progress(source) as bar:
                for frame in source.frames():
                    self._read(reader, Arrived(frame, now()), source.name, file)
                    bar.update()
                    if self.quitting:
                        break
        finally:
            source.close()

    def _progress(self, source: Source) -> tqdm[NoReturn]:
        """A bar on standard error, where that is a terminal and nothing else writes there."""
        return tqdm(
            total=source.length,
            desc=source.name[-30:],
            unit="frame",
            dynamic_ncols=True,
            disable=True if self.display.on_terminal or source.length is None else None,
        )

    def _read(self, reader: Reader, arrived: Arrived, name: str, file: str | None) -> None:
        frame = arrived.frame
        began = time.perf_counter()
        if self.held and self._shown is not None:
            reading = Reading(HELD, frame, reader.beam)
        else:
            reading = reader.read(frame)
        read_ms = 1e3 * (time.perf_counter() - began)
        age_ms = 1e3 * (now() - arrived.at)
        if self._first_at is None:
            self._first_at = frame.captured_at
        self.results.write(reading, frame.captured_at - self._first_at, age_ms, read_ms, file)
        self._count(reading)
        self._arrivals.append(arrived.at)
        if not self.held:
            self._shown = reading
            self._follow(reading)
        self._show(name, age_ms)

    def _show_waiting(self, name: str, waited: float) -> None:
        """No frame came: the verdict is withdrawn and the screen says so."""
        if self._shown is None:
            self._shown = Reading(STARTING, NO_FRAME, None)
        elif self._shown.state not in (STARTING, STALE):
            self._shown = Reading(STALE, self._shown.frame, self._shown.beam)
        self._show(name, 1e3 * waited)

    def _count(self, reading: Reading) -> None:
        at = reading.frame.captured_at
        previous = self._trend[-1][0] if self._trend else at
        shown = self.seconds_by_state.get(reading.state, 0.0)
        self.seconds_by_state[reading.state] = shown + max(at - previous, 0.0)

    def _follow(self, reading: Reading) -> None:
        at = reading.frame.captured_at
        self._trend.append((at, abnormal_probability(reading, self.bundle.manifest.reads.negative)))
        while self._trend and self._trend[0][0] < at - TREND_SECONDS:
            self._trend.popleft()

    def _show(self, name: str, age_ms: float) -> None:
        assert self._shown is not None
        self.screen = Screen(
            reading=self._shown,
            negative=self.bundle.manifest.reads.negative,
            source=name,
            age_ms=age_ms,
            fps=self._rate(),
            trend=tuple(self._trend),
            overlay=self.overlay,
            held=self.held,
            alarm=self.alarm,
            badges=(*self.badges, *self._source_badges, *filter(None, [self.runner.badge])),
        )
        self._press(self.display.show(self.screen))

    def _rate(self) -> float:
        if len(self._arrivals) < 2:
            return 0.0
        return (len(self._arrivals) - 1) / max(self._arrivals[-1] - self._arrivals[0], 1e-6)

    def _press(self, key: str) -> None:
        if key == "q":
            self.quitting = True
        elif key in ("f", " "):
            self.held = not self.held
        elif key == "o":
            self.overlay = not self.overlay
        elif key == "s" and self.screen is not None:
            name = time.strftime("snapshot-%Y%m%d-%H%M%S")
            print(f"\nsnapshot: {save_snapshot(self.screen, self.snapshots, name)}")
