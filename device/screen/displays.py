"""Where the screen appears: a window, the terminal, or nowhere."""

from __future__ import annotations

import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tty
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from device.clock import now
from device.errors import DisplayError
from device.screen.canvas import NO_READING, Button, Image, resized
from device.screen.drawing import (
    HEIGHT,
    KEYS,
    WIDTH,
    Screen,
    abnormal_probability,
    button_at,
    buttons_of,
    draw,
    shown_state,
)
from device.screen.exam_drawing import (
    EXAM_KEYS,
    REVIEW,
    ExamPanel,
    message_line,
    status_line,
    summary_line,
    zone_line,
)
from device.screen.words import Words, load_words
from device.screen.x_root import map_anew, root_size, seen_at

WINDOW = "Sonoglance"
ESCAPE = 27
SEQUENCE = re.compile(rb"\x1b(\[[0-9;]*[@-~]|O.|.)", re.DOTALL)
"""What arrows and the like send to a terminal; it ends with what would be a key's letter."""
PRESSED_SECONDS = 0.15
"""For so long a button is shown as pressed."""
LOOKS, LOOK_EVERY, LOOKS_ALIKE = 10, 0.7, 24
"""How often at most, and after how many seconds each, it is looked whether the window is painted, and gray
levels by which what is seen may differ: screens dither."""


class Display(Protocol):
    """Shows screens and hands back keys. ``on_terminal``: it needs the terminal's line itself, so
    no progress bar may write there."""

    on_terminal: bool

    @property
    def drawn(self) -> Image | None:
        """The picture of the last screen, as ``draw`` made it; None where the display makes none."""
        ...

    def show(self, screen: Screen) -> str:
        """Show a screen; returns the key pressed since the last one, or an empty string."""
        ...

    def close(self) -> None:
        """Take the screen away."""
        ...


