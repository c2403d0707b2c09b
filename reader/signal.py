"""Why a picture cannot be read, told from its pixels and times alone.

Cheap grabbers say nothing about their input: no signal arrives as a black, blue or barred picture
that looks like any other.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.clips import Frame

Image = NDArray[np.uint8]

NO_SIGNAL = "no-signal"
FROZEN = "frozen"
NO_BEAM = "no-beam"
NO_CONTACT = "no-contact"
NOT_LUNG = "not-lung"
GEOMETRY_CHANGED = "geometry-changed"

EVEN_SPREAD = 3.0
"""Gray levels (standard deviation) under which a whole picture is one colour."""
BAR_SATURATION = 80
"""Channel spread from which a pixel is a test colour: ultrasound is gray, or faintly tinted."""
BAR_SHARE = 0.5
"""Share of such pixels from which the picture is a test pattern."""
SNOW_ROUGHNESS = 0.8
"""Mean step between neighbouring pixels over the standard deviation, from which a picture is snow:
1.13 in white noise, under 0.2 in the clips whose beams were drawn."""
STILL_CHANGE = 0.35
"""Mean change in gray levels inside the beam under which nothing moves: below the noise of any
live beam, above the noise of re-coding the same picture."""
FROZEN_AFTER = 1.0
"""Seconds without change after which a picture counts as frozen."""
ECHO_LEVEL = 36
"""Gray level from which a pixel holds an echo."""
NEAR_FIELD = 0.25
"""Share of the beam's depth, from the probe, that rings even in air."""
CONTACT_SHARE = 0.007
"""Share of pixels past the near field with an echo, under which the probe touches nothing."""


def has_signal(image: Image) -> bool:
    """Whether a picture, uint8 [h, w] or BGR [h, w, 3], is more than one colour, snow or bars."""
    if _is_snow(image if image.ndim == 2 else image[:, :, 1]):
        return False
    thumbnail = np.ascontiguousarray(image[::24, ::24])
    if float(cv2.meanStdDev(thumbnail)[1].max()) < EVEN_SPREAD:
        return False
    if image.ndim == 2:
        return True
    blue, green, red = cv2.split(thumbnail)
    most, least = cv2.max(cv2.max(blue, green), red), cv2.min(cv2.min(blue, green), red)
    return bool((cv2.subtract(most, least) > BAR_SATURATION).mean() < BAR_SHARE)


def _is_snow(plane: Image) -> bool:
    """Whether neighbours have nothing to do with each other, as in an untuned receiver's picture."""
    lines = plane[::40]
    left, right = np.ascontiguousarray(lines[:, :-1:2]), np.ascontiguousarray(lines[:, 1::2])
    if left.size < 256:
        return False
    apart = float(cv2.mean(cv2.absdiff(left, right))[0])
    spread = float(cv2.meanStdDev(left)[1][0, 0])
    return apart > SNOW_ROUGHNESS * max(spread, EVEN_SPREAD)


class FreezeWatch:
    """Notices when the beam has not changed for a while although frames keep coming."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget the last picture: the source changed."""
        self._reference: NDArray[np.int16] | None = None
        self._changed_at = 0.0

    def frozen(self, tensor: Image, frame: Frame) -> bool:
        """Whether the beam, as tensor [s, s], has stood still for too long at this frame."""
        if frame.still:
            return False
        sample = tensor[::4, ::4].astype(np.int16)
        reference = self._reference
        if (
            reference is None
            or reference.shape != sample.shape
            or frame.captured_at < self._changed_at
            or np.abs(sample - reference).mean() > STILL_CHANGE
        ):
            self._reference, self._changed_at = sample, frame.captured_at
        return frame.captured_at - self._changed_at >= FROZEN_AFTER


def in_contact(tensor: Image, mask: Image) -> bool:
    """Whether echoes come from beyond the near field: tensor and mask uint8 [s, s]."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return False
    start = int(rows[0] + NEAR_FIELD * (rows[-1] + 1 - rows[0]))
    deep = mask[start::4, ::4] > 0
    echoes = tensor[start::4, ::4][deep] > ECHO_LEVEL
    return bool(echoes.size and echoes.mean() >= CONTACT_SHARE)
