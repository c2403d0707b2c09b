"""The bedside screen as a pure function: a reading and its frame in, a picture out.

It shows the beam, never the scanner's whole screen. A verdict is told by a word and a shape as well
as by colour, so that it can be read from two metres and by people who do not tell red from green.
Everything has a place of its own: nothing ever covers the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from device.screen.canvas import (
    ABNORMAL,
    ALARM,
    FAULT,
    NO_PICTURE,
    NO_READING,
    THEMES,
    WHITE,
    Box,
    Button,
    Colour,
    Image,
    Slot,
    Theme,
    block,
    look_of,
    marker,
    paste,
    resized,
    write,
)
from device.screen.exam_drawing import (
    READINGS,
    REVIEW,
    ExamPanel,
    draw_column,
    draw_readings,
    draw_summary,
    draw_total,
    exam_buttons,
)
from device.screen.illustrations import illustration
from device.screen.words import Words, load_words
from reader.beam import Beam
from reader.reader import WITHDRAW_AFTER, Reading

WIDTH, HEIGHT = 1280, 720
FOOT: Box = (0, 684, WIDTH, HEIGHT)
ROOM: Box = (16, 16, 796, 576)
"""Where the beam is shown, or the drawing that says why it is not."""
VERDICT: Box = (812, 16, 1264, 384)
COLUMN: Box = (812, 396, 1264, 676)
"""Trend, badges and notes, and what is known of the picture."""
KEYS = "fosdq"
"""Keys of the buttons, from left to right: freeze, overlay, snapshot, day or night, quit."""
BUTTONS: dict[str, Box] = {
    key: (ROOM[0] + 158 * place, 588, ROOM[0] + 158 * place + 148, 676) for place, key in enumerate(KEYS)
}

TREND_SECONDS = 12.0
OLDEST_LIVE_MS = 1500.0
"""Whatever the caller says, an older picture is not shown as live."""
WARN_FROM_MS = 300.0
AGE_STEP_MS = 10.0
"""Ages are rounded up to these steps, so that the figure can be read."""
MOST_LINES = 5
"""Lines for badges and notes."""
TINT = 0.35

SOURCE_END = 26
"""Letters of a source's name that are shown at most: the last ones, which hold a grabber's mode."""
VERDICT_TITLE = Slot(88, 58, 800, 418, 140, 2)
VERDICT_HINT = Slot(28, 22, 500, 424, 66, 2)
EXAM_TITLE = replace(VERDICT_TITLE, height=130)
EXAM_HINT = Slot(26, 20, 500, 424, 48, 2)
REASON_TITLE = Slot(96, 72, 800, 724, 170, 2)
REASON_HINT = Slot(40, 30, 500, 720, 100, 2)
LINE = Slot(22, 19, 500, 424, 26)
FACT = Slot(22, 18, 500, 452, 28)
PLATE = Slot(24, 18, 600, 140, 30)
DIGIT = Slot(52, 52, 700, 60, 56)
FOOT_LINE = Slot(26, 22, 600, 1256, 34)
PERCENT = Slot(30, 24, 700, 84, 36)


@dataclass(frozen=True)
class VerdictPlace:
    """How a verdict lies in its box: the shape's size, what lies how far below the top, how much lower
    everything lies without a hint, and how far above the foot the bar is. All in pixels."""

    box: Box
    shape: int
    shape_at: int
    title: Slot
    title_at: int
    hint: Slot
    hint_at: int
    lower: int
    bar: int


WHOLE_VERDICT = VerdictPlace(VERDICT, 108, 68, VERDICT_TITLE, 209, VERDICT_HINT, 317, 36, 24)
EXAM_VERDICT = VerdictPlace(READINGS, 60, 44, EXAM_TITLE, 144, EXAM_HINT, 226, 20, 18)


@dataclass(frozen=True)
class Screen:
    """What is to be shown.

    ``trend``: (seconds, probability of an abnormal label or None) of the last readings.
    ``age_ms``: how old the picture is. ``held``: whether the user holds it. ``badges``: what a user must
    know of the box itself, ``KEY [VALUE...]`` of the language file. ``alarm``: why nothing here may be
    relied on, likewise. ``delay_ms``: what the grabber adds to the age, where that was measured.
    ``window``: seconds that a verdict gathers, where known. ``theme``: a key of ``THEMES``.
    ``exam``: the exam that is going on, None where there is none.
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
    language: str = "en"
    theme: str = "dark"
    delay_ms: float | None = None
    window: float | None = None
    exam: ExamPanel | None = None


