"""Find the ultrasound beam in a scanner's picture: the fan or rectangle that carries echoes.

Only the beam may reach the network, the store and the screen. Vendor layout and burnt-in text are
shortcuts for the network and patient names for everybody else.

A convex beam is a ring sector: two straight sides that mirror each other about a vertical axis,
and two arcs about the point where the sides meet (the geometry of curved-array scan conversion).
A linear beam is an upright rectangle. Both may be cut off by the edge of the picture. The finder
chooses the sector or rectangle that holds the most lit pixels and the fewest dark ones; dark ones
count for less, because ribs and lost contact throw shadows inside the beam.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

WORKING_SIZE = 192
"""Longest side, in pixels, of the picture that the finder works on."""
DARK_WEIGHT = 0.10
"""What a dark pixel inside the beam costs, where a lit one gains 1. Chosen on half of the drawn
outlines; see docs/beam.md."""
LIT_MARGIN = 2.5
"""Gray levels above the background from which a pixel counts as lit."""
SECTOR_HALF_ANGLES = tuple(range(14, 56, 2))
"""Half opening angles tried for a convex beam, in degrees."""
SECTOR_ADVANTAGE = 1.0025
"""A sector must hold this much more than a rectangle to be preferred: it has more freedom."""
SMALLEST_AREA = 0.04
"""Beams that cover less of the picture than this are not believed."""
THINNEST = 7
"""Working pixels: what is thinner, across or down, is text, a ruler, a title bar or a gray bar."""
FLATTEST = 0.3
"""Height over width under which an outline is a banner, not a beam."""
SMALLEST_LIT_SHARE = 0.3
"""At least this share of a beam is lit."""
SMALLEST_AGREEMENT = 0.45
"""Lit pixels inside the outline over all pixels that are lit or inside it: under this, no beam."""


@dataclass(frozen=True)
class Beam:
    """Where the beam lies in a source picture.

    ``polygon``: outline in source pixels, clockwise from the top left, [[x, y], ...].
    ``size``: width and height of the source picture that the polygon belongs to.
    ``shape``: ``convex`` (a fan) or ``linear`` (a rectangle).
    ``levels``: gray levels that the source uses for black and white, (0, 255) or (16, 235).
    """

    polygon: tuple[tuple[float, float], ...]
    size: tuple[int, int]
    shape: Literal["convex", "linear"]
    levels: tuple[int, int] = (0, 255)

    @property
    def bounds(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in whole pixels; right and bottom are exclusive."""
        xy = np.asarray(self.polygon)
        left, top = np.floor(xy.min(axis=0)).astype(int)
        right, bottom = np.ceil(xy.max(axis=0)).astype(int)
        width, height = self.size
        return max(int(left), 0), max(int(top), 0), min(int(right), width), min(int(bottom), height)

    def mask(self) -> Image:
        """255 inside the beam, 0 outside: uint8 [height, width] of the source picture."""
        width, height = self.size
        return _fill(np.asarray(self.polygon), (height, width))

    def scaled(self, width: int, height: int) -> Beam:
        """The same beam in a picture of another size."""
        fx, fy = width / self.size[0], height / self.size[1]
        polygon = tuple((x * fx, y * fy) for x, y in self.polygon)
        return Beam(polygon, (width, height), self.shape, self.levels)

    def to_json(self) -> dict[str, Any]:
        """The beam as plain JSON values: what a scanner profile holds."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Beam:
        """The inverse of ``to_json``. Raises ValueError when a field is missing or out of range."""
        try:
            polygon = tuple((float(x), float(y)) for x, y in value["polygon"])
            width, height = (int(n) for n in value["size"])
            low, high = (int(n) for n in value.get("levels", (0, 255)))
            shape = value["shape"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a beam: {error}") from error
        if len(polygon) < 3 or min(width, height) < 1 or shape not in ("convex", "linear"):
            raise ValueError("a beam needs three corners, a picture size and a known shape")
        if not 0 <= low < high <= 255:
            raise ValueError(f"levels {low}-{high} are not a range within 0-255")
        return cls(polygon, (width, height), shape, (low, high))


def find_beam(image: Image) -> Beam | None:
    """Find the beam in one picture: uint8 [h, w] or BGR [h, w, 3]. None where there is none."""
    finder = BeamFinder()
    finder.add(image)
    return finder.beam()


@dataclass
class BeamFinder:
    """Gathers frames of one scanner and finds the beam in all of them together.

    Echoes move and the noise of compression averages out, so a few seconds of frames show the
    outline better than one does.
    """

    _size: tuple[int, int] = (0, 0)
    _sum: Float | None = None
    _brightest: Float | None = None
    _darkest_black: int = 255
    frames: int = field(default=0)

    def add(self, image: Image) -> None:
        """Take a frame in: uint8 [h, w] or BGR [h, w, 3], of one size until ``reset``.

        Raises ValueError when the size changes.
        """
        size = (image.shape[1], image.shape[0])
        if self.frames and size != self._size:
            raise ValueError(f"frame of {size} after frames of {self._size}: reset the finder")
        small = _shrink(gray(image))
        self._darkest_black = min(self._darkest_black, int(np.percentile(small, 1)))
        self._size, self.frames = size, self.frames + 1
        if self._sum is None or self._brightest is None:
            self._sum, self._brightest = small.copy(), small.copy()
        else:
            self._sum += small
            np.maximum(self._brightest, small, out=self._brightest)

    def reset(self) -> None:
        """Forget every frame."""
        self.__init__()  # type: ignore[misc]

    def beam(self) -> Beam | None:
        """The beam in the frames so far, or None where there is none."""
        if self._sum is None or self._brightest is None or min(self._size) < 16:
            return None
        picture = (0.5 * (self._sum / self.frames + self._brightest)).astype(np.float32)
        outline = _best_outline(picture)
        if outline is None:
            return None
        shape, polygon = outline
        scale = self._size[0] / picture.shape[1]
        corners = tuple((round(float(x), 1), round(float(y), 1)) for x, y in polygon * scale)
        return Beam(corners, self._size, shape, self._levels())

    def _levels(self) -> tuple[int, int]:
        """Studio range (ITU-R BT.601) where nothing is darker than its black, else full range."""
        assert self._brightest is not None
        studio = 12 <= self._darkest_black <= 20 and float(self._brightest.max()) <= 240
        return (16, 235) if studio else (0, 255)


def gray(image: Image) -> Image:
    """One gray channel, uint8 [h, w], of a gray or BGR picture."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]


