"""A signal that tells a service to end."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable


def when_told_to_end(end: Callable[[], None], *signals: signal.Signals) -> None:
    """Have ``end`` called, in a thread of its own, at the first of these signals.

    Not by their handler itself: it interrupts the main thread anywhere, even where that holds the lock of the
    very event that is to be set, and would then wait for itself. A ``SimpleQueue`` may be put to anywhere.
    """
    told: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait() -> None:
        told.get()
        end()

    for number in signals:
        signal.signal(number, lambda got, _: told.put(got))
    threading.Thread(target=wait, name="told to end", daemon=True).start()
