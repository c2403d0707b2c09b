"""Where on a scanner's screen the beam is: which part is alive, and which outline holds it.

On a bare picture the finder takes for lit what is brighter than the even levels around. On a whole
screen that is not enough: menus, gray bars and thumbnails are lit as well, and a light console is
brighter than any echo. There it goes by what moves. Echoes never stand still, not even in dark parts
of the beam, and all around them does. So the box that moves is looked at closer, what stands still in
it is wiped out, and the outline is fitted to what is left. A single frame shows no movement: there
the search goes by brightness alone, and twice: once over the whole, once closer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.outline import Outline, fill, fit, retreat, settle_on_edges

Image = NDArray[np.uint8]
Float = NDArray[np.float32]
Bits = NDArray[np.bool_]
Box = tuple[int, int, int, int]
Pixels = TypeVar("Pixels", Image, Float)

WORKING_SIZE = 192
"""Longest side, in pixels, of the picture that an outline is fitted to."""
DARK_WEIGHT = 0.10
"""What a dark pixel inside the beam costs, where a lit one gains 1. Chosen on half of the drawn
outlines; see docs/beam.md."""
DEAD_WEIGHT = 0.06
"""The same where lit means moving."""
FOREIGN_WEIGHT = 0.3
"""What a pixel costs that stands still although it is neither dark nor the console's level."""
FOREIGN_MARGIN = 12.0
"""Gray levels off the console's level from which a pixel that stands still is such."""
LIT_MARGIN = 2.5
"""Gray levels above the background from which a pixel counts as lit."""
NOISE_FACTOR = 2.0
"""Times the change of the stillest tenth of the picture, plus ``LEAST_CHANGE``: what moves."""
LEAST_CHANGE = 0.2
"""Gray levels, mean step from frame to frame; under it there is only the noise of compression."""
EVEN_CHANGE, MOST_NOISE = 0.15, 1.5
"""Spread, beyond half of itself, and amount of a change that is noise and not a beam's."""
FEEBLE = 0.1
"""Share of the beam's usual change under which a change is noise."""
WHOLE_SHARE = 0.75
"""Share of the picture from which the part that moves is all of it: a bare clip."""
STRAY_SHARE = 0.02
"""Share of the picture that may move outside that part: a clock, a cursor."""
CLOSER_SHARE = 0.45
"""Share of the picture under which a beam found by its brightness is looked at closer."""
LIGHT, GRAY = 30.0, 4.0
"""Levels from which what lies around the beam is a light console; a gray one."""
RETREAT = 6.0
"""Working pixels by which a bound may draw in to leave text outside."""
STROKE_HEIGHT = 60.0
"""Gray levels by which writing stands out from what is around it."""
STILL_SHARE = 0.8
"""Share of the beam's usual change that writing stays under: compression makes it flicker too."""
SMALLEST_AREA = 0.025
"""Beams that cover less of the picture than this are not believed."""
THINNEST = 7
"""Working pixels: what is thinner, across or down, is text, a ruler, a title bar or a gray bar."""
FLATTEST = 0.3
"""Height over width under which an outline is a banner, not a beam."""
SMALLEST_LIT_SHARE = 0.3
"""At least this share of a beam is lit."""
SMALLEST_AGREEMENT = 0.45
"""Lit pixels inside the outline over all pixels that are lit or inside it: under this, no beam."""

Found = tuple[Literal["convex", "linear"], NDArray[Any]]


def shrink(image: Pixels) -> Pixels:
    """The picture, uint8 or float32 [h, w], with its longest side at ``WORKING_SIZE``."""
    scale = WORKING_SIZE / max(image.shape)
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=method)  # type: ignore[return-value]


def find_outline(picture: Float, small: Float, darkest: Image, change: Float) -> Found | None:
    """The beam's shape and corners, in pixels of ``picture``, or None where there is none.

    ``picture``: the frames, blended; ``small``: the same shrunk; ``darkest``: of the frames, by pixel;
    ``change``: mean step between frames in gray levels. All float32 [h, w] but ``darkest``, uint8.
    """
    alive = _alive(change)
    found = None if alive is None else _look_closer(picture, darkest, change, *alive)
    if found is not None:
        return found
    outline = _best_outline(_by_brightness(small))
    if outline is None:
        return None
    scale = picture.shape[1] / small.shape[1]
    return _look_again(picture, outline.shape, outline.polygon() * scale)


