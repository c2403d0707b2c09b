"""Where the network saw it: a class map as a point and as boxes, scored against boxes drawn by hand.

Everything here is in source pixels: x to the right and y down from the picture's top left edge, so
that a pixel's centre lies at a half. A class map is ``reader.reader.Reading.class_map``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam
from reader.preprocess import Preprocessor
from training.datasets import DataError
from training.metrics import Floats, Statistic, intervals

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = tuple[float, float]

OVERLAPS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)
"""Intersections over union at which a found box is tried, as in the RSNA Pneumonia Detection
Challenge (Kaggle 2018)."""


class Box(NamedTuple):
    """An upright box in source pixels. ``score``: the probability that a found box stands for."""

    x: float
    y: float
    width: float
    height: float
    score: float = 1.0


@dataclass(frozen=True)
class Located:
    """One picture's class map beside its true boxes.

    ``class_map``: float32 [rows, columns] in [0, 1]. ``boxes``: none where nothing is to be found.
    ``patient``: never empty; a picture's own name where its patient is not known.
    """

    class_map: Float
    beam: Beam
    boxes: Sequence[Box]
    patient: str


@dataclass(frozen=True)
class LungFields:
    """Hand-drawn lungs. ``size``: width and height of the picture that they were drawn in.
    ``lungs``: an outline a lung, float32 [corners, 2] of x and y."""

    size: tuple[int, int]
    lungs: tuple[Float, ...]


def parse_boxes(cell: str, where: str) -> list[Box]:
    """The boxes of an index's ``boxes`` cell: ``x,y,w,h`` in source pixels, ``;`` between boxes.

    ``where``: what an error names, as the row's path. Raises DataError where a box is not four
    numbers, starts left of or above the picture, or has no size.
    """
    return [_parse_box(text, where) for text in cell.split(";")] if cell.strip() else []


def _parse_box(text: str, where: str) -> Box:
    try:
        numbers = [float(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    whole = len(numbers) == 4 and all(map(math.isfinite, numbers))
    if not whole or min(numbers) < 0 or min(numbers[2:]) == 0:
        raise DataError(
            f"{where}: box {text.strip()!r}: write x,y,w,h in source pixels, w and h above 0; ';' parts boxes"
        )
    return Box(*numbers)


def peak(class_map: Float, beam: Beam, size: int) -> Point:
    """The middle of the likeliest cell, of that part of it that lies in the beam: x, y.

    Among cells that are equally likely, as int8 maps have them, the one with the likeliest
    neighbours. ``size``: side of the network's input in pixels.
    """
    placement = Preprocessor(beam, size)
    inside = np.where(placement.cell_weights(*class_map.shape) > 0, class_map, -1.0)
    around = cv2.blur(class_map, (3, 3), borderType=cv2.BORDER_CONSTANT)
    cell = np.zeros(class_map.size, np.uint8)
    cell[np.argmax(np.where(inside == inside.max(), around, -1.0))] = 1
    pixels = cv2.resize(cell.reshape(class_map.shape), (size, size), interpolation=cv2.INTER_NEAREST)
    rows, columns = np.nonzero(cv2.bitwise_and(pixels, placement.mask))
    return _to_source(placement, float(columns.mean()) + 0.5, float(rows.mean()) + 0.5)


def boxes_from_map(class_map: Float, beam: Beam, size: int, level: float) -> list[Box]:
    """A box around every connected part of the beam with a probability of ``level`` or more.

    ``size``: side of the network's input in pixels. ``level``: in (0, 1]. The map is interpolated
    linearly between the middles of its cells. A box's score is the highest probability in it; the
    likeliest box comes first.
    """
    placement = Preprocessor(beam, size)
    heat = _heat(class_map, placement)
    count, parts, stats, _ = cv2.connectedComponentsWithStats((heat >= level).astype(np.uint8))
    boxes = []
    for part in range(1, count):
        x, y, width, height = (int(n) for n in stats[part][:4])
        left, top = _to_source(placement, x, y)
        right, bottom = _to_source(placement, x + width, y + height)
        boxes.append(Box(left, top, right - left, bottom - top, float(heat[parts == part].max())))
    return sorted(boxes, key=lambda box: -box.score)


def _heat(class_map: Float, placement: Preprocessor) -> Float:
    """The map at the tensor's resolution, float32 [size, size], 0 outside the beam."""
    sides = (placement.size, placement.size)
    # A cell counts by its share of the beam: those outside hold 0 and must not pull others down.
    weights = placement.cell_weights(*class_map.shape)
    heat = cv2.resize(class_map * weights, sides, interpolation=cv2.INTER_LINEAR)
    known = cv2.resize(weights, sides, interpolation=cv2.INTER_LINEAR)
    heat = heat / np.maximum(known, 1e-9) * (placement.mask > 0)
    return np.clip(heat, 0, 1).astype(np.float32)


