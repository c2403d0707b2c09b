"""A virtual X server (Xvfb) whose frame buffer is a file: what is on it can be read at any moment."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device.errors import DisplayError

FRAME_BUFFER = "Xvfb_screen0"
STOP_DEADLINE = 60.0
"""Seconds to wait for the server's end."""


def frame_buffer(folder: Path) -> NDArray[np.uint8]:
    """The frame buffer in a running server's folder, mapped: uint8 BGR [height, width, 3], which changes
    as the screen does.

    The file is an X Window Dump: a header, colours, then rows of four bytes a pixel.
    """
    with (folder / FRAME_BUFFER).open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    header = np.frombuffer(memory, ">u4", 25)
    size, height, stride, colours = (int(header[i]) for i in (0, 5, 12, 19))
    rows = np.frombuffer(memory, np.uint8)[size + 12 * colours :][: stride * height]
    return rows.reshape(height, stride // 4, 4)[:, :, :3]


class VirtualScreen:
    """A running server. ``name``: as ``DISPLAY`` wants it. ``process``: the server's. ``pixels``: uint8 BGR
    [height, width, 3], as they are at any moment."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.name, self.process, self.folder = name, process, folder
        self.pixels = frame_buffer(folder)


@contextlib.contextmanager
def virtual_screen(folder: Path, width: int = 1280, height: int = 720) -> Iterator[VirtualScreen]:
    """A virtual X server with its frame buffer in the folder.

    Raises DisplayError where Xvfb is missing or does not start.
    """
    if not shutil.which("Xvfb"):
        raise DisplayError("measuring the screen needs Xvfb: sudo apt-get install xvfb x11-xkb-utils")
    reading, writing = os.pipe()
    # Without -noreset the server starts anew when its last client leaves.
    command = ["Xvfb", "-noreset", "-displayfd", str(writing), "-screen", "0", f"{width}x{height}x24"]
    command += ["-fbdir", str(folder)]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as answer:
            number = answer.readline().strip()
        if not number:
            raise DisplayError("Xvfb does not start; is /tmp/.X11-unix writable?")
        yield VirtualScreen(f":{number}", server, folder)
    finally:
        server.terminate()
        server.wait(STOP_DEADLINE)
