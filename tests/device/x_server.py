"""A real X server for tests, with real clicks and keys."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from device.screen.virtual import VirtualScreen, virtual_screen
from tests.conftest import need

PATIENCE = 120.0
"""Seconds for what takes a fraction of one, on a machine however busy."""


@contextlib.contextmanager
def x_server(folder: Path, width: int = 1280, height: int = 720) -> Iterator[VirtualScreen]:
    """A virtual X server; skips where its tools are absent, but never in CI."""
    for tool in ("Xvfb", "xdotool"):
        need(shutil.which(tool), tool, "xvfb x11-xkb-utils xdotool")
    with virtual_screen(folder, width, height) as screen:
        yield screen


def do(screen: VirtualScreen, *actions: object) -> None:
    """A real click or key, through the server's XTEST extension."""
    environment = {**os.environ, "DISPLAY": screen.name}
    subprocess.run(["xdotool", *map(str, actions)], env=environment, check=True, timeout=PATIENCE)


def heard(child: subprocess.Popen[bytes]) -> str:
    """The next key that a program has taken, which prints it."""
    assert child.stdout is not None
    assert select.select([child.stdout], [], [], PATIENCE)[0], "nothing was taken"
    return os.read(child.stdout.fileno(), 64).decode().strip()