def _to_source(placement: Preprocessor, x: float, y: float) -> Point:
    """A tensor's point in the source: the inverse of the letterbox that ``Preprocessor`` lays."""
    left, top, right, bottom = placement.beam.bounds
    x0, y0, x1, y1 = placement.window
    # A filled outline may reach a pixel beyond its window.
    across, down = np.clip([(x - x0) / (x1 - x0), (y - y0) / (y1 - y0)], 0, 1).tolist()
    return left + across * (right - left), top + down * (bottom - top)


def points_at(point: Point, boxes: Sequence[Box]) -> bool:
    """Whether a point lies in any box or on its edge: a hit in the pointing game, without tolerance
    (Zhang 2016, Top-down Neural Attention by Excitation Backprop, arXiv 1608.00507)."""
    x, y = point
    return any(b.x <= x <= b.x + b.width and b.y <= y <= b.y + b.height for b in boxes)


def average_precision(found: Sequence[Box], true: Sequence[Box]) -> float | None:
    """One picture's score in the RSNA Pneumonia Detection Challenge, in [0, 1].

    TP / (TP + FP + FN) at each of ``OVERLAPS``, averaged. In the order of its score a found box takes
    that true box, of those not yet taken, that it overlaps most; it is a hit where their intersection
    over union is above the threshold. None where there is no box at all: such a picture is left out.
    """
    if not found and not true:
        return None
    ordered = sorted(found, key=lambda box: -box.score)
    overlaps = np.array([[_overlap(a, b) for b in true] for a in ordered]).reshape(len(found), len(true))
    hits = np.array([_hits(overlaps, threshold) for threshold in OVERLAPS])
    return float((hits / (len(found) + len(true) - hits)).mean())


def _hits(overlaps: NDArray[np.float64], threshold: float) -> int:
    free = overlaps.copy()
    for row in free:
        if row.size and row.max() > threshold:
            free[:, row.argmax()] = -1.0
    return int((free == -1.0).all(axis=0).sum()) if free.size else 0


def _overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
    height = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
    common = max(width, 0.0) * max(height, 0.0)
    return common / (a.width * a.height + b.width * b.height - common)


def union_overlap(found: Sequence[Box], true: Sequence[Box], size: tuple[int, int]) -> float:
    """Intersection over union of all found boxes together with all true ones together, by pixel.

    ``size``: the picture's width and height.
    """
    first, second = _covered(found, size), _covered(true, size)
    return float((first & second).sum()) / max(float((first | second).sum()), 1.0)


def _covered(boxes: Sequence[Box], size: tuple[int, int]) -> Mask:
    covered = np.zeros(size[::-1], np.bool_)
    for box in boxes:
        rows = slice(round(box.y), round(box.y + box.height))
        covered[rows, round(box.x) : round(box.x + box.width)] = True
    return covered


def localization_figures(pictures: Sequence[Located], size: int, level: float) -> dict[str, Any]:
    """How well maps say where, with 95 % intervals by bootstrap over patients, for metrics.json.

    ``pointing_game`` and ``union_iou`` are means over the pictures with true boxes;
    ``mean_average_precision`` is over those with a true or a found box, so that a box in a normal
    picture counts against it. ``pointing_by_chance``: what a random point in the beam would score.
    ``size``: side of the network's input in pixels. ``level``: see ``boxes_from_map``; choose it on
    other patients. Raises DataError for a true box outside its picture.
    """
    counts = {
        "pictures": len(pictures),
        "with_boxes": sum(bool(picture.boxes) for picture in pictures),
        "level": level,
    }
    if not counts["with_boxes"]:
        return {**counts, "note": "no picture has a box: no figure can be given"}
    figures = [_picture_figures(picture, size, level) for picture in pictures]
    patients = np.array([picture.patient for picture in pictures])
    return {**counts, **intervals(_means(figures), patients)}


