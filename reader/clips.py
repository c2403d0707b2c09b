"""Clips and still pictures as frames with times, in the order they were taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from reader.beam import Beam, BeamFinder
from reader.errors import ClipError

Image = NDArray[np.uint8]

STILL_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm"})
CLIP_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".mpeg", ".mpg", ".gif", ".webm", ".m4v"})
JPEG, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
"""How a JPEG begins, and the markers of a scan's start and of the picture's end (ITU-T T.81, table B.1)."""
SUFFIXES = STILL_SUFFIXES | CLIP_SUFFIXES
COMPLETE_SHARE = 0.9
"""A clip is cut off when it holds less than this share of the frames that its header promises."""
SURVEY_SECONDS = 4.0
"""Only the first seconds of a clip are looked at for its beam, as at the bedside."""
SURVEY_MOMENTS = 12
"""Frames in those seconds, evenly spread, in which the beam is found."""


@dataclass(frozen=True)
class Frame:
    """One picture from a source.

    ``image``: uint8 [h, w] or BGR [h, w, 3]. ``captured_at``: monotonic seconds.
    ``sequence``: counts the source's frames from 0. ``still``: a picture that stands for all time
    and is therefore never frozen.
    """

    image: Image
    captured_at: float
    sequence: int
    still: bool = False


def is_still(path: Path) -> bool:
    """Whether the file is a single picture by its name."""
    return path.suffix.lower() in STILL_SUFFIXES


def read_frames(path: Path) -> Iterator[Frame]:
    """The frames of a clip or a still picture, ``captured_at`` counted from 0.

    Raises ClipError when the file is missing, empty, not a picture or clip, or cut off; a clip that
    is cut off is told apart only after its last whole frame.
    """
    check_file(path)
    if is_still(path):
        yield Frame(read_still(path), 0.0, 0, still=True)
    else:
        yield from _read_clip(path)


def check_file(path: Path) -> None:
    """Raise ClipError unless the path is a file of a known kind that holds something."""
    if not path.is_file():
        raise ClipError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise ClipError(f"{path}: the file is empty; copy it again")
    if path.suffix.lower() not in SUFFIXES:
        known = " ".join(sorted(SUFFIXES))
        raise ClipError(f"{path}: not a clip or picture by its name; known are {known}")


def read_still(path: Path) -> Image:
    """A picture as uint8 gray [h, w] or BGR [h, w, 3], whatever its depth and channels.

    Deeper pictures are scaled from the smallest whole number of bits that holds their brightest
    pixel; a transparent picture lies on black.
    """
    _refuse_cut_off(path)
    try:
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ClipError(f"{path}: cannot be decoded as a picture ({error.err})") from error
    if image is None:
        raise ClipError(f"{path}: cannot be decoded as a picture; is it cut off or renamed?")
    if image.dtype != np.uint8:
        if not np.isfinite(image).all() or float(image.min()) < 0:
            raise ClipError(f"{path}: holds pixels that are negative or not numbers")
        bits = max(8, int(np.ceil(np.log2(float(image.max()) + 1))))
        image = (image.astype(np.float32) * (255.0 / (2**bits - 1))).astype(np.uint8)
    if image.ndim == 3 and image.shape[2] == 4:
        alpha = image[:, :, 3:].astype(np.uint16)
        image = (image[:, :, :3] * alpha // 255).astype(np.uint8)
    elif image.ndim == 3 and image.shape[2] != 3:
        image = image[:, :, 0]
    return np.ascontiguousarray(image, np.uint8)


def _refuse_cut_off(path: Path) -> None:
    """Raise ClipError for a JPEG without its end, which OpenCV fills up with gray in place of refusing it.

    The end-of-image marker must follow the last scan; a small picture in its head has one of its own. Neither
    marker can be part of a scan's data (ITU-T T.81, B.1.1.5).
    """
    content = path.read_bytes()
    if content.startswith(JPEG) and content.rfind(JPEG_END) < content.rfind(JPEG_SCAN):
        raise ClipError(f"{path}: cut off, its end is missing; copy it again")


def _read_clip(path: Path) -> Iterator[Frame]:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise ClipError(f"{path}: cannot be opened as a clip; is it cut off or renamed?")
        promised = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        period = 1.0 / _frame_rate(capture)
        sequence, at = 0, -period
        while True:
            decoded, image = capture.read()
            if not decoded:
                break
            stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000.0
            at = stamp if stamp > at else at + period
            yield Frame(np.asarray(image, np.uint8), at, sequence)
            sequence += 1
    finally:
        capture.release()
    if sequence == 0:
        raise ClipError(f"{path}: holds no frame that can be decoded; is it cut off?")
    if sequence < COMPLETE_SHARE * promised:
        raise ClipError(f"{path}: ends after {sequence} of {promised:.0f} frames; copy it again")


def _frame_rate(capture: cv2.VideoCapture) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 1.0 <= rate <= 240.0 else 25.0


@dataclass(frozen=True)
class Survey:
    """What a first look at a clip tells: its beam (None where there is none) and, where it is
    shorter than the look, how many seconds it lasts (else None)."""

    beam: Beam | None
    span: float | None


def survey_clip(path: Path) -> Survey:
    """Look at moments spread over a clip's first seconds. Raises ClipError as ``read_frames``."""
    finder = BeamFinder()
    due, at = 0.0, 0.0
    for frame in read_frames(path):
        if frame.captured_at > SURVEY_SECONDS:
            return Survey(finder.beam(), None)
        at = frame.captured_at
        if at >= due:
            finder.add(frame.image)
            due = at + SURVEY_SECONDS / SURVEY_MOMENTS
    return Survey(finder.beam(), at)
