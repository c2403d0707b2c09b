"""Whether the compositor above the window still lives: an X server under one that hangs goes on taking
pictures that nobody sees, while an old verdict stands on the glass."""

from __future__ import annotations

import os
import socket
import struct
import threading
from pathlib import Path

from device.clock import now

ANSWER_WITHIN = 0.5
ASK_EVERY = 0.5
LATE = 2.0
"""Seconds without an answer from which it counts as hung."""
DISPLAY, SYNC, CALLBACK = 1, 0, 2
"""The first object of every client, its request that is answered once all before it was done, and a number
for the answer (Wayland protocol, 4.2 and appendix A, wl_display)."""
LENGTH = 12


class CompositorWatch:
    """Asks it twice a second, in a thread of its own. Where there is none, all is well."""

    def __init__(self) -> None:
        self._place = _place()
        self._answered_at = now()
        if self._place:
            threading.Thread(target=self._ask, name="compositor watch", daemon=True).start()

    @property
    def lives(self) -> bool:
        """Whether it answered lately."""
        return not self._place or now() - self._answered_at < LATE

    def _ask(self) -> None:
        pause = threading.Event()
        while not pause.wait(ASK_EVERY):
            if answers(self._place):
                self._answered_at = now()


def _place() -> str:
    """The socket of the compositor that this process runs under; empty for none."""
    name = os.environ.get("WAYLAND_DISPLAY", "")
    return str(Path(os.environ.get("XDG_RUNTIME_DIR", "")) / name) if name else ""


def answers(place: str) -> bool:
    """Whether the compositor at a socket goes round its loop."""
    try:
        with socket.socket(socket.AF_UNIX) as wire:
            wire.settimeout(ANSWER_WITHIN)
            wire.connect(place)
            wire.sendall(struct.pack("=III", DISPLAY, LENGTH << 16 | SYNC, CALLBACK))
            return bool(wire.recv(64))
    except OSError:
        return False
