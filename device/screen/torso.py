"""The torso map: where each zone lies on the chest and what is known of it.

A zone is a mark whose shape, fill and text say its state, so that no colour need be told from another:
a disc for normal, a triangle for a finding, a diamond for "cannot tell", an empty square where nothing was
scanned. In it stands the score, beside it a tick where a clinician's reading stands.

One geometry serves pixels (screen, report) and SVG (web page): outlines and labels in units of a view that
is 100 wide and 168 high, its lowest 18 for the view's name. The patient faces the examiner in front, so
the patient's right is on the left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from typing import NamedTuple

import cv2
import numpy as np

from device.exams.exam import NOT_SCANNED, Exam, Score
from device.exams.protocols import Protocol, ZonePlace
from device.screen.canvas import BLACK, WHITE, Colour, Image, Theme, look_of, put, text_width
from device.screen.words import Words
from reader.verdict import UNCERTAIN

Point = tuple[float, float]

WIDE, HIGH, NAME_STRIP = 100, 150, 18
"""Of a view, in units: its drawing, and the strip for its name below."""
REACH = 15
"""From a mark's middle to its corners."""
SUBPIXELS = 4
"""Bits of a pixel's fraction that OpenCV draws with."""


@dataclass(frozen=True)
class ZoneMark:
    """A zone as it stands now.

    ``state``: a label of the network, ``uncertain`` or ``not-scanned``. ``score``: None where there is none.
    ``by_clinician``: whether a clinician's reading stands, not the network's alone.
    """

    name: str
    state: str
    score: Score | None = None
    by_clinician: bool = False


def zone_marks(exam: Exam) -> tuple[ZoneMark, ...]:
    """The zones of an exam as they stand."""
    return tuple(
        ZoneMark(
            zone.name,
            zone.state(exam.negative),
            zone.score(exam.negative),
            by_clinician=zone.human is not None,
        )
        for zone in exam.zones
    )


class _View(NamedTuple):
    """One drawing of the chest. ``key``: its name in the language file; ``right_at``: on which side of the
    drawing the patient's right is, empty for a view from the side."""

    key: str
    view: str
    side: str
    right_at: str


_VIEWS = (
    _View("right-side", "side", "right", ""),
    _View("front", "front", "", "left"),
    _View("left-side", "side", "left", ""),
    _View("back", "back", "", "right"),
)


class _Shape(NamedTuple):
    """A line or an area. ``ink`` and ``fill``: a colour, or ``text``, ``dim`` or ``ground`` of the theme."""

    points: tuple[Point, ...]
    ink: Colour | str
    width: float
    closed: bool = False
    fill: Colour | str | None = None


class _Label(NamedTuple):
    """Text around its middle. ``size``: of the letters, in units."""

    text: str
    at: Point
    size: float
    ink: Colour | str


_Part = _Shape | _Label


def torso_map(
    protocol: Protocol,
    zones: Sequence[ZoneMark],
    negative: str,
    size: tuple[int, int],
    theme: Theme,
    words: Words,
    current: str = "",
) -> Image:
    """The map as BGR uint8 [height, width, 3], as large as fits into ``size`` (width, height), on the theme's
    ground; not to be written to.

    ``negative``: the network's label for no finding. ``current``: the zone that gets a ring. A zone that the
    protocol does not have is left out.
    """
    return _drawn(protocol, tuple(zones), negative, size, theme, words, current)


@lru_cache(maxsize=16)
def _drawn(
    protocol: Protocol,
    zones: tuple[ZoneMark, ...],
    negative: str,
    size: tuple[int, int],
    theme: Theme,
    words: Words,
    current: str,
) -> Image:
    wide, high = _extent(protocol)
    scale = min(size[0] / wide, size[1] / high)
    left, top = (size[0] - wide * scale) / 2, (size[1] - high * scale) / 2
    sheet = np.empty((size[1], size[0], 3), np.uint8)
    sheet[:] = theme.ground
    colours = {"text": theme.text, "dim": theme.dim, "ground": theme.ground}

    def colour(of: Colour | str) -> Colour:
        return colours[of] if isinstance(of, str) else of

    for part in _parts(protocol, zones, negative, words, current):
        if isinstance(part, _Label):
            letters = max(round(part.size * scale), 1)
            x = left + part.at[0] * scale - text_width(part.text, letters, 700) / 2
            # Capitals and digits are about 0.7 of the size high.
            y = top + part.at[1] * scale + 0.35 * letters
            put(sheet, part.text, (round(x), round(y)), letters, 700, colour(part.ink))
            continue
        points = np.array(part.points) * scale + (left, top)
        pixels = np.round(points * 2**SUBPIXELS).astype(np.int32)
        if part.fill is not None:
            cv2.fillPoly(sheet, [pixels], colour(part.fill), cv2.LINE_AA, SUBPIXELS)
        thick = max(round(part.width * scale), 1)
        cv2.polylines(sheet, [pixels], part.closed, colour(part.ink), thick, cv2.LINE_AA, SUBPIXELS)
    sheet.flags.writeable = False
    return sheet


