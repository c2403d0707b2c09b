"""A grabber as live capture, over a process of its own: whatever becomes of device or driver, the newest
frame or the reason why there is none is known at once, and nobody need restart anything.

docs/grabber.md tells how it works and what it says.
"""

from __future__ import annotations

import json
import logging
import math
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from device.capture.driver import GrabberSpec, Mode
from device.capture.grabber_child import STARTING, Ring
from device.capture.live import Arrived, Trouble
from device.child_process import ChildProcess
from device.clock import now
from reader.clips import Frame

__all__ = ["Grabber", "GrabberSpec"]

HUNG_AFTER = 0.7
"""Seconds without a heartbeat after which the driver is said to hang."""
KILL_AFTER = 3.0
"""Seconds without a heartbeat after which the driver's process is killed."""
START_DEADLINE = 15.0
"""The same while a process starts or opens a device, which may take long on a slow or sleepy bus."""
RESTART_AFTER = 0.3
"""Seconds before another process is started."""
RETRY_AFTER = 3.0
"""The same where the last one did not come as far as to open the device."""
UNDEAD_DEADLINE = 5.0
"""Seconds to wait for a killed process to be gone, so that the device is free, before another starts
beside it: one may hang in the kernel until the device is pulled."""
MOST_UNDEAD = 3
CLOSE_DEADLINE = 2.0
"""Seconds to wait for the process to be gone when the grabber is closed."""
LOOK_EVERY = 0.1
"""Seconds between two looks at the process while no frame comes."""
LONGEST_MESSAGE = 4096
COUNTED = ("opened", "lost", "damaged")

_Message = dict[str, Any]
_log = logging.getLogger(__name__)


