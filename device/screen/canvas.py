"""What every drawing here is made with: colours, themes, boxes and text that fits its place."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from device.screen.illustrations import FAULT as FAULT_SHAPE

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""

# Blue and orange, BGR, stay apart in every common colour deficiency (Okabe and Ito 2008).
NORMAL: Colour = (233, 180, 86)
ABNORMAL: Colour = (0, 159, 255)
UNSURE: Colour = (200, 200, 200)
FAULT: Colour = (100, 220, 240)
ALARM: Colour = (0, 30, 160)
WHITE: Colour = (255, 255, 255)
BLACK: Colour = (20, 17, 15)

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


PAPER = Theme(WHITE, WHITE, BLACK, (95, 95, 95), (190, 190, 190), (225, 225, 225), True)
"""For what is printed."""


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


class Button(NamedTuple):
    """A place to touch. ``label``: its key in the language file and the name of its drawing. ``lit``:
    whether what it stands for is on."""

    key: str
    label: str
    box: Box
    lit: bool = False


def look_of(state: str, negative: str) -> tuple[str, Colour]:
    """The shape and colour that stand for a state."""
    if state == negative:
        return "normal", NORMAL
    if state == "uncertain":
        return "unsure", UNSURE
    if state in NO_PICTURE:
        return FAULT_SHAPE, FAULT
    return (state, FAULT) if state in NO_READING else ("abnormal", ABNORMAL)


def resized(picture: Image, size: tuple[int, int]) -> Image:
    """The picture at another width and height."""
    # Down to half the size the linear one leaves no pixel out, and is far quicker.
    method = cv2.INTER_AREA if 2 * size[0] < picture.shape[1] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, size, interpolation=method), np.uint8)


def marker(canvas: Image, centre: tuple[int, int], colour: Colour, theme: Theme) -> None:
    """A square before a line, with a rim that keeps it apart from any ground."""
    x, y = centre
    cv2.rectangle(canvas, (x - 6, y - 6), (x + 6, y + 6), theme.text, -1)
    cv2.rectangle(canvas, (x - 5, y - 5), (x + 5, y + 5), colour, -1)


def paste(canvas: Image, picture: Image, centre: tuple[int, int]) -> None:
    """Lay a picture onto the canvas, its middle at ``centre``."""
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


_ANY_SIZE = 1280, 720


def text_width(text: str, size: int, weight: int) -> int:
    """Width in pixels."""
    if _font() is None:
        return int(cv2.getTextSize(_plain(text), *_stroke(size, weight))[0][0])
    return int(cv2.getTextSize(_ANY_SIZE, text, (0, 0), _font(), size, weight)[2])


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


def block(canvas: Image, text: str, centre: tuple[int, int], slot: Slot, colour: Colour) -> None:
    """Text in the middle of its slot, which lies around ``centre``."""
    if not text:
        return
    size, lines = fitted(text, slot)
    step = round(size * 1.1)
    # Capitals are about 0.7 of the size high.
    base = centre[1] + round(size * 0.35) - step * (len(lines) - 1) // 2
    for row, line in enumerate(lines):
        at = centre[0] - text_width(line, size, slot.weight) // 2, base + step * row
        put(canvas, line, at, size, slot.weight, colour)


def write(canvas: Image, text: str, at: tuple[int, int], slot: Slot, colour: Colour) -> None:
    """One line from the left, its foot at ``at``."""
    size, lines = fitted(text, slot)
    put(canvas, lines[0], at, size, slot.weight, colour)


def put(canvas: Image, text: str, at: tuple[int, int], size: int, weight: int, colour: Colour) -> None:
    """One line from the left, its foot at ``at``, in letters of ``size`` pixels."""
    if _font() is None:
        font, scale, thickness = _stroke(size, weight)
        cv2.putText(canvas, _plain(text), at, font, scale, colour, thickness, cv2.LINE_AA)
    elif text:
        cv2.putText(canvas, text, at, colour, _font(), size, weight)
