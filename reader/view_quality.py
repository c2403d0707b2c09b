"""Whether what is in view is worth a clip: probe in contact, pleural line in view, probe held still.

It is meant for the box to take a clip by itself, not for judging an examiner. The pleural line is sought as
the brightest, nearly level, unbroken echo in the upper part of the beam, dark above and below, traced by the
Viterbi algorithm as Carrer et al. 2020 do (doi 10.1109/TUFFC.2020.3005512); that ribs leave only a part of
it in view is the "bat sign" of Lichtenstein and Meziere 2008 (doi 10.1378/chest.07-2800).

The constants were chosen on a third of the development patients; what they do on the others is printed
by ``python -m tests.device.exams.autocapture DATA``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.signal import BeamWatch

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

COLUMNS, ROWS = 56, 112
"""The picture in which the line is sought: columns may be coarse, since it is nearly level."""
UPPER = 0.42
"""Share of the beam's height in which the line may lie. With 0.57, A-lines under it pass for it too often."""
RINGING = 0.05
"""Share of that height under the probe's face that is left out: it rings in any tissue."""
STEEPEST = 2
"""Rows that the line may rise or fall from one column to the next: 45 degrees."""
REACH = 5
"""Rows above and below that it must stand out from."""
FAINTEST = 10.0
"""Gray levels added below the line of a fraction, so that the noise of black does not count as contrast."""
ABOVE_LESS = 0.1
"""By so much less it may stand out from the tissue above, which has echoes of its own."""
FADING = 0.97
"""What is kept of the past from column to column, so that a line broken by a rib is found beside it."""
LEAST_WIDTH = 0.2
"""Share of the beam's width over which the line must be unbroken: between two ribs it is about a third."""
LINE = 0.119
"""Mean contrast over that width from which it is the pleural line: 95 % of the frames chosen on have more, as
do 13 % of the same frames upside down and 26 % of those with the upper 0.4 of the beam cut off."""

MOVED_WITHIN = 0.2
"""Seconds over which movement is measured."""
CELLS = 28
"""Side of the picture in which it is measured: coarser than what moves by breathing and sliding."""
ALIKE = 0.8
"""Correlation of now with then, each row's mean aside, under which the probe moves too fast. Of the frames
chosen on 97 % have more; shifted by half a beam's width a second, 95 % have less than 0.71."""

STEADIED = 0.6
"""Seconds over which most frames decide, so that one odd frame neither makes nor breaks a view."""
LONG_GAP = 1.0
"""Seconds without a frame after which nothing is known of what was before."""


@dataclass(frozen=True)
class Quality:
    """What speaks for a view: the probe in ``contact``, the ``pleura`` in view, a ``steady`` hand."""

    contact: bool = False
    pleura: bool = False
    steady: bool = False

    @property
    def good(self) -> bool:
        """Whether all of it does."""
        return self.contact and self.pleura and self.steady


class ViewQuality:
    """Follows the view of one beam from frame to frame."""

    def __init__(self, mask: Image) -> None:
        """``mask``: uint8 [s, s], 255 inside the beam, as ``Preprocessor.mask``."""
        self._watch = BeamWatch(mask)
        self._line = _LineFinder(mask)
        self._cells: Any = cv2.resize(mask, (CELLS, CELLS), interpolation=cv2.INTER_AREA) >= 250
        self._past: deque[tuple[float, Float]] = deque()
        self._found: deque[tuple[float, Quality]] = deque()

    def add(self, tensor: Image, at: float) -> Quality:
        """Take a tensor in, uint8 [s, s] of ``Preprocessor.tensor``, of a frame captured ``at`` seconds."""
        if self._found and not 0 <= at - self._found[-1][0] <= LONG_GAP:
            self._past.clear()
            self._found.clear()
        seen = Quality(
            contact=self._watch.in_contact(self._watch.see(tensor)),
            pleura=self._line.contrast(tensor) >= LINE,
            steady=self._alike(tensor, at) >= ALIKE,
        )
        self._found.append((at, seen))
        while at - self._found[0][0] > STEADIED:
            self._found.popleft()
        return Quality(*(self._mostly(name) for name in ("contact", "pleura", "steady")))

    def _mostly(self, name: str) -> bool:
        return 2 * sum(getattr(each, name) for _, each in self._found) > len(self._found)

    def _alike(self, tensor: Image, at: float) -> float:
        """Correlation with the picture MOVED_WITHIN ago; -1 while there is none."""
        cells = cv2.resize(tensor, (CELLS, CELLS), interpolation=cv2.INTER_AREA).astype(np.float32)
        cells *= self._cells
        # Depth alone makes any two pictures of a beam alike.
        cells -= cells.sum(axis=1, keepdims=True) / np.maximum(self._cells.sum(axis=1, keepdims=True), 1)
        cells *= self._cells
        past = self._past
        past.append((at, cells))
        while len(past) > 1 and past[1][0] <= at - MOVED_WITHIN + 1e-6:
            past.popleft()
        then = past[0][1]
        if at - past[0][0] < MOVED_WITHIN - 1e-6:
            return -1.0
        return float((cells * then).sum() / max(np.sqrt((cells**2).sum() * (then**2).sum()), 1e-6))


