"""Loaded into the booted box's reader by a drop-in of the test alone: hangs that are asked for by a file.

A file under ``/run/planted``, named by what is to hang, stops whatever of the service was started before it.
The grabber is a drawn lung, taken by the product's own child process.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ASKED = Path("/run/planted")
BORN = time.time()


def may_hang(name: str) -> None:
    """Hang for good, if that was asked for since this process began."""
    path = ASKED / name
    while path.exists() and path.stat().st_mtime > BORN:
        time.sleep(1)


def hanging(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, which may hang first."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        may_hang(name)
        return function(*arguments, **named)

    return call


class Lung:
    """A driver: a drawn probe that is put on for 12 of 15 seconds, for ever; or nothing more."""

    lost = damaged = 0

    def __init__(self, spec: Any) -> None:
        from device.capture.driver import Mode
        from reader.phantom import Act, Phantom

        self.mode = Mode(spec.width, spec.height, "drawn", spec.rate)
        self._phantom = Phantom((Act("normal", 12.0), Act("no-contact", 3.0)))
        self._given = 0

    def take(self, deadline: float) -> Any:
        """The next picture."""
        from device.capture.driver import Picture
        from device.clock import now

        may_hang("driver")
        time.sleep(1 / self.mode.rate)
        self._given += 1
        # There and back, so that no two neighbours are far apart.
        place = self._given % 38
        lifted = 12.0 if now() % 15.0 > 12.0 else 0.0
        return Picture(self._drawn(lifted + min(place, 38 - place) / self.mode.rate), now())

    @functools.cache  # noqa: B019  drawing takes long, and this lives as long as its process
    def _drawn(self, at: float) -> Any:
        return self._phantom.frame(at)

    def close(self) -> None:
        """Nothing is held."""


def plant() -> None:
    """Have the loop, the network and the grabber's driver look for what is asked of them."""
    import device.capture.sources as sources
    import device.exams.round as exam_round
    from device.capture.driver import GrabberSpec
    from reader.runner import LiteRtRunner

    def lung(device: str, mode: tuple[int, int, int]) -> list[Any]:
        return [sources.DeviceSource(GrabberSpec(device, *mode, "sitecustomize:Lung"), drawn=True)]

    sources.open_sources = lung
    exam_round.open_round = functools.partial(exam_round.open_round, advance=True)
    LiteRtRunner.class_map = hanging("runner", LiteRtRunner.class_map)

    import device.loop

    device.loop.Bedside._follow_settings = hanging("loop", device.loop.Bedside._follow_settings)


if "--service" in sys.orig_argv:
    plant()
