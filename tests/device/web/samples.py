"""Exams and a live picture for the tests of the web page: real clips of the phantom, made-up readings."""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from pathlib import Path

import numpy as np

from device.clock import now
from device.exams.clips import ClipWriter
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.protocols import load_protocol
from device.exams.store import Store
from device.screen.drawing import Screen, draw
from device.web.live import LivePicture, told
from reader.beam import Beam, find_beam
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reading

LABELS = ("normal", "opacity")
NAME = "Amina Okello"


@lru_cache
def phantom_beam() -> Beam:
    beam = find_beam(Phantom((Act("normal", 60.0),)).frame(1.0))
    assert beam is not None
    return beam


def clip(store: Store, exam: Exam, zone: str, opacity: float, frames: int = 8) -> None:
    """Record the phantom into a zone."""
    phantom = Phantom((Act("opacity" if opacity > 0.5 else "normal", 60.0),), seed=len(zone))
    writer = ClipWriter(store.folder / "clips", phantom_beam(), automatic=opacity > 0.5)
    for i in range(frames):
        writer.add(phantom.frame(i / 25), i / 25)
    state = "opacity" if opacity > 0.7 else "normal" if opacity < 0.3 else "uncertain"
    rows, columns = np.mgrid[0:7, 0:7]
    heat = opacity * np.exp(-((rows - 4) ** 2 + (columns - 3) ** 2) / 6)
    reading = ClipReading(
        state,
        {"normal": 1 - opacity, "opacity": opacity},
        frames // 2,
        tuple(tuple(float(cell) for cell in row) for row in heat),
        {"B-lines": round(opacity * 0.9, 3)} if opacity > 0.5 else {},
        "lus-opacity 1.0 0123456789abcdef",
    )
    store.add_clip(exam.id, zone, writer.finish(), reading)


def sample_exam(store: Store, patient: Patient, zones: dict[str, float]) -> Exam:
    """An exam with clips: zone to probability of opacity."""
    exam = store.begin("blue-6", protocol_zones(), LABELS, "normal", patient, "Ward 3", "B. Moreau")
    for zone, opacity in zones.items():
        clip(store, exam, zone, opacity)
    return store.exam(exam.id)


def protocol_zones() -> list[str]:
    return [zone.name for zone in load_protocol("blue-6").zones]


class Bedside:
    """A stand-in for the bedside loop: draws the phantom's screen as often and hands it over."""

    def __init__(self, live: LivePicture, rate: float = 25.0) -> None:
        self.live, self._period = live, 1 / rate
        self.state = "normal"
        self.exam = self.alarm = ""
        self._phantom = Phantom((Act("opacity", 600.0),))
        self._beam = phantom_beam()
        self.silent = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        began, number = now(), 0
        while not self._closed.wait(max(began + number * self._period - now(), 0.0)):
            number += 1
            if self.silent or not self.live.wanted:
                continue
            p = {"normal": 0.9, "opacity": 0.1} if self.state == "normal" else {"normal": 0.1, "opacity": 0.9}
            frame = Frame(self._phantom.frame(number * self._period), number * self._period, number)
            reading = Reading(self.state, frame, self._beam, p)
            badges = tuple(filter(None, [self.live.badge]))
            screen = Screen(reading, "normal", "phantom", 60.0, 25.0, badges=badges, alarm=self.alarm)
            self.live.put(draw(screen), told(screen, self.exam))


def code_on_screen(live: LivePicture, seconds: float = 5.0) -> str:
    """The pairing code that the bedside screen must show."""
    give_up = time.monotonic() + seconds
    while not live.badge and time.monotonic() < give_up:
        time.sleep(0.01)
    key, _, code = live.badge.partition(" ")
    assert key == "pairing-code"
    return code


def sample_store(folder: Path) -> tuple[Store, list[Exam]]:
    """A store with two exams, the newer one not signed."""
    store = Store(folder, owner=True)
    names = protocol_zones()
    first = sample_exam(store, Patient("P-0017", NAME), {names[0]: 0.1, names[1]: 0.2})
    store.sign(first.id, "Dr Weiss")
    chances = dict(zip(names, (0.08, 0.91, 0.45, 0.15, 0.97), strict=False))
    second = sample_exam(store, Patient("P-0017", NAME), chances)
    return store, [first, second]