def torso_svg(
    protocol: Protocol, zones: Sequence[ZoneMark], negative: str, words: Words, current: str = ""
) -> str:
    """The same map as one ``<svg>`` element, for a page in light or dark: lines and words take the page's own
    colour. Each zone is a ``<g data-zone="NAME">`` with its title, place and state as its spoken name."""
    wide, high = _extent(protocol)
    marks = {mark.name: mark for mark in zones}
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" class="torso" role="group">']
    for left, view in _placed_views(protocol):
        out += [_svg(part) for part in _chest(view, left, words)]
        for place in _zones_in(protocol, view):
            if mark := marks.get(place.name):
                spoken = escape(spoken_zone(place, mark, words))
                out.append(f'<g data-zone="{place.name}" role="img" aria-label="{spoken}">')
                out.append(f"<title>{spoken}</title>")
                out += [_svg(part) for part in _mark(place, mark, negative, left, mark.name == current)]
                out.append("</g>")
    return "".join([*out, "</svg>"])


def spoken_zone(place: ZonePlace, mark: ZoneMark, words: Words) -> str:
    """A zone in words: its title, its state and its score."""
    said = [place.titled(words.code), words.zone_state(mark.state)]
    if mark.score is not None:
        said.append(words.exam("score").format(mark.score))
    if mark.by_clinician:
        said.append(words.exam("by-clinician"))
    return ": ".join([said[0], ", ".join(said[1:])])


def mark_text(mark: ZoneMark) -> str:
    """What stands in a zone's mark: its score, or a sign that there is none."""
    if mark.score is not None:
        return str(mark.score)
    return {UNCERTAIN: "?", NOT_SCANNED: "-"}.get(mark.state, "")


def _parts(
    protocol: Protocol, zones: Sequence[ZoneMark], negative: str, words: Words, current: str
) -> Iterator[_Part]:
    marks = {mark.name: mark for mark in zones}
    for left, view in _placed_views(protocol):
        yield from _chest(view, left, words)
        for place in _zones_in(protocol, view):
            if mark := marks.get(place.name):
                yield from _mark(place, mark, negative, left, mark.name == current)


def _placed_views(protocol: Protocol) -> list[tuple[float, _View]]:
    """The views that the protocol needs, from left to right, each with its left edge; both sides or none."""
    needed = {place.view for place in protocol.zones} | {"front"}
    views = [view for view in _VIEWS if view.view in needed]
    return [(WIDE * column, view) for column, view in enumerate(views)]


def _extent(protocol: Protocol) -> tuple[int, int]:
    return WIDE * len(_placed_views(protocol)), HIGH + NAME_STRIP


def _zones_in(protocol: Protocol, view: _View) -> list[ZonePlace]:
    return [place for place in protocol.zones if place.view == view.view and view.side in ("", place.side)]


def _chest(view: _View, left: float, words: Words) -> Iterator[_Part]:
    """The outline of the chest, a few landmarks, the view's name, and which side is which."""
    drawing = {"front": _front, "back": _back, "side": _side}[view.view]
    for shape in drawing():
        points = shape.points
        if view.key == "left-side":
            points = tuple((WIDE - x, y) for x, y in points)
        yield shape._replace(points=tuple((x + left, y) for x, y in points))
    yield _Label(words.exam(view.key), (left + WIDE / 2, HIGH + NAME_STRIP / 2), 15, "dim")
    if view.right_at:
        sides = ("right", "left") if view.right_at == "left" else ("left", "right")
        for side, x in zip(sides, (16, WIDE - 16), strict=True):
            yield _Label(words.exam(f"{side}-letter"), (left + x, 10), 17, "text")


def _front() -> Iterator[_Shape]:
    yield from _silhouette()
    for clavicle in _both(((47, 30), (38, 29), (28, 26), (19, 29))):
        yield _Shape(_smooth(clavicle), "dim", 1)
    yield _Shape(((50, 33), (50, 88)), "dim", 1)
    for margin in _both(((50, 90), (42, 98), (33, 112), (27, 126))):
        yield _Shape(_smooth(margin), "dim", 1)


def _back() -> Iterator[_Shape]:
    yield from _silhouette()
    yield _Shape(((50, 22), (50, 142)), "dim", 1)
    for scapula in _both(((22, 38), (40, 34), (43, 46), (36, 70), (30, 66))):
        yield _Shape(_smooth((*scapula, scapula[0])), "dim", 1)


