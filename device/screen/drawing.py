"""The bedside screen as a pure function: a reading and its frame in, a picture out.

It shows the beam, never the scanner's whole screen. A verdict is told by a word and a shape as well
as by colour, so that it can be read from two metres and by people who do not tell red from green.
Everything has a place of its own: nothing ever covers the picture.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from device.screen.illustrations import FAULT as FAULT_SHAPE
from device.screen.illustrations import illustration
from device.screen.words import Words, load_words
from reader.beam import Beam
from reader.reader import WITHDRAW_AFTER, Reading

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""

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

# Blue and orange, BGR, stay apart in every common colour deficiency (Okabe and Ito 2008).
NORMAL: Colour = (233, 180, 86)
ABNORMAL: Colour = (0, 159, 255)
UNSURE: Colour = (200, 200, 200)
FAULT: Colour = (100, 220, 240)
ALARM: Colour = (0, 30, 160)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (20, 17, 15)

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
NO_PICTURE = frozenset(
    {"no-signal", "no-beam", "geometry-changed", "no-device", "starting", "stale", "no-reader"}
)
"""States in which there is no picture that may be shown as what the scanner shows now."""
NO_READING = NO_PICTURE | {"frozen", "no-contact", "not-lung", "held"}


@dataclass(frozen=True)
class Theme:
    """Colours for one kind of light. ``filled``: whether the verdict's panel is filled with its colour,
    which daylight needs, or outlined in it, which spares eyes that are used to the dark."""

    ground: Colour
    room: Colour
    text: Colour
    dim: Colour
    line: Colour
    button: Colour
    filled: bool

    def panel(self, colour: Colour) -> tuple[Colour, Colour, Colour]:
        """Paper, ink and smaller text of a panel in the colour of a state."""
        return (colour, BLACK, BLACK) if self.filled else (self.ground, colour, self.text)


THEMES = {
    "dark": Theme(BLACK, (8, 7, 6), (235, 235, 235), (175, 175, 175), (70, 70, 70), (56, 50, 46), False),
    "light": Theme((238, 238, 238), WHITE, BLACK, (70, 70, 70), (150, 150, 150), (206, 206, 206), True),
}


@dataclass(frozen=True)
class Slot:
    """A place for text: sizes tried from ``size`` down to ``least``, in as many ``lines`` as it may
    take within ``width`` and ``height`` pixels."""

    size: int
    least: int
    weight: int
    width: int
    height: int
    lines: int = 1


VERDICT_TITLE = Slot(88, 58, 800, 418, 140, 2)
VERDICT_HINT = Slot(28, 22, 500, 424, 66, 2)
REASON_TITLE = Slot(96, 72, 800, 724, 170, 2)
REASON_HINT = Slot(40, 30, 500, 720, 100, 2)
LINE = Slot(22, 19, 500, 424, 26)
FACT = Slot(22, 18, 500, 452, 28)
PLATE = Slot(24, 19, 600, 140, 30)
FOOT_LINE = Slot(26, 22, 600, 1256, 34)
PERCENT = Slot(30, 24, 700, 84, 36)


@dataclass(frozen=True)
class Screen:
    """What is to be shown.

    ``trend``: (seconds, probability of an abnormal label or None) of the last readings.
    ``age_ms``: how old the picture is. ``held``: whether the user holds it. ``badges``: what a user must
    know of the box itself, ``KEY [VALUE...]`` of the language file. ``alarm``: why nothing here may be
    relied on, likewise. ``delay_ms``: what the grabber adds to the age, where that was measured.
    ``window``: seconds that a verdict gathers, where known. ``theme``: a key of ``THEMES``.
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


def draw(screen: Screen, pressed: str = "") -> Image:
    """The screen as BGR uint8 [720, 1280, 3]. ``pressed``: the button that is shown as pressed.

    Raises DisplayError where there is no such language.
    """
    words, theme = load_words(screen.language), THEMES[screen.theme]
    base = _base(screen.language, screen.theme, screen.alarm, screen.overlay, screen.held, pressed)
    canvas = base.copy()
    state = shown_state(screen)
    _draw_room(canvas, screen, state, words, theme)
    _draw_verdict(canvas, screen, state, words, theme)
    _draw_column(canvas, screen, words, theme)
    return canvas