def _apart_from_console(picture: Float, darkest: float = LIGHT) -> list[Float]:
    """The picture's distance from the even gray or white around it, where there is one."""
    rim = _rim(picture)
    level = float(np.median(rim))
    if level < darkest or (np.abs(rim - level) < 3).mean() < 0.5:
        return []
    return [np.abs(picture - level)]


def _rim(picture: Float) -> Float:
    """The pixels along the picture's four edges, two deep."""
    return np.concatenate(
        [part.ravel() for part in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:])]
    )


def _look_again(picture: Float, shape: Literal["convex", "linear"], polygon: NDArray[Any]) -> Found:
    """The outline found anew at a finer scale, where it fills a small part of the picture only, or
    within it, where it is the console's window around the beam."""
    most = (0, 0, picture.shape[1], picture.shape[0])
    for _ in range(2):
        left, top = np.maximum(polygon.min(axis=0), 0)
        right, bottom = np.minimum(polygon.max(axis=0), picture.shape[::-1])
        window = shape == "linear" and _has_even_rim(picture, (left, top, right, bottom))
        room = (most[2] - most[0]) * (most[3] - most[1])
        if not window and (right - left) * (bottom - top) > CLOSER_SHARE * room:
            break
        margin = 0.1 * max(right - left, bottom - top)
        if window:
            margin = -0.02 * max(right - left, bottom - top) - 1
        box = (
            max(round(left - margin), most[0]),
            max(round(top - margin), most[1]),
            min(round(right + margin), most[2]),
            min(round(bottom + margin), most[3]),
        )
        most = box if window else most
        near = np.round(shrink(picture[box[1] : box[3], box[0] : box[2]]))
        outline = _best_outline(_by_brightness(near), rough=True)
        if outline is None:
            break
        shape = outline.shape
        polygon = outline.polygon() * ((box[2] - box[0]) / near.shape[1]) + (box[0], box[1])
        if not window:
            break
    return shape, polygon


def _set_in(picture: Float, body: Bits) -> Outline | None:
    """The fan, where it is cut out of an even gray that shows its whole outline.

    A rectangle proves nothing: it may be a window around the beam.
    """
    for apart in _apart_from_console(picture, GRAY):
        lit = _closed(_lit(apart, 0.0), 7) > 0
        if (body & ~lit).sum() > 0.03 * body.sum():
            continue
        outline = fit(np.where(lit, 1.0, -0.5).astype(np.float32))
        mask = fill(outline.polygon(), picture.shape) > 0 if outline.half_angle else np.zeros_like(lit)
        if (mask & lit).sum() > 0.96 * (mask | lit).sum():
            return settle_on_edges(outline, apart)
    return None


def _has_even_rim(picture: Float, box: tuple[float, float, float, float]) -> bool:
    """Whether the picture is of one level along most of the inner side of a box."""
    left, top, right, bottom = (round(n) for n in box)
    inner = picture[top:bottom, left:right]
    reach = round(0.02 * max(inner.shape)) + 1
    if min(inner.shape) < 6 * reach:
        return False
    inner = inner[reach:-reach, reach:-reach]
    rim = _rim(inner)
    return bool((np.abs(rim - np.median(rim)) < LIT_MARGIN).mean() > 0.5)


def _alive(change: Float) -> tuple[Box, float] | None:
    """The box, in pixels, outside which the picture stands still, and the change that is noise.

    None where nothing changes or the change is all over.
    """
    small = shrink(change)
    limit = float(np.percentile(small, 10)) * NOISE_FACTOR + LEAST_CHANGE
    body = _living_body(small, limit)
    if body.mean() < SMALLEST_AREA * SMALLEST_LIT_SHARE:
        return None
    x, y, width, height = cv2.boundingRect(_one_view(body, small).astype(np.uint8))
    margin = round(0.12 * max(width, height)) + 2
    left, top = max(x - margin, 0), max(y - margin, 0)
    right, bottom = min(x + width + margin, small.shape[1]), min(y + height + margin, small.shape[0])
    if (right - left) * (bottom - top) > WHOLE_SHARE * small.size:
        return None
    outside = ~body
    outside[top:bottom, left:right] = False
    if (small[outside] > limit).sum() > STRAY_SHARE * small.size or not _is_even(small[outside]):
        return None
    scale = change.shape[1] / small.shape[1]
    box = round(left * scale), round(top * scale), round(right * scale), round(bottom * scale)
    return box, limit