def open_display(name: str, fullscreen: bool = False) -> Display:
    """``window``, ``terminal`` or ``none``; ``auto`` takes a window where there is a screen.

    ``fullscreen``: whether a window covers the whole screen.

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
        return Window(fullscreen)
    return Terminal() if name == "terminal" else Nowhere()


def screen_reachable() -> bool:
    """Whether an X server answers. Qt ends the whole process where none does, so ask first."""
    display = os.environ.get("DISPLAY", "")
    host, _, number = display.partition(":")
    number = number.split(".")[0]
    if not number.isdigit():
        return False
    if host in ("", "unix"):
        return _answers_here(f"/tmp/.X11-unix/X{number}")
    try:
        socket.create_connection((host, 6000 + int(number)), timeout=1.0).close()
    except OSError:
        return False
    return True


def _answers_here(path: str) -> bool:
    """Whether one does on a socket's abstract name or else on its file, as libxcb asks: the file may have
    been taken away by an older server of that number that ended."""
    for address in ("\0" + path, path):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            if client.connect_ex(address) == 0:
                return True
    return False


class Nowhere:
    """Shows nothing."""

    on_terminal = False
    drawn = None

    def show(self, screen: Screen) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """Nothing."""


class Window:
    """A window on the local display, which takes keys, mouse and touch."""

    on_terminal = False

    def __init__(self, fullscreen: bool = False) -> None:
        try:
            cv2.namedWindow(WINDOW, cv2.WINDOW_NORMAL | cv2.WINDOW_FREERATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise DisplayError(
                "this OpenCV was built without windows: install opencv-python in place of "
                "opencv-python-headless"
            ) from error
        self._size = WIDTH, HEIGHT
        self.drawn: Image | None = None
        self._buttons: tuple[Button, ...] = ()
        self._touched = self._pressed = ""
        self._pressed_until = 0.0
        self._looks, self._look_at = LOOKS, now() + LOOK_EVERY
        if fullscreen:
            # Without a window manager nobody else makes it as large as the screen.
            cv2.resizeWindow(WINDOW, *(root_size() or self._size))
            cv2.moveWindow(WINDOW, 0, 0)
            cv2.setWindowProperty(WINDOW, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN)
        else:
            cv2.resizeWindow(WINDOW, *self._size)
        cv2.setMouseCallback(WINDOW, self._mouse)

    def show(self, screen: Screen) -> str:
        """Draw the screen; returns the key or button pressed, ``q`` where the window was closed."""
        pressed = self._pressed if now() < self._pressed_until else ""
        self.drawn = draw(screen, pressed)
        cv2.imshow(WINDOW, framed(self.drawn, self._size))
        code = cv2.waitKeyEx(1) & 0xFFFF
        # Only now: a touch that has come meanwhile was aimed at the picture before.
        self._buttons = buttons_of(screen)
        if code == ESCAPE or cv2.getWindowProperty(WINDOW, cv2.WND_PROP_VISIBLE) < 1:
            return "q"
        left, top, width, height = cv2.getWindowImageRect(WINDOW)
        if width > 0 and height > 0:
            self._size = width, height
            if self._looks and now() >= self._look_at:
                self._have_it_painted(left, top)
        touched, self._touched = self._touched, ""
        # Arrows and the like have codes above ASCII, whose last byte would be a letter.
        typed = chr(code).lower() if code < 128 else ""
        taken = "f" if typed == " " else typed if typed and typed in keys_of(screen) else touched
        if taken:
            self._pressed, self._pressed_until = taken, now() + PRESSED_SECONDS
        return taken

    def close(self) -> None:
        """Close the window."""
        cv2.destroyWindow(WINDOW)

    def _have_it_painted(self, left: int, top: int) -> None:
        """Map the window anew where nothing of it can be seen.

        Without a window manager, on a busy machine, Qt now and then misses that its window has been shown,
        and paints nothing in it from then on.
        """
        assert self.drawn is not None, "it was just shown"
        scale, beside, above = _fit(self._size)
        x, y = WIDTH // 2, HEIGHT - 3
        screen = root_size()
        if screen is None:
            self._looks = 0
            return
        # A window that is not painted may not lie where Qt believes it to lie.
        place = left + beside + int(x * scale), top + above + int(y * scale)
        seen = seen_at(*(min(max(at, 0), most - 1) for at, most in zip(place, screen, strict=True)))
        due = self.drawn[y, x]
        self._look_at = now() + LOOK_EVERY
        if seen is not None and np.abs(np.array(seen) - due).max() < LOOKS_ALIKE:
            self._looks = 0
        else:
            self._looks -= 1
            map_anew(WINDOW)

    def _mouse(self, event: int, x: int, y: int, _flags: int, _given: object) -> None:
        if event == cv2.EVENT_LBUTTONDOWN:
            scale, left, top = _fit(self._size)
            self._touched = button_at((x - left) / scale, (y - top) / scale, self._buttons)


def keys_of(screen: Screen) -> str:
    """The keys that mean something on a screen."""
    return KEYS if screen.exam is None else KEYS + EXAM_KEYS


def framed(picture: Image, size: tuple[int, int]) -> Image:
    """The screen's picture as large as fits into ``size`` (width, height), black beside it.

    The window system's own scaling leaves pixels out, which text does not survive.
    """
    if size == (WIDTH, HEIGHT):
        return picture
    scale, left, top = _fit(size)
    inner = max(1, int(WIDTH * scale)), max(1, int(HEIGHT * scale))
    frame = np.zeros((size[1], size[0], 3), np.uint8)
    frame[top : top + inner[1], left : left + inner[0]] = resized(picture, inner)
    return frame


def _fit(size: tuple[int, int]) -> tuple[float, int, int]:
    """Scale, left and top of the screen's picture in a window."""
    scale = min(size[0] / WIDTH, size[1] / HEIGHT)
    return scale, (size[0] - int(WIDTH * scale)) // 2, (size[1] - int(HEIGHT * scale)) // 2


