"""Grabbers that are simulated, behind the same process boundary as real ones: for soak and delay tests.

They decode MJPEG frames of the phantom as a V4L2 driver decodes a grabber's. ``GrabberSpec.device`` holds
what they need to know as a query string.
"""

from __future__ import annotations

import os
import signal
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import cv2
import numpy as np
from numpy.typing import NDArray

from device.capture.driver import CaptureError, GrabberSpec, Mode, Picture
from device.clock import now
from reader.phantom import Act, Phantom

Image = NDArray[np.uint8]

QUALITY = 90
"""JPEG quality of the simulated grabbers' frames."""


def encoded(image: Image) -> bytes:
    """A frame as a grabber sends it: MJPEG."""
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _decoded(frame: bytes) -> Image:
    return np.asarray(cv2.imdecode(np.frombuffer(frame, np.uint8), cv2.IMREAD_COLOR), np.uint8)


def _asked(spec: GrabberSpec) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(spec.device).items()}


class CodedFrames:
    """Frames of ``FOLDER/frames.npz``, one after another, each arrival noted in ``FOLDER/arrivals``
    (monotonic seconds, float64)."""

    FRAMES, ARRIVALS = "frames.npz", "arrivals"
    lost = damaged = 0

    def __init__(self, spec: GrabberSpec) -> None:
        folder = Path(_asked(spec)["folder"])
        with np.load(folder / self.FRAMES) as stored:
            self._frames = [stored[name].tobytes() for name in sorted(stored.files)]
        self._arrivals = (folder / self.ARRIVALS).open("wb", buffering=0)
        self.mode = Mode(spec.width, spec.height, "MJPEG", spec.rate)
        self._began, self._given = now(), 0

    def take(self, deadline: float) -> Picture | None:
        """The next frame when its time has come."""
        wait = self._began + self._given / self.mode.rate - now()
        time.sleep(max(0.0, min(wait, deadline)))
        if wait > deadline:
            return None
        at = now()
        self._arrivals.write(np.float64(at).tobytes())
        frame = self._frames[self._given % len(self._frames)]
        self._given += 1
        return Picture(_decoded(frame), at)

    def close(self) -> None:
        """Let go of the file of arrivals."""
        self._arrivals.close()


ACTS = ("normal", "consolidation", "moved", "no-contact", "menu", "black", "blue", "bars")
"""What the troubled scanner's store of frames holds, by the phantom's names."""
STEP = 0.2
"""Seconds of the phantom's time between two frames."""
SECONDS_STORED = 7.2
"""Two of the phantom's breaths."""


@dataclass(frozen=True)
class Accident:
    """Something that goes wrong from ``began`` to ``ended``, in seconds since the schedule's start.

    ``states``: what the screen must show within a second, any one of these; empty where all may pass
    unnoticed because it is over too soon.
    """

    kind: str
    began: float
    ended: float
    states: tuple[str, ...]


EXPECTED: Mapping[str, tuple[str, ...]] = {
    "unplugged": ("no-device",),
    "silent": ("stale",),
    "hung": ("stale",),
    "crashed": (),
    "black": ("no-signal",),
    "blue": ("no-signal",),
    "bars": ("no-signal",),
    "snow": ("no-signal",),
    "half": ("no-signal",),
    "frozen": ("frozen",),
    "menu": ("no-beam",),
    "no-contact": ("no-contact",),
    "moved": ("geometry-changed", "no-beam"),
    "resized": ("geometry-changed",),
}
"""Each kind of accident, and the states that tell of it. A frozen picture under moving noise is not among
them: it takes more frames a second to tell than a hurried source gives."""
OF_THE_BOX = ("unplugged", "silent", "hung", "crashed")


def schedule(seed: int, seconds: float, count: int) -> list[Accident]:
    """``count`` accidents spread over so many real seconds; half of them of the device and its process,
    half of the picture. Each takes about a third of its share of the time."""
    random = np.random.default_rng(seed)
    share = seconds / count
    of_the_picture = [kind for kind in EXPECTED if kind not in OF_THE_BOX]
    accidents = []
    for i in range(count):
        kind = str(random.choice(OF_THE_BOX if i % 2 else of_the_picture))
        began = (i + 0.05 + 0.1 * float(random.random())) * share
        accidents.append(
            Accident(kind, began, began + share * (0.25 + 0.1 * float(random.random())), EXPECTED[kind])
        )
    return accidents


