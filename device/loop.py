"""The bedside loop: what the screen shows, and when it may not show it any longer.

Capture, reading and drawing go on beside each other and watch each other: a capture that hangs is
started anew (``device.capture.grabber``), a reader that hangs is named on the screen, and a screen that hangs
ends the process, because a picture that nobody can change must not stay.
"""

from __future__ import annotations

import itertools
import os
import statistics
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from device.capture.devices import V4L2
from device.capture.live import Arrived, Capture, Trouble
from device.capture.sources import Source
from device.clock import now
from device.errors import SourceError
from device.exams.round import PATIENT, ExamRound
from device.exams.session import ANSWERS, CLOSING_KEYS, END, LOOK_FIRST
from device.news import UpdateNews
from device.panel import Panel, Press
from device.reading import HELD, FrameReader, ReadingThread, Taken
from device.results import Results
from device.screen.canvas import NO_PICTURE
from device.screen.displays import Display, save_snapshot
from device.screen.drawing import TREND_SECONDS, Screen, abnormal_probability, draw
from device.service import Heartbeat
from device.settings.config import Config, ConfigWatch, load_config
from device.web.live import PAIRING_CODE, LivePicture, told
from reader.bundle import Bundle
from reader.clips import Frame
from reader.reader import Reader, Reading
from reader.runner import Runner

DRAW_DEADLINE = 0.1
"""Seconds after which the screen is drawn again although there is no new reading."""
STALE_AFTER = 0.3
"""Seconds since its arrival after which a picture is no longer shown as live ..."""
STALE_FRAMES = 2.5
"""... or this many times the source's own period, for one that gives few frames a second, ..."""
STALE_AT_LAST = 1.5
"""... but never after more seconds than these."""
NO_READER_AFTER = 1.0
"""Seconds for which one frame may be in the network before the reader counts as hung."""
SCREEN_DEADLINE = 5.0
"""Seconds that the screen may take to be drawn once before it counts as hung."""
SLOW_SCREEN = 0.1
"""Seconds that drawing takes, usually, from which the screen says that it is slow."""
SETTINGS_EVERY = 0.5
"""Seconds between two looks at the configuration file."""
TOLD_FOR = 4.0
"""Seconds for which the outcome of a snapshot stays on the screen."""
LOOK_AGAIN = "look-again"
REACTION = 0.3
"""Seconds after a change on the screen within which nobody can have answered to it (simple reactions to light
take about 0.2 s: Woods and others, doi:10.3389/fnhum.2015.00131)."""
CONFIG_BROKEN = "config-broken"
PHANTOM, DEMO = "phantom", "demo"
PRIVATE = (PAIRING_CODE, PATIENT)
"""What badges begin with that are for those at the box only."""
STALE, STARTING, NO_DEVICE, NO_READER = "stale", "starting", "no-device", "no-reader"
NO_FRAME = Frame(np.zeros((0, 0), np.uint8), 0.0, -1)


