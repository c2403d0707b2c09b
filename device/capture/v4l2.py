"""A V4L2 capture device that says what is wrong, through linuxpy; OpenCV decodes.

The kernel's own words are used throughout: its time stamps, sequence numbers, error flags, input status,
video timings and source-change events. docs/grabber.md tells which trouble each of them becomes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from linuxpy.ioctl import ioctl
from linuxpy.video import raw
from linuxpy.video.device import (
    BufferFlag,
    Capability,
    Device,
    EventType,
    FrameSizeType,
    InputCapabilities,
    InputStatus,
    PixelFormat,
    VideoCapture,
)

from device.capture.devices import find_device
from device.capture.driver import SLOW, CaptureError, GrabberSpec, Image, Mode, Picture
from device.clock import now

PACKED: dict[str, tuple[int, int | None]] = {
    "YUYV": (2, cv2.COLOR_YUV2BGR_YUYV),
    "UYVY": (2, cv2.COLOR_YUV2BGR_UYVY),
    "BGR24": (3, None),
    "GREY": (1, None),
}
"""Uncompressed formats: bytes a pixel, and OpenCV's conversion to BGR."""
COMPRESSED = ("MJPEG", "JPEG")
DECODED = (*PACKED, "NV12", *COMPRESSED)
"""The formats that are decoded here, the one that costs least first."""
END_OF_IMAGE = b"\xff\xd9"
"""The marker that ends a JPEG picture; it cannot occur within one."""
LATEST_STAMP = 10.0
"""Seconds by which a kernel's time stamp may lie in the past and still be believed."""
BUFFERS = 4
SILENT_AFTER = 0.5
"""Seconds without a whole frame after which the device is said to be silent."""
LOOK_EVERY = 0.2
"""Seconds between two looks at the input's status and video timings."""

GONE = (errno.ENODEV, errno.ENXIO, errno.EIO, errno.ESHUTDOWN, errno.ENOENT)
SYSTEM_CAUSES = {
    errno.EBUSY: ("busy", "another program holds it"),
    errno.EACCES: ("refused", "it may not be opened; is the user in the group video?"),
    errno.EPERM: ("refused", "it may not be opened; is the user in the group video?"),
    errno.EISDIR: ("not-capture", "this is no device"),
    errno.ENOTTY: ("not-capture", "it captures no video; another node may"),
}
"""What the system answers, as a cause of ``no-device``; any other answer counts as ``unplugged``."""
NO_SIGNAL = InputStatus.NO_SIGNAL | InputStatus.NO_POWER | InputStatus.NO_CARRIER
NO_LOCK = InputStatus.NO_SYNC | InputStatus.NO_H_LOCK | InputStatus.NO_V_LOCK | InputStatus.NO_STD_LOCK
TIMINGS_CAUSES = {
    errno.ENOLINK: ("", "there is no signal at its input"),
    errno.ENOLCK: ("no-lock", "it cannot lock to the signal at its input"),
    errno.ERANGE: ("unsupported", "the signal's video timings are out of its range"),
}


