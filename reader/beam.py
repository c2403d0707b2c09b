"""Find the ultrasound beam in a scanner's picture: the fan or rectangle that carries echoes.

Only the beam may reach the network, the store and the screen. Vendor layout and burnt-in text are
shortcuts for the network and patient names for everybody else.

Frames are gathered here; ``reader/beam_search.py`` finds out where in them the beam is, and
``reader/outline.py`` fits the sector or rectangle that holds the most of it and the fewest dark
pixels; dark ones count for less, because ribs and lost contact throw shadows inside the beam.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam_search import find_outline, has_twin, holds_text, shrink
from reader.outline import fill

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

FINE_SIZE = 960
"""Longest side, at most, of the pictures that frames are gathered in."""


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
        return fill(np.asarray(self.polygon), (height, width))

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


class BeamFinder:
    """Gathers frames of one scanner and finds the beam in all of them together.

    Echoes move and the noise of compression averages out, so a few seconds of frames show the
    outline better than one does; and on a scanner's whole screen only the beam is alive.

    ``frames``: how many were gathered. ``dual``: whether the last search saw a second view of about
    the beam's size beside it.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every frame."""
        self._size = (0, 0)
        self._gathered: _Gathered | None = None
        self._darkest_black = 255
        self.frames = 0
        self.dual = False

    def add(self, image: Image) -> None:
        """Take a frame in: uint8 [h, w] or BGR [h, w, 3], of one size until ``reset``.

        Raises ValueError when the size changes.
        """
        size = (image.shape[1], image.shape[0])
        if self.frames and size != self._size:
            raise ValueError(f"frame of {size} after frames of {self._size}: reset the finder")
        fine = _in_blocks(gray(image))
        self._darkest_black = min(self._darkest_black, int(np.percentile(fine[::3, ::3], 0.2)))
        self._size, self.frames = size, self.frames + 1
        if self._gathered is None:
            self._gathered = _Gathered(fine)
        else:
            self._gathered.add(fine)

    def beam(self) -> Beam | None:
        """The beam in the frames so far, or None where there is none."""
        self.dual = False
        gathered = self._gathered
        if gathered is None or min(self._size) < 16:
            return None
        picture = _blend(gathered.sum, gathered.brightest, self.frames)
        small = _blend(gathered.small_sum, gathered.small_brightest, self.frames)
        change = gathered.change / np.float32(max(self.frames - 1, 1))
        found = find_outline(picture, small, gathered.darkest, change)
        if found is None:
            return None
        shape, polygon = found
        self.dual = has_twin(picture, polygon)
        scale = np.array(self._size) / picture.shape[::-1]
        corners = tuple((round(float(x), 1), round(float(y), 1)) for x, y in polygon * scale)
        return Beam(corners, self._size, shape, self._levels(gathered))

    def text_within(self, beam: Beam) -> bool:
        """Whether something like writing stands still in the beam while the echoes around it move.

        Two seconds of frames are wanted: in fewer, bright echoes stand still too.
        """
        gathered = self._gathered
        if gathered is None or self.frames < 2:
            return False
        height, width = gathered.darkest.shape
        mask = beam.scaled(width, height).mask() > 0
        return holds_text(gathered.darkest, gathered.change / np.float32(self.frames - 1), mask)

    def _levels(self, gathered: _Gathered) -> tuple[int, int]:
        """Studio range (ITU-R BT.601) where nothing is darker than its black, else full range."""
        studio = 12 <= self._darkest_black <= 20 and float(gathered.brightest.max()) <= 240
        return (16, 235) if studio else (0, 255)


class _Gathered:
    """What is kept of the frames: sum, brightest, darkest, and the sum of the steps between them; and
    sum and brightest of the frames as small as outlines are fitted, where noise has averaged out."""

    def __init__(self, first: Image) -> None:
        self.sum: Float = first.astype(np.float32)
        self.brightest, self.darkest, self._last = first.copy(), first.copy(), first
        self.change: Float = np.zeros(first.shape, np.float32)
        self.small_brightest = shrink(first)
        self.small_sum: Float = self.small_brightest.astype(np.float32)

    def add(self, frame: Image) -> None:
        cv2.accumulate(frame, self.sum)
        cv2.accumulate(cv2.absdiff(frame, self._last), self.change)
        cv2.max(self.brightest, frame, dst=self.brightest)
        cv2.min(self.darkest, frame, dst=self.darkest)
        small = shrink(frame)
        cv2.accumulate(small, self.small_sum)
        cv2.max(self.small_brightest, small, dst=self.small_brightest)
        self._last = frame


def _blend(total: Float, brightest: Image, frames: int) -> Float:
    """Half the mean and half the brightest: dark tissue that lights up now and then counts too."""
    return np.float32(0.5) * (total / np.float32(frames) + brightest)


def gray(image: Image) -> Image:
    """One gray channel, uint8 [h, w], of a gray or BGR picture."""
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)  # type: ignore[return-value]


def _in_blocks(image: Image) -> Image:
    """The picture by whole blocks of pixels, its longest side at most ``FINE_SIZE``."""
    block = math.ceil(max(image.shape) / FINE_SIZE)
    if block == 1:
        # The caller may draw on its picture later.
        return image.copy()
    size = (max(round(image.shape[1] / block), 1), max(round(image.shape[0] / block), 1))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