def _is_even(change: Float) -> bool:
    """Whether a change is the same all over, as noise is, and the movement of echoes never."""
    low, middle, high = np.percentile(change, (10, 50, 90))
    return bool(high - low < EVEN_CHANGE + 0.5 * middle) and middle < MOST_NOISE


def _one_view(body: Bits, change: Float) -> Bits:
    """Of two bodies of one size side by side, as in a dual view, the one that moves more; else all."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(body.astype(np.uint8))
    if count < 3:
        return body
    first, second = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:2]
    if not _alike(stats[first][:4], stats[second][:4]):
        return body
    return np.asarray(labels == max((first, second), key=lambda i: float(change[labels == i].sum())))


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two boxes (left, top, width, height) stand side by side and are of about one size."""
    (x, y, width, height), (left, top, wide, high) = one, other
    return bool(
        (left >= x + width - 3 or left + wide <= x + 3)
        and 0.75 < high / height < 1.33
        and 0.65 < wide / width < 1.5
        and min(y + height, top + high) - max(y, top) > 0.8 * high
    )


def _living_body(change: Float, limit: float) -> Bits:
    return _body(_closed(cv2.GaussianBlur(change, (0, 0), 1.0) > limit, 5))


def _closed(bits: Bits, gap: int) -> Image:
    """The pixels, 0 or 1, with gaps narrower than this many pixels closed."""
    return np.asarray(
        cv2.morphologyEx(bits.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((gap, gap), np.uint8)), np.uint8
    )


