"""The first hour with a new scanner: find its beam, correct it by hand, measure its levels.

The whole picture of the scanner is shown here and nowhere else: whoever sets the box up must see what is
left out. None of it is stored; a profile holds an outline and numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from device.capture.grabber import START_DEADLINE
from device.capture.live import Capture
from device.clock import now
from device.errors import DisplayError
from device.screen.displays import screen_reachable
from device.screen.words import Words, load_words
from device.settings.outline import Correction, convex, corners, linear, moved, placed, resized
from reader.beam import Beam, BeamFinder, find_beam, gray
from reader.clips import Frame
from reader.errors import SonoglanceError

Image = NDArray[np.uint8]
Colour = tuple[int, int, int]

BUTTONS = (
    ("\r", "save"),
    ("r", "again"),
    ("u", "undo"),
    ("c", "fan"),
    ("l", "rectangle"),
    ("-", "smaller"),
    ("+", "larger"),
    ("q", "leave"),
)
"""Key and name of each button along the foot; a touch does what the key does."""
KEY_NAMES = {"\r": "Enter", "q": "Esc"}

LOOK_EVERY = 0.4
"""Seconds between searches while there is no beam."""
GATHER_EVERY = 0.2
"""Seconds between the frames that the beam and the levels are settled on."""
FRAME_DEADLINE = 0.05
WIDTH, HEIGHT = 1280, 720
HEAD, FOOT = 56, 60
REACH = 48
"""Pixels of the window within which a touch takes hold of a corner: a gloved finger's width."""
STEP = 4
"""Source pixels by which an arrow key moves the outline."""
SCALE_STEP = 1.02
ARROWS = {65361: (-1, 0), 65362: (0, -1), 65363: (1, 0), 65364: (0, 1)}
"""The codes that OpenCV hands out for X11's arrow keys, and where each points."""
ENTER, ESCAPE = (10, 13, 65421), 27
GROUND: Colour = (20, 17, 15)
TEXT: Colour = (235, 235, 235)
DIM: Colour = (150, 150, 150)
LINE: Colour = (0, 220, 255)
BUTTON: Colour = (60, 54, 48)

STUDIO, FULL = (16, 235), (0, 255)
STUDIO_BLACK, STUDIO_WHITE = (12, 20), 240
"""Where black lies in studio range (ITU-R BT.601), give or take the codec; white is no brighter."""
ONE_FLOOR = 6
"""Gray levels: the darkest inside and outside the beam are one black if they differ by no more."""
SMALLEST_SPAN = 64
"""Gray levels; what shows fewer is a plain picture and says nothing."""
DARKEST_SHARE, BRIGHTEST_SHARE = 0.002, 0.001
"""Shares of all pixels that may be darker than black and brighter than white: ringing at edges."""


class SetupError(SonoglanceError, RuntimeError):
    """A scanner cannot be set up as asked."""


@dataclasses.dataclass
class LevelRange:
    """Gray levels over several seconds, inside and outside the beam: int64 counts [2, 256]."""

    counts: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((2, 256), np.int64))

    def add(self, image: Image, inside: NDArray[np.bool_]) -> None:
        """Count a picture's pixels: uint8 [h, w] or [h, w, 3], and a mask [h, w]."""
        plane = gray(image)
        self.counts[0] += np.bincount(plane[inside], minlength=256)
        self.counts[1] += np.bincount(plane[~inside], minlength=256)

    @property
    def extremes(self) -> list[tuple[int, int]]:
        """Darkest and brightest level, inside and outside; outside is left out where there is none."""
        found = []
        for counts in self.counts:
            if counts.sum():
                share = counts.cumsum() / counts.sum()
                brightest = int(np.searchsorted(share, 1 - BRIGHTEST_SHARE))
                found.append((int(np.searchsorted(share, DARKEST_SHARE)), brightest))
        return found

    def levels(self) -> tuple[int, int]:
        """What the source uses for black and white: studio range, full range, or as measured.

        A raised black is believed where it is the same inside and outside the beam: a scanner with a gray
        layout has real black inside, and one that fills the picture has its echoes' black only. White is
        taken from the picture only where black is raised too, since a dim picture has no white.
        """
        if not self.counts.any():
            return FULL
        darks, brights = zip(*self.extremes, strict=True)
        black, white = min(darks), max(brights)
        if white - black < SMALLEST_SPAN:
            return FULL
        if STUDIO_BLACK[0] <= black <= STUDIO_BLACK[1] and white <= STUDIO_WHITE:
            return STUDIO
        if black <= STUDIO_BLACK[1] or max(darks) - black > ONE_FLOOR:
            return FULL
        return black, white if white <= STUDIO_WHITE else FULL[1]