def _picture_figures(picture: Located, size: int, level: float) -> dict[str, float]:
    """One picture's figures, not a number where it has no part in them."""
    _check_inside(picture)
    beam, true = picture.beam, picture.boxes
    found = boxes_from_map(picture.class_map, beam, size, level)
    precision = average_precision(found, true)
    return {
        "pointing_game": points_at(peak(picture.class_map, beam, size), true) if true else math.nan,
        "pointing_by_chance": float(_covered(true, beam.size)[beam.mask() > 0].mean()) if true else math.nan,
        "union_iou": union_overlap(found, true, beam.size) if true else math.nan,
        "mean_average_precision": math.nan if precision is None else precision,
    }


def _check_inside(picture: Located) -> None:
    width, height = picture.beam.size
    for box in picture.boxes:
        if box.x + box.width > width + 1 or box.y + box.height > height + 1:
            raise DataError(
                f"patient {picture.patient}: box {','.join(f'{n:g}' for n in box[:4])} leaves its picture of "
                f"{width}x{height}: give boxes in the pixels of the file itself"
            )


def _means(rows: Sequence[Mapping[str, float]]) -> Statistic:
    """The mean of each figure over the rows that have it."""
    values = np.array([list(row.values()) for row in rows], np.float64)
    known = np.isfinite(values).astype(np.float64)

    def of(weights: Floats) -> dict[str, Floats]:
        counts = weights @ known
        sums = weights @ np.nan_to_num(values)
        means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        return dict(zip(rows[0], means.T, strict=True))

    return of


def load_lung_fields(path: Path) -> dict[str, LungFields]:
    """Hand-drawn lung fields by the picture's path in its data set.

    The file: ``{"images": {PATH: {"size": [w, h], "lungs": [[[x, y], ...], ...]}}}``. Raises
    DataError where it cannot be read or an outline is no polygon within its picture.
    """
    try:
        images = json.loads(path.read_text(encoding="utf-8"))["images"]
        fields = {
            name: LungFields(
                (int(value["size"][0]), int(value["size"][1])),
                tuple(np.array(lung, np.float32).reshape(-1, 2) for lung in value["lungs"]),
            )
            for name, value in images.items()
        }
    except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise DataError(f"{path}: not a file of lung fields ({error!r})") from error
    for name, field in fields.items():
        for lung in field.lungs:
            if len(lung) < 3 or lung.min() < 0 or (lung > field.size).any():
                raise DataError(f"{path}: {name}: a lung needs three corners or more within {field.size}")
        if not field.lungs:
            raise DataError(f"{path}: {name}: no lung is drawn")
    return fields


def lung_field_share(
    points: Sequence[Point], fields: Sequence[LungFields], patients: Sequence[str]
) -> dict[str, Any]:
    """The share of points, one a picture, that lie in that picture's lungs, with a 95 % interval.

    ``by_chance``: what a random point in the picture would score. Raises ValueError for a point
    outside its picture, which was then not of the size that the lungs were drawn in.
    """
    rows = []
    for point, field in zip(points, fields, strict=True):
        if not (0 <= point[0] <= field.size[0] and 0 <= point[1] <= field.size[1]):
            raise ValueError(f"point {point} lies outside its picture of {field.size}")
        inside = any(cv2.pointPolygonTest(lung, point, False) >= 0 for lung in field.lungs)
        area = sum(cv2.contourArea(lung) for lung in field.lungs)
        rows.append({"in_lung_fields": inside, "by_chance": area / math.prod(field.size)})
    return {"pictures": len(rows), **intervals(_means(rows), np.array(patients))}