class V4l2Driver:
    """An open capture device, streaming as soon as there is a signal."""

    def __init__(self, spec: GrabberSpec) -> None:
        """Raises CaptureError where the device is not there, is held by another program, may not be
        opened, or captures no video."""
        self.mode: Mode | None = None
        self.lost = self.damaged = 0
        self._spec, self._path = spec, find_device(spec.device)
        self._device = Device(str(self._path))
        self._streaming = False
        self._timings: bytes | None = None
        self._no_signal: CaptureError | None = None
        self._whole_at = self._looked_at = now()
        self._damaged_at = float("-inf")
        self._sequence: int | None = None
        self._ends_marked = False
        try:
            self._device.open()
            self._ask_for_events()
        except OSError as error:
            self._device.close()
            raise self._named(error) from error
        self._capture: Any = VideoCapture(self._device, size=BUFFERS)
        self._poll = select.poll()
        self._poll.register(self._device.fileno(), select.POLLIN | select.POLLPRI)

    def take(self, deadline: float) -> Picture | None:
        """The next whole picture, or None after ``deadline`` seconds without one. Raises CaptureError."""
        until = now() + deadline
        try:
            while (left := until - now()) > 0:
                if not self._streaming:
                    self._start(left)
                picture = self._next(left)
                self._look()
                if picture is not None:
                    return picture
        except CaptureError:
            raise
        except OSError as error:
            raise self._named(error) from error
        self._mind_silence()
        return None

    def close(self) -> None:
        """Give the device back, with whatever it still says."""
        with contextlib.suppress(OSError):
            self._stop()
        self._device.close()

    def _ask_for_events(self) -> None:
        if not self._device.info.device_capabilities & Capability.VIDEO_CAPTURE:
            raise OSError(errno.ENOTTY, "no video capture among its capabilities")
        for event in (EventType.SOURCE_CHANGE, EventType.EOS):
            # Few devices send these; the others are watched by their status.
            with contextlib.suppress(OSError):
                self._device.subscribe_event(event)

    def _start(self, wait: float) -> None:
        """Take the mode nearest to the one asked for and let frames come."""
        try:
            self._timings = self._query_signal()
        except CaptureError:
            time.sleep(wait)
            raise
        if self._timings is not None:
            ioctl(self._device, raw.IOC.S_DV_TIMINGS, raw.v4l2_dv_timings.from_buffer_copy(self._timings))
        spec = self._spec
        self._capture.set_format(spec.width, spec.height, PixelFormat[self._best_format()])
        with contextlib.suppress(OSError):
            self._capture.set_fps(spec.rate)
        self._format = form = self._format_taken()
        self.mode = Mode(form.width, form.height, form.pixel_format.name, self._rate_taken())
        self._capture.arm()
        self._streaming = True
        self._capture.stream_on()
        self._whole_at, self._sequence = now(), None

    def _stop(self) -> None:
        if self._capture.buffer is not None:
            # A buffer left mapped would keep the device busy.
            for view in self._capture.buffer.buffers or ():
                view.close()
            self._capture.stream_off()
            self._capture.free_buffers(self._capture.buffer.source)
            self._capture.buffer = None
        self._streaming = False

    def _next(self, wait: float) -> Picture | None:
        """Wait for one thing to happen; the picture, if it was one."""
        happened = self._poll.poll(1e3 * min(wait, LOOK_EVERY))
        if not happened:
            return None
        what = happened[0][1]
        if what & select.POLLHUP:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        if what & select.POLLPRI:
            self._heed_events()
        elif what & (select.POLLIN | select.POLLERR):
            return self._picture(self._newest())
        return None

    def _newest(self) -> Any:
        """The newest buffer that is ready: what waits behind a slow decoder only grows older."""
        frame = self._dequeue()
        while any(what & select.POLLIN for _, what in self._poll.poll(0)):
            if frame.flags & BufferFlag.ERROR:
                self.damaged += 1
            else:
                self.lost += 1
            frame = self._dequeue()
        return frame

    def _dequeue(self) -> Any:
        frame = self._capture.buffer.raw_read()
        if self._sequence is not None:
            self.lost += max(frame.frame_nb - self._sequence - 1, 0)
        self._sequence = frame.frame_nb
        return frame

    def _heed_events(self) -> None:
        while True:
            try:
                event = self._device.deque_event()
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
                return
            if event.type in (EventType.SOURCE_CHANGE, EventType.EOS):
                self._stop()
            if not event.pending:
                return

    def _picture(self, frame: Any) -> Picture | None:
        image = None if frame.flags & BufferFlag.ERROR else self._decode(frame)
        if image is None:
            self.damaged += 1
            self._damaged_at = now()
            return None
        self._whole_at = now()
        return Picture(image, self._taken_at(frame))

    def _taken_at(self, frame: Any) -> float:
        """The kernel's time of a frame, unless it is of another clock, long past or yet to come."""
        stamp, arrived = float(frame.timestamp), now()
        monotonic = frame.flags & BufferFlag.TIMESTAMP_MASK == BufferFlag.TIMESTAMP_MONOTONIC
        return stamp if monotonic and arrived - LATEST_STAMP <= stamp <= arrived else arrived

    def _decode(self, frame: Any) -> Image | None:
        """A captured buffer as BGR or gray; None for one that is empty or cut short."""
        if self._format.pixel_format.name in COMPRESSED:
            ended = END_OF_IMAGE in frame.data
            # Some devices never send the marker.
            self._ends_marked |= ended
            if not frame.data or ended != self._ends_marked:
                return None
        return decode(frame.data, self._format)

    def _look(self) -> None:
        """From time to time: is there a signal, and is it still the one that we took?

        Until it is there again every frame is noise, or the device's own picture."""
        if now() >= self._looked_at + LOOK_EVERY:
            self._looked_at = now()
            try:
                timings, self._no_signal = self._query_signal(), None
            except CaptureError as error:
                self._no_signal = error
            else:
                if self._streaming and timings != self._timings:
                    self._stop()
        if self._no_signal is not None:
            raise self._no_signal.with_traceback(None)

    def _query_signal(self) -> bytes | None:
        """The digital video timings of the signal, at an input that has them. Raises CaptureError where
        there is no signal that can be used."""
        which = self._input()
        # The timings say more finely what is wrong than the status does.
        timings = self._query_timings() if which.capabilities & InputCapabilities.DV_TIMINGS else None
        if which.status & NO_SIGNAL:
            raise self._trouble("no-signal", "", "it says that there is no signal at its input")
        if which.status & NO_LOCK:
            raise self._trouble("no-signal", "no-lock", "it says that it cannot lock to the signal")
        return timings

    def _input(self) -> raw.v4l2_input:
        found = raw.v4l2_input()
        # A device with one plug may have no inputs to ask after.
        with contextlib.suppress(OSError):
            found.index = self._device.get_input()
            ioctl(self._device, raw.IOC.ENUMINPUT, found)
        return found

    def _query_timings(self) -> bytes | None:
        timings = raw.v4l2_dv_timings()
        try:
            ioctl(self._device, raw.IOC.QUERY_DV_TIMINGS, timings)
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.ENODATA):
                return None
            if error.errno not in TIMINGS_CAUSES:
                raise
            cause, detail = TIMINGS_CAUSES[error.errno]
            raise self._trouble("no-signal", cause, detail) from error
        return bytes(timings)

    def _mind_silence(self) -> None:
        silent = now() - self._whole_at
        if silent < SILENT_AFTER:
            return
        if now() - self._damaged_at < SILENT_AFTER:
            raise self._trouble("no-signal", "damaged", f"only damaged frames for {silent:.1f} s")
        raise self._trouble("stale", "silent", f"it gives no frames, for {silent:.1f} s")

    def _best_format(self) -> str:
        """Of the formats that have the size asked for, or come nearest to it, the one that costs least
        and comes at the rate asked for.

        Where none does, the one that comes fastest: uncompressed frames of a large size do not fit
        through USB 2.
        """
        offered = {form.pixel_format.name for form in self._device.info.buffer_formats(self._capture.type)}
        decoded = [name for name in DECODED if name in offered]
        if not decoded:
            raise self._trouble(
                "no-device",
                "not-capture",
                f"it offers {', '.join(sorted(offered)) or 'no format'}, none of which is decoded here",
            )
        offers = {name: self._offer(PixelFormat[name]) for name in decoded}
        nearest = min(away for away, _ in offers.values())
        rates = {name: rate for name, (away, rate) in offers.items() if away == nearest}
        enough = (name for name, rate in rates.items() if rate >= SLOW * self._spec.rate)
        return next(enough, max(rates, key=lambda name: rates[name]))

    def _offer(self, form: PixelFormat) -> tuple[int, float]:
        """How many pixels the nearest size of a format is away from the one asked for, and the most frames
        a second in it: infinite if the device does not say."""
        info, size = self._device.info, (self._spec.width, self._spec.height)
        sizes = [s for s in info.format_frame_sizes(form) if s.type == FrameSizeType.DISCRETE]
        away = {(s.info.width, s.info.height): _away(size, (s.info.width, s.info.height)) for s in sizes}
        nearest = min(away, key=lambda found: away[found], default=size)
        rates = [float(max(i.min_fps, i.max_fps)) for i in info.fps_intervals(form, *nearest)]
        return away.get(nearest, 0), max(rates) or float("inf")

    def _format_taken(self) -> Any:
        try:
            taken = self._capture.get_format()
        except ValueError as error:
            raise self._trouble(
                "no-device", "not-capture", f"it took a format unknown here ({error})"
            ) from error
        if taken.pixel_format.name not in DECODED:
            raise self._trouble("no-device", "not-capture", f"it insists on {taken.pixel_format.name}")
        return taken

    def _rate_taken(self) -> float:
        try:
            rate: Fraction = self._capture.get_fps()
        except (OSError, ZeroDivisionError):
            return 0.0
        return float(rate)

    def _trouble(self, state: str, cause: str, detail: str) -> CaptureError:
        return CaptureError(state, cause, f"{self._path}: {detail}")

    def _named(self, error: OSError) -> CaptureError:
        """What the system says, as trouble with a name."""
        gone = ("unplugged", "it is gone" if error.errno in GONE else "it fails; is it plugged in firmly?")
        cause, detail = SYSTEM_CAUSES.get(error.errno or 0, gone)
        return self._trouble("no-device", cause, f"{detail} ({error.strerror or error})")


