"""The bedside screen as a pure function: a reading and its frame in, a picture out.

It shows the beam, never the scanner's whole screen. A verdict is told by a word and a shape as well
as by colour, so that it can be read from two metres and by people who do not tell red from green.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.reader import Reading

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

WIDTH, HEIGHT = 1280, 720
PANEL = 470
"""Width of the column of words, in pixels."""
FOOT = 44
BADGE_LINE = 28
GROUND: Colour = (20, 17, 15)
TEXT: Colour = (235, 235, 235)
DIM: Colour = (150, 150, 150)
# Blue and orange, BGR, stay apart in every common colour deficiency (Okabe and Ito 2008).
NORMAL: Colour = (233, 180, 86)
ABNORMAL: Colour = (0, 159, 255)
ALARM: Colour = (0, 50, 190)
UNSURE: Colour = (200, 200, 200)
FAULT: Colour = (100, 220, 240)
TREND_SECONDS = 12.0


@dataclass(frozen=True)
class Screen:
    """What is to be shown.

    ``trend``: (seconds, probability of an abnormal label or None) of the last readings.
    ``age_ms``: how old the picture is. ``badges``: what a user must know of the box itself, such as
    a fall-back that is in use. ``alarm``: why nothing here may be relied on, across the foot.
    """

    reading: Reading
    negative: str
    source: str
    age_ms: float
    fps: float
    trend: Sequence[tuple[float, float | None]] = ()
    overlay: bool = True
    held: bool = False
    badges: tuple[str, ...] = ()
    alarm: str = ""


@lru_cache
def language(code: str = "en") -> dict[str, Any]:
    """The words of the screen from ``languages/CODE.json``."""
    path = Path(__file__).parent / "languages" / f"{code}.json"
    words: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return words


def draw(screen: Screen, words: dict[str, Any] | None = None) -> Image:
    """The screen as BGR uint8 [720, 1280, 3]."""
    words = words or language()
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:] = GROUND
    _draw_beam(canvas, screen)
    _draw_verdict(canvas, screen, words)
    _draw_trend(canvas, screen)
    _draw_foot(canvas, screen, words)
    return canvas


def beam_picture(reading: Reading, overlay: bool = False) -> Image | None:
    """The beam alone, cropped, everything outside it black: BGR. None where there is no beam."""
    if reading.beam is None or reading.frame.image.size == 0:
        return None
    image = reading.frame.image
    if (image.shape[1], image.shape[0]) != reading.beam.size:
        return None
    left, top, right, bottom = reading.beam.bounds
    crop: NDArray[Any] = image[top:bottom, left:right]
    if crop.ndim == 2:
        crop = cv2.cvtColor(crop, cv2.COLOR_GRAY2BGR)
    mask = reading.beam.mask()[top:bottom, left:right]
    if overlay and reading.class_map is not None:
        crop = _with_map(crop, reading.class_map)
    return np.asarray(cv2.bitwise_and(crop, crop, mask=mask), np.uint8)


def _with_map(crop: Image, class_map: NDArray[np.float32]) -> Image:
    """Tint the cells that speak for an opacity. The map covers a square around the beam's box."""
    height, width = crop.shape[:2]
    side = max(height, width)
    heat = cv2.resize(class_map, (side, side), interpolation=cv2.INTER_CUBIC)
    top, left = (side - height) // 2, (side - width) // 2
    heat = np.clip((heat[top : top + height, left : left + width] - 0.5) * 2, 0, 1)[:, :, None]
    tint = np.array(ABNORMAL, np.float32)
    mixed = crop * (1 - 0.35 * heat) + tint * 0.35 * heat
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _draw_beam(canvas: Image, screen: Screen) -> None:
    showable = screen.reading.state not in ("no-signal", "no-beam", "stale", "no-device", "starting")
    picture = beam_picture(screen.reading, screen.overlay) if showable else None
    room_w, room_h = WIDTH - PANEL - 32, HEIGHT - FOOT - 32
    if picture is None:
        _symbol(canvas, "fault", (16 + room_w // 2, 16 + room_h // 2), 120, (60, 60, 60))
        return
    scale = min(room_w / picture.shape[1], room_h / picture.shape[0])
    size = max(int(picture.shape[1] * scale), 1), max(int(picture.shape[0] * scale), 1)
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    picture = np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)
    x, y = 16 + (room_w - size[0]) // 2, 16 + (room_h - size[1]) // 2
    canvas[y : y + size[1], x : x + size[0]] = np.maximum(picture, canvas[y : y + size[1], x : x + size[0]])


def look_of(state: str, negative: str) -> tuple[str, Colour]:
    """The shape and colour that stand for a state."""
    if state == negative:
        return "normal", NORMAL
    if state == "uncertain":
        return "unsure", UNSURE
    if state in language()["states"] and state != "opacity":
        return "fault", FAULT
    return "abnormal", ABNORMAL


def _draw_verdict(canvas: Image, screen: Screen, words: dict[str, Any]) -> None:
    left = WIDTH - PANEL
    state = screen.reading.state
    shape, colour = look_of(state, screen.negative)
    title, hint = words["states"].get(state, [state.upper(), ""])
    if state == "uncertain" and not screen.reading.full:
        hint = words["gathering"] + " ..."
    cv2.rectangle(canvas, (left, 16), (WIDTH - 16, 332), colour, 4)
    _symbol(canvas, shape, (left + PANEL // 2 - 8, 108), 68, colour)
    _text(canvas, title, (left + PANEL // 2 - 8, 256), 74, colour, 800, PANEL - 60, centred=True)
    _text(canvas, hint, (left + PANEL // 2 - 8, 306), 24, TEXT, 400, PANEL - 50, centred=True)
    if screen.held:
        held = words["states"]["held"][0]
        cv2.rectangle(canvas, (24, 24), (190, 76), FAULT, -1)
        _text(canvas, held, (38, 64), 38, GROUND, 800, 150)


def _draw_trend(canvas: Image, screen: Screen) -> None:
    left, right, top = WIDTH - PANEL, WIDTH - 96, 356
    bottom = 560 - BADGE_LINE * len(screen.badges)
    for row, badge in enumerate(screen.badges, 1):
        _text(canvas, badge, (left, bottom + BADGE_LINE * row), 22, FAULT, 600, PANEL - 20)
    cv2.rectangle(canvas, (left, top), (right, bottom), (70, 70, 70), 1)
    for level in (0.25, 0.5, 0.75):
        y = round(bottom - level * (bottom - top))
        cv2.line(canvas, (left, y), (right, y), (45, 45, 45), 1)
    if screen.trend:
        end = screen.trend[-1][0]
        line: list[tuple[int, int]] = []
        for at, p in screen.trend:
            x = round(right - (end - at) / TREND_SECONDS * (right - left))
            if p is None or x < left:
                _polyline(canvas, line)
                line = []
            else:
                line.append((x, round(bottom - p * (bottom - top))))
        _polyline(canvas, line)
    p_now = abnormal_probability(screen.reading, screen.negative)
    if p_now is not None:
        _text(
            canvas,
            f"{100 * p_now:.0f}%",
            (right + 10, round(bottom - p_now * (bottom - top - 24))),
            30,
            TEXT,
            700,
            76,
        )


def _polyline(canvas: Image, line: list[tuple[int, int]]) -> None:
    if len(line) > 1:
        cv2.polylines(canvas, [np.array(line, np.int32)], False, TEXT, 2, cv2.LINE_AA)


def _draw_foot(canvas: Image, screen: Screen, words: dict[str, Any]) -> None:
    left = WIDTH - PANEL
    facts = f"{words['age']} {screen.age_ms:.0f} ms    {screen.fps:.0f} {words['fps']}"
    _text(canvas, facts, (left, 600), 24, TEXT if screen.age_ms < 300 else FAULT, 500, PANEL - 20)
    _text(canvas, screen.source, (left, 634), 22, DIM, 400, PANEL - 20)
    _text(canvas, words["keys"], (left, 664), 19, DIM, 400, PANEL - 20)
    cv2.rectangle(canvas, (0, HEIGHT - FOOT), (WIDTH, HEIGHT), ALARM if screen.alarm else (45, 40, 36), -1)
    line = f"{screen.alarm}   {words['research']}" if screen.alarm else words["research"]
    _text(canvas, line, (WIDTH // 2, HEIGHT - 13), 26, TEXT, 600, WIDTH - 40, centred=True)


def abnormal_probability(reading: Reading, negative: str) -> float | None:
    """One minus the probability of the negative label; None without a reading."""
    return None if reading.p is None else 1.0 - reading.p[negative]


def _symbol(canvas: Image, shape: str, centre: tuple[int, int], radius: int, colour: Colour) -> None:
    """Normal: ring. Abnormal: filled triangle. Unsure: diamond outline. Fault: crossed square."""
    x, y = centre
    if shape == "normal":
        cv2.circle(canvas, centre, radius, colour, radius // 4, cv2.LINE_AA)
    elif shape == "abnormal":
        corners = [(x, y - radius), (x + radius, y + radius * 3 // 4), (x - radius, y + radius * 3 // 4)]
        cv2.fillPoly(canvas, [np.array(corners, np.int32)], colour, cv2.LINE_AA)
    elif shape == "unsure":
        corners = [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)]
        cv2.polylines(canvas, [np.array(corners, np.int32)], True, colour, radius // 6, cv2.LINE_AA)
    else:
        cv2.rectangle(canvas, (x - radius, y - radius), (x + radius, y + radius), colour, radius // 8)
        cv2.line(canvas, (x - radius, y - radius), (x + radius, y + radius), colour, radius // 8, cv2.LINE_AA)
        cv2.line(canvas, (x - radius, y + radius), (x + radius, y - radius), colour, radius // 8, cv2.LINE_AA)


@lru_cache
def _font() -> Any:
    """OpenCV 5's TrueType face; None on OpenCV 4, whose stroke font stands in for it."""
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None


def _stroke(size: int, weight: int) -> tuple[int, float, int]:
    return cv2.FONT_HERSHEY_SIMPLEX, size / 34, max(1, size * weight // 12000)


@lru_cache(maxsize=256)
def _fitted(text: str, size: int, weight: int, room: int) -> tuple[int, int]:
    """The largest size up to ``size`` at which the text fits the room, and its width then."""
    while True:
        if _font() is None:
            width = cv2.getTextSize(text, *_stroke(size, weight))[0][0]
        else:
            width = cv2.getTextSize((WIDTH, HEIGHT), text, (0, 0), _font(), size, weight)[2]
        if width <= room or size <= 10:
            return size, width
        size = max(10, min(size - 1, size * room // width))


def _text(
    canvas: Image,
    text: str,
    at: tuple[int, int],
    size: int,
    colour: Colour,
    weight: int,
    room: int,
    centred: bool = False,
) -> None:
    if not text:
        return
    size, width = _fitted(text, size, weight, room)
    x = at[0] - width // 2 if centred else at[0]
    if _font() is None:
        font, scale, thickness = _stroke(size, weight)
        cv2.putText(canvas, text, (x, at[1]), font, scale, colour, thickness, cv2.LINE_AA)
    else:
        cv2.putText(canvas, text, (x, at[1]), colour, _font(), size, weight)
