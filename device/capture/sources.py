"""Where frames come from: a clip, a picture, a folder of them, a capture device, the phantom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl

import cv2

from device.capture.grabber import Grabber, GrabberSpec
from device.capture.live import Capture, PacedCapture
from device.errors import SourceError
from reader.beam import Beam
from reader.clips import SUFFIXES, Frame, Survey, check_file, is_still, read_frames, survey_clip
from reader.phantom import PROGRAMME, RATE, Act, Phantom

V4L2, SIMULATED = "v4l2:", "simulated:"
"""How the names of sources begin whose frames come by themselves."""


class Source(Protocol):
    """Frames in the order they are taken, from now on.

    ``name`` is what a person calls it. ``beam`` and ``span`` (seconds): what is known beforehand.
    ``delay_ms``: how late its pictures are when they reach this host, where that was measured.
    ``length``: frames, where known. ``drawn``: whether its pictures are drawn by the program itself, so
    that nobody must be told that they are not lung.
    """

    name: str
    beam: Beam | None
    span: float | None
    delay_ms: float | None
    length: int | None
    drawn: bool

    def capture(self) -> Capture:
        """Take its frames live: newest first, in its own time."""
        ...

    def frames(self) -> Iterator[Frame]:
        """The frames. Raises SourceError or ClipError when the source fails."""
        ...

    def close(self) -> None:
        """Let go of the device or file."""
        ...


def open_sources(source: str, mode: tuple[int, int, int] = (1280, 720, 30)) -> list[Source]:
    """The sources that a ``--source`` names: one, or one a file of a folder, in order of name.

    ``mode``: width, height and frames a second to ask of a grabber. Raises SourceError or ClipError where
    there is no such file; a grabber that is not there is no error yet.
    """
    if source == "demo":
        return [PhantomSource()]
    if source.startswith(V4L2):
        return [DeviceSource(GrabberSpec(source.removeprefix(V4L2), *mode))]
    if source.startswith(SIMULATED):
        return [_simulated(source.removeprefix(SIMULATED))]
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

    drawn = False
    delay_ms: float | None = None

    def __init__(self, path: Path) -> None:
        """Raises ClipError where the file cannot be read."""
        self.name, self._path = path.name, path
        survey: Survey = survey_clip(path)
        self.beam, self.span = survey.beam, survey.span
        self.length = 1 if is_still(path) else _promised_frames(path)

    def capture(self) -> Capture:
        """The clip as if it were live."""
        return PacedCapture(self)

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
    """The phantom as a live scanner, or frame by frame where nobody waits for the clock. It plays its
    programme ``rounds`` times."""

    drawn = True
    beam: Beam | None = None
    span: float | None = None
    delay_ms: float | None = None

    def __init__(self, rounds: int = 1, programme: tuple[Act, ...] = PROGRAMME) -> None:
        self.name, self._phantom = "phantom", Phantom(programme)
        self.seconds = rounds * self._phantom.duration
        self.length: int | None = round(self.seconds * RATE)

    def capture(self) -> Capture:
        """The phantom as a live scanner."""
        return PacedCapture(self)

    def frames(self) -> Iterator[Frame]:
        """One round of the phantom's programme, at its frame rate in its own time."""
        for sequence in range(round(self.seconds * RATE)):
            at = sequence / RATE
            yield Frame(self._phantom.frame(at), at, sequence)

    def close(self) -> None:
        """Nothing is held."""


class DeviceSource:
    """A grabber, whose frames come by themselves; a process of its own takes them."""

    span: float | None = None
    length: int | None = None

    def __init__(
        self,
        grabber: GrabberSpec,
        beam: Beam | None = None,
        delay_ms: float | None = None,
        drawn: bool = False,
    ) -> None:
        """``beam`` and ``delay_ms``: from the scanner's profile."""
        self.name, self.beam, self.delay_ms, self.drawn = grabber.device, beam, delay_ms, drawn
        self._grabber = grabber

    def capture(self) -> Capture:
        """Its frames as they come, for as long as anybody looks."""
        return Grabber(self._grabber)

    def frames(self) -> Iterator[Frame]:
        """Raises SourceError: a device has no end, and no frames but the newest."""
        raise SourceError(f"{self.name}: a capture device is read live; leave --pace max out")

    def close(self) -> None:
        """Nothing is held."""


def _simulated(query: str) -> DeviceSource:
    """A grabber of ``device.capture.simulated`` by its name, mode and what it needs to know."""
    factory, _, asked = query.partition("?")
    mode = dict(parse_qsl(asked))
    size = int(mode["width"]), int(mode["height"]), int(mode["rate"])
    return DeviceSource(GrabberSpec(asked, *size, driver=f"device.capture.simulated:{factory}"), drawn=True)
