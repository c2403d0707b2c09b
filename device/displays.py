"""Where the screen appears: a window, the terminal, or nowhere."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from device.errors import DisplayError
from device.screen import Screen, abnormal_probability, draw, language

Image = NDArray[np.uint8]

WINDOW = "Sonoglance"
ESCAPE = 27


class Display(Protocol):
    """Shows screens and hands back keys. ``on_terminal``: it needs the terminal's line itself, so
    no progress bar may write there."""

    on_terminal: bool

    def show(self, screen: Screen) -> str:
        """Show a screen; returns the key pressed since the last one, or an empty string."""
        ...

    def close(self) -> None:
        """Take the screen away."""
        ...


def open_display(name: str) -> Display:
    """``window``, ``terminal`` or ``none``; ``auto`` takes a window where there is a screen.

    Raises DisplayError where a window is asked for and no screen can be reached.
    """
    if name == "auto":
        name = "window" if screen_reachable() else "terminal"
    if name == "window":
        if not screen_reachable():
            raise DisplayError(
                "no screen can be reached (DISPLAY is unset or does not answer); "
                "use --display terminal or none"
            )
        return Window()
    return Terminal() if name == "terminal" else Nowhere()


def screen_reachable() -> bool:
    """Whether an X server answers. Qt ends the whole process where none does, so ask first."""
    display = os.environ.get("DISPLAY", "")
    host, _, number = display.partition(":")
    number = number.split(".")[0]
    if not number.isdigit():
        return False
    try:
        if host in ("", "unix"):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(1.0)
                client.connect(f"/tmp/.X11-unix/X{number}")
        else:
            socket.create_connection((host, 6000 + int(number)), timeout=1.0).close()
    except OSError:
        return False
    return True


class Nowhere:
    """Shows nothing."""

    on_terminal = False

    def show(self, screen: Screen) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing."""


class Window:
    """A window on the local display."""

    on_terminal = False

    def __init__(self) -> None:
        try:
            cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise DisplayError(
                "this OpenCV was built without windows: install opencv-python in place of "
                "opencv-python-headless"
            ) from error
        cv2.resizeWindow(WINDOW, 1280, 720)

    def show(self, screen: Screen) -> str:
        """Draw the screen; returns the key pressed, ``q`` where the window was closed."""
        cv2.imshow(WINDOW, draw(screen))
        key = cv2.waitKey(1)
        if key == ESCAPE or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        return chr(key & 0xFF).lower() if key > 0 else ""

    def close(self) -> None:
        """Close the window."""
        cv2.destroyWindow(WINDOW)


class Terminal:
    """One line that is rewritten on a terminal, and a new line a change where it is no terminal."""

    on_terminal = True

    def __init__(self) -> None:
        self._last = ""

    def show(self, screen: Screen) -> str:
        """Write state, probability bar, age and rate."""
        state = screen.reading.state
        words = language()
        title, hint = words["states"].get(state, [state.upper(), ""])
        if sys.stdout.isatty():
            p = abnormal_probability(screen.reading, screen.negative)
            bar = " " * 20 if p is None else ("#" * round(20 * p)).ljust(20, ".")
            number = "    " if p is None else f"{100 * p:3.0f}%"
            line = f"{title:<15} [{bar}] {number}  {screen.age_ms:4.0f} ms {screen.fps:3.0f}/s  {hint}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        elif state != self._last:
            print(f"{screen.reading.frame.captured_at:7.2f} s  {title:<15} {hint}", flush=True)
        self._last = state
        return ""

    def close(self) -> None:
        """End the line."""
        if sys.stdout.isatty():
            print()


def save_snapshot(screen: Screen, folder: Path, name: str) -> Path:
    """Write the screen as PNG, whole or not at all; returns its path.

    Raises OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    encoded, content = cv2.imencode(".png", draw(screen))
    if not encoded:
        raise OSError(f"{path}: the picture could not be encoded")
    part = path.with_suffix(".part")
    part.write_bytes(content.tobytes())
    part.replace(path)
    return path