def shown_state(screen: Screen) -> str:
    """The state that is shown: the reading's own, unless the picture is held or too old for it."""
    state = screen.reading.state
    if state in NO_PICTURE:
        return state
    if screen.held:
        return "held"
    return state if screen.age_ms <= OLDEST_LIVE_MS else "stale"


def button_at(x: float, y: float) -> str:
    """The key of the button at a place of the drawn screen; empty where there is none."""
    for key, (left, top, right, bottom) in BUTTONS.items():
        if left <= x < right and top <= y < bottom:
            return key
    return ""


def look_of(state: str, negative: str) -> tuple[str, Colour]:
    """The shape and colour that stand for a state."""
    if state == negative:
        return "normal", NORMAL
    if state == "uncertain":
        return "unsure", UNSURE
    if state in NO_PICTURE:
        return FAULT_SHAPE, FAULT
    return (state, FAULT) if state in NO_READING else ("abnormal", ABNORMAL)


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
    return np.asarray(cv2.bitwise_and(crop, crop, mask=_beam_mask(reading.beam, 1.0)), np.uint8)


@lru_cache(maxsize=8)
def _beam_mask(beam: Beam, scale: float) -> Image:
    """255 wholly inside the beam, else 0, cropped to its bounds and scaled."""
    left, top, right, bottom = beam.bounds
    mask = beam.mask()[top:bottom, left:right]
    if scale == 1.0:
        return mask
    resized = cv2.resize(mask, _scaled(mask, scale), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.inRange(resized, 255, 255), np.uint8)


def resized(picture: Image, size: tuple[int, int]) -> Image:
    """The picture at another width and height."""
    # Down to half the size the linear one leaves no pixel out, and is far quicker.
    method = cv2.INTER_AREA if 2 * size[0] < picture.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)


def _scaled(picture: Image, scale: float) -> tuple[int, int]:
    return max(int(picture.shape[1] * scale), 1), max(int(picture.shape[0] * scale), 1)


# By heat from 0 to 255: what is kept of the picture, and what is added to it.
_SHARE = np.clip(np.arange(256) / 127.5 - 1, 0, 1) * TINT
_KEPT = np.round(255 * (1 - _SHARE)).astype(np.uint8)
_ADDED = np.round(_SHARE[:, None] * np.array(ABNORMAL)).astype(np.uint8)[None]


def _tint(picture: Image, class_map: NDArray[np.float32], mask: Image) -> Image:
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
        picture = _tint(picture, screen.reading.class_map, _beam_mask(beam, scale))
    canvas[top:bottom, left:right] = 0
    _paste(canvas, picture, ((left + right) // 2, (top + bottom) // 2))
    if state in ("held", "frozen"):
        cv2.rectangle(canvas, (left + 2, top + 2), (right - 3, bottom - 3), FAULT, 5)


def _draw_reason(canvas: Image, screen: Screen, state: str, words: Words, theme: Theme) -> None:
    """In place of the picture: why there is none, and what to check."""
    left, top, right, bottom = ROOM
    middle = (left + right) // 2
    ink = FAULT if not theme.filled else theme.text
    title, hint = words.state(state, screen.reading.cause if state == screen.reading.state else "")
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), theme.room, -1)
    _paste(canvas, illustration(state, 220, ink, theme.room), (middle, top + 138))
    _block(canvas, title, (middle, top + 350), REASON_TITLE, ink)
    _block(canvas, hint, (middle, top + 495), REASON_HINT, theme.text)


def _draw_verdict(canvas: Image, screen: Screen, state: str, words: Words, theme: Theme) -> None:
    left, top, right, bottom = VERDICT
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
        top += 36
    _paste(canvas, illustration(shape, 108, ink, paper), (middle, top + 68))
    _block(canvas, title, (middle, top + 209), VERDICT_TITLE, ink)
    _block(canvas, hint, (middle, top + 317), VERDICT_HINT, text)
    if share is not None:
        bar = left + 24, bottom - 24, right - 24, bottom - 14
        cv2.rectangle(canvas, bar[:2], bar[2:], ink, 1)
        cv2.rectangle(canvas, bar[:2], (round(bar[0] + share * (bar[2] - bar[0])), bar[3]), ink, -1)


