"""Draws every state of the screen from the phantom as contact sheets for the documentation.

    python -m tests.device.screens [FOLDER]

writes docs/screens/states-LANGUAGE.png and exam-LANGUAGE.png, in dark and light; English larger, in two
files each.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import cv2
import numpy as np

from device.exams.exam import NOT_SCANNED, ClipReading, Score, Summary
from device.exams.protocols import Protocol, load_protocol
from device.screen.drawing import HEIGHT, WIDTH, Screen, draw
from device.screen.exam_drawing import CHECKS, ExamPanel, HumanShown
from device.screen.torso import ZoneMark
from device.screen.words import languages
from reader.beam import find_beam
from reader.clips import Frame
from reader.phantom import Phantom
from reader.reader import Reading
from tests.conftest import ROOT

COLUMNS = 4
LEVEL = 17
NO_PICTURE_CAUSES = (
    ("starting", ""),
    ("no-device", "unplugged"),
    ("no-signal", "placeholder"),
    ("no-beam", ""),
    ("stale", "silent"),
    ("no-reader", "hung"),
)
PICTURE_CAUSES = (("no-contact", ""), ("not-lung", ""), ("geometry-changed", "beam"), ("frozen", "noise"))


def screens(language: str, theme: str) -> list[Screen]:
    """One screen a state, as the loop would make it."""
    phantom = Phantom()
    moments = {"normal": 7.0, "opacity": 19.0, "uncertain": 12.6, "no-contact": 14.5, "frozen": 26.0}

    def screen(
        state: str, cause: str = "", p: float | None = None, full: bool = True, **more: object
    ) -> Screen:
        image = phantom.frame(moments.get(state, 7.0))
        class_map = None if p is None else _map(p)
        known = None if p is None else {"normal": 1 - p, "opacity": p}
        beam = find_beam(phantom.frame(7.0))
        reading = Reading(state, Frame(image, 8.0, 200), beam, known, class_map, full, cause=cause)
        trend = tuple((i / 25, _wave(i / 25, p)) for i in range(200))
        given = {"trend": trend, "window": 10.0, "language": language, "theme": theme, "delay_ms": 62.0}
        source = "USB Video 1280x720 MJPG 30/s"
        return Screen(reading, "normal", source, 34.0, 29.97, **{**given, **more})  # type: ignore[arg-type]

    return [
        *(screen(*state) for state in NO_PICTURE_CAUSES),
        screen("uncertain", p=0.45, full=False),
        screen("normal", p=0.08),
        screen("opacity", p=0.91, badges=("phantom", "int8-too-few")),
        screen("uncertain", p=0.55, badges=("accelerator-lost 1 3",)),
        *(screen(*state) for state in PICTURE_CAUSES),
        screen("opacity", p=0.88, held=True),
        screen("opacity", p=0.91, alarm="int8-failed", badges=("config-broken",)),
    ]


def exam_screens(language: str, theme: str) -> list[Screen]:
    """An exam from its first zone to the signature, one screen a moment."""
    phantom = Phantom()
    beam = find_beam(phantom.frame(7.0))
    blue, all_round = load_protocol("blue-6"), load_protocol("zones-14")

    def reading(moment: float, state: str, p: float) -> Reading:
        known = {"normal": 1 - p, "opacity": p}
        return Reading(state, Frame(phantom.frame(moment), 8.0, 200), beam, known, _map(p), True)

    def screen(panel: ExamPanel, live: Reading, **more: object) -> Screen:
        given = {"window": 10.0, "language": language, "theme": theme, "delay_ms": 62.0}
        source = "USB Video 1280x720 MJPG 30/s"
        return Screen(live, "normal", source, 34.0, 29.97, exam=panel, **{**given, **more})  # type: ignore[arg-type]

    normal, opacity = reading(7.0, "normal", 0.08), reading(19.0, "opacity", 0.91)
    none = Reading("no-signal", Frame(phantom.frame(7.0), 8.0, 200), beam, cause="black")
    good = dict.fromkeys(CHECKS, True)
    states = ["normal", "opacity", "uncertain", "opacity", "normal", "not-scanned"]

    def panel(protocol: Protocol, done: int, **more: object) -> ExamPanel:
        zones = [
            marked(place.name, states[i % 6] if i < done else NOT_SCANNED, i)
            for i, place in enumerate(protocol.zones)
        ]
        current = protocol.zones[min(done, len(zones) - 1)].name
        given = {"quality": good, "seconds_wanted": 6.0, "exam_id": "20261121-143530-9f3c2a1b"}
        return ExamPanel(protocol, tuple(zones), **{"current": current, **given, **more})  # type: ignore[arg-type]

    clip = ClipReading("opacity", {"normal": 0.09, "opacity": 0.91}, 12, patterns={"B-lines": 0.87})
    second = blue.zones[1].name
    tally = Summary(6, 4, 1, 1, 2, Score(3, 5), Score(2, 3))
    return [
        screen(panel(blue, 0, quality=good | {"pleura": False, "steady": False}), normal),
        screen(panel(blue, 1, autocapture=True), opacity, badges=("phantom", "pairing-code 481516")),
        screen(panel(blue, 1, phase="recording", seconds=3.4), opacity, badges=("phantom",)),
        screen(panel(blue, 1, phase="reading", acknowledged=False), opacity),
        screen(panel(blue, 2, phase="review", current=second, clip=clip, replay=opacity), normal),
        screen(
            panel(blue, 2, phase="review", current=second, clip=clip, human=HumanShown("opacity", 2)),
            opacity,
            badges=("phantom", "unsigned", "slow-screen"),
        ),
        screen(panel(blue, 3, message="not-saved-clip right-lower"), none),
        screen(panel(blue, 4, message="clip-too-short"), normal, held=True),
        screen(panel(blue, 6, phase="summary", summary=tally), normal, badges=("phantom",)),
        screen(panel(blue, 6, phase="signed", summary=tally), normal),
        screen(panel(all_round, 9, message="frames-dropped 3"), opacity),
        screen(
            panel(
                all_round, 14, phase="summary", summary=Summary(14, 10, 2, 2, 5, Score(7, 13), Score(2, 3))
            ),
            normal,
        ),
    ]


def marked(name: str, state: str, number: int) -> ZoneMark:
    """A zone's mark for a sheet: every other finding graded by a clinician."""
    graded = state == "opacity" and number % 3 == 0
    scores = {"normal": Score(0, 0), "opacity": Score(2, 2) if graded else Score(1, 3)}
    return ZoneMark(name, state, scores.get(state), by_clinician=graded)


