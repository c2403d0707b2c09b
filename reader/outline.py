"""The shapes that a beam can have, fitted to a picture of weights, and moved onto the echoes' edge.

A convex beam is a ring sector: two straight sides that mirror each other about a vertical axis,
and two arcs about the point where the sides meet (the geometry of curved-array scan conversion);
a phased array's has next to no near arc. A linear beam is an upright rectangle. Both may be cut off
by the edge of the picture.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

SECTOR_HALF_ANGLES = tuple(range(14, 56, 2))
"""Half opening angles tried for a convex beam, in degrees."""
ROUNDS = ((4, 8), (2, 4), (1, 2))
"""Side of the blocks in pixels, and how many opening angles go on to the next round."""
SECTOR_ADVANTAGE = 1.0025
"""A sector must hold this much more than a rectangle to be preferred: it has more freedom."""


def fill(polygon: NDArray[Any], shape: tuple[int, ...]) -> Image:
    """255 inside a polygon, float [n, 2], 0 outside: uint8 of this shape."""
    mask = np.zeros(shape, np.uint8)
    # Corner coordinates lie on pixel edges, OpenCV's on pixel centres; 4 fractional bits.
    cv2.fillPoly(mask, [np.round((polygon - 0.5) * 16).astype(np.int32)], 255, shift=4)
    return mask


@dataclass(frozen=True)
class Outline:
    """A ring sector cut by an upright box; a half angle of 0 is the box alone.

    ``left`` and ``right``: distances of the straight sides along their inward normals. ``near`` and
    ``far``: radii about the apex. ``box``: left, top, right, bottom. All in working pixels.
    """

    half_angle: float
    left: float
    right: float
    near: float
    far: float
    box: tuple[float, float, float, float]

    @property
    def shape(self) -> Literal["convex", "linear"]:
        """What kind of probe draws such a beam."""
        return "convex" if self.half_angle else "linear"

    @property
    def apex(self) -> tuple[float, float]:
        """Where the straight sides meet, which is the centre of both arcs."""
        sine, cosine = math.sin(self.half_angle), math.cos(self.half_angle)
        return (self.left - self.right) / (2 * cosine), (self.left + self.right) / (2 * sine)

    def polygon(self) -> NDArray[Any]:
        """The corners, float [n, 2] in working pixels."""
        left, top, right, bottom = self.box
        if not self.half_angle:
            return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        angles = np.linspace(-self.half_angle, self.half_angle, 33)
        rim = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        arcs = np.concatenate([rim * max(self.near, 0), rim[::-1] * self.far])
        return _cut(arcs + np.array(self.apex), self.box)


def _cut(ring: NDArray[Any], box: tuple[float, float, float, float]) -> NDArray[Any]:
    """Clip a polygon by a box (Sutherland and Hodgman 1974)."""
    left, top, right, bottom = box
    for axis, limit, sign in ((0, left, 1), (0, right, -1), (1, top, 1), (1, bottom, -1)):
        kept: list[NDArray[Any]] = []
        inside = (ring[:, axis] - limit) * sign >= 0
        for i in range(len(ring)):
            a, b, a_in, b_in = ring[i - 1], ring[i], inside[i - 1], inside[i]
            if a_in != b_in:
                kept.append(a + (b - a) * (limit - a[axis]) / (b[axis] - a[axis]))
            if b_in:
                kept.append(b)
        if not kept:
            return np.zeros((0, 2))
        ring = np.array(kept)
    return ring


class _Grid:
    """The centres of a picture's pixels, and their distances along what bounds an outline."""

    def __init__(self, shape: tuple[int, ...], step: int = 1) -> None:
        """``step``: side of the blocks that stand for their pixels."""
        rows, columns = np.mgrid[: shape[0] : step, : shape[1] : step].astype(np.float32)
        self.x, self.y = (columns + step / 2).ravel(), (rows + step / 2).ravel()
        self.box = (0.0, 0.0, float(shape[1]), float(shape[0]))

    def sides(self, half_angle: float) -> tuple[Float, Float]:
        cosine, sine = math.cos(half_angle), math.sin(half_angle)
        return self.x * cosine + self.y * sine, -self.x * cosine + self.y * sine

    def radius(self, outline: Outline) -> Float:
        x, y = outline.apex
        return np.hypot(self.x - x, self.y - y)

    def in_box(self, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
        left, top, right, bottom = box
        return (self.x >= left) & (self.x <= right) & (self.y >= top) & (self.y <= bottom)

    def in_sector(self, outline: Outline) -> NDArray[np.bool_]:
        if not outline.half_angle:
            return np.ones(self.x.shape, bool)
        u, v = self.sides(outline.half_angle)
        radius = self.radius(outline)
        inside: NDArray[np.bool_] = (u >= outline.left) & (v >= outline.right)
        return inside & (radius >= outline.near) & (radius <= outline.far)


def fit(weights: Float, rough: bool = False) -> Outline:
    """The outline with the largest sum of weights, float32 [h, w], inside it.

    Every opening angle is tried on blocks of pixels; the best are tried again on smaller ones.
    ``rough``: leave it at blocks, which takes a third of the time.
    """
    angles = [(math.radians(angle), False) for angle in SECTOR_HALF_ANGLES]
    # A sector that a window on the scanner's screen cuts off is found within that window.
    angles += [(math.radians(angle), True) for angle in SECTOR_HALF_ANGLES[::2]]
    for step, finalists in ROUNDS[:-1] if rough else ROUNDS:
        grid, flat = _Grid(weights.shape, step), _in_blocks(weights, step).ravel()
        box, score = _best_box(grid, flat, np.ones(flat.shape, bool), grid.box)
        fits = [(*_best_sector(grid, flat, a, box if boxed else grid.box), (a, boxed)) for a, boxed in angles]
        fits.sort(key=lambda trial: -trial[0])
        angles = [trial[2] for trial in fits[:finalists]]
    within, sector, _ = fits[0]
    for turn in () if rough else (-1.0, 1.0, -0.5, 0.5):
        trial = _best_sector(grid, flat, sector.half_angle + math.radians(turn), sector.box)
        if trial[0] > within:
            within, sector = trial
    return sector if within > score * SECTOR_ADVANTAGE else Outline(0.0, 0.0, 0.0, 0.0, 0.0, box)


def _in_blocks(weights: Float, side: int) -> Float:
    """The sums over square blocks of pixels."""
    rows, columns = weights.shape
    padded = np.pad(weights, ((0, -rows % side), (0, -columns % side)))
    blocks = padded.reshape(padded.shape[0] // side, side, padded.shape[1] // side, side)
    return blocks.sum(axis=(1, 3))


def _best_box(
    grid: _Grid, weights: Float, among: NDArray[np.bool_], box: tuple[float, float, float, float]
) -> tuple[tuple[float, float, float, float], float]:
    """The box around part of the pixels with the largest sum, each edge set in turn, and the sum."""
    left, top, right, bottom = box
    score = 0.0
    for _ in range(2):
        left, _ = _best_cut(grid.x, weights, among & grid.in_box((-1.0, top, right, bottom)))
        right, _ = _best_cut(-grid.x, weights, among & grid.in_box((left, top, 1e5, bottom)))
        right = -right
        top, _ = _best_cut(grid.y, weights, among & grid.in_box((left, -1.0, right, bottom)))
        bottom, score = _best_cut(-grid.y, weights, among & grid.in_box((left, top, right, 1e5)))
        bottom = -bottom
    return (left, top, right, bottom), score


def _best_sector(
    grid: _Grid, weights: Float, half_angle: float, box: tuple[float, float, float, float]
) -> tuple[float, Outline]:
    """Set each side and arc in turn to its best place, the others held, until they settle."""
    u, v = grid.sides(half_angle)
    boxed = grid.in_box(box)
    outline = Outline(half_angle, -1e4, -1e4, -1e4, 1e4, box)
    between_arcs = boxed
    score = 0.0
    for _ in range(4):
        left, _ = _best_cut(u, weights, (v >= outline.right) & between_arcs)
        right, score = _best_cut(v, weights, (u >= left) & between_arcs)
        moved = Outline(half_angle, left, right, outline.near, outline.far, box)
        radius = grid.radius(moved)
        between_sides = boxed & (u >= left) & (v >= right)
        far, _ = _best_cut(-radius, weights, between_sides & (radius >= outline.near))
        near, score = _best_cut(radius, weights, between_sides & (radius <= -far))
        settled = (outline.left, outline.right, outline.near, outline.far) == (left, right, near, -far)
        outline = Outline(half_angle, left, right, near, -far, box)
        between_arcs = boxed & (radius >= near) & (radius <= -far)
        if settled:
            break
    return score, outline


def _best_cut(position: Float, weights: Float, among: NDArray[np.bool_]) -> tuple[float, float]:
    """The lower bound on ``position`` that keeps the largest sum of weights, and that sum."""
    chosen, values = position[among], weights[among]
    if not chosen.size:
        return 0.0, 0.0
    start = math.floor(float(chosen.min()))
    sums = np.bincount((chosen - start).astype(np.int64), values)
    kept = sums[::-1].cumsum()[::-1]
    # Of equal sums the widest beam.
    index = int(np.argmax(kept))
    return float(start + index), float(kept[index])


def settle_on_edges(outline: Outline, picture: Float) -> Outline:
    """Move each bound by a few pixels onto the steepest step from dark to light.

    Compression leaves a dim fringe outside the beam; the echoes' own edge is the steeper one.
    """
    grid, root = _Grid(picture.shape), np.sqrt(picture).ravel()
    sector = grid.in_sector(outline)
    left, top, right, bottom = outline.box
    box = (
        _steepest(grid.x, root, sector & grid.in_box((-9.0, top, right, bottom)), left),
        _steepest(grid.y, root, sector & grid.in_box((left, -9.0, right, bottom)), top),
        -_steepest(-grid.x, root, sector & grid.in_box((left, top, 1e5, bottom)), -right),
        -_steepest(-grid.y, root, sector & grid.in_box((left, top, right, 1e5)), -bottom),
    )
    if not outline.half_angle:
        return dataclasses.replace(outline, box=box)
    boxed = grid.in_box(outline.box)
    u, v = grid.sides(outline.half_angle)
    radius = grid.radius(outline)
    arcs = boxed & (radius >= outline.near) & (radius <= outline.far)
    sides = boxed & (u >= outline.left) & (v >= outline.right)
    moved = dataclasses.replace(
        outline,
        left=_steepest(u, root, arcs & (v >= outline.right), outline.left),
        right=_steepest(v, root, arcs & (u >= outline.left), outline.right),
        box=box,
    )
    # The arcs keep their place in the picture although the apex has moved with the sides.
    drop = moved.apex[1] - outline.apex[1]
    return dataclasses.replace(
        moved,
        near=_steepest(radius, root, sides, outline.near) - drop,
        far=-_steepest(-radius, root, sides, -outline.far) - drop,
    )


def _steepest(position: Float, root: Float, among: NDArray[np.bool_], start: float, reach: int = 4) -> float:
    """Within ``reach`` pixels of ``start``, the place with the largest rise of the mean level."""
    low = math.floor(start) - reach - 3
    bins = (position[among] - low).astype(np.int64)
    near = (bins >= 0) & (bins < 2 * reach + 7)
    counts = np.bincount(bins[near], minlength=2 * reach + 7)
    if counts.min() < 4:
        return start
    profile = np.bincount(bins[near], root[among][near], 2 * reach + 7) / counts
    steps = [profile[i : i + 2].mean() - profile[i - 2 : i].mean() for i in range(2, 2 * reach + 5)]
    best = int(np.argmax(steps))
    return float(low + 2 + best) if steps[best] > 0.3 else start


def retreat(outline: Outline, marks: NDArray[np.bool_], reach: float) -> Outline:
    """Draw each bound in past the marks, bool [h, w], that lie inside but within ``reach`` of it."""
    grid = _Grid(marks.shape)
    left, top, right, bottom = outline.box
    inside = marks.ravel() & grid.in_box(outline.box) & grid.in_sector(outline)
    if not inside.any():
        return outline
    x, y = grid.x[inside], grid.y[inside]
    depths = [x - left, y - top, right - x, bottom - y]
    if outline.half_angle:
        u, v = (side[inside] for side in grid.sides(outline.half_angle))
        radius = grid.radius(outline)[inside]
        depths += [u - outline.left, v - outline.right, radius - outline.near, outline.far - radius]
    depth = np.stack(depths)
    nearest = depth.argmin(axis=0)
    steps = [
        max((float(d) + 1.5 for d in depth[i][nearest == i] if d < reach), default=0.0)
        for i in range(len(depths))
    ]
    box = (left + steps[0], top + steps[1], right - steps[2], bottom - steps[3])
    if not outline.half_angle:
        return dataclasses.replace(outline, box=box)
    moved = dataclasses.replace(
        outline, left=outline.left + steps[4], right=outline.right + steps[5], box=box
    )
    drop = moved.apex[1] - outline.apex[1]
    return dataclasses.replace(moved, near=outline.near + steps[6] - drop, far=outline.far - steps[7] - drop)
