"""Where frames come from: a clip, a picture, a folder of them, a capture device, the phantom."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from device.errors import SourceError
from reader.beam import Beam
from reader.clips import SUFFIXES, Frame, Survey, check_file, is_still, read_frames, survey_clip
from reader.phantom import RATE, Phantom

Image = NDArray[np.uint8]

PACKED: dict[str, tuple[int, int | None]] = {
    "YUYV": (2, cv2.COLOR_YUV2BGR_YUYV),
    "UYVY": (2, cv2.COLOR_YUV2BGR_UYVY),
    "BGR24": (3, None),
    "GREY": (1, None),
}
"""Uncompressed formats: bytes a pixel, and OpenCV's conversion to BGR."""
COMPRESSED = ("MJPEG", "JPEG")
LATEST_STAMP = 10.0
"""Seconds by which a kernel's time stamp may lie in the past and still be believed."""
FRAME_DEADLINE = 1.0
"""Seconds to wait for a frame of a capture device before saying that none comes."""


class Source(Protocol):
    """Frames in the order they are taken, from now on.

    ``name`` is what a person calls it. ``paced_by_us``: frames are there at once and must be held
    back until their time; a device's come by themselves. ``beam`` and ``span`` (seconds): what is
    known beforehand. ``length``: frames, where known. ``drawn``: whether its pictures are drawn by the
    program itself, so that nobody must be told that they are not lung.
    """

    name: str
    paced_by_us: bool
    beam: Beam | None
    span: float | None
    length: int | None
    drawn: bool

    def frames(self) -> Iterator[Frame]:
        """The frames. Raises SourceError or ClipError when the source fails."""
        ...

    def close(self) -> None:
        """Let go of the device or file."""
        ...


def open_sources(source: str) -> list[Source]:
    """The sources that a ``--source`` names: one, or one a file of a folder, in order of name.

    Raises SourceError or ClipError where there is none.
    """
    if source == "demo":
        return [PhantomSource()]
    if source.startswith("v4l2:"):
        return [CaptureDevice(Path(source.removeprefix("v4l2:")))]
    path = Path(source)
    if not path.is_dir():
        check_file(path)
        return [FileSource(path)]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise SourceError(f"{path}: no picture or clip in this folder")
    return [FileSource(file) for file in files]


class FileSource:
    """A clip or still picture. Its beam is surveyed before it is read."""

    paced_by_us, drawn = True, False

    def __init__(self, path: Path) -> None:
        """Raises ClipError where the file cannot be read."""
        self.name, self._path = path.name, path
        survey: Survey = survey_clip(path)
        self.beam, self.span = survey.beam, survey.span
        self.length = 1 if is_still(path) else _promised_frames(path)

    def frames(self) -> Iterator[Frame]:
        """The clip's frames, timed by the clip. Raises ClipError where it is cut off."""
        return read_frames(self._path)

    def close(self) -> None:
        """Nothing is held between frames."""


def _promised_frames(path: Path) -> int | None:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count if count > 0 else None


class PhantomSource:
    """The phantom as a live scanner, or frame by frame where nobody waits for the clock."""

    paced_by_us, drawn = True, True
    beam: Beam | None = None
    span: float | None = None

    def __init__(self, rounds: int = 1) -> None:
        self.name, self._phantom = "phantom", Phantom()
        self.seconds = rounds * self._phantom.duration
        self.length: int | None = round(self.seconds * RATE)

    def frames(self) -> Iterator[Frame]:
        """One round of the phantom's programme, at its frame rate in its own time."""
        for sequence in range(round(self.seconds * RATE)):
            at = sequence / RATE
            yield Frame(self._phantom.frame(at), at, sequence)

    def close(self) -> None:
        """Nothing is held."""


