"""What a grabber's process and the drivers in it say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from device.errors import SourceError

Image = NDArray[np.uint8]

V4L2 = "device.capture.v4l2:V4l2Driver"
SLOW = 0.95
"""The share of the frame rate asked for that still counts as that rate: 29.97 is 30."""


@dataclass(frozen=True)
class GrabberSpec:
    """A grabber and the mode asked of it.

    ``device``: a path (/dev/video0, /dev/v4l/by-id/...) or ``VID:PID`` in hex. ``width`` and ``height``
    in pixels, ``rate`` in frames a second. ``driver``: what opens it, as ``module:factory``; the factory
    takes this specification and gives a ``Driver``.
    """

    device: str
    width: int = 1280
    height: int = 720
    rate: int = 30
    driver: str = V4L2


@dataclass(frozen=True)
class Mode:
    """The mode that a device took: pixels, format, frames a second (0 where it does not say)."""

    width: int
    height: int
    format: str
    rate: float

    def __str__(self) -> str:
        rate = f" {self.rate:.4g}/s" if self.rate else ""
        return f"{self.width}x{self.height} {self.format}{rate}"

    def falls_short(self, spec: GrabberSpec) -> bool:
        """Whether this is another size, or fewer frames a second, than was asked for."""
        same_size = (self.width, self.height) == (spec.width, spec.height)
        return not same_size or 0 < self.rate < SLOW * spec.rate


@dataclass(frozen=True)
class Picture:
    """A decoded frame, uint8 [h, w] gray or [h, w, 3] BGR, and the monotonic second it was taken at."""

    image: Image
    taken_at: float


class CaptureError(SourceError):
    """Why no picture comes now. ``state`` and ``cause`` as in ``device.capture.live.Trouble``.

    After ``no-device`` the driver is closed and opened anew; after any other state it is asked again.
    """

    def __init__(self, state: str, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.state, self.cause, self.detail = state, cause, detail


class Driver(Protocol):
    """An open device. Its factory raises CaptureError where it cannot be opened.

    ``mode``: as read back from the device, None until it gave one. ``lost``: frames that the device
    dropped, or that came too fast to be decoded. ``damaged``: frames left out for what the device or the
    decoder said of them.
    """

    mode: Mode | None
    lost: int
    damaged: int

    def take(self, deadline: float) -> Picture | None:
        """The next whole picture, or None after ``deadline`` seconds without one.

        Raises CaptureError where something is known to be wrong, at the latest when the time is up.
        """
        ...

    def close(self) -> None:
        """Give the device back."""
        ...