class Finding:
    """Finds the beam over several seconds of live picture, once there is one."""

    def __init__(self, seconds: float, given: Callable[[Image], Beam] | None = None) -> None:
        """``seconds``: how long to gather frames from the first that shows a beam. ``given``: gives the
        outline where it is known and only its levels are to be measured."""
        self._seconds, self._given = seconds, given
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.beam: Beam | None = None
        self.range = LevelRange()
        self.left = self._seconds
        self._finder = BeamFinder()
        self._first: Beam | None = None
        self._inside: NDArray[np.bool_] = np.zeros((0, 0), bool)
        self._began = self._looked = -1e9

    @property
    def begun(self) -> bool:
        """Whether a beam was seen, so that frames are being gathered."""
        return self._first is not None

    def add(self, frame: Frame) -> None:
        """Look at a frame. ``beam`` is set, with its levels, once the time is over."""
        at, image = frame.captured_at, frame.image
        size = (image.shape[1], image.shape[0])
        if self._first is not None and (self._first.size != size or at < self._looked):
            self.reset()
        if at < self._looked + (GATHER_EVERY if self.begun else LOOK_EVERY):
            return
        self._looked = at
        if self._first is None:
            self._first = (self._given or find_beam)(image)
            if self._first is None:
                return
            self._began, self._inside = at, self._first.mask() > 0
        self._finder.add(image)
        self.range.add(image, self._inside)
        self.left = max(self._seconds - (at - self._began), 0.0)
        if not self.left:
            self.settle()

    def settle(self) -> None:
        """Take what the frames so far show; begin anew where that is no beam after all."""
        found = self._first if self._given else self._finder.beam()
        if found is None:
            self.reset()
        else:
            self.beam = dataclasses.replace(found, levels=self.range.levels())


def find(
    capture: Capture, seconds: float, wait: float, given: Callable[[Image], Beam] | None = None
) -> tuple[Beam, LevelRange]:
    """The beam and level range of a source, looked for without a window.

    ``wait``: seconds after which a source that shows no beam is given up. ``given`` as in ``Finding``.
    Raises SetupError where none was found, and what the source raises.
    """
    finding, began = Finding(seconds, given), now()
    finding.add(wait_for_picture(capture, wait))
    while finding.beam is None and not capture.ended and (finding.begun or now() - began < wait):
        arrived = capture.take(FRAME_DEADLINE)
        if arrived is not None:
            finding.add(arrived.frame)
    if finding.beam is None and finding.begun:
        finding.settle()  # a clip or still that is shorter
    if finding.beam is None:
        raise SetupError(
            f'{capture.name}: no beam found in it; show the live picture, or give --beam "x,y x,y ..."'
        )
    return finding.beam, finding.range


def wait_for_picture(capture: Capture, wait: float) -> Frame:
    """A source's first frame. Raises SetupError after ``wait`` seconds without one; a grabber that is only
    starting by then is given the time to say why."""
    until = now() + wait
    while not capture.ended and (
        now() < until or (capture.trouble is None and now() < until + START_DEADLINE)
    ):
        arrived = capture.take(FRAME_DEADLINE)
        if arrived is not None:
            return arrived.frame
    why = capture.trouble.detail if capture.trouble else f"{capture.name}: no picture comes"
    raise SetupError(f"{why}; is the scanner on, is the cable in?")