class _LineFinder:
    """Finds the most conspicuous level line in the upper part of a beam."""

    def __init__(self, mask: Image) -> None:
        inside: Any = cv2.resize(mask, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA) >= 250
        self._inside = np.flatnonzero(inside)
        rows = np.flatnonzero(inside.any(axis=1))
        top, height = (int(rows[0]), len(rows)) if rows.size else (0, 0)
        down = np.arange(ROWS)[:, None]
        face = np.where(inside.any(axis=0), inside.argmax(axis=0), ROWS)
        sought = inside & (down >= face + RINGING * height) & (down < top + UPPER * height)
        columns = np.flatnonzero(sought.sum(axis=0) >= UPPER / 2 * height) if height else rows
        lines = np.flatnonzero(sought[:, columns].any(axis=1))
        self._columns = slice(columns[0], columns[-1] + 1) if columns.size else slice(0)
        self._rows = slice(lines[0], lines[-1] + 1) if lines.size else slice(0)
        self._outside = ~sought[self._rows, self._columns]
        self._width = max(round(LEAST_WIDTH * len(columns)), 3)

    def contrast(self, tensor: Image) -> float:
        """Mean contrast of the line over its clearest LEAST_WIDTH: 0 to 1, and 0 for a beam too small."""
        clear = self._clarity(tensor)
        if min(clear.shape) < self._width:
            return 0.0
        along = clear[self._trace(clear), np.arange(clear.shape[1])]
        sums = np.concatenate([[0], np.cumsum(along)])
        return float((sums[self._width :] - sums[: -self._width]).max()) / self._width

    def _clarity(self, tensor: Image) -> Float:
        """How much each place stands out from what is above and below, and is among the brightest."""
        small = cv2.resize(tensor, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA).astype(np.float32)
        bright = float(np.quantile(small.ravel()[self._inside[::5]], 0.95)) if self._inside.size else 0.0
        level: Any = cv2.blur(small, (3, 1))
        line, around = cv2.blur(level, (1, 3)), cv2.blur(level, (1, REACH))
        below = np.concatenate([around[REACH:], np.repeat(around[-1:], REACH, axis=0)])
        above = np.concatenate([np.repeat(around[:1], REACH, axis=0), around[:-REACH]])
        out = np.minimum(
            (line - below) / (line + below + FAINTEST),
            (line - above) / (line + above + FAINTEST) + ABOVE_LESS,
        )
        clear = (out * np.minimum(line / max(bright, 1.0), 1.0))[self._rows, self._columns]
        clear[self._outside] = -1.0
        return np.asarray(clear, np.float32)

    def _trace(self, clear: Float) -> NDArray[np.intp]:
        """The row of the best path in each column (Viterbi)."""
        near = np.ones((2 * STEEPEST + 1, 1), np.uint8)
        best: Any = clear[:, :1]
        paths = [best]
        for column in clear.T[1:]:
            best = FADING * cv2.dilate(best, near) + column[:, None]
            paths.append(best)
        row = int(paths[-1].argmax())
        rows = [row]
        for earlier in paths[-2::-1]:
            above = max(row - STEEPEST, 0)
            row = above + int(earlier[above : row + STEEPEST + 1].argmax())
            rows.append(row)
        return np.array(rows[::-1])