def _look_closer(picture: Float, darkest: Image, change: Float, box: Box, limit: float) -> Found | None:
    """The beam within a box, what stands still and is no part of it wiped out first."""
    left, top, right, bottom = box
    near, moving = shrink(picture[top:bottom, left:right]), shrink(change[top:bottom, left:right])
    limit = max(limit, FEEBLE * float(np.median(moving[moving > limit])))
    body = _living_body(moving, limit)
    about = cv2.dilate(body.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    still = near[about & ~body]
    background = float(np.median(still)) if still.size else 0.0
    clean = np.where(body | (about & (moving > 0.5 * limit)), np.abs(near - background), 0).astype(np.float32)
    foreign = ~body & (moving <= 0.5 * limit) & (np.abs(near - background) > FOREIGN_MARGIN)
    guesses = [_Guess(clean, body, DEAD_WEIGHT, foreign)]
    outline = _set_in(near, body) or _best_outline(guesses, rough=True)
    if outline is None:
        return None
    scale = (right - left) / near.shape[1]
    strokes = _strokes(darkest[top:bottom, left:right], change[top:bottom, left:right], max(limit, 1.0))
    marks = shrink(strokes.astype(np.float32)) > 0.05
    outline = retreat(outline, marks, RETREAT)
    return outline.shape, outline.polygon() * scale + (left, top)


@dataclass(frozen=True)
class _Guess:
    """A picture, 0 where there is nothing, and which of its pixels are taken for the beam's."""

    picture: Float
    lit: Bits
    dark_weight: float = DARK_WEIGHT
    foreign: Bits | None = None

    @property
    def weights(self) -> Float:
        weights = np.where(self.lit, 1.0, -self.dark_weight).astype(np.float32)
        if self.foreign is not None:
            weights[self.foreign] = -FOREIGN_WEIGHT
        return weights

    def merit(self, rough: bool) -> float:
        return _merit(fit(self.weights, rough), self.lit, self.picture)


def has_twin(picture: Float, polygon: NDArray[Any]) -> bool:
    """Whether a body of about the size of the beam stands beside it: the other half of a dual view."""
    small = shrink(picture)
    corners = polygon * (small.shape[1] / picture.shape[1])
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    if right - left > 0.6 * small.shape[1]:
        return False
    rest = small.copy()
    around = cv2.dilate(fill(corners, small.shape), np.ones((5, 5), np.uint8)) > 0
    level = _background_levels(small)[0]
    rest[around] = max(level, 0.0)
    body = _lit(rest, level).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(body)
    own = np.array([left, top, right - left, bottom - top])
    return any(
        _alike(own, row[:4]) and row[cv2.CC_STAT_AREA] > 0.4 * row[2] * row[3] for row in stats[1:count]
    )


def holds_text(darkest: Image, change: Float, mask: Bits) -> bool:
    """Whether small bright strokes of one height stand in a row, as dark at no time as speckle is."""
    inside = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if inside.sum() < 400:
        return False
    lively = float(np.median(change[inside]))
    still = _strokes(darkest, change, STILL_SHARE * lively + 1.0) & inside
    count, _, stats, _ = cv2.connectedComponentsWithStats(still.astype(np.uint8), connectivity=8)
    glyphs = [row for row in stats[1:count] if row[4] >= 8 and 6 <= row[3] <= 40 and row[2] <= 6 * row[3]]
    return any(_same_line(a, b) for a in glyphs for b in glyphs)


def _strokes(darkest: Image, change: Float, still_below: float) -> Bits:
    """Narrow bright marks that are at no time as dark as speckle is, and hardly change."""
    tall = cv2.morphologyEx(darkest, cv2.MORPH_TOPHAT, np.ones((13, 13), np.uint8))
    return np.asarray((tall > STROKE_HEIGHT) & (change < still_below))


def _same_line(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether two boxes (left, top, width, height) are neighbouring letters."""
    apart = b[0] - (a[0] + a[2])
    return bool(
        0 <= apart <= a[3]
        and abs(int(a[1] + a[3]) - int(b[1] + b[3])) <= 1 + 0.08 * a[3]
        and abs(int(a[3]) - int(b[3])) <= 1 + 0.15 * a[3]
    )


def _by_brightness(picture: Float) -> list[_Guess]:
    guesses = [_Guess(picture, _lit(picture, level)) for level in _background_levels(picture)]
    return guesses + [_Guess(apart, _lit(apart, 0.0)) for apart in _apart_from_console(picture)]


def _best_outline(guesses: list[_Guess], rough: bool = False) -> Outline | None:
    guesses = [guess for guess in guesses if guess.lit.mean() >= SMALLEST_AREA * SMALLEST_LIT_SHARE]
    if not guesses:
        return None
    merits = [guess.merit(rough) for guess in guesses] if len(guesses) > 1 else [0.0]
    best = guesses[int(np.argmax(merits))]
    outline = fit(best.weights)
    if not _believable(outline, best.lit):
        return None
    return settle_on_edges(outline, best.picture)


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


def _lit(picture: Float, background: float) -> Bits:
    """The largest body of pixels brighter than the background, small text dropped."""
    smooth = cv2.GaussianBlur(picture, (0, 0), 0.6)
    return _body((smooth > background + LIT_MARGIN).astype(np.uint8))


def _body(above: Image) -> Bits:
    """The largest body of pixels that are not 0, and what is not small beside it."""
    opened: NDArray[Any] = above
    for line in (np.ones((THINNEST, 1), np.uint8), np.ones((1, THINNEST), np.uint8)):
        opened = cv2.morphologyEx(opened, cv2.MORPH_OPEN, line, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    joined = cv2.morphologyEx(opened, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(joined)
    if count < 2:
        return np.zeros(above.shape, bool)
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


def _merit(outline: Outline, lit: Bits, picture: Float) -> float:
    """How well an outline parts lit from dark: agreement, and contrast across its own edges."""
    mask = fill(outline.polygon(), picture.shape) > 0
    overlap = float((mask & lit).sum()) / max(float((mask | lit).sum()), 1.0)
    ring = cv2.dilate(mask.astype(np.uint8), np.ones((7, 7))).astype(bool) & ~mask
    core = mask & ~cv2.erode(
        mask.astype(np.uint8), np.ones((7, 7)), borderType=cv2.BORDER_CONSTANT, borderValue=1
    ).astype(bool)
    if ring.sum() < 20 or core.sum() < 20:
        return overlap * 0.5
    root = np.sqrt(picture)
    return overlap + 0.1 * float(np.clip(root[core].mean() - root[ring].mean(), -2, 4))


def _believable(outline: Outline, lit: Bits) -> bool:
    polygon = outline.polygon()
    if len(polygon) < 3:
        return False
    width, height = np.ptp(polygon, axis=0)
    mask = fill(polygon, lit.shape) > 0
    inside = mask & lit
    return bool(
        mask.mean() >= SMALLEST_AREA
        and height >= FLATTEST * width
        and inside.sum() >= SMALLEST_LIT_SHARE * mask.sum()
        and inside.sum() >= SMALLEST_AGREEMENT * (mask | lit).sum()
    )