class CaptureDevice:
    """A V4L2 capture device, through linuxpy: every wait has a deadline, the kernel's own times."""

    paced_by_us, drawn = False, False
    beam: Beam | None = None
    span: float | None = None
    length: int | None = None

    def __init__(self, path: Path, size: tuple[int, int] = (1280, 720)) -> None:
        """Open the device and ask for a mode; the mode that it took is read back into ``name``.

        Raises SourceError where it is not there, is busy, or captures no video.
        """
        self.name = str(path)
        if not path.exists():
            raise SourceError(f"{path}: no such device; is the grabber plugged in?")
        try:
            from linuxpy.video.device import BufferFlag, Device, PixelFormat, VideoCapture
        except ImportError as error:
            raise SourceError(f"{path}: capture needs linuxpy ({error}): pip install linuxpy") from error
        self._damaged, self._monotonic = BufferFlag.ERROR, BufferFlag.TIMESTAMP_MONOTONIC
        self._device: Any = Device(str(path))
        try:
            self._device.open()
            self._capture: Any = VideoCapture(self._device)
            formats = self._device.info.buffer_formats(self._capture.type)
            self._capture.set_format(*size, PixelFormat[_best_format(formats)])
            self._format: Any = self._capture.get_format()
        except (OSError, ValueError, RuntimeError) as error:
            self._device.close()
            raise SourceError(f"{path}: cannot be opened for capture ({error})") from error
        mode = f"{self._format.width}x{self._format.height} {self._format.pixel_format.name}"
        self.name = f"{path} {mode}"

    def frames(self) -> Iterator[Frame]:
        """Frames until the device goes. Raises SourceError when none comes within the deadline, or
        the device vanishes."""
        sequence = 0
        try:
            with self._capture as stream:
                reader, whole_at = iter(stream), now()
                while True:
                    # Damaged frames do not put the deadline off.
                    left = max(whole_at + FRAME_DEADLINE - now(), 0.0)
                    if not select.select([self._device.fileno()], [], [], left)[0]:
                        raise SourceError(
                            f"{self.name}: no whole frame for {FRAME_DEADLINE:g} s; "
                            "is the scanner on, is the cable in?"
                        )
                    raw = next(reader)
                    image = None if raw.flags & self._damaged else _decode(raw, self._format)
                    if image is not None:
                        yield Frame(image, self._taken_at(raw), sequence)
                        sequence, whole_at = sequence + 1, now()
        except OSError as error:
            if isinstance(error, SourceError):
                raise
            if error.errno in (errno.ENODEV, errno.EIO, errno.ENXIO, errno.ESHUTDOWN):
                why = f"the device is gone ({error}); plug it in again"
            else:
                why = f"capture failed ({error}); is it in use, is the cable in?"
            raise SourceError(f"{self.name}: {why}") from error

    def _taken_at(self, raw: Any) -> float:
        """The kernel's time of a frame, unless it is of another clock, long past or yet to come."""
        stamp, arrived = float(raw.timestamp), now()
        credible = raw.flags & self._monotonic and arrived - LATEST_STAMP <= stamp <= arrived
        return stamp if credible else arrived

    def close(self) -> None:
        """Give the device back: a mapping left open would keep it busy."""
        if self._capture.buffer is not None:
            for view in self._capture.buffer.buffers or ():
                view.close()
        self._device.close()


def _best_format(formats: list[Any]) -> str:
    """The pixel format that costs least to decode, of those on offer that are decoded here."""
    offered = {form.pixel_format.name for form in formats}
    for name in (*PACKED, "NV12", *COMPRESSED):
        if name in offered:
            return name
    if not offered:
        raise ValueError("it captures no video; another /dev/video* may")
    raise ValueError(f"offers only {', '.join(sorted(offered))}, none of which is decoded here")


def _decode(raw: Any, form: Any) -> Image | None:
    """A captured buffer as BGR or gray; None for one that is empty or cut short."""
    data, name = np.frombuffer(bytes(raw), np.uint8), form.pixel_format.name
    if name in COMPRESSED:
        return cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None  # type: ignore[return-value]
    rows = form.height * 3 // 2 if name == "NV12" else form.height
    stride = form.bytes_per_line
    if data.size < rows * stride:
        return None
    lines = data[: rows * stride].reshape(rows, stride)
    if name == "NV12":
        return cv2.cvtColor(lines[:, : form.width].copy(), cv2.COLOR_YUV2BGR_NV12)
    depth, conversion = PACKED[name]
    image = lines[:, : form.width * depth].reshape(form.height, form.width, depth).copy()
    if conversion is None:
        return image[:, :, 0] if depth == 1 else image
    return cv2.cvtColor(image, conversion)


def now() -> float:
    """The monotonic clock that V4L2 stamps frames with, in seconds."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)