def draw(screen: Screen, pressed: str = "") -> Image:
    """The screen as BGR uint8 [720, 1280, 3]. ``pressed``: the button that is shown as pressed.

    Raises DisplayError where there is no such language.
    """
    words, theme = load_words(screen.language), THEMES[screen.theme]
    canvas = _base(screen.language, screen.theme, screen.alarm, buttons_of(screen), pressed).copy()
    state, exam = shown_state(screen), screen.exam
    if exam is None:
        _draw_room(canvas, screen, state, words, theme)
        _draw_verdict(canvas, screen, state, WHOLE_VERDICT, words, theme)
        _draw_column(canvas, screen, words, theme)
        return canvas
    if exam.closing:
        draw_summary(canvas, ROOM, exam, screen.negative, words, theme)
        draw_total(canvas, exam, words, theme)
    elif exam.phase == REVIEW:
        _draw_room(canvas, *_replayed(screen, state), words, theme)
        draw_readings(canvas, exam, screen.negative, words, theme)
    else:
        _draw_room(canvas, screen, state, words, theme)
        _draw_verdict(canvas, screen, state, EXAM_VERDICT, words, theme)
    lines = _box_lines(screen, words, theme)
    draw_column(canvas, exam, screen.negative, lines, _fact(screen, exam, words), words, theme)
    return canvas


def buttons_of(screen: Screen) -> tuple[Button, ...]:
    """The buttons that a screen has."""
    theme = "day" if screen.theme == "dark" else "night"
    if screen.exam is not None:
        buttons = exam_buttons(screen.exam, screen.overlay, screen.held, ROOM)
        return tuple(b._replace(label=theme) if b.label == "theme" else b for b in buttons)
    labels = {
        "f": "go-on" if screen.held else "freeze",
        "o": "overlay",
        "s": "snapshot",
        "d": theme,
        "q": "quit",
    }
    lit = {"o": screen.overlay, "f": screen.held}
    return tuple(Button(key, labels[key], BUTTONS[key], lit.get(key, False)) for key in KEYS)


def shown_state(screen: Screen) -> str:
    """The state that is shown: the reading's own, unless the picture is held or too old for it."""
    state = screen.reading.state
    if state in NO_PICTURE:
        return state
    if screen.held:
        return "held"
    return state if screen.age_ms <= OLDEST_LIVE_MS else "stale"


def shows_live_verdict(screen: Screen) -> bool:
    """Whether the screen says something of the live picture, not of an exam's clip or of its summary."""
    return screen.exam is None or not (screen.exam.closing or screen.exam.phase == REVIEW)


def button_at(x: float, y: float, buttons: Sequence[Button]) -> str:
    """The key of the button at a place of the drawn screen; empty where there is none."""
    for button in buttons:
        left, top, right, bottom = button.box
        if left <= x < right and top <= y < bottom:
            return button.key
    return ""


def abnormal_probability(reading: Reading, negative: str) -> float | None:
    """One minus the probability of the negative label; None without a reading."""
    return None if reading.p is None else 1.0 - reading.p[negative]


def gathered(screen: Screen) -> float | None:
    """The share of the verdict's window that is filled, from 0 to 1; None where that is not known."""
    if not screen.window or screen.reading.full or screen.reading.p is None or not screen.trend:
        return None
    end = began = screen.trend[-1][0]
    for at, p in reversed(screen.trend):
        if p is not None:
            began = at
        elif began - at > WITHDRAW_AFTER:
            break
    return min((end - began) / screen.window, 1.0)


def beam_picture(reading: Reading) -> Image | None:
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
    return np.asarray(cv2.bitwise_and(crop, crop, mask=beam_mask(reading.beam, 1.0)), np.uint8)


@lru_cache(maxsize=8)
def beam_mask(beam: Beam, scale: float) -> Image:
    """255 wholly inside the beam, else 0, cropped to its bounds and scaled."""
    left, top, right, bottom = beam.bounds
    mask = beam.mask()[top:bottom, left:right]
    if scale == 1.0:
        return mask
    resized = cv2.resize(mask, _scaled(mask, scale), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.inRange(resized, 255, 255), np.uint8)


def _scaled(picture: Image, scale: float) -> tuple[int, int]:
    return max(int(picture.shape[1] * scale), 1), max(int(picture.shape[0] * scale), 1)


# By heat from 0 to 255: what is kept of the picture, and what is added to it.
_SHARE = np.clip(np.arange(256) / 127.5 - 1, 0, 1) * TINT
_KEPT = np.round(255 * (1 - _SHARE)).astype(np.uint8)
_ADDED = np.round(_SHARE[:, None] * np.array(ABNORMAL)).astype(np.uint8)[None]


