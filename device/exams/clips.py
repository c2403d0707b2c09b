"""Clips of an exam: recorded within the beam without loss, and read again from the very file that is kept.

A clip is FFV1 in Matroska (RFC 9043, RFC 9559). The container's own times are not used: a live source has
gaps, so the seconds of each frame are kept beside the file, and Clip.times holds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from device.errors import StoreError
from device.exams.exam import ClipReading
from device.state import sync_folder
from reader.beam import Beam, gray
from reader.bundle import MODEL, Bundle, Specification
from reader.clips import Frame, Image
from reader.errors import ClipError
from reader.patterns import named_patterns
from reader.reader import Reader, Reading, worst_reading
from reader.runner import Runner

SUFFIX = ".mkv"
CODEC = cv2.VideoWriter.fourcc(*"FFV1")
NOMINAL_RATE = 25.0
"""Frames a second that the container claims; nobody relies on it."""
QUEUED_FRAMES = 50
"""Frames that may wait for the disk: two seconds at 25 a second, about as long as a memory card pauses for
its own housekeeping, and at most some 60 MB."""
COLOURLESS = 4
"""Gray levels by which the channels of a gray picture may differ: YUV's rounding on the way to the box."""
BLOCK = 2**20


@dataclass(frozen=True)
class Recording:
    """A finished clip that waits for its place in the store: whole and synced.

    ``part``: its file, hidden. ``times``: seconds from the first frame to each. ``beam``: in the clip's own
    pixels. ``dropped``: frames that the disk was too slow for. ``automatic``: whether the box took it
    by itself.
    """

    part: Path
    sha256: str
    times: tuple[float, ...]
    beam: Beam
    dropped: int
    automatic: bool


class ClipWriter:
    """Records one clip. Encoding goes on in a thread of its own: ``add`` never waits for the disk.

    Each frame is cropped to the beam and black outside of it. Whether the clip is gray or in colour is
    decided on its first frame, inside the beam: gray where its channels hardly differ. A colour that comes
    up later is kept as gray, which is what the network sees of it anyway.

    ``times``: seconds of the frames so far. ``dropped``: frames that the disk was too slow for.
    """

    def __init__(self, folder: Path, beam: Beam, automatic: bool) -> None:
        """``folder``: where the hidden file is made, on the disk of its later place. ``beam``: in the
        pixels of the source's pictures."""
        self.beam = beam
        self.dropped = 0
        self.times: list[float] = []
        self._automatic = automatic
        self._first_at = 0.0
        self._part = folder / f".{secrets.token_hex(8)}{SUFFIX}"
        left, top, right, bottom = beam.bounds
        self._inside = slice(top, bottom), slice(left, right)
        self._mask = np.ascontiguousarray(beam.mask()[self._inside])
        # The encoder cuts odd widths and heights.
        self._margin = (bottom - top) % 2, (right - left) % 2
        self._gray: bool | None = None
        self._frames: queue.Queue[Image | None] = queue.Queue(QUEUED_FRAMES)
        self._failure = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._encode, name="clip", daemon=True)
        self._thread.start()

    @property
    def seconds(self) -> float:
        """How long the clip lasts so far."""
        return self.times[-1] if self.times else 0.0

    @property
    def failed(self) -> bool:
        """Whether the disk takes nothing more, so that going on is in vain."""
        return bool(self._failure)

    def add(self, image: Image, at: float) -> None:
        """Take a frame, uint8 [h, w] or BGR [h, w, 3] of the beam's picture size, captured ``at`` seconds.

        One that is not later than the last is left out. Raises ValueError for a picture of another size.
        """
        if (image.shape[1], image.shape[0]) != self.beam.size:
            raise ValueError(f"picture of {image.shape[1::-1]}, beam of {self.beam.size}")
        if not self.times:
            self._first_at = at
        later = round(at - self._first_at, 4)
        if self.times and later <= self.times[-1]:
            return
        inside = image[self._inside]
        if self._gray is None:
            self._gray = _colourless(inside, self._mask)
        plane = gray(inside) if self._gray else inside
        bottom, right = self._margin
        kept = cv2.bitwise_and(plane, plane, mask=self._mask)
        if bottom or right:
            kept = cv2.copyMakeBorder(kept, 0, bottom, 0, right, cv2.BORDER_CONSTANT)
        try:
            self._frames.put_nowait(np.asarray(kept, np.uint8))
        except queue.Full:
            self.dropped += 1
        else:
            self.times.append(later)

    def finish(self) -> Recording:
        """Wait until everything is on the disk and hand the clip over.

        Raises StoreError where it could not be written whole; nothing is left behind then.
        """
        self._end()
        try:
            if self._failure:
                raise StoreError(f"{self._part}: the clip cannot be written ({self._failure})")
            _sync(self._part)
            sync_folder(self._part.parent)
            written = _packets(self._part)
            if written != len(self.times):
                raise StoreError(
                    f"{self._part}: holds {written} of {len(self.times)} frames; is the disk full?"
                )
            digest = checksum(self._part)
        except StoreError:
            remove(self._part)
            raise
        except OSError as error:
            remove(self._part)
            raise StoreError(f"{self._part}: the clip cannot be written ({error.strerror})") from error
        return Recording(self._part, digest, tuple(self.times), self._shifted, self.dropped, self._automatic)

    def discard(self) -> None:
        """Let go of the clip and of its file."""
        self._ended.set()
        self._end()
        remove(self._part)

    @property
    def _shifted(self) -> Beam:
        """The beam in the clip's own pixels."""
        left, top, right, bottom = self.beam.bounds
        corners = tuple((x - left, y - top) for x, y in self.beam.polygon)
        size = right - left + self._margin[1], bottom - top + self._margin[0]
        return replace(self.beam, polygon=corners, size=size)

    def _end(self) -> None:
        self._frames.put(None)
        self._thread.join()

    def _encode(self) -> None:
        """What the thread does: open the file with the first frame, and write until told to end."""
        writer: cv2.VideoWriter | None = None
        while (image := self._frames.get()) is not None:
            if self._ended.is_set() or self._failure:
                continue
            if writer is None:
                size, colour = (image.shape[1], image.shape[0]), image.ndim == 3
                writer = cv2.VideoWriter(str(self._part), cv2.CAP_FFMPEG, CODEC, NOMINAL_RATE, size, colour)
                if not writer.isOpened():
                    self._failure = _why_no_file(self._part)
                    continue
            writer.write(image)
        if writer is not None:
            writer.release()