class Terminal:
    """One line that is rewritten on a terminal, and a new line a change where it is no terminal.

    Keys are taken from standard input where that is a terminal.
    """

    on_terminal = True
    drawn = None

    def __init__(self) -> None:
        self._last = ""
        self._keyboard = Keyboard() if _owns_terminal() else None

    def show(self, screen: Screen) -> str:
        """Write state, probability bar, age and rate, and in an exam zone and phase; returns the key."""
        state, words = shown_state(screen), load_words(screen.language)
        title, hint = words.state(state, screen.reading.cause if state == screen.reading.state else "")
        if screen.exam is not None:
            hint = exam_line(screen.exam, words)
        said = f"{title:<15} {hint}"
        if sys.stdout.isatty():
            p = abnormal_probability(screen.reading, screen.negative) if state not in NO_READING else None
            bar = " " * 20 if p is None else ("#" * round(20 * p)).ljust(20, ".")
            number = "    " if p is None else f"{100 * p:3.0f}%"
            # An exam's line needs the room; and 80 columns is what many terminals have.
            facts = f"[{bar}] {number}  {screen.age_ms:4.0f} ms {screen.fps:3.0f}/s "
            line = f"{title:<15} {number if screen.exam is not None else facts} {hint}"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        elif said != self._last:
            print(f"{screen.reading.frame.captured_at:7.2f} s  {said}", flush=True)
        self._last = said
        return self._keyboard.key(keys_of(screen)) if self._keyboard is not None else ""

    def close(self) -> None:
        """End the line, and give the keyboard back."""
        if self._keyboard is not None:
            self._keyboard.close()
        if sys.stdout.isatty():
            print()


def _owns_terminal() -> bool:
    """Whether keys come from a terminal, and not to another program in front of this one."""
    return sys.stdin.isatty() and os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()


class Keyboard:
    """Keys of the terminal, without waiting for the end of a line.

    The terminal is set back by a process of its own when this one closes the keyboard or ends in whatever
    way, even killed: a shell that echoes nothing is no shell to a user.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdin.fileno()
        stty = ["stty", "-F", os.ttyname(self._terminal)]
        before = subprocess.run([*stty, "-g"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        # Ctrl-C reaches it too; and as a background process it may still write the terminal's settings.
        guard = 'trap "" INT TERM HUP QUIT TSTP TTOU; read -r _; exec "$@"'
        self._guard = subprocess.Popen(["sh", "-c", guard, "sh", *stty, before], stdin=subprocess.PIPE)
        self._typed = ""
        tty.setcbreak(self._terminal)

    def key(self, known: str) -> str:
        """The next key that is one of those known, a blank as ``f`` and Escape as ``q``; empty for none."""
        if select.select([self._terminal], [], [], 0)[0]:
            typed = SEQUENCE.sub(b"", os.read(self._terminal, 1024)).replace(b"\x1b", b"q")
            self._typed += typed.decode("ascii", "ignore").lower()
        while self._typed:
            key, self._typed = self._typed[0].replace(" ", "f"), self._typed[1:]
            if key in known:
                return key
        return ""

    def close(self) -> None:
        """Set the terminal back as it was."""
        # A line, since a forked process may hold the pipe's end open.
        self._guard.communicate(b"\n")


def exam_line(panel: ExamPanel, words: Words) -> str:
    """Zone, what goes on, its readings, and what was said last; at the end of an exam its summary."""
    parts = [zone_line(panel, words.code)]
    if panel.closing and panel.summary is not None:
        total = panel.summary.total
        parts = [words.exam("no-total") if total is None else f"{words.exam('total')} {total}"]
        parts.append(summary_line(panel, words))
    parts.append(status_line(panel, words))
    if panel.phase == REVIEW and panel.clip is not None:
        parts.append(f"{words.exam('network')}: {words.zone_state(panel.clip.state)}")
    if panel.phase == REVIEW and panel.human is not None:
        grade = "" if panel.human.grade is None else f" {panel.human.grade}"
        parts.append(f"{words.exam('clinician')}: {words.zone_state(panel.human.state)}{grade}")
    parts.append(message_line(panel, words) or ("" if panel.acknowledged else words.exam("saving")))
    return "; ".join(filter(None, parts))


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