def _shrink(image: Image) -> Float:
    scale = WORKING_SIZE / max(image.shape)
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method).astype(np.float32)


def _fill(polygon: NDArray[Any], shape: tuple[int, int]) -> Image:
    mask = np.zeros(shape, np.uint8)
    # Corner coordinates lie on pixel edges, OpenCV's on pixel centres; 4 fractional bits.
    cv2.fillPoly(mask, [np.round((polygon - 0.5) * 16).astype(np.int32)], 255, shift=4)
    return mask


def _best_outline(picture: Float) -> tuple[Literal["convex", "linear"], NDArray[Any]] | None:
    best: tuple[float, _Outline, NDArray[np.bool_]] | None = None
    for background in _background_levels(picture):
        lit = _lit(picture, background)
        if lit.mean() < SMALLEST_AREA * SMALLEST_LIT_SHARE:
            continue
        outline = _fit(np.where(lit, 1.0, -DARK_WEIGHT).astype(np.float32))
        merit = _merit(outline, lit, picture)
        if best is None or merit > best[0]:
            best = merit, outline, lit
    if best is None or not _believable(best[1], best[2]):
        return None
    outline = _settle_on_edges(best[1], picture)
    return outline.shape, outline.polygon()


def _background_levels(picture: Float) -> list[float]:
    """Levels that large even areas have: black, the scanner's gray, and none at all (-5)."""
    spread = cv2.dilate(picture, np.ones((5, 5))) - cv2.erode(picture, np.ones((5, 5)))
    even = picture[(spread <= 3.0) & (picture < 56)]
    if even.size < 0.004 * picture.size:
        return [-LIT_MARGIN - 1]
    counts = np.bincount(even.astype(int), minlength=56).astype(float)
    counts = np.convolve(counts, (1, 1, 1), "same")
    peaks = [
        level
        for level in range(56)
        if counts[level] >= 0.01 * picture.size
        and counts[level] == counts[max(level - 3, 0) : level + 4].max()
    ]
    return [float(level) for level in sorted(peaks, key=lambda n: -counts[n])[:3]] or [0.0]


