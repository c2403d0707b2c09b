"""From a source picture to the network's input: crop to the beam, shrink, correct levels, mask.

Beside a network that takes 2 ms this must be quick. ``INTER_AREA`` shrinks without aliasing speckle
but is slow at fractional factors; a linear step to a whole multiple of the target followed by an
area average of whole blocks comes within a fraction of a gray level of it at a third of the time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam, gray

Image = NDArray[np.uint8]

LARGEST_LINEAR_FACTOR = 1.9
"""Linear interpolation reads 2x2 pixels: it may shrink by no more than this without aliasing."""
TIME_TOLERANCE = 0.02
"""Seconds by which an earlier moment may be missed, so that frame times need not be exact."""


class Preprocessor:
    """Turns pictures of one scanner into square gray tensors that show the beam alone."""

    def __init__(self, beam: Beam, size: int) -> None:
        """``size``: side of the tensor in pixels."""
        self.beam, self.size = beam, size
        left, top, right, bottom = self._box = beam.bounds
        width, height = right - left, bottom - top
        scale = size / max(width, height)
        self._inner = max(round(width * scale), 1), max(round(height * scale), 1)
        self._at = (size - self._inner[0]) // 2, (size - self._inner[1]) // 2
        blocks = math.ceil(1 / (scale * LARGEST_LINEAR_FACTOR))
        self._between = None if scale >= 1 else max(blocks, 2)
        self._levels = _level_table(beam.levels)
        polygon = np.array([self._to_tensor(x, y) for x, y in beam.polygon])
        self.mask: Image = np.zeros((size, size), np.uint8)
        cv2.fillPoly(self.mask, [np.round((polygon - 0.5) * 16).astype(np.int32)], 255, shift=4)
        self._cells: dict[tuple[int, int], NDArray[np.float32]] = {}

    def _to_tensor(self, x: float, y: float) -> tuple[float, float]:
        left, top, right, bottom = self._box
        return (
            self._at[0] + (x - left) * self._inner[0] / (right - left),
            self._at[1] + (y - top) * self._inner[1] / (bottom - top),
        )

    @property
    def window(self) -> tuple[int, int, int, int]:
        """Where the beam's box lies in the tensor: left, top, right, bottom."""
        (x, y), (width, height) = self._at, self._inner
        return x, y, x + width, y + height

    def tensor(self, image: Image) -> Image:
        """uint8 [size, size]: the beam, levels corrected, 0 outside it.

        Raises ValueError when the picture is not of the beam's size.
        """
        if (image.shape[1], image.shape[0]) != self.beam.size:
            raise ValueError(f"picture of {image.shape[1::-1]}, beam of {self.beam.size}")
        left, top, right, bottom = self._box
        inner: NDArray[Any] = self._shrink(gray(image[top:bottom, left:right]))
        if self._levels is not None:
            inner = cv2.LUT(inner, self._levels)
        if self._inner != (self.size, self.size):
            x, y = self._at
            whole = np.zeros((self.size, self.size), np.uint8)
            whole[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
            inner = whole
        return cv2.bitwise_and(inner, self.mask)  # type: ignore[return-value]

    def _shrink(self, image: Image) -> Image:
        if self._between is not None:
            between = (self._inner[0] * self._between, self._inner[1] * self._between)
            image = cv2.resize(image, between, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
            return cv2.resize(image, self._inner, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]
        return cv2.resize(image, self._inner, interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]

    def cell_weights(self, rows: int, columns: int) -> NDArray[np.float32]:
        """How much of each map cell lies in the beam: float32 [rows, columns], summing to 1."""
        if (rows, columns) not in self._cells:
            self._cells[rows, columns] = cell_weights(self.mask, rows, columns)
        return self._cells[rows, columns]


def cell_weights(mask: Image, rows: int, columns: int) -> NDArray[np.float32]:
    """The share of a tensor's mask that falls on each cell of a class map, summing to 1."""
    cells = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA).astype(np.float32)
    return cells / max(float(cells.sum()), 1e-6)


def _level_table(levels: tuple[int, int]) -> Image | None:
    """The look-up table that stretches a source's levels to 0-255; None where nothing changes."""
    low, high = levels
    if levels == (0, 255):
        return None
    stretched = (np.arange(256, dtype=np.float32) - low) * (255.0 / (high - low))
    return np.clip(np.round(stretched), 0, 255).astype(np.uint8)


class Moments:
    """The last tensors of a source, to put earlier moments beside the present one as channels."""

    def __init__(self, offsets: Sequence[float]) -> None:
        """``offsets``: a time a channel, in seconds, none later than 0: ``[0, -0.2, -0.4]``."""
        if not offsets or max(offsets) > 0:
            raise ValueError(f"channel times {list(offsets)} must be 0 or earlier")
        self._offsets = tuple(offsets)
        self._past: deque[tuple[float, Image]] = deque()

    def add(self, tensor: Image, at: float) -> Image:
        """Take a tensor in and return uint8 [h, w, channels].

        Where a moment has no frame of its own, the last frame before it stands in; before the first
        frame, the first.
        """
        if self._past and at < self._past[-1][0]:
            self._past.clear()
        self._past.append((at, tensor))
        oldest_needed = at + min(self._offsets) + TIME_TOLERANCE
        while len(self._past) > 1 and self._past[1][0] <= oldest_needed:
            self._past.popleft()
        return cv2.merge([self._at(at + offset) for offset in self._offsets])  # type: ignore[return-value]

    def _at(self, moment: float) -> Image:
        chosen = self._past[0][1]
        for at, tensor in self._past:
            if at > moment + TIME_TOLERANCE:
                break
            chosen = tensor
        return chosen

    def clear(self) -> None:
        """Forget every tensor: the source changed."""
        self._past.clear()