def _silhouette() -> Iterator[_Shape]:
    """Neck, shoulders and the arms' beginnings, and the trunk to the waist."""
    for shoulder in _both(((42, 1), (42, 14), (36, 22), (20, 26), (8, 36), (4, 56), (2, 78))):
        yield _Shape(_smooth(shoulder), "dim", 2)
    for flank in _both(((13, 78), (15, 60), (17, 56), (18, 70), (21, 96), (23, 118), (21, 148))):
        yield _Shape(_smooth(flank), "dim", 2)


def _side() -> Iterator[_Shape]:
    """From the patient's right, who looks to the right; the arm is left away at the shoulder."""
    yield _Shape(_smooth(((40, 1), (39, 14), (29, 26), (22, 50), (22, 76), (29, 112), (26, 148))), "dim", 2)
    yield _Shape(_smooth(((59, 1), (60, 16), (68, 32), (78, 58), (80, 80), (76, 112), (77, 148))), "dim", 2)
    yield _Shape(tuple(_ring((49, 33), 10, 12)), "dim", 1.5, closed=True)
    for axillary in (36, 63):
        for top in range(50, 118, 8):
            yield _Shape(((axillary, top), (axillary, top + 4)), "dim", 1)


def _both(points: tuple[Point, ...]) -> tuple[tuple[Point, ...], tuple[Point, ...]]:
    """A line and its mirror image."""
    return points, tuple((WIDE - x, y) for x, y in points)


def _smooth(points: Sequence[Point]) -> tuple[Point, ...]:
    """A curve through the points (Catmull and Rom 1974)."""
    at = np.array([points[0], *points, points[-1]], np.float64)
    t = np.linspace(0, 1, 9)[:-1, None]
    curve = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(at, at[1:], at[2:], at[3:], strict=False)
    ]
    return tuple((float(x), float(y)) for x, y in np.vstack([*curve, at[-1:]]))


def _ring(centre: Point, across: float, along: float) -> list[Point]:
    turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    return [(centre[0] + across * math.cos(t), centre[1] + along * math.sin(t)) for t in turns]


def _mark(place: ZonePlace, mark: ZoneMark, negative: str, left: float, current: bool) -> Iterator[_Part]:
    x, y, r = left + WIDE * place.x, HIGH * place.y, float(REACH)
    if current:
        yield _Shape(tuple(_ring((x, y), r + 4, r + 4)), "text", 3, closed=True, fill="ground")
    text_at = x, y
    if mark.state == NOT_SCANNED:
        s = 0.72 * r
        square = ((x - s, y - s), (x + s, y - s), (x + s, y + s), (x - s, y + s))
        yield _Shape(square, "text", 1.5, closed=True, fill="ground")
        yield _Label(mark_text(mark), text_at, 15, "text")
    else:
        look, colour = look_of(mark.state, negative)
        if look == "normal":
            points = _ring((x, y), 0.88 * r, 0.88 * r)
        elif look == "unsure":
            points = [(x, y - r), (x + r, y), (x, y + r), (x - r, y)]
        else:
            points = [(x, y - 1.15 * r), (x + 1.2 * r, y + 0.86 * r), (x - 1.2 * r, y + 0.86 * r)]
            text_at = x, y + 0.45 * r
        yield _Shape(tuple(points), BLACK, 1, closed=True, fill=colour)
        yield _Label(mark_text(mark), text_at, 13 if len(mark_text(mark)) > 1 else 17, BLACK)
    if mark.by_clinician:
        tick = x + 0.85 * r, y - 0.7 * r
        yield _Shape(tuple(_ring(tick, 6.5, 6.5)), BLACK, 1, closed=True, fill=WHITE)
        yield _Shape(
            ((tick[0] - 3.2, tick[1]), (tick[0] - 0.8, tick[1] + 2.8), (tick[0] + 3.4, tick[1] - 2.8)),
            BLACK,
            2,
        )


def _svg(part: _Part) -> str:
    if isinstance(part, _Label):
        x, y = part.at
        return (
            f'<text x="{x:g}" y="{y + 0.35 * part.size:g}" font-size="{part.size:g}" font-weight="700" '
            f'font-family="sans-serif" text-anchor="middle" {_svg_paint("fill", part.ink)}>'
            f"{escape(part.text)}</text>"
        )
    kind = "polygon" if part.closed else "polyline"
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in part.points)
    fill = 'fill="none"' if part.fill in (None, "ground") else _svg_paint("fill", part.fill)
    return (
        f'<{kind} points="{points}" {fill} stroke-width="{part.width:g}" stroke-linejoin="round" '
        f"{_svg_paint('stroke', part.ink)}/>"
    )


def _svg_paint(what: str, colour: Colour | str | None) -> str:
    if isinstance(colour, tuple):
        blue, green, red = colour
        return f'{what}="#{red:02x}{green:02x}{blue:02x}"'
    faint = f' {what}-opacity="0.6"' if colour == "dim" else ""
    return f'{what}="currentColor"{faint}'