def _draw_column(canvas: Image, screen: Screen, words: Words, theme: Theme) -> None:
    left, top, _, bottom = COLUMN
    facts = bottom - 56
    lines = [(FAULT, words.badge(badge)) for badge in screen.badges]
    lines += [(theme.text, words.note(note)) for note in screen.reading.notes]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], (FAULT, f"+ {len(lines) - MOST_LINES + 1}")]
    first = facts - 4 - LINE.height * len(lines)
    for row, (colour, line) in enumerate(lines):
        base = first + LINE.height * (row + 1) - 6
        _marker(canvas, (left + 8, base - 8), colour, theme)
        _text(canvas, line, (left + 26, base), LINE, theme.text)
    _draw_trend(canvas, screen, words, theme, (left, top, COLUMN[2] - 88, first - 6))
    age = _age_line(screen, words)
    _text(canvas, age, (left, facts + 22), FACT, theme.text)
    if age and screen.age_ms > WARN_FROM_MS:
        cv2.rectangle(canvas, (left, facts + 28), (COLUMN[2] - 1, facts + 30), FAULT, -1)
    rate = words.unit("rate", screen.fps)
    source = screen.source if len(screen.source) <= SOURCE_END else f"...{screen.source[-SOURCE_END:]}"
    _text(canvas, f"{rate}   {source}", (left, facts + 50), FACT, theme.dim)


def _age_line(screen: Screen, words: Words) -> str:
    if shown_state(screen) in NO_PICTURE or screen.held:
        return ""
    age = AGE_STEP_MS * math.ceil(screen.age_ms / AGE_STEP_MS)
    line = words.unit("age", age) if age < 10000 else words.unit("age-seconds", age / 1e3)
    return line if screen.delay_ms is None else f"{line} {words.unit('delay', screen.delay_ms)}"


def _marker(canvas: Image, centre: tuple[int, int], colour: Colour, theme: Theme) -> None:
    """A square before a line, with a rim that keeps it apart from any ground."""
    x, y = centre
    cv2.rectangle(canvas, (x - 6, y - 6), (x + 6, y + 6), theme.text, -1)
    cv2.rectangle(canvas, (x - 5, y - 5), (x + 5, y + 5), colour, -1)


def _draw_trend(canvas: Image, screen: Screen, words: Words, theme: Theme, box: Box) -> None:
    left, top, right, bottom = box
    _text(canvas, words.unit("trend", TREND_SECONDS), (left, top + 18), FACT, theme.dim)
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
        _text(canvas, f"{100 * p_now:.0f}%", (right + 12, foot), PERCENT, theme.text)


def _polyline(canvas: Image, run: list[tuple[int, int]], colour: Colour) -> None:
    if len(run) > 1:
        cv2.polylines(canvas, [np.array(run, np.int32)], False, colour, 2, cv2.LINE_AA)