def _lit(picture: Float, background: float) -> NDArray[np.bool_]:
    """The largest body of pixels brighter than the background, small text dropped."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.6)
    above = (smooth > background + LIT_MARGIN).astype(np.uint8)
    opened: NDArray[Any] = above
    for line in (np.ones((THINNEST, 1), np.uint8), np.ones((1, THINNEST), np.uint8)):
        opened = cv2.morphologyEx(opened, cv2.MORPH_OPEN, line, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    joined = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    if count < 2:
        return np.zeros(picture.shape, bool)
    areas = stats[1:, cv2.CC_STAT_AREA]
    tall = stats[1:, cv2.CC_STAT_HEIGHT] >= FLATTEST * stats[1:, cv2.CC_STAT_WIDTH]
    # Rib shadows can part a beam: keep every body that is not small beside the largest, unless it
    # is as flat as a scanner's title bar.
    kept = [
        i + 1
        for i, area in enumerate(areas)
        if area == areas.max() or (tall[i] and area >= 0.15 * areas.max())
    ]
    return np.asarray(np.isin(labels, kept) & (opened > 0))


@dataclass(frozen=True)
class _Outline:
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
        return "convex" if self.half_angle else "linear"

    @property
    def apex(self) -> tuple[float, float]:
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

    def __init__(self, shape: tuple[int, ...]) -> None:
        rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        self.x, self.y = (columns + 0.5).ravel(), (rows + 0.5).ravel()
        self.box = (0.0, 0.0, float(shape[1]), float(shape[0]))

    def sides(self, half_angle: float) -> tuple[Float, Float]:
        cosine, sine = math.cos(half_angle), math.sin(half_angle)
        return self.x * cosine + self.y * sine, -self.x * cosine + self.y * sine

    def radius(self, outline: _Outline) -> Float:
        x, y = outline.apex
        return np.hypot(self.x - x, self.y - y)

    def in_box(self, box: tuple[float, float, float, float]) -> NDArray[np.bool_]:
        left, top, right, bottom = box
        return (self.x >= left) & (self.x <= right) & (self.y >= top) & (self.y <= bottom)

    def in_sector(self, outline: _Outline) -> NDArray[np.bool_]:
        if not outline.half_angle:
            return np.ones(self.x.shape, bool)
        u, v = self.sides(outline.half_angle)
        radius = self.radius(outline)
        inside: NDArray[np.bool_] = (u >= outline.left) & (v >= outline.right)
        return inside & (radius >= outline.near) & (radius <= outline.far)


def _fit(weights: Float) -> _Outline:
    """The outline with the largest sum of weights inside it."""
    grid, flat = _Grid(weights.shape), weights.ravel()
    box, score = _best_box(grid, flat, np.ones(flat.shape, bool), grid.box)
    best = _Outline(0.0, 0.0, 0.0, 0.0, 0.0, box)
    sectors = [_best_sector(grid, flat, math.radians(angle), grid.box) for angle in SECTOR_HALF_ANGLES]
    # A sector that a window on the scanner's screen cuts off is found within that window.
    sectors += [_best_sector(grid, flat, math.radians(angle), box) for angle in SECTOR_HALF_ANGLES[::2]]
    within, sector = max(sectors, key=lambda fit: fit[0])
    for turn in (-1.0, 1.0, -0.5, 0.5):
        trial = _best_sector(grid, flat, sector.half_angle + math.radians(turn), sector.box)
        if trial[0] > within:
            within, sector = trial
    return sector if within > score * SECTOR_ADVANTAGE else best


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
) -> tuple[float, _Outline]:
    """Set each side and arc in turn to its best place, the others held, until they settle."""
    u, v = grid.sides(half_angle)
    boxed = grid.in_box(box)
    outline = _Outline(half_angle, -1e4, -1e4, -1e4, 1e4, box)
    between_arcs = boxed
    score = 0.0
    for _ in range(4):
        left, _ = _best_cut(u, weights, (v >= outline.right) & between_arcs)
        right, score = _best_cut(v, weights, (u >= left) & between_arcs)
        moved = _Outline(half_angle, left, right, outline.near, outline.far, box)
        radius = grid.radius(moved)
        between_sides = boxed & (u >= left) & (v >= right)
        far, _ = _best_cut(-radius, weights, between_sides & (radius >= outline.near))
        near, score = _best_cut(radius, weights, between_sides & (radius <= -far))
        settled = (outline.left, outline.right, outline.near, outline.far) == (left, right, near, -far)
        outline = _Outline(half_angle, left, right, near, -far, box)
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


def _merit(outline: _Outline, lit: NDArray[np.bool_], picture: Float) -> float:
    """How well an outline parts lit from dark: agreement, and contrast across its own edges."""
    mask = _fill(outline.polygon(), picture.shape) > 0
    overlap = float((mask & lit).sum()) / max(float((mask | lit).sum()), 1.0)
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))).astype(bool) & ~mask
    core = mask & ~cv2.erode(
        mask.astype(np.uint8), np.ones((7, 7)), borderType=cv2.BORDER_CONSTANT, borderValue=1
    ).astype(bool)
    if ring.sum() < 20 or core.sum() < 20:
        return overlap * 0.5
    root = np.sqrt(picture)
    return overlap + 0.1 * float(np.clip(root[core].mean() - root[ring].mean(), -2, 4))


def _believable(outline: _Outline, lit: NDArray[np.bool_]) -> bool:
    polygon = outline.polygon()
    if len(polygon) < 3:
        return False
    width, height = np.ptp(polygon, axis=0)
    mask = _fill(polygon, lit.shape) > 0
    inside = mask & lit
    return bool(
        mask.mean() >= SMALLEST_AREA
        and height >= FLATTEST * width
        and inside.sum() >= SMALLEST_LIT_SHARE * mask.sum()
        and inside.sum() >= SMALLEST_AGREEMENT * (mask | lit).sum()
    )


def _settle_on_edges(outline: _Outline, picture: Float) -> _Outline:
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