def tinted(picture: Image, class_map: NDArray[np.float32], mask: Image) -> Image:
    """Tint the cells that speak for an opacity. The map covers a square around the beam's box."""
    height, width = picture.shape[:2]
    side = max(height, width)
    cells = np.round(255 * np.clip(class_map, 0, 1)).astype(np.uint8)
    heat = cv2.resize(cells, (side, side), interpolation=cv2.INTER_CUBIC)
    top, left = (side - height) // 2, (side - width) // 2
    heat = heat[top : top + height, left : left + width]
    share = cv2.cvtColor(cv2.LUT(heat, _KEPT), cv2.COLOR_GRAY2BGR)
    colour = cv2.LUT(cv2.cvtColor(heat, cv2.COLOR_GRAY2BGR), _ADDED)
    kept = cv2.multiply(picture, share, scale=1 / 255)
    return np.asarray(cv2.add(kept, colour, dst=kept, mask=mask), np.uint8)


def _draw_room(canvas: Image, screen: Screen, state: str, words: Words, theme: Theme) -> None:
    picture = None if state in NO_PICTURE else beam_picture(screen.reading)
    if picture is None:
        if state in NO_READING:
            _draw_reason(canvas, screen, state, words, theme)
        return
    beam = screen.reading.beam
    assert beam is not None
    left, top, right, bottom = ROOM
    scale = min((right - left - 16) / picture.shape[1], (bottom - top - 16) / picture.shape[0])
    picture = resized(picture, _scaled(picture, scale))
    if screen.overlay and screen.reading.class_map is not None:
        picture = tinted(picture, screen.reading.class_map, beam_mask(beam, scale))
    canvas[top:bottom, left:right] = 0
    paste(canvas, picture, ((left + right) // 2, (top + bottom) // 2))
    if state in ("held", "frozen"):
        cv2.rectangle(canvas, (left + 2, top + 2), (right - 3, bottom - 3), FAULT, 5)


def _draw_reason(canvas: Image, screen: Screen, state: str, words: Words, theme: Theme) -> None:
    """In place of the picture: why there is none, and what to check."""
    left, top, right, bottom = ROOM
    middle = (left + right) // 2
    ink = FAULT if not theme.filled else theme.text
    title, hint = words.state(state, screen.reading.cause if state == screen.reading.state else "")
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), theme.room, -1)
    paste(canvas, illustration(state, 220, ink, theme.room), (middle, top + 138))
    block(canvas, title, (middle, top + 350), REASON_TITLE, ink)
    block(canvas, hint, (middle, top + 495), REASON_HINT, theme.text)


def _replayed(screen: Screen, state: str) -> tuple[Screen, str]:
    """The screen with a clip's moment for the live picture, marked as held, where one is replayed."""
    replay = screen.exam.replay if screen.exam is not None else None
    return (screen, state) if replay is None else (replace(screen, reading=replay), "held")


def _draw_verdict(
    canvas: Image, screen: Screen, state: str, place: VerdictPlace, words: Words, theme: Theme
) -> None:
    left, top, right, bottom = place.box
    middle = (left + right) // 2
    shape, colour = look_of(state, screen.negative)
    paper, ink, text = theme.panel(colour)
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), paper, -1)
    cv2.rectangle(canvas, (left + 2, top + 2), (right - 3, bottom - 3), ink if theme.filled else colour, 5)
    title, hint = words.state(state, screen.reading.cause)
    share = gathered(screen) if state == "uncertain" else None
    if state in NO_PICTURE:
        title, hint = words["no-reading"], ""
    elif state == "held" and screen.reading.state not in NO_READING:
        hint = words["when-held"].format(words.state(screen.reading.state)[0])
    elif state == "uncertain" and not screen.reading.full:
        hint = words["gathering"]
    if not hint:
        top += place.lower
    paste(canvas, illustration(shape, place.shape, ink, paper), (middle, top + place.shape_at))
    block(canvas, title, (middle, top + place.title_at), place.title, ink)
    block(canvas, hint, (middle, top + place.hint_at), place.hint, text)
    if share is not None:
        bar = left + 24, bottom - place.bar, right - 24, bottom - place.bar + 10
        cv2.rectangle(canvas, bar[:2], bar[2:], ink, 1)
        cv2.rectangle(canvas, bar[:2], (round(bar[0] + share * (bar[2] - bar[0])), bar[3]), ink, -1)


def _box_lines(screen: Screen, words: Words, theme: Theme) -> list[tuple[Colour, str]]:
    """What must be known of the box and of the picture, each with its marker's colour."""
    lines = [(FAULT, words.badge(badge)) for badge in screen.badges]
    return lines + [(theme.text, words.note(note)) for note in screen.reading.notes]


