"""Draws every state of the screen from the phantom as contact sheets for the documentation.

    python -m tests.device.screens [FOLDER]

writes docs/screens/states-LANGUAGE.png, dark and light screens; English larger, in two files.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import cv2
import numpy as np

from device.screen.drawing import HEIGHT, WIDTH, Screen, draw
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


def _map(p: float) -> np.ndarray:
    y, x = np.mgrid[0:7, 0:7]
    spot = np.exp(-((x - 3.5) ** 2 + (y - 4) ** 2) / 4)
    return np.clip(p * (0.25 + 0.75 * spot), 0, 1).astype(np.float32)


def _wave(t: float, p: float | None) -> float | None:
    return None if p is None else min(max(p + 0.06 * math.sin(2 * t) * math.cos(t / 3), 0.0), 1.0)


def sheet(drawn: list[np.ndarray], cell: int) -> np.ndarray:
    """Screens side by side, each ``cell`` pixels wide, in few levels so that the file stays small."""
    size = cell, cell * HEIGHT // WIDTH
    cells = [cv2.resize(picture, size, interpolation=cv2.INTER_AREA) for picture in drawn]
    rows = [np.hstack(cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
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
        dark, light = ([draw(screen) for screen in screens(language, theme)] for theme in ("dark", "light"))
        if language == "en":
            write(folder / "states-en.png", sheet(dark, 480))
            write(folder / "states-en-light.png", sheet(light, 480))
        else:
            write(folder / f"states-{language}.png", sheet(dark + light, 320))


if __name__ == "__main__":
    main()
