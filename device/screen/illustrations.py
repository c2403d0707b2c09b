"""Drawings made by code: the shapes of the verdicts, one picture a no-reading state, and the buttons'.

Each is drawn in a square of 100 by 100 units, x to the right and y down, four times as large as asked,
and then made smaller, which smooths every edge alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]
Point = tuple[float, float]

FINER = 4
FAULT = "fault"
"""The shape that stands for no reading where no drawing says why."""


class _Pen:
    """Draws in ink, or in the colour of the paper where ``ink`` is False."""

    def __init__(self, size: int, ink: Colour, paper: Colour) -> None:
        self._unit = size * FINER / 100
        self._ink, self._paper = ink, paper
        self.sheet = np.empty((size * FINER, size * FINER, 3), np.uint8)
        self.sheet[:] = paper

    def line(self, *points: Point, width: float = 5, closed: bool = False, ink: bool = True) -> None:
        thick = max(1, round(width * self._unit))
        cv2.polylines(self.sheet, [self._pixels(points)], closed, self._colour(ink), thick)

    def area(self, *points: Point, ink: bool = True) -> None:
        cv2.fillPoly(self.sheet, [self._pixels(points)], self._colour(ink))

    def disc(self, centre: Point, radius: float, ink: bool = True) -> None:
        at = round(centre[0] * self._unit), round(centre[1] * self._unit)
        cv2.circle(self.sheet, at, round(radius * self._unit), self._colour(ink), -1)

    def arc(self, centre: Point, radius: float, start: float = 0, end: float = 360, width: float = 5) -> None:
        """Part of a ring, in degrees clockwise from the right."""
        self.line(*_arc(centre, radius, start, end), width=width)

    def box(self, left: float, top: float, right: float, bottom: float, width: float = 5) -> None:
        self.line((left, top), (right, top), (right, bottom), (left, bottom), width=width, closed=True)

    def block(self, left: float, top: float, right: float, bottom: float, ink: bool = True) -> None:
        self.area((left, top), (right, top), (right, bottom), (left, bottom), ink=ink)

    def fan(self, apex: Point, near: float, far: float, half: float = 36, width: float = 5) -> None:
        """The outline of a convex beam."""
        inner = _arc(apex, near, 90 + half, 90 - half)
        self.line(*inner, *_arc(apex, far, 90 - half, 90 + half), width=width, closed=True)

    def question(self, x: float, y: float, height: float) -> None:
        """A question mark, centred."""
        r, width = height * 0.24, height * 0.15
        hook = _arc((x, y - height / 2 + r), r, 180, 410)
        self.line(*hook, (x, y + height * 0.06), (x, y + height * 0.18), width=width)
        self.disc((x, y + height * 0.42), height * 0.1)

    def _pixels(self, points: tuple[Point, ...]) -> NDArray[np.int32]:
        return np.round(np.array(points) * self._unit).astype(np.int32)

    def _colour(self, ink: bool) -> Colour:
        return self._ink if ink else self._paper


def _arc(centre: Point, radius: float, start: float, end: float) -> list[Point]:
    turns = np.radians(np.linspace(start, end, 49))
    return [(centre[0] + radius * math.cos(t), centre[1] + radius * math.sin(t)) for t in turns]


def _normal(pen: _Pen) -> None:
    pen.arc((50, 50), 38, width=18)


def _abnormal(pen: _Pen) -> None:
    pen.area((50, 4), (98, 92), (2, 92))
    pen.line((50, 36), (50, 60), width=10, ink=False)
    pen.disc((50, 76), 6, ink=False)


def _unsure(pen: _Pen) -> None:
    pen.line((50, 7), (93, 50), (50, 93), (7, 50), width=9, closed=True)
    pen.question(50, 50, 38)


def _fault(pen: _Pen) -> None:
    pen.box(8, 8, 92, 92, width=9)
    pen.line((8, 8), (92, 92), width=9)
    pen.line((8, 92), (92, 8), width=9)


def _no_signal(pen: _Pen) -> None:
    # A dark scanner, and its cable pulled out of the box.
    pen.box(4, 5, 66, 51)
    pen.arc((35, 30), 12, -55, 235)
    pen.line((35, 12), (35, 28))
    pen.line((35, 53), (35, 63))
    pen.line((18, 63), (52, 63))
    pen.line((12, 78), (12, 88), (34, 88))
    pen.line((12, 63), (12, 78))
    pen.block(34, 79, 48, 97)
    pen.line((50, 84), (56, 84), width=4)
    pen.line((50, 92), (56, 92), width=4)
    pen.block(70, 74, 96, 100)
    pen.block(70, 82, 82, 86, ink=False)
    pen.block(70, 90, 82, 94, ink=False)


def _frozen(pen: _Pen) -> None:
    for turn in np.radians(np.arange(6) * 60 + 30):
        along = math.cos(turn), math.sin(turn)
        pen.line((50, 50), (50 + 45 * along[0], 50 + 45 * along[1]), width=6)
        for reach, length in ((20, 14), (32, 11)):
            root = 50 + reach * along[0], 50 + reach * along[1]
            for lean in (-math.pi / 3, math.pi / 3):
                tip = root[0] + length * math.cos(turn + lean), root[1] + length * math.sin(turn + lean)
                pen.line(root, tip, width=5)


def _no_beam(pen: _Pen) -> None:
    pen.fan((50, -6), 24, 98, half=27)
    pen.question(50, 56, 42)


def _no_contact(pen: _Pen) -> None:
    # A probe in the air, a drop of gel under it, the skin below.
    pen.line((62, 14), (72, 4), (88, 6), width=4)
    pen.area((38, 14), (62, 14), (65, 32), (74, 46), (70, 52), (30, 52), (26, 46), (35, 32))
    pen.arc((50, 70), 8, -15, 195, width=5)
    pen.line((42.3, 68), (50, 57), (57.7, 68), width=5)
    pen.line(*((x, 92 - 4 * math.sin(x / 100 * math.pi)) for x in range(2, 99, 4)), width=6)


def _not_lung(pen: _Pen) -> None:
    pen.line((50, 6), (50, 40), width=7)
    pen.line((50, 36), (37, 50), width=6)
    pen.line((50, 36), (63, 50), width=6)
    lung = _rounded([(42, 16), (26, 20), (12, 44), (5, 74), (6, 94), (20, 94), (40, 84), (44, 70), (38, 44)])
    pen.line(*lung, width=6, closed=True)
    pen.line(*((100 - x, y) for x, y in lung), width=6, closed=True)
    pen.line((5, 5), (95, 95), width=17, ink=False)
    pen.line((5, 5), (95, 95), width=8)


def _rounded(points: list[Point]) -> list[Point]:
    """A closed outline with its corners cut twice over (Chaikin 1974)."""
    for _ in range(3):
        pairs = list(zip(points, points[1:] + points[:1], strict=True))
        points = [
            (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share)
            for a, b in pairs
            for share in (0.25, 0.75)
        ]
    return points


def _geometry_changed(pen: _Pen) -> None:
    # A small beam, an arrow, a large beam.
    pen.fan((18, 26), 8, 42, half=21, width=4)
    pen.fan((68, -12), 18, 88, half=19)
    pen.line((8, 88), (74, 88), width=6)
    pen.area((70, 77), (90, 88), (70, 99))


def _starting(pen: _Pen) -> None:
    pen.line((20, 7), (80, 7), width=7)
    pen.line((20, 93), (80, 93), width=7)
    pen.line((28, 8), (28, 26), (46, 50), (28, 74), (28, 92), width=5)
    pen.line((72, 8), (72, 26), (54, 50), (72, 74), (72, 92), width=5)
    pen.area((36, 27), (64, 27), (50, 45))
    pen.line((50, 45), (50, 70), width=3)
    pen.area((50, 66), (66, 88), (34, 88))


def _no_device(pen: _Pen) -> None:
    # A USB plug beside its socket.
    pen.line((2, 50), (16, 50), width=7)
    pen.block(14, 28, 42, 72)
    pen.box(42, 35, 62, 65)
    pen.block(48, 40, 56, 47)
    pen.block(48, 53, 56, 60)
    pen.line((96, 18), (76, 18), (76, 82), (96, 82), width=6)
    pen.line((76, 33), (76, 67), width=7, ink=False)
    pen.line((76, 34), (90, 34), (90, 66), (76, 66), width=5)


def _stale(pen: _Pen) -> None:
    pen.arc((50, 50), 43, width=6)
    for turn in np.radians(np.arange(12) * 30):
        x, y = math.cos(turn), math.sin(turn)
        pen.line((50 + 33 * x, 50 + 33 * y), (50 + 36 * x, 50 + 36 * y), width=4)
    pen.line((50, 22), (50, 50), (69, 61), width=6)


def _no_reader(pen: _Pen) -> None:
    pen.box(22, 22, 78, 78, width=6)
    for at in (33, 50, 67):
        pen.line((at, 6), (at, 19), width=5)
        pen.line((at, 81), (at, 94), width=5)
        pen.line((6, at), (19, at), width=5)
        pen.line((81, at), (94, at), width=5)
    pen.line((39, 39), (61, 61), width=7)
    pen.line((39, 61), (61, 39), width=7)


def _held(pen: _Pen) -> None:
    pen.arc((50, 50), 43, width=6)
    pen.block(34, 30, 44, 70)
    pen.block(56, 30, 66, 70)


def _pause(pen: _Pen) -> None:
    pen.block(22, 14, 42, 86)
    pen.block(58, 14, 78, 86)


def _go_on(pen: _Pen) -> None:
    pen.area((22, 8), (88, 50), (22, 92))


def _overlay(pen: _Pen) -> None:
    pen.fan((50, -12), 26, 102, half=27, width=7)
    pen.disc((50, 56), 14)


def _snapshot(pen: _Pen) -> None:
    pen.block(4, 26, 96, 86)
    pen.area((30, 28), (38, 12), (62, 12), (70, 28))
    pen.disc((50, 56), 21, ink=False)
    pen.disc((50, 56), 13)


def _day(pen: _Pen) -> None:
    pen.disc((50, 50), 20)
    for turn in np.radians(np.arange(8) * 45):
        x, y = math.cos(turn), math.sin(turn)
        pen.line((50 + 31 * x, 50 + 31 * y), (50 + 44 * x, 50 + 44 * y), width=8)


def _night(pen: _Pen) -> None:
    pen.disc((47, 50), 40)
    pen.disc((65, 40), 34, ink=False)


def _quit(pen: _Pen) -> None:
    pen.line((18, 18), (82, 82), width=13)
    pen.line((18, 82), (82, 18), width=13)


def _not_scanned(pen: _Pen) -> None:
    pen.box(12, 12, 88, 88, width=9)
    pen.line((36, 50), (64, 50), width=10)


def _record(pen: _Pen) -> None:
    pen.disc((50, 50), 40)


def _stop(pen: _Pen) -> None:
    pen.block(16, 16, 84, 84)


def _next(pen: _Pen) -> None:
    pen.line((10, 50), (70, 50), width=13)
    pen.area((52, 14), (96, 50), (52, 86))


def _new(pen: _Pen) -> None:
    pen.line((50, 8), (50, 92), width=16)
    pen.line((8, 50), (92, 50), width=16)


def _back(pen: _Pen) -> None:
    pen.line((90, 50), (30, 50), width=13)
    pen.area((48, 14), (4, 50), (48, 86))


def _auto(pen: _Pen) -> None:
    # The beam within the corners of a viewfinder.
    for x, y in ((1, 1), (-1, 1), (1, -1), (-1, -1)):
        at = 50 - 44 * x, 50 - 44 * y
        pen.line((at[0], at[1] + 24 * y), at, (at[0] + 24 * x, at[1]), width=9)
    pen.disc((50, 50), 18)


def _accept(pen: _Pen) -> None:
    pen.line((10, 54), (38, 82), (90, 20), width=15)


def _change(pen: _Pen) -> None:
    for start in (200, 20):
        pen.arc((50, 50), 36, start, start + 120, width=10)
    pen.area((94, 36), (98, 70), (66, 56))
    pen.area((6, 64), (2, 30), (34, 44))


def _discard(pen: _Pen) -> None:
    pen.line((8, 24), (92, 24), width=9)
    pen.line((36, 22), (36, 8), (64, 8), (64, 22), width=8)
    pen.area((17, 32), (83, 32), (76, 97), (24, 97))
    for x in (40, 60):
        pen.line((x, 44), (x, 84), width=6, ink=False)


def _end(pen: _Pen) -> None:
    for y in (18, 50, 82):
        pen.disc((12, y), 8)
        pen.line((32, y), (96, y), width=11)


def _sign(pen: _Pen) -> None:
    pen.line((4, 94), (96, 94), width=7)
    pen.line((34, 60), (78, 16), width=20)
    pen.area((20, 84), (25, 56), (44, 75))


_DRAWINGS: dict[str, Callable[[_Pen], None]] = {
    "normal": _normal,
    "abnormal": _abnormal,
    "unsure": _unsure,
    FAULT: _fault,
    "no-signal": _no_signal,
    "frozen": _frozen,
    "no-beam": _no_beam,
    "no-contact": _no_contact,
    "not-lung": _not_lung,
    "geometry-changed": _geometry_changed,
    "starting": _starting,
    "no-device": _no_device,
    "stale": _stale,
    "no-reader": _no_reader,
    "held": _held,
    "freeze": _pause,
    "go-on": _go_on,
    "overlay": _overlay,
    "snapshot": _snapshot,
    "day": _day,
    "night": _night,
    "quit": _quit,
    "not-scanned": _not_scanned,
    "record": _record,
    "again": _record,
    "stop": _stop,
    "next": _next,
    "new": _new,
    "back": _back,
    "auto": _auto,
    "accept": _accept,
    "change": _change,
    "discard": _discard,
    "end": _end,
    "sign": _sign,
}


@lru_cache(maxsize=128)
def illustration(name: str, size: int, ink: Colour, paper: Colour) -> Image:
    """The drawing as BGR uint8 [size, size, 3], not to be written to. Raises KeyError without one."""
    pen = _Pen(size, ink, paper)
    _DRAWINGS[name](pen)
    drawn = np.asarray(cv2.resize(pen.sheet, (size, size), interpolation=cv2.INTER_AREA), np.uint8)
    drawn.flags.writeable = False
    return drawn