def _why_no_file(part: Path) -> str:
    """Why no file can be made there, which the encoder does not say."""
    try:
        part.touch()
    except OSError as error:
        return error.strerror or str(error)
    return "this OpenCV cannot encode FFV1"


def _colourless(inside: Image, mask: Image) -> bool:
    """Whether the channels of a picture hardly differ within the mask."""
    if inside.ndim == 2:
        return True
    blue, green, red = cv2.split(inside)
    apart = cv2.max(cv2.absdiff(blue, green), cv2.absdiff(green, red))
    return cv2.minMaxLoc(apart, mask=mask)[1] <= COLOURLESS


def remove(part: Path) -> None:
    """Remove a recording that is not kept. One that stays, on a failing disk, goes when the store is next
    opened by its owner."""
    with contextlib.suppress(OSError):
        part.unlink()


def _sync(path: Path) -> None:
    """Have a file's content survive a power cut. Raises OSError, also for what was written earlier."""
    handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _packets(path: Path) -> int:
    """How many frames a file holds, without decoding them."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    try:
        count = 0
        while capture.grab():
            count += 1
        return count
    finally:
        capture.release()


def checksum(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_clip_frames(path: Path, times: Sequence[float]) -> Iterator[Frame]:
    """The frames of a recorded clip exactly as they were written: uint8 [h, w], or BGR [h, w, 3].

    ``times``: Clip.times. Raises ClipError where the file cannot be read or does not hold so many frames.
    """
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            raise ClipError(f"{path}: cannot be opened as a clip; is it missing or cut off?")
        # As it was encoded: gray stays one channel, colour comes with an empty fourth.
        capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        read = 0
        while True:
            decoded, image = capture.read()
            if not decoded:
                break
            if read < len(times):
                kept = image if image.ndim == 2 else np.ascontiguousarray(image[:, :, :3])
                yield Frame(np.asarray(kept, np.uint8), times[read], read, still=len(times) == 1)
            read += 1
    finally:
        capture.release()
    if read != len(times):
        raise ClipError(f"{path}: holds {read} frames, recorded were {len(times)}; it was changed")


def read_again(
    path: Path,
    times: Sequence[float],
    beam: Beam | None,
    reads: Specification,
    runner: Runner,
    bundle: str = "",
) -> ClipReading:
    """Read a recorded clip from its file: the reading that is stored, and the same whenever it is made anew.

    The clip's state is the one at the moment of its largest windowed score, among full windows; a clip
    that is shorter than the window is one window. Raises ClipError as ``read_clip_frames``.
    """
    reader = Reader(reads, runner, beam=beam, span=times[-1] if times else 0.0)
    found = [_without_picture(reader.read(frame)) for frame in read_clip_frames(path, times)]
    moment = worst_reading(found, reads)
    if moment is None:
        state = Counter(reading.state for reading in found).most_common(1)[0][0]
        return ClipReading(state, None, 0, bundle=bundle)
    its = found[moment]
    assert its.class_map is not None, "it has a verdict"
    cells = tuple(tuple(round(float(cell), 4) for cell in row) for row in its.class_map)
    patterns = named_patterns((reading.patterns for reading in found), reads.patterns)
    return ClipReading(its.state, its.p, moment, cells, patterns, bundle)


def _without_picture(reading: Reading) -> Reading:
    return replace(reading, frame=replace(reading.frame, image=np.zeros((0, 0), np.uint8)))


def bundle_line(bundle: Bundle) -> str:
    """Name, version and checksum of a bundle's network, as ClipReading.bundle has it."""
    manifest = bundle.manifest
    return f"{manifest.name} {manifest.version} {hashlib.sha256(bundle.files[MODEL]).hexdigest()[:16]}"