def _draw_column(canvas: Image, screen: Screen, words: Words, theme: Theme) -> None:
    left, top, _, bottom = COLUMN
    facts = bottom - 56
    lines = _box_lines(screen, words, theme)
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], (FAULT, f"+ {len(lines) - MOST_LINES + 1}")]
    first = facts - 4 - LINE.height * len(lines)
    for row, (colour, line) in enumerate(lines):
        base = first + LINE.height * (row + 1) - 6
        marker(canvas, (left + 8, base - 8), colour, theme)
        write(canvas, line, (left + 26, base), LINE, theme.text)
    _draw_trend(canvas, screen, words, theme, (left, top, COLUMN[2] - 88, first - 6))
    age = _age_line(screen, words)
    write(canvas, age, (left, facts + 22), FACT, theme.text)
    if age and screen.age_ms > WARN_FROM_MS:
        cv2.rectangle(canvas, (left, facts + 28), (COLUMN[2] - 1, facts + 30), FAULT, -1)
    rate = words.unit("rate", screen.fps)
    source = screen.source if len(screen.source) <= SOURCE_END else f"...{screen.source[-SOURCE_END:]}"
    write(canvas, f"{rate}   {source}", (left, facts + 50), FACT, theme.dim)


def _fact(screen: Screen, exam: ExamPanel, words: Words) -> str:
    """What the picture is: how old, or that it is not the live one."""
    if exam.closing:
        return ""
    return words.exam("replay") if exam.replay is not None else _age_line(screen, words)


def _age_line(screen: Screen, words: Words) -> str:
    if shown_state(screen) in NO_PICTURE or screen.held:
        return ""
    age = AGE_STEP_MS * math.ceil(screen.age_ms / AGE_STEP_MS)
    line = words.unit("age", age) if age < 10000 else words.unit("age-seconds", age / 1e3)
    return line if screen.delay_ms is None else f"{line} {words.unit('delay', screen.delay_ms)}"


def _draw_trend(canvas: Image, screen: Screen, words: Words, theme: Theme, box: Box) -> None:
    left, top, right, bottom = box
    write(canvas, words.unit("trend", TREND_SECONDS), (left, top + 18), FACT, theme.dim)
    top += 28
    cv2.rectangle(canvas, (left, top), (right, bottom), theme.line, 1)
    middle = (top + bottom) // 2
    cv2.line(canvas, (left, middle), (right, middle), theme.line, 1)
    run: list[tuple[int, int]] = []
    for at, p in screen.trend:
        x = round(right - (screen.trend[-1][0] - at) / TREND_SECONDS * (right - left))
        if p is None or x < left:
            _polyline(canvas, run, theme.text)
            run = []
        else:
            run.append((x, round(bottom - p * (bottom - top))))
    _polyline(canvas, run, theme.text)
    p_now = abnormal_probability(screen.reading, screen.negative)
    if p_now is not None and shown_state(screen) not in NO_READING:
        foot = round(bottom - p_now * (bottom - top - 22))
        write(canvas, f"{100 * p_now:.0f}%", (right + 12, foot), PERCENT, theme.text)


def _polyline(canvas: Image, run: list[tuple[int, int]], colour: Colour) -> None:
    if len(run) > 1:
        cv2.polylines(canvas, [np.array(run, np.int32)], False, colour, 2, cv2.LINE_AA)


@lru_cache(maxsize=16)
def _base(language: str, theme_name: str, alarm: str, buttons: tuple[Button, ...], pressed: str) -> Image:
    """What seldom changes: ground, room, buttons and foot. Not to be written to."""
    words, theme = load_words(language), THEMES[theme_name]
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:] = theme.ground
    canvas[ROOM[1] : ROOM[3], ROOM[0] : ROOM[2]] = 0
    for button in buttons:
        _draw_button(canvas, button, words, theme, button.key == pressed)
    left, top, right, bottom = FOOT
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), ALARM if alarm else theme.button, -1)
    line = f"{words.alarm(alarm)}   {words['research']}" if alarm else words["research"]
    block(canvas, line, (WIDTH // 2, (top + bottom) // 2), FOOT_LINE, WHITE if alarm else theme.text)
    canvas.flags.writeable = False
    return canvas


def _draw_button(canvas: Image, button: Button, words: Words, theme: Theme, pressed: bool) -> None:
    left, top, right, bottom = button.box
    middle = (left + right) // 2
    paper, ink = (theme.text, theme.ground) if pressed else (theme.button, theme.text)
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), paper, -1)
    if button.lit:
        cv2.rectangle(canvas, (left + 2, top + 2), (right - 3, bottom - 3), ink, 4)
    plate = replace(PLATE, width=right - left - 8)
    block(canvas, words.button(button.label), (middle, bottom - 19), plate, ink)
    if button.key.isdigit():
        block(canvas, button.key, (middle, top + 34), DIGIT, ink)
        return
    paste(canvas, illustration(button.label, 40, ink, paper), (middle, top + 32))
    write(canvas, button.key.upper(), (left + 12, top + 28), FACT, ink)
