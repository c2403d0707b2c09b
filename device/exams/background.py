"""What takes a while, done one after another in a thread of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from reader.errors import SonoglanceError

NICENESS = 10
"""Of the thread: the live reading goes first where processors are few."""

T = TypeVar("T")


class Background:
    """Works off what it is given, in order. What comes of it is told in ``catch_up``, on the caller's thread,
    so that nothing of the caller's is ever touched by two threads.
    """

    def __init__(self, name: str) -> None:
        self._todo: queue.SimpleQueue[Callable[[], Callable[[], None]] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[], T], then: Callable[[T], None], failed: Callable[[SonoglanceError], None]
    ) -> None:
        """Do this work; later ``then`` is told what came of it, or ``failed`` why nothing did."""

        def whole() -> Callable[[], None]:
            try:
                outcome = work()
            except SonoglanceError as error:
                return lambda error=error: failed(error)  # type: ignore[misc]
            return lambda: then(outcome)

        self._todo.put(whole)

    def catch_up(self) -> None:
        """Tell what came of all that is done. Raises what any of it failed with unexpectedly."""
        while True:
            try:
                tell = self._done.get_nowait()
            except queue.Empty:
                return
            tell()

    def close(self, deadline: float) -> bool:
        """Do what was given so far, and no more; whether that was done within so many seconds."""
        self._todo.put(None)
        self._thread.join(deadline)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if hasattr(os, "setpriority"):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while (whole := self._todo.get()) is not None:
            try:
                self._done.put(whole())
            except Exception as error:  # noqa: BLE001  carried to the caller's thread, which names it
                self._done.put(_raises(error))


def _raises(error: Exception) -> Callable[[], Any]:
    def tell() -> None:
        raise error

    return tell