def store_acts(path: Path, width: int, height: int) -> None:
    """Draw the phantom's acts once, for every life of the scanner's process to read."""
    moments = np.arange(0, SECONDS_STORED, STEP)
    frames: dict[str, Any] = {}
    for act in ACTS:
        phantom = Phantom((Act(act, 3600.0),))
        for i, at in enumerate(moments):
            image = cv2.resize(phantom.frame(float(at)), (width, height), interpolation=cv2.INTER_AREA)
            frames[f"{act}/{i:03d}"] = np.frombuffer(encoded(np.asarray(image, np.uint8)), np.uint8)
    np.savez(path, **frames)


class TroubledScanner:
    """The phantom behind a grabber to which one accident after another happens, by the clock.

    It keeps no state of its own between two lives of its process: all follows from the time.
    """

    lost = damaged = 0

    def __init__(self, spec: GrabberSpec) -> None:
        """Raises CaptureError while it is unplugged."""
        asked = _asked(spec)
        self._began = float(asked["began"])
        self._accidents = schedule(int(asked["seed"]), float(asked["seconds"]), int(asked["count"]))
        self._starts = [accident.began for accident in self._accidents]
        self._opened = now() - self._began
        self._random = np.random.default_rng(int(asked["seed"]))
        self._refuse_if_unplugged()
        with np.load(asked["frames"]) as stored:
            self._acts = {
                act: [stored[n].tobytes() for n in stored.files if n.startswith(f"{act}/")] for act in ACTS
            }
        self.mode = Mode(spec.width, spec.height, "MJPEG", spec.rate)
        self._next = now()

    @staticmethod
    def device(frames: Path, seed: int, seconds: float, count: int, began: float) -> str:
        """What ``GrabberSpec.device`` must say. ``began``: the monotonic second the schedule counts from."""
        return urlencode({"frames": frames, "seed": seed, "seconds": seconds, "count": count, "began": began})

    def take(self, deadline: float) -> Picture | None:
        """The next frame, spoilt by whatever goes wrong at this moment."""
        wait = self._next - now()
        time.sleep(max(0.0, min(wait, deadline)))
        if wait > deadline:
            return None
        self._next = max(self._next + 1 / self.mode.rate, now() - 1)
        self._refuse_if_unplugged()
        kind = self._accident()
        if kind == "silent":
            time.sleep(max(0.0, deadline - max(wait, 0.0)))
            return None
        self._suffer(kind)
        at = now()
        return Picture(self._picture(kind, at - self._began), at)

    def close(self) -> None:
        """Nothing is held."""

    def _accident(self) -> str:
        at = now() - self._began
        before = bisect_right(self._starts, at) - 1
        if before < 0 or at >= self._accidents[before].ended:
            return ""
        return self._accidents[before].kind

    def _refuse_if_unplugged(self) -> None:
        if self._accident() == "unplugged":
            raise CaptureError("no-device", "unplugged", "the simulated grabber is unplugged")

    def _suffer(self, kind: str) -> None:
        """Hang or crash, unless this process was started only after that had happened."""
        if kind in ("hung", "crashed"):
            begun = self._starts[bisect_right(self._starts, now() - self._began) - 1]
            if self._opened < begun:
                os.kill(os.getpid(), signal.SIGSTOP if kind == "hung" else signal.SIGSEGV)

    def _picture(self, kind: str, at: float) -> Image:
        act = kind if kind in ACTS else "normal" if int(at / 60) % 2 else "consolidation"
        still = kind == "frozen"
        frames = self._acts[act]
        place = 0 if still else round(at * self.mode.rate) % len(frames)
        image = _decoded(frames[place])
        return SPOILT[kind](image, self._random) if kind in SPOILT else image


def _snow(image: Image, random: np.random.Generator) -> Image:
    return random.integers(0, 256, image.shape, np.uint8)


def _half(image: Image, random: np.random.Generator) -> Image:
    image[round(image.shape[0] * random.uniform(0.35, 0.6)) :] = 128
    return image


def _resized(image: Image, random: np.random.Generator) -> Image:
    return np.asarray(cv2.resize(image, None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA), np.uint8)


SPOILT: Mapping[str, Callable[[Image, np.random.Generator], Image]] = {
    "snow": _snow,
    "half": _half,
    "resized": _resized,
}
"""What is done to a frame by the accidents that the phantom does not act out."""
