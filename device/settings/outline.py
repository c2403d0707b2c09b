"""A beam's outline, corrected by hand: pure functions from beam to beam, and a history to undo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from device.settings.scanners import outline_fault
from reader.beam import Beam

Points = NDArray[np.float64]

SHARP = math.radians(25)
"""A corner turns by at least this; the steps of an arc turn by less."""
FEW = 8
"""An outline of so few points has a corner at each."""
CLOSE = 2.0
"""Pixels: points nearer than this say nothing about a turn."""
USUAL_HALF_ANGLE = math.radians(33)
ARC_POINTS = 33


def corners(beam: Beam) -> list[int]:
    """Which points of the outline are its corners, those that can be dragged."""
    points = np.asarray(beam.polygon)
    if len(points) <= FEW:
        return list(range(len(points)))
    apart = [0]
    for i in range(1, len(points)):
        if math.dist(points[i], points[apart[-1]]) >= CLOSE and math.dist(points[i], points[0]) >= CLOSE:
            apart.append(i)
    directions = np.diff(points[[*apart, apart[0]]], axis=0)
    angles = np.arctan2(directions[:, 1], directions[:, 0])
    turns = np.abs((angles - np.roll(angles, 1) + math.pi) % (2 * math.pi) - math.pi)
    sharp = [i for i, turn in zip(apart, turns, strict=True) if turn >= SHARP]
    return sharp if len(sharp) >= 3 else apart[:: max(len(apart) // FEW, 1)]


def with_corner_at(beam: Beam, corner: int, to: tuple[float, float]) -> Beam:
    """The corner at another place. Sides and arcs follow, the less the farther along from it.

    Where that would be nobody's beam, the beam as it was.
    """
    points, handles = np.asarray(beam.polygon, float), corners(beam)
    shift = np.asarray(to) - points[corner]
    place, count = handles.index(corner), len(points)
    for step in (1, -1):
        end = handles[(place + step) % len(handles)]
        way = [(corner + step * i) % count for i in range((end - corner) * step % count)]
        lengths = np.hypot(*np.diff(np.asarray(beam.polygon)[[*way, end]], axis=0).T)
        left = 1 - np.concatenate([[0], lengths.cumsum()]) / max(lengths.sum(), 1e-6)
        for i, share in zip(way[1:], left[1:-1], strict=True):
            points[i] += shift * share
    points[corner] += shift
    return _of(beam, points)


def moved(beam: Beam, right: float, down: float) -> Beam:
    """The whole outline moved by pixels, as far as the picture reaches."""
    points = np.asarray(beam.polygon)
    # Where it already reaches over an edge it may stay, and come back.
    most = np.maximum(np.asarray(beam.size) - points.max(axis=0), 0)
    least = np.minimum(-points.min(axis=0), 0)
    return _of(beam, points + np.clip((right, down), least, most))


def resized(beam: Beam, factor: float) -> Beam:
    """The outline larger or smaller about the middle of its box."""
    points = np.asarray(beam.polygon)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    return _of(beam, middle + (points - middle) * factor)


def linear(beam: Beam) -> Beam:
    """The upright rectangle around the outline."""
    (left, top), (right, bottom) = np.min(beam.polygon, axis=0), np.max(beam.polygon, axis=0)
    points = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return _of(beam, points, "linear")


def convex(beam: Beam) -> Beam:
    """The fan that fills the rectangle around the outline."""
    (left, top), (right, bottom) = np.min(beam.polygon, axis=0), np.max(beam.polygon, axis=0)
    width, height = right - left, bottom - top
    # A tall fan is a narrow one: its sides must meet above its upper edge.
    angle = min(USUAL_HALF_ANGLE, math.asin(min(width / (2.3 * height), 1.0)))
    far = width / (2 * math.sin(angle))
    apex = ((left + right) / 2, bottom - far)
    near = (top - apex[1]) / math.cos(angle)
    sweep = np.linspace(-angle, angle, ARC_POINTS)
    rim = np.stack([np.sin(sweep), np.cos(sweep)], axis=1)
    return _of(beam, np.concatenate([rim * near, rim[::-1] * far]) + apex, "convex")


def placed(size: tuple[int, int]) -> Beam:
    """A rectangle to begin with, where no beam was found."""
    width, height = size
    box = ((0.25, 0.15), (0.75, 0.15), (0.75, 0.85), (0.25, 0.85))
    return Beam(tuple((x * width, y * height) for x, y in box), size, "linear")


def parsed(text: str, size: tuple[int, int], shape: Literal["convex", "linear"]) -> Beam:
    """An outline written as ``x,y x,y x,y ...``, in pixels of the picture.

    Raises ValueError, in words, where it is none.
    """
    try:
        polygon = tuple((float(x), float(y)) for x, y in (corner.split(",") for corner in text.split()))
    except ValueError:
        raise ValueError(f"{text!r} is no outline: write x,y x,y x,y ... in pixels") from None
    if not all(math.isfinite(n) for corner in polygon for n in corner):
        raise ValueError(f"{text!r} is no outline: write numbers")
    beam = Beam(polygon, size, shape)
    fault = outline_fault(beam)
    if fault:
        raise ValueError(fault)
    return beam


def _of(beam: Beam, points: NDArray[Any], shape: Literal["convex", "linear"] | None = None) -> Beam:
    inside = np.clip(points, 0, beam.size)
    polygon = tuple((round(float(x), 1), round(float(y), 1)) for x, y in inside)
    changed = replace(beam, polygon=polygon, shape=shape or beam.shape)
    return beam if outline_fault(changed) else changed


class Correction:
    """An outline in hand: the beam now, a corner being dragged, and what it was before."""

    def __init__(self, beam: Beam) -> None:
        self.beam = beam
        self._before: list[Beam] = []
        self._held: int | None = None

    def change(self, beam: Beam) -> None:
        """Take a changed beam; ``undo`` goes back from it."""
        if beam != self.beam:
            self._before.append(self.beam)
            self.beam = beam

    def undo(self) -> None:
        """The beam before the last change, where there was one."""
        if self._before:
            self.beam = self._before.pop()

    def grip(self, at: tuple[float, float], reach: float) -> None:
        """Take hold of the nearest corner, if one lies within ``reach`` pixels."""
        nearest = min(corners(self.beam), key=lambda i: math.dist(self.beam.polygon[i], at))
        if math.dist(self.beam.polygon[nearest], at) <= reach:
            self._held = nearest
            self._before.append(self.beam)

    def drag(self, to: tuple[float, float]) -> None:
        """Move the held corner. A whole drag is one change."""
        if self._held is not None:
            self.beam = with_corner_at(self._before[-1], self._held, to)

    def release(self) -> None:
        """Let go of the corner."""
        if self._held is not None and self._before[-1] == self.beam:
            self._before.pop()
        self._held = None


def written(polygon: Sequence[tuple[float, float]]) -> str:
    """An outline as ``parsed`` takes it."""
    return " ".join(f"{x:g},{y:g}" for x, y in polygon)
