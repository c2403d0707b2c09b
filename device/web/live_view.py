"""The live picture as viewers get it: each asks for one newer than its last, so that nothing ever queues.

A viewer that stalls does not ask, and a slow one gets the newest picture whenever it does. Each picture is
encoded once, whoever asks.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from device.clock import now
from device.web.clip_pictures import encoded
from device.web.live import LivePicture, Shot

QUALITY = 80
OLDEST = 1.0
"""Seconds after which a picture is no longer handed out as live."""


@dataclass(frozen=True)
class Encoded:
    """A picture as JPEG. ``number``, ``state`` and ``at`` as in ``Shot``."""

    number: int
    jpeg: bytes
    state: dict[str, Any]
    at: float


class LiveView:
    """Hands out the newest picture. All calls from the event loop's thread."""

    def __init__(self, live: LivePicture) -> None:
        self._live = live
        self._newest: Encoded | None = None
        self._arrived = asyncio.Event()
        self._encoder = ThreadPoolExecutor(1, "jpeg")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Listen for pictures, in the running event loop."""
        asyncio.get_running_loop().add_reader(self._live.bell, self._rung)

    def stop(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._live.bell)
        self._encoder.shutdown(wait=False)

    async def newer(self, after: int, wait: float) -> Encoded | None:
        """The newest picture, once there is one that is not number ``after``; None after ``wait`` seconds."""
        give_up = now() + wait
        while True:
            self._live.ask()
            newest = self._newest
            if newest is not None and newest.number != after and now() - newest.at < OLDEST:
                return newest
            arrived, left = self._arrived, give_up - now()
            try:
                await asyncio.wait_for(arrived.wait(), max(left, 0.0))
            except asyncio.TimeoutError:
                return None

    def _rung(self) -> None:
        os.eventfd_read(self._live.bell)
        # While one is encoded, newer ones wait in the shared memory, where the newest wins.
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._encode())

    async def _encode(self) -> None:
        loop = asyncio.get_running_loop()
        while (shot := self._live.take(self._newest.number if self._newest else 0)) is not None:
            self._newest = await loop.run_in_executor(self._encoder, _encode, shot)
            self._arrived.set()
            self._arrived = asyncio.Event()


def _encode(shot: Shot) -> Encoded:
    return Encoded(shot.number, encoded(shot.image, QUALITY), shot.state, shot.at)