class SetupWindow:
    """The window: the live picture with the outline on it, buttons for fingers, keys for the rest."""

    def __init__(self, fullscreen: bool = False, language: str = "en") -> None:
        """Raises DisplayError where there is no screen, or no such language."""
        if not screen_reachable():
            raise DisplayError("no screen can be reached; use --display none")
        self.words = load_words(language)
        self._name = "Sonoglance"
        try:
            cv2.namedWindow(self._name, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        except cv2.error as error:
            raise DisplayError(
                "this OpenCV was built without windows: install opencv-python in place of "
                "opencv-python-headless"
            ) from error
        cv2.resizeWindow(self._name, WIDTH, HEIGHT)
        if fullscreen:
            cv2.setWindowProperty(self._name, cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN)
        cv2.setMouseCallback(self._name, self._on_mouse)
        self._touches: list[tuple[int, tuple[int, int]]] = []

    def _on_mouse(self, event: int, x: int, y: int, _flags: int, _data: object) -> None:
        self._touches.append((event, (x, y)))

    def show(self, picture: Image) -> int:
        """Put a picture up; returns the code of the key pressed, -1 for none, Esc for a closed window."""
        cv2.imshow(self._name, picture)
        key = int(cv2.waitKeyEx(1))
        closed = cv2.getWindowProperty(self._name, cv2.WND_PROP_VISIBLE) < 1
        return ESCAPE if closed else key

    def touches(self) -> list[tuple[int, tuple[int, int]]]:
        """What mouse or finger did since the last call: OpenCV's event, and where in the window."""
        touches, self._touches = self._touches, []
        return touches

    def fill(self, white: bool) -> None:
        """The whole window black or white."""
        self.show(np.full((HEIGHT, WIDTH), 255 * white, np.uint8))

    def close(self) -> None:
        """Take the window away."""
        cv2.destroyWindow(self._name)


def correct_by_hand(capture: Capture, seconds: float, window: SetupWindow) -> tuple[Beam, LevelRange] | None:
    """Find the beam and let a person correct it. None where the person leaves without saving.

    Raises what the source raises.
    """
    finding = Finding(seconds)
    setup = _HandSetup(finding, window.words)
    while not setup.done:
        arrived = None if capture.ended else capture.take(FRAME_DEADLINE)
        if arrived is not None:
            setup.see(arrived.frame)
        elif capture.ended:
            setup.source_ended()
        key = window.show(setup.draw())
        # A key ends the wait for events: every touch came before it.
        for event, at in window.touches():
            setup.touch(event, at)
        setup.press(key)
    return (setup.saved, finding.range) if setup.saved else None


class _HandSetup:
    """What the window shows and what keys and touches do to it."""

    def __init__(self, finding: Finding, words: Words) -> None:
        self._words = words
        self.done = False
        self.saved: Beam | None = None
        self._finding = finding
        self._correction: Correction | None = None
        self._image: Image = np.zeros((0, 0), np.uint8)
        self._counted = -1e9

    def see(self, frame: Frame) -> None:
        """Take a new frame."""
        before, self._image = self._image.shape[:2], frame.image
        if self._correction is not None and frame.image.shape[:2] != before:
            self._find_again()
        if self._correction is None:
            self._finding.add(frame)
            self._take_found()
        elif not 0 <= frame.captured_at - self._counted < GATHER_EVERY:
            self._counted = frame.captured_at
            self._finding.range.add(frame.image, self._correction.beam.mask() > 0)

    def source_ended(self) -> None:
        """There will be no more frames: settle on those that came."""
        if self._correction is None and self._finding.begun:
            self._finding.settle()
            self._take_found()

    def _take_found(self) -> None:
        if self._finding.beam is not None:
            self._correction = Correction(self._finding.beam)

    def _find_again(self) -> None:
        self._correction = None
        self._finding.reset()

    def press(self, code: int) -> None:
        """Do what a key stands for."""
        code &= 0xFFFF  # OpenCV adds Shift and the like above
        key = "\r" if code in ENTER else "q" if code == ESCAPE else chr(code).lower()
        if key == "q":
            self.done = True
        elif key == "r":
            self._find_again()
        elif key in "cl" and self._correction is None and self._image.size:
            height, width = self._image.shape[:2]
            self._correction = Correction(placed((width, height)))
        if self._correction is None or self.done:
            return
        beam = self._correction.beam
        if code in ARROWS:
            right, down = ARROWS[code]
            self._correction.change(moved(beam, STEP * right, STEP * down))
        elif key == "\r":
            self.saved = dataclasses.replace(beam, levels=self._finding.range.levels())
            self.done = True
        elif key == "u":
            self._correction.undo()
        elif key in "cl":
            self._correction.change((convex if key == "c" else linear)(beam))
        elif key in "+=-":
            self._correction.change(resized(beam, 1 / SCALE_STEP if key == "-" else SCALE_STEP))

    def touch(self, event: int, at: tuple[int, int]) -> None:
        """Drag a corner, or press a button."""
        if event == cv2.EVENT_LBUTTONDOWN and at[1] >= HEIGHT - FOOT:
            self.press(ord(BUTTONS[min(at[0] * len(BUTTONS) // WIDTH, len(BUTTONS) - 1)][0]))
        if self._correction is None:
            return
        scale, left, top = self._view()
        x, y = (at[0] - left) / scale, (at[1] - top) / scale
        if event == cv2.EVENT_LBUTTONDOWN and at[1] < HEIGHT - FOOT:
            self._correction.grip((x, y), REACH / scale)
        elif event == cv2.EVENT_MOUSEMOVE:
            self._correction.drag((x, y))
        elif event == cv2.EVENT_LBUTTONUP:
            self._correction.drag((x, y))
            self._correction.release()

    def _view(self) -> tuple[float, int, int]:
        """How the picture lies in the window: scale, left, top."""
        height, width = self._image.shape[:2]
        room = HEIGHT - HEAD - FOOT
        scale = min(WIDTH / width, room / height)
        return scale, round((WIDTH - width * scale) / 2), HEAD + round((room - height * scale) / 2)

    def draw(self) -> Image:
        """The window's picture: BGR uint8 [720, 1280, 3]."""
        canvas = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        canvas[:] = GROUND
        if self._image.size:
            scale, left, top = self._view()
            size = round(self._image.shape[1] * scale), round(self._image.shape[0] * scale)
            colour = cv2.cvtColor(self._image, cv2.COLOR_GRAY2BGR) if self._image.ndim == 2 else self._image
            canvas[top : top + size[1], left : left + size[0]] = cv2.resize(
                colour, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            )
            if self._correction is not None:
                _draw_outline(canvas, self._correction.beam, scale, (left, top))
        self._draw_head(canvas)
        for place, (key, word) in enumerate(BUTTONS):
            left, right = (WIDTH * n // len(BUTTONS) for n in (place, place + 1))
            cv2.rectangle(canvas, (left + 3, HEIGHT - FOOT + 3), (right - 4, HEIGHT - 4), BUTTON, -1)
            _write(canvas, self._words.setup(word), (left + 14, HEIGHT - 32), 20, TEXT)
            _write(canvas, KEY_NAMES.get(key, key.upper()), (left + 14, HEIGHT - 11), 16, DIM)
        return canvas

    def _draw_head(self, canvas: Image) -> None:
        say = self._words.setup
        if self._correction is not None:
            line = say("correct")
        elif self._finding.begun:
            line = say("finding", f"{self._finding.left:.0f}")
        else:
            line = say("waiting" if self._image.size else "no-picture")
        _write(canvas, line, (16, 24), 22, TEXT)
        _write(canvas, say("whole"), (16, 48), 18, DIM)
        if self._correction is not None:
            beam, levels = self._correction.beam, self._finding.range.levels()
            facts = say("facts", say(beam.shape), *beam.size, *levels)
            _write(canvas, facts, (860, 48), 18, LINE)


def _draw_outline(canvas: Image, beam: Beam, scale: float, at: tuple[int, int]) -> None:
    points = np.round(np.asarray(beam.polygon) * scale + at).astype(np.int32)
    cv2.polylines(canvas, [points], True, LINE, 2, cv2.LINE_AA)
    for corner in corners(beam):
        x, y = (int(n) for n in points[corner])
        cv2.circle(canvas, (x, y), 11, GROUND, -1, cv2.LINE_AA)
        cv2.circle(canvas, (x, y), 11, LINE, 3, cv2.LINE_AA)


@lru_cache
def _font() -> Any:
    """OpenCV 5's TrueType face; None on OpenCV 4, whose stroke font stands in for it."""
    return cv2.FontFace("sans") if hasattr(cv2, "FontFace") else None


def _write(canvas: Image, text: str, at: tuple[int, int], size: int, colour: Colour) -> None:
    if _font() is None:
        cv2.putText(canvas, text, at, cv2.FONT_HERSHEY_SIMPLEX, size / 34, colour, 1, cv2.LINE_AA)
    else:
        cv2.putText(canvas, text, at, colour, _font(), size, 500)