@lru_cache(maxsize=8)
def _base(language: str, theme_name: str, alarm: str, overlay: bool, held: bool, pressed: str) -> Image:
    """What seldom changes: ground, room, buttons and foot. Not to be written to."""
    words, theme = load_words(language), THEMES[theme_name]
    canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    canvas[:] = theme.ground
    canvas[ROOM[1] : ROOM[3], ROOM[0] : ROOM[2]] = 0
    labels = {
        "f": "go-on" if held else "freeze",
        "o": "overlay",
        "s": "snapshot",
        "d": "day" if theme_name == "dark" else "night",
        "q": "quit",
    }
    lit = {"o": overlay, "f": held}
    for key in KEYS:
        _draw_button(canvas, key, labels[key], words, theme, key == pressed, lit.get(key, False))
    left, top, right, bottom = FOOT
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), ALARM if alarm else theme.button, -1)
    line = f"{words.alarm(alarm)}   {words['research']}" if alarm else words["research"]
    _block(canvas, line, (WIDTH // 2, (top + bottom) // 2), FOOT_LINE, WHITE if alarm else theme.text)
    canvas.flags.writeable = False
    return canvas


def _draw_button(
    canvas: Image, key: str, label: str, words: Words, theme: Theme, pressed: bool, lit: bool
) -> None:
    left, top, right, bottom = BUTTONS[key]
    paper, ink = (theme.text, theme.ground) if pressed else (theme.button, theme.text)
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), paper, -1)
    if lit:
        cv2.rectangle(canvas, (left + 2, top + 2), (right - 3, bottom - 3), ink, 4)
    _paste(canvas, illustration(label, 40, ink, paper), ((left + right) // 2, top + 32))
    _block(canvas, words.button(label), ((left + right) // 2, bottom - 19), PLATE, ink)
    _text(canvas, key.upper(), (left + 12, top + 28), FACT, ink)


def _paste(canvas: Image, picture: Image, centre: tuple[int, int]) -> None:
    height, width = picture.shape[:2]
    x, y = centre[0] - width // 2, centre[1] - height // 2
    canvas[y : y + height, x : x + width] = picture


@lru_cache
def _font() -> Any:
    """OpenCV 5's TrueType face; None on OpenCV 4, whose stroke font stands in for it."""
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None


def _stroke(size: int, weight: int) -> tuple[int, float, int]:
    return cv2.FONT_HERSHEY_SIMPLEX, size / 34, max(1, size * weight // 12000)


def _plain(text: str) -> str:
    """The text without accents, which the stroke font does not have."""
    text = text.replace("«", '"').replace("»", '"')
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def text_width(text: str, size: int, weight: int) -> int:
    """Width in pixels."""
    if _font() is None:
        return int(cv2.getTextSize(_plain(text), *_stroke(size, weight))[0][0])
    return int(cv2.getTextSize((WIDTH, HEIGHT), text, (0, 0), _font(), size, weight)[2])


@lru_cache(maxsize=1024)
def fitted(text: str, slot: Slot) -> tuple[int, tuple[str, ...]]:
    """The largest size at which the text fits its slot, and its lines then.

    Text that does not fit at the least size is cut short with an ellipsis.
    """
    for size in range(slot.size, slot.least - 1, -1):
        lines = _wrapped(text, size, slot)
        if len(lines) <= min(slot.lines, max(1, slot.height // round(size * 1.1))) and all(
            text_width(line, size, slot.weight) <= slot.width for line in lines
        ):
            return size, lines
    lines = _wrapped(text, slot.least, slot)[: slot.lines]
    last = lines[-1]
    while last and text_width(last + "...", slot.least, slot.weight) > slot.width:
        last = last[:-1]
    return slot.least, (*lines[:-1], last + "...")


def _wrapped(text: str, size: int, slot: Slot) -> tuple[str, ...]:
    """One line where that will do, else two: broken after a sentence, or about as long as each other."""
    if slot.lines == 1 or text_width(text, size, slot.weight) <= slot.width:
        return (text,)

    def wideness(pair: tuple[str, str]) -> tuple[bool, int]:
        widest = max(text_width(line, size, slot.weight) for line in pair)
        return widest > slot.width or pair[0][-1] not in ".?:;", widest

    words = text.split(" ")
    pairs = ((" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words)))
    return min(pairs, key=wideness, default=(text,))


def _block(canvas: Image, text: str, centre: tuple[int, int], slot: Slot, colour: Colour) -> None:
    """Text in the middle of its slot, which lies around ``centre``."""
    if not text:
        return
    size, lines = fitted(text, slot)
    step = round(size * 1.1)
    # Capitals are about 0.7 of the size high.
    base = centre[1] + round(size * 0.35) - step * (len(lines) - 1) // 2
    for row, line in enumerate(lines):
        at = centre[0] - text_width(line, size, slot.weight) // 2, base + step * row
        _put(canvas, line, at, size, slot.weight, colour)


def _text(canvas: Image, text: str, at: tuple[int, int], slot: Slot, colour: Colour) -> None:
    """One line from the left, its foot at ``at``."""
    size, lines = fitted(text, slot)
    _put(canvas, lines[0], at, size, slot.weight, colour)


def _put(canvas: Image, text: str, at: tuple[int, int], size: int, weight: int, colour: Colour) -> None:
    if _font() is None:
        font, scale, thickness = _stroke(size, weight)
        cv2.putText(canvas, _plain(text), at, font, scale, colour, thickness, cv2.LINE_AA)
    elif text:
        cv2.putText(canvas, text, at, colour, _font(), size, weight)
