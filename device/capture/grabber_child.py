"""The process that holds a grabber's driver: opens the device again and again, and hands out its frames.

Frames lie in a ring of slots in shared memory; small messages over a socket say what lies where, and a
heartbeat tells a device that is silent from a driver that hangs.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import mmap
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple
from typing import Any, NoReturn

import numpy as np

from device.capture.driver import CaptureError, Driver, GrabberSpec, Image, Picture
from device.child_process import die_with_parent
from device.clock import now

SLOTS = 4
HEADER = mmap.PAGESIZE
"""Bytes before the slots: for each the number of the frame in it."""
BEAT = 0.1
"""Seconds between two heartbeats at most, and the longest that a driver may wait for a frame."""
LOOK_AGAIN_AFTER = 0.3
"""Seconds between two attempts to open a device."""
REOPEN_AFTER = 3.0
"""Seconds of silence after which the device is closed and opened anew: some wake up then."""
LONGEST_PATIENCE = 30.0
"""The most that this grows to: it doubles each time, as others need long for their first frame."""
STARTING = "starting"


class Ring:
    """Slots for frames of one shape, in memory that both processes see.

    A slot is locked by whoever writes or copies it, so that it is never overwritten under a copy; the
    system takes the lock from a process that dies.
    """

    def __init__(self, shape: tuple[int, ...], descriptor: int | None = None) -> None:
        """``shape``: [h, w] or [h, w, 3]. ``descriptor``: of a ring that the other process made; this one
        closes it."""
        self.shape, size = shape, int(np.prod(shape))
        if descriptor is None:
            descriptor = os.memfd_create("frames")
            os.ftruncate(descriptor, HEADER + SLOTS * size)
        self.descriptor = descriptor
        whole = np.frombuffer(mmap.mmap(descriptor, HEADER + SLOTS * size), np.uint8)
        self._numbers = whole[: 8 * SLOTS].view(np.int64)
        self._slots = whole[HEADER:].reshape(SLOTS, *shape)

    def put(self, image: Image, number: int) -> int:
        """Write the frame called ``number`` (1 and up) into a slot that nobody copies; the slot's place."""
        for place in (number % SLOTS, (number + 1) % SLOTS):
            with self._locked(place, fcntl.LOCK_EX) as mine:
                if mine:
                    self._numbers[place] = number
                    self._slots[place] = image
                    return place
        raise AssertionError("the parent copies one slot at a time")

    def copy(self, place: int, number: int) -> Image | None:
        """The frame called ``number``, or None if its slot went to a newer one."""
        with self._locked(place, fcntl.LOCK_SH) as mine:
            return self._slots[place].copy() if mine and self._numbers[place] == number else None

    def close(self) -> None:
        """Let go of the memory, which lives as long as either process maps it."""
        os.close(self.descriptor)

    @contextlib.contextmanager
    def _locked(self, place: int, kind: int) -> Any:
        try:
            fcntl.lockf(self.descriptor, kind | fcntl.LOCK_NB, 1, place)
        except OSError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, place)


class _Outlet:
    """The child's end of the socket: frames, and how things stand at every change and heartbeat.

    A parent too slow to take a message misses it and hears the same from the next heartbeat.
    """

    def __init__(self, wire: socket.socket) -> None:
        wire.setblocking(False)
        self._wire = wire
        self._ring: Ring | None = None
        self._number = 0
        self._standing: dict[str, Any] = {"trouble": (STARTING, "", ""), "mode": None, "opening": True}
        self._standing |= {"opened": 0, "lost": 0, "damaged": 0}
        self._told: dict[str, Any] = {}
        self._told_at = 0.0

    def stand(self, **what: Any) -> None:
        """Tell how things stand where that changed, or a heartbeat is due."""
        self._standing.update(what)
        if self._standing == self._told and now() < self._told_at + BEAT:
            return
        if self._send({"kind": "standing", **self._standing}):
            self._told, self._told_at = dict(self._standing), now()

    def frame(self, picture: Picture) -> None:
        """Hand out a frame."""
        if self._ring is None or self._ring.shape != picture.image.shape:
            self._renew_ring(picture.image.shape)
        self._number += 1
        if self._ring is not None:
            place = self._ring.put(picture.image, self._number)
            message = {"kind": "frame", "place": place, "number": self._number, "at": picture.taken_at}
            self._send(message)

    def _renew_ring(self, shape: tuple[int, ...]) -> None:
        if self._ring is not None:
            self._ring.close()
        self._ring = Ring(shape)
        if not self._send({"kind": "ring", "shape": shape}, [self._ring.descriptor]):
            # Frames without a ring are lost on the parent: make another for the next.
            self._ring.close()
            self._ring = None

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> bool:
        try:
            socket.send_fds(self._wire, [json.dumps(message).encode()], descriptors)
        except BlockingIOError:
            return False
        return True


def serve(spec: GrabberSpec, wire: socket.socket) -> NoReturn:
    """Hand out the device's frames for as long as the parent lives, opening it anew whenever it went."""
    outlet = _Outlet(wire)
    module, _, factory = spec.driver.partition(":")
    open_driver = getattr(importlib.import_module(module), factory)
    opened, counted, patience = 0, (0, 0), REOPEN_AFTER
    while True:
        outlet.stand(opening=True)
        try:
            with closing(open_driver(spec)) as driver:
                opened += 1
                outlet.stand(opening=False, opened=opened)
                try:
                    gave_pictures = _hand_out(driver, outlet, counted, patience)
                finally:
                    counted = counted[0] + driver.lost, counted[1] + driver.damaged
            patience = REOPEN_AFTER if gave_pictures else min(2 * patience, LONGEST_PATIENCE)
        except CaptureError as trouble:
            patience = REOPEN_AFTER
            outlet.stand(opening=False, trouble=_words(trouble))
        time.sleep(LOOK_AGAIN_AFTER)


def _hand_out(driver: Driver, outlet: _Outlet, counted: tuple[int, int], patience: float) -> bool:
    """Hand out frames until the device has been silent for ``patience`` seconds; whether it gave any.

    ``counted``: frames lost and damaged before. Raises CaptureError where the device is gone.
    """
    opened_at = whole_at = now()
    while now() < whole_at + patience:
        try:
            picture = driver.take(BEAT)
        except CaptureError as trouble:
            if trouble.state == "no-device":
                raise
            if trouble.state != "stale":
                whole_at = now()
            known: dict[str, Any] = {"trouble": _words(trouble)}
        else:
            known = {}
            if picture is not None:
                whole_at, known = now(), {"trouble": None}
                outlet.frame(picture)
        outlet.stand(
            mode=driver.mode and astuple(driver.mode),
            lost=counted[0] + driver.lost,
            damaged=counted[1] + driver.damaged,
            **known,
        )
    return whole_at > opened_at


def _words(trouble: CaptureError) -> tuple[str, str, str]:
    return trouble.state, trouble.cause, trouble.detail


def main() -> None:
    """The child's start, as ``device.capture.grabber.Grabber`` calls it."""
    die_with_parent()
    spec, wire = json.loads(sys.argv[1])
    with contextlib.suppress(ConnectionError):  # the parent is gone, or has done with us
        serve(GrabberSpec(**spec), socket.socket(fileno=wire))


if __name__ == "__main__":
    main()
