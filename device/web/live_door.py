"""The live picture for a web page that is a service of its own: its descriptors go over a socket.

Whoever holds the connection knows when the bedside loop has gone: its memory is dead then.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from pathlib import Path

from device.web.live import LivePicture

SOCKET = "live.sock"
HANDED = b"live"
DESCRIPTORS = 2
JOIN_DEADLINE = 2.0
"""Seconds to wait for the thread at the door to end."""
MOST_GUESTS = 4
"""Connections that are held: those of web processes that have ended would else pile up."""


class LiveDoor:
    """Hands the descriptors to each that comes, until ``close``."""

    def __init__(self, live: LivePicture, folder: Path) -> None:
        """``folder``: the service's own, which others cannot enter. Raises OSError where no socket can be
        made there."""
        self._live, self._path = live, folder / SOCKET
        self._guests: deque[socket.socket] = deque()
        # Under its name only once nobody else may enter and somebody is let in.
        draft = folder / f".{SOCKET}.part"
        draft.unlink(missing_ok=True)
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(draft))
        draft.chmod(0o600)
        self._door.listen()
        draft.replace(self._path)
        self._thread = threading.Thread(target=self._serve, name="live door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more, and let go of those that are."""
        self._path.unlink(missing_ok=True)
        # Closing alone would not wake the thread that waits in accept.
        with contextlib.suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)
        # One that is coming in just now is among those that are.
        self._thread.join(JOIN_DEADLINE)
        self._door.close()
        for guest in self._guests:
            guest.close()

    def _serve(self) -> None:
        while True:
            try:
                guest, _ = self._door.accept()
            except OSError:
                return
            with contextlib.suppress(OSError):  # it may have gone again
                socket.send_fds(guest, [HANDED], list(self._live.descriptors))
                self._guests.append(guest)
            if len(self._guests) > MOST_GUESTS:
                self._guests.popleft().close()


class LiveGuest:
    """The other side. ``live``: the picture."""

    def __init__(self, live: LivePicture, link: socket.socket) -> None:
        self.live, self._link = live, link

    @classmethod
    def enter(cls, folder: Path) -> LiveGuest | None:
        """Through the door in a folder; None where there is no bedside loop behind it."""
        link = socket.socket(socket.AF_UNIX)
        try:
            link.connect(str(folder / SOCKET))
            said, descriptors, _, _ = socket.recv_fds(link, len(HANDED), DESCRIPTORS)
        except OSError:
            link.close()
            return None
        if said != HANDED:
            link.close()
            return None
        return cls(LivePicture.attach(*descriptors), link)

    def wait_until_gone(self) -> None:
        """Return when the loop has gone."""
        with contextlib.suppress(OSError):
            self._link.recv(1)
