"""A clip's frames as JPEG, decoded once and kept for as long as somebody looks at them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from device.exams.clips import read_clip_frames
from device.exams.exam import Clip
from device.screen.drawing import beam_mask, beam_picture, tinted
from reader.clips import Frame
from reader.errors import ClipError
from reader.reader import Reading

Image = NDArray[np.uint8]

QUALITY = 88
MOST_CLIPS = 3
"""Clips in memory: some ten megabytes each."""


def encoded(image: Image, quality: int = QUALITY) -> bytes:
    """A picture, BGR uint8 [h, w, 3], as JPEG."""
    done, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV encodes every picture of this kind"
    return content.tobytes()


class ClipPictures:
    """JPEG pictures of stored clips. Safe to use from several threads."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, _Decoding] = OrderedDict()
        self._lock = threading.Lock()

    def frame(self, clip: Clip, path: Path, number: int) -> bytes:
        """Frame ``number`` of a clip, within the beam. Raises ClipError where there is none."""
        return self._decoding(clip, path).picture(number)

    def key_frame(self, clip: Clip, path: Path, marked: bool) -> bytes:
        """The frame of the network's reading. ``marked``: with the cells that speak for a finding."""
        if not (marked and clip.reading.class_map):
            return self.frame(clip, path, clip.reading.key_frame)
        for frame in read_clip_frames(path, clip.times):
            if frame.sequence == clip.reading.key_frame:
                assert clip.beam is not None
                cells = np.asarray(clip.reading.class_map, np.float32)
                return encoded(tinted(_within_beam(clip, frame), cells, beam_mask(clip.beam, 1.0)))
        raise ClipError(f"{path}: has no frame {clip.reading.key_frame}")

    def _decoding(self, clip: Clip, path: Path) -> _Decoding:
        with self._lock:
            found = self._open.pop(clip.id, None) or _Decoding(clip, path)
            self._open[clip.id] = found
            while len(self._open) > MOST_CLIPS:
                self._open.popitem(last=False)
            return found


class _Decoding:
    """One clip, decoded as far as was asked for."""

    def __init__(self, clip: Clip, path: Path) -> None:
        self._clip, self._path = clip, path
        self._coming = read_clip_frames(path, clip.times)
        self._pictures: list[bytes] = []
        self._lock = threading.Lock()

    def picture(self, number: int) -> bytes:
        with self._lock:
            while len(self._pictures) <= number:
                frame = next(self._coming, None)
                if frame is None:
                    raise ClipError(f"{self._path}: has no frame {number}")
                self._pictures.append(encoded(_within_beam(self._clip, frame)))
            return self._pictures[number]


def _within_beam(clip: Clip, frame: Frame) -> Image:
    picture = beam_picture(Reading(clip.reading.state, frame, clip.beam))
    if picture is None:
        raise ClipError(f"clip {clip.id}: its pictures are not of the size that was recorded")
    return picture