class Grabber:
    """A capture device behind a supervised process.

    Nothing happens between two calls of ``take``, which also starts, heeds and kills the process: call it
    at least a few times a second, from one thread. Beside what every ``Capture`` has: ``mode`` as read
    back from the device, which is in ``badge`` too where it falls short of the one asked for; ``lost``:
    frames that the device dropped, or that came too fast to be decoded; ``damaged``: frames left out because
    device or decoder called them damaged.
    """

    def __init__(self, spec: GrabberSpec) -> None:
        """Start looking for the device. That it is not there is no error here, but ``trouble``."""
        self.spec, self.name, self.badge = spec, spec.device, ""
        self.mode: Mode | None = None
        self.trouble: Trouble | None = None
        self.dropped = self.restarts = self.lost = self.damaged = 0
        self._newest: _Message | None = None
        self._frames = 0
        self._past: Counter[str] = Counter()
        self._undead: list[ChildProcess] = []
        self._due = 0.0
        self._life: _Life | None = None
        self._revive()

    @property
    def ended(self) -> bool:
        """Never: a device that is gone may come back."""
        return False

    def take(self, deadline: float) -> Arrived | None:
        """The newest frame not yet taken, or None after ``deadline`` seconds without one.

        Frames of a device that has since come into trouble are not handed out.
        """
        until = now() + deadline
        while True:
            self._attend()
            arrived = self._copy_newest()
            left = until - now()
            if arrived is not None or left <= 0:
                return arrived
            self._wait(min(left, LOOK_EVERY))

    def close(self) -> None:
        """Give the device back and end the process. No frame comes afterwards."""
        if self._life is not None:
            self._undead.append(self._life.end())
        self._life, self._newest, self._due = None, None, math.inf
        until = now() + CLOSE_DEADLINE
        if not all([process.gone(max(until - now(), 0.0)) for process in self._undead]):
            _log.error("%s: its process cannot be ended, it hangs in the kernel", self.name)

    def _wait(self, longest: float) -> None:
        if self._life is None:
            time.sleep(longest)
            return
        poll = select.poll()
        poll.register(self._life.wire, select.POLLIN)
        poll.poll(1e3 * longest)

    def _attend(self) -> None:
        """Whatever is due now: hear the process, find it dead or silent, start another."""
        self._undead = [process for process in self._undead if not process.gone()]
        if self._life is None:
            self._revive()
            return
        try:
            # Heard before the clock is asked: this process may itself have been held up.
            for message in self._life.messages():
                self._heed(message)
        except OSError:
            self._lose(self._life.process.ending())
            return
        silent = now() - self._life.heard_at
        if silent > (START_DEADLINE if self._life.opening else KILL_AFTER):
            self._lose(f"its driver has not moved for {silent:.1f} s")
        elif silent > HUNG_AFTER and not self._life.opening:
            self._stop_for(Trouble("stale", "hung", f"{self.name}: its driver does not answer"))

    def _heed(self, message: _Message) -> None:
        assert self._life is not None, "messages come from it"
        if message["kind"] == "frame":
            number = self._life.frames_before + message["number"]
            self.dropped += number - self._frames - (self._newest is None)
            self._frames, self._newest, self.trouble = number, message, None
        elif message["kind"] == "standing":
            self._life.opening = message["opening"]
            self._life.counts = Counter({key: message[key] for key in COUNTED})
            self._count()
            if message["mode"]:
                self.mode = Mode(*message["mode"])
                self.name = f"{self.spec.device} {self.mode}"
                self.badge = f"other-mode {self.mode}" if self.mode.falls_short(self.spec) else ""
            if message["trouble"] is None:
                self.trouble = None
            elif message["trouble"][0] != STARTING:
                self._stop_for(Trouble(*message["trouble"]))

    def _count(self) -> None:
        counts = self._past + (self._life.counts if self._life else Counter())
        self.restarts = max(counts["opened"] - 1, 0)
        self.lost, self.damaged = counts["lost"], counts["damaged"]

    def _stop_for(self, trouble: Trouble) -> None:
        """Nothing is live any more."""
        if self.trouble is None or trouble.cause != self.trouble.cause:
            _log.warning("%s/%s: %s", trouble.state, trouble.cause, trouble.detail)
        self.trouble = trouble
        self.dropped += self._newest is not None
        self._newest = None

    def _copy_newest(self) -> Arrived | None:
        message, self._newest = self._newest, None
        if message is None or self._life is None or self._life.ring is None:
            return None
        image = self._life.ring.copy(message["place"], message["number"])
        if image is None:
            self.dropped += 1
            return None
        return Arrived(Frame(image, message["at"], self._frames - 1), message["at"])

    def _lose(self, why: str) -> None:
        """End a process that is of no use any more; another is started in its place."""
        assert self._life is not None, "there is one to lose"
        self._past += self._life.counts
        self._due = now() + (RESTART_AFTER if self._life.counts["opened"] else RETRY_AFTER)
        self._undead.append(self._life.end())
        self._life = None
        self._stop_for(Trouble("stale", "hung", f"{self.name}: {why}; started anew"))

    def _revive(self) -> None:
        free = not self._undead or (now() > self._due + UNDEAD_DEADLINE and len(self._undead) <= MOST_UNDEAD)
        if now() < self._due or not free:
            return
        try:
            self._life = _Life(self.spec, self._frames)
        except OSError as error:
            self._due = now() + RETRY_AFTER
            self._stop_for(Trouble("stale", "hung", f"{self.name}: no process can be started ({error})"))


class _Life:
    """One life of the process that holds the driver, as this side sees it."""

    def __init__(self, spec: GrabberSpec, frames_before: int = 0) -> None:
        """Raises OSError where the system gives no process."""
        # Whole messages, and an end that is noticed.
        self.wire, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            job = json.dumps([asdict(spec), theirs.fileno()])
            self.process = ChildProcess("device.capture.grabber_child", job, [theirs.fileno()])
        self.ring: Ring | None = None
        self.frames_before = frames_before
        self.counts: Counter[str] = Counter()
        self.heard_at, self.opening = now(), True

    def messages(self) -> Iterator[_Message]:
        """What it has said since the last call. Raises ConnectionError where it is gone."""
        while True:
            try:
                # Not recv_fds: up to Python 3.13 it takes no heed of flags.
                said, ancillary, _, _ = self.wire.recvmsg(
                    LONGEST_MESSAGE, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            if not said:
                raise ConnectionResetError("its process closed the connection")
            self.heard_at = now()
            message = json.loads(said)
            if message["kind"] == "ring":
                self._drop_ring()
                self.ring = Ring(tuple(message["shape"]), int.from_bytes(ancillary[0][2], sys.byteorder))
            else:
                yield message

    def end(self) -> ChildProcess:
        """Have the process killed and let go of all but it, which may take its time to be gone."""
        self.process.kill()
        self.wire.close()
        self._drop_ring()
        return self.process

    def _drop_ring(self) -> None:
        if self.ring is not None:
            self.ring.close()
            self.ring = None