def _map(p: float) -> np.ndarray:
    y, x = np.mgrid[0:7, 0:7]
    spot = np.exp(-((x - 3.5) ** 2 + (y - 4) ** 2) / 4)
    return np.clip(p * (0.25 + 0.75 * spot), 0, 1).astype(np.float32)


def _wave(t: float, p: float | None) -> float | None:
    return None if p is None else min(max(p + 0.06 * math.sin(2 * t) * math.cos(t / 3), 0.0), 1.0)


def sheet(drawn: list[np.ndarray], cell: int, columns: int = COLUMNS) -> np.ndarray:
    """Screens side by side, each ``cell`` pixels wide, in few levels so that the file stays small."""
    size = cell, cell * HEIGHT // WIDTH
    cells = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in drawn]
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return (np.round(np.vstack(rows) / LEVEL) * LEVEL).astype(np.uint8)


def write(path: Path, picture: np.ndarray) -> None:
    """As a small PNG: speckle is not foretold by its neighbours, so no filter."""
    compact = [cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    cv2.imwrite(str(path), picture, compact)


def main() -> None:
    """Write the sheets."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screens"
    folder.mkdir(parents=True, exist_ok=True)
    for language in languages():
        for name, made, columns in (("states", screens, COLUMNS), ("exam", exam_screens, 3)):
            dark, light = ([draw(screen) for screen in made(language, theme)] for theme in ("dark", "light"))
            if language == "en":
                write(folder / f"{name}-en.png", sheet(dark, 1920 // columns, columns))
                write(folder / f"{name}-en-light.png", sheet(light, 1920 // columns, columns))
            elif name == "exam":
                # By turns: what an exam shows in one light it shows in the other.
                turns = [(dark, light)[i % 2][i] for i in range(len(dark))]
                write(folder / f"exam-{language}.png", sheet(turns, 480, columns))
            else:
                write(folder / f"{name}-{language}.png", sheet(dark + light, 1280 // columns, columns))


if __name__ == "__main__":
    main()
