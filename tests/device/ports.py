"""Ports for what a test starts, ends and starts anew under one address."""

from __future__ import annotations

import contextlib
import random
import socket


def free_port() -> int:
    """Below the ports that the kernel gives out by itself: what opens it later, or anew, finds it free."""
    while True:
        with contextlib.closing(socket.socket()) as taken, contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", port := random.randrange(12_000, 30_000)))
            return port