@dataclass
class Bedside:
    """One run of the reader over one source after another, with everything that shows it.

    ``settings``: of them, those of screen and waiting are used here, and followed when the file that
    ``watch`` looks after changes; ``settings_badge`` says how that went. ``badges`` and ``alarm``: what
    the screen must say all the time. ``exams``: where an exam is kept of what is read. ``live``: where a
    second screen takes its picture from. ``panel``: lamps and buttons beside the screen. ``heartbeat`` and
    ``news``: of a service, what others are told of it, and what it is told of updates.
    ``seconds_by_state`` counts how long each state was shown, in the source's time.
    """

    bundle: Bundle
    runner: Runner
    display: Display
    results: Results
    snapshots: Path
    settings: Config = field(default_factory=lambda: load_config(None).config)
    badges: tuple[str, ...] = ()
    alarm: str = ""
    watch: ConfigWatch | None = None
    exams: ExamRound | None = None
    live: LivePicture | None = None
    panel: Panel | None = None
    heartbeat: Heartbeat | None = None
    news: UpdateNews | None = None
    settings_badge: str = ""
    quitting: bool = False
    seconds_by_state: dict[str, float] = field(default_factory=dict)
    screen: Screen | None = None
    _trend: deque[tuple[float, float | None]] = field(default_factory=deque)
    _arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=26))
    _drawing: deque[float] = field(default_factory=lambda: deque([0.0], maxlen=25))
    _newest: Taken | None = None
    _held: Reading | None = None
    _last_trouble: Trouble | None = None
    _troubled_at: float = 0.0
    _source_badges: tuple[str, ...] = ()
    _capture_badge: str = ""
    _readings: int = 0
    _settings_due: float = 0.0
    _told: str = ""
    _told_until: float = 0.0
    _exam_shown: tuple[str, ...] | None = None
    _exam_shown_at: float = 0.0

    def run(self, source: Source, live: bool, file: str | None = None) -> None:
        """Read a source to its end or until the user quits.

        ``live``: in the source's own time, newest frame first; otherwise every frame, flat out.
        ``file``: named in each results line. Raises what the source raises.
        """
        reads = self.bundle.manifest.reads
        if source.drawn:
            # The phantom is a drawing: the not-lung test would rightly refuse it.
            reads = replace(reads, familiarity=None)
        self._source_badges = (PHANTOM,) if source.drawn else ()
        self._trend.clear()
        self._arrivals.clear()
        self._newest = self._held = self._last_trouble = self.screen = None
        if not live:
            reader = Reader(reads, self.runner, beam=source.beam, span=source.span)
            self._run_through(source, FrameReader(reader, self.results, file))
            return
        # A search takes longer than frames are apart: reading must not wait for it.
        elsewhere = ThreadPoolExecutor(1, "beam search")
        try:
            reader = Reader(reads, self.runner, source.beam, source.span, elsewhere.submit)
            self._run_live(source, FrameReader(reader, self.results, file))
        finally:
            # Nor must the end of a source wait for a search.
            elsewhere.shutdown(wait=False, cancel_futures=True)

    def _run_live(self, source: Source, frames: FrameReader) -> None:
        capture = source.capture()
        thread = ReadingThread(capture, frames)
        if self.panel is not None:
            self.panel.woken = thread.wake
        watch = ScreenWatch()
        try:
            with self._progress(source) as bar:
                while not self.quitting and not thread.ended:
                    for taken in thread.take(DRAW_DEADLINE):
                        self._follow(taken)
                        bar.update(taken.reading.frame.sequence + 1 - bar.n)
                    self._refuse_to_start_without(capture)
                    self._take_presses()
                    self._show(self._present(capture, thread), capture.name, source.delay_ms, capture.badge)
                    frames.held = self.held
                    watch.drawn()
                    self._follow_settings()
        finally:
            watch.close()
            thread.close()
            capture.close()
        if thread.error is not None:
            raise thread.error

    def _refuse_to_start_without(self, capture: Capture) -> None:
        """Raise SourceError where the device was never there and is not to be waited for."""
        trouble = capture.trouble
        if (
            not self.settings.source.wait
            and self._newest is None
            and trouble is not None
            and trouble.state == NO_DEVICE
        ):
            raise SourceError(trouble.detail)

    def _run_through(self, source: Source, frames: FrameReader) -> None:
        try:
            with self._progress(source) as bar:
                for frame in source.frames():
                    taken = frames.read(Arrived(frame, now()))
                    self._follow(taken)
                    self._take_presses()
                    self._show(taken.reading, source.name, source.delay_ms, "")
                    frames.held = self.held
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

    def _present(self, capture: Capture, thread: ReadingThread) -> Reading:
        """What may be said at this moment: the newest reading, or why there is none."""
        newest, trouble = self._newest, self._trouble(capture)
        hung = thread.busy_for > NO_READER_AFTER
        frame, beam = (newest.reading.frame, newest.reading.beam) if newest else (NO_FRAME, None)
        # Trouble that is over lasts until something was read; a reader that hangs over that is the newer one.
        if trouble is not None and not (hung and capture.trouble is None):
            return Reading(trouble.state, frame, beam, cause=trouble.cause)
        if hung:
            return Reading(NO_READER, frame, beam, cause="hung")
        if newest is None:
            return Reading(STARTING, frame, beam)
        if now() - newest.at > self._stale_after():
            cause = "slow" if newest.read_ms > 1e3 * STALE_AFTER else "silent"
            return Reading(STALE, frame, beam, cause=cause)
        return newest.reading

    def _trouble(self, capture: Capture) -> Trouble | None:
        """The capture's trouble, until a frame was read that came after it."""
        if capture.trouble is not None:
            self._last_trouble, self._troubled_at = capture.trouble, now()
        elif self._newest is not None and self._newest.at > self._troubled_at:
            self._last_trouble = None
        return self._last_trouble

    def _stale_after(self) -> float:
        if len(self._arrivals) < 3:
            return STALE_AFTER
        times = list(self._arrivals)
        period = statistics.median(b - a for a, b in itertools.pairwise(times))
        return min(max(STALE_AFTER, STALE_FRAMES * period), STALE_AT_LAST)

    def _follow(self, taken: Taken) -> None:
        """Take a reading into the counts and the trend."""
        reading, at = taken.reading, taken.reading.frame.captured_at
        previous = self._newest.reading.frame.captured_at if self._newest else at
        shown = self.seconds_by_state.get(reading.state, 0.0)
        self.seconds_by_state[reading.state] = shown + max(at - previous, 0.0)
        self._arrivals.append(taken.at)
        self._newest = taken
        self._readings += 1
        if self.exams is not None:
            self.exams.saw(taken)
        if self.panel is not None:
            self.panel.saw(taken)
        if reading.state == HELD:
            return
        self._trend.append((at, abnormal_probability(reading, self.bundle.manifest.reads.negative)))
        while self._trend[0][0] < at - TREND_SECONDS:
            self._trend.popleft()

    def _take_presses(self) -> None:
        """Do what the panel's buttons ask for."""
        for press in self.panel.pressed() if self.panel is not None else ():
            if self.screen is not None:
                self._press_if_seen(press)

    def _press_if_seen(self, press: Press) -> None:
        """Do what a press asks for, if what it means was on the screen when the button went down: nobody
        accepts, changes, discards or signs what came up meanwhile."""
        if self._was_seen(press):
            self._press(press.key)
        else:
            self._tell(LOOK_AGAIN)

    def _was_seen(self, press: Press) -> bool:
        exam = None if self.screen is None else self.screen.exam
        if exam is None or not (press.key in ANSWERS or (exam.closing and press.key in CLOSING_KEYS)):
            return True
        # A summary is to be looked at for a moment.
        looked = LOOK_FIRST if exam.closing and press.key == END else 0.0
        return press.since >= self._exam_shown_at + looked

    def _show(self, reading: Reading, name: str, delay_ms: float | None, source_badge: str) -> None:
        slow = "slow-screen" if statistics.median(self._drawing) > SLOW_SCREEN else ""
        badges = (
            self._told if now() < self._told_until else "",
            self.live.badge if self.live is not None else "",
            *(self.exams.badges if self.exams is not None else ()),
            *(self.panel.badges if self.panel is not None else ()),
            self.news.badge if self.news is not None else "",
            self.settings_badge,
            *self.badges,
            *self._source_badges,
            self.runner.badge,
            source_badge,
        )
        self.screen = Screen(
            reading=self._held or reading,
            negative=self.bundle.manifest.reads.negative,
            source=name,
            age_ms=1e3 * (now() - self._newest.at) if self._newest else 0.0,
            fps=self._rate(),
            trend=tuple(self._trend),
            overlay=self.settings.screen.overlay,
            held=self.held,
            alarm=self.alarm or (CONFIG_BROKEN if self.settings_badge == CONFIG_BROKEN else ""),
            badges=tuple(filter(None, (*badges, slow))),
            language=self.settings.language,
            theme=self.settings.screen.theme,
            delay_ms=delay_ms,
            window=self.bundle.manifest.reads.verdict.window,
            exam=self.exams.panel() if self.exams is not None else None,
        )
        self._capture_badge = source_badge
        # Before the drawing, which takes longer.
        if self.panel is not None:
            self.panel.light(self.screen)
        began = time.perf_counter()
        key = self.display.show(self.screen)
        self._note_exam_shown(self.screen)
        self._show_elsewhere(self.screen)
        self._drawing.append(time.perf_counter() - began)
        if self.heartbeat is not None:
            self.heartbeat.shown(reading, self._newest, self._last_trouble is not None, self._health)
        if key:
            # Keys and touches do not tell when they were made; nobody answers sooner to what has come up.
            self._press_if_seen(Press(key, now() - (0.0 if key == END else REACTION)))

    def _health(self) -> dict[str, Any]:
        """What other services may know of this one; nothing of a patient."""
        assert self.screen is not None, "it was just shown"
        screen, newest, panel = self.screen, self._newest, self.panel
        status = panel.state.status if panel is not None else None
        return {
            "bundle": f"{self.bundle.manifest.name} {self.bundle.manifest.version}",
            "reading": self._readings,
            "age_ms": round(screen.age_ms, 1),
            "read_ms": round(newest.read_ms, 2) if newest is not None else None,
            "fps": round(screen.fps, 1),
            "busy": self.exams is not None and self.exams.under_way,
            # A file's name may be a patient's; a grabber's is its own, with its mode.
            "source": screen.source if self.settings.source.device.startswith((V4L2, DEMO)) else "file",
            "grabber": self._capture_badge,
            "runner": self.runner.name,
            "display": type(self.display).__name__.lower(),
            "drawing_ms": round(1e3 * statistics.median(self._drawing), 1),
            "panel": panel.state.name if panel is not None else "",
            "panel_detail": panel.state.detail if panel is not None else "",
            "battery_mv": status.battery_mv if status is not None else None,
            "badges": [badge for badge in screen.badges if not badge.startswith(PRIVATE)],
            "seconds_by_state": {state: round(s, 1) for state, s in self.seconds_by_state.items()},
        }

    def _note_exam_shown(self, screen: Screen) -> None:
        place = None if screen.exam is None else screen.exam.place
        if place != self._exam_shown:
            self._exam_shown, self._exam_shown_at = place, now()

    def _show_elsewhere(self, screen: Screen) -> None:
        """Hand the picture to the second screen, where somebody looks at it."""
        if self.live is None or not self.live.wanted:
            return
        exam, zone = (screen.exam.exam_id, screen.exam.current) if screen.exam is not None else ("", "")
        # A code that lets others in is for those at the box only.
        badges = tuple(badge for badge in screen.badges if not badge.startswith(PAIRING_CODE))
        drawn = self.display.drawn if badges == screen.badges else None
        picture = drawn if drawn is not None else draw(replace(screen, badges=badges))
        self.live.put(picture, told(screen, exam, zone))

    def _rate(self) -> float:
        if len(self._arrivals) < 2:
            return 0.0
        return (len(self._arrivals) - 1) / max(self._arrivals[-1] - self._arrivals[0], 1e-6)

    def _press(self, key: str) -> None:
        seen = self.screen.exam if self.screen is not None else None
        if self.exams is not None and self.exams.press(key, seen):
            return
        if key == "q":
            self.quitting = True
        elif key in ("f", " "):
            self._hold_or_go_on()
        elif key == "o":
            self._change_screen(overlay=not self.settings.screen.overlay)
        elif key == "d":
            self._change_screen(theme="light" if self.settings.screen.theme == "dark" else "dark")
        elif key == "s":
            self._keep_snapshot()

    def _change_screen(self, **what: Any) -> None:
        self.settings = replace(self.settings, screen=replace(self.settings.screen, **what))

    def _keep_snapshot(self) -> None:
        assert self.screen is not None, "a key was pressed on it"
        name = time.strftime("snapshot-%Y%m%d-%H%M%S")
        try:
            path = save_snapshot(self.screen, self.snapshots, name)
        except OSError as error:
            print(f"\nsnapshot: {error.filename or name}: {error.strerror or error}", file=sys.stderr)
            self._tell("snapshot-failed")
        else:
            print(f"\nsnapshot: {path}")
            self._tell(f"snapshot-saved {path.name}")

    def _tell(self, badge: str) -> None:
        """Say something on the screen for a while."""
        self._told, self._told_until = badge, now() + TOLD_FOR

    def _follow_settings(self) -> None:
        """Take over what changed in the configuration file, where that can be done while running."""
        if self.watch is None or now() < self._settings_due:
            return
        self._settings_due = now() + SETTINGS_EVERY
        loaded = self.watch.poll()
        if loaded is None:
            return
        for mistake in loaded.mistakes:
            print(f"\nsonoglance run: {mistake}", file=sys.stderr)
        if loaded.mistakes:
            self.settings_badge = CONFIG_BROKEN
            return
        new = loaded.config
        same = (new.source, new.reader) == (self.watch.first.source, self.watch.first.reader)
        self.settings_badge = "" if same else "config-restart"
        self.settings = replace(self.settings, language=new.language, screen=new.screen)

    def _hold_or_go_on(self) -> None:
        """Keep what is shown, where that is a picture, or go back to the live one."""
        if self.held:
            self._held = None
        elif self.screen is not None and self.screen.reading.state not in NO_PICTURE:
            self._held = self.screen.reading

    @property
    def held(self) -> bool:
        """Whether the user holds the picture."""
        return self._held is not None


class ScreenWatch:
    """Ends the process when the screen is not drawn any more.

    It counts its own looks, not seconds, so that a machine that slept is not taken for one that hangs.
    """

    def __init__(self) -> None:
        self._looks = self._looks_at_last = 0
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="screen watch", daemon=True).start()

    def drawn(self) -> None:
        """The screen has been drawn."""
        self._looks_at_last = self._looks

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(DRAW_DEADLINE):
            self._looks += 1
            if self._looks - self._looks_at_last > SCREEN_DEADLINE / DRAW_DEADLINE:
                print(f"\nsonoglance: the screen hangs for {SCREEN_DEADLINE:g} s: ended", file=sys.stderr)
                # Its thread is stuck in the window system: nothing but the end takes the picture away.
                os._exit(1)