def _away(asked: tuple[int, int], found: tuple[int, int]) -> int:
    """Pixels that either size has and the other has not: how the kernel's drivers choose the nearest."""
    both = min(asked[0], found[0]) * min(asked[1], found[1])
    return asked[0] * asked[1] + found[0] * found[1] - 2 * both


def decode(data: bytes, form: Any) -> Image | None:
    """A buffer in linuxpy's ``Format`` as BGR or gray; None for one that is too short or no picture."""
    packed, name = np.frombuffer(data, np.uint8), form.pixel_format.name
    if name in COMPRESSED:
        return cv2.imdecode(packed, cv2.IMREAD_COLOR)  # type: ignore[return-value]
    rows = form.height * 3 // 2 if name == "NV12" else form.height
    stride = form.bytes_per_line
    if packed.size < rows * stride:
        return None
    lines = packed[: rows * stride].reshape(rows, stride)
    if name == "NV12":
        return cv2.cvtColor(lines[:, : form.width].copy(), cv2.COLOR_YUV2BGR_NV12)
    depth, conversion = PACKED[name]
    image: Image = lines[:, : form.width * depth].reshape(form.height, form.width, depth)
    if conversion is None:
        return image[:, :, 0] if depth == 1 else image
    return cv2.cvtColor(image, conversion)  # type: ignore[return-value]
