"""The picture that goes in: the phantom's acts, over and over, through a simulated grabber, or full-screen on
this box's own display for a real grabber to see:

    python -m tests.hil.scanner FOLDER
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import cv2
import numpy as np
from numpy.typing import NDArray

from device.capture.simulated import CodedFrames, encoded
from device.screen.x_root import map_anew, root_size, seen_at
from reader.phantom import RATE, Act, Phantom
from tests.conftest import ROOT

ACTS = (Act("normal", 3.2), Act("black", 2.0), Act("consolidation", 3.2))
"""One round. Each act is long enough for its state to be shown, and for its lamp's pattern after that."""
BRIGHT = 50
"""Green of a pixel from which it is not black on any screen."""
UNLIKE = 20
"""Frames drawn for an act; they are shown there and back, so that no two neighbours are far apart."""


def store_round(folder: Path) -> None:
    """Draw one round's frames as the simulated grabber wants them."""
    coded = list[bytes]()
    for act in ACTS:
        phantom = Phantom((Act(act.name, 3600.0),))
        drawn = [encoded(phantom.frame(i / RATE)) for i in range(UNLIKE)]
        there_and_back = itertools.cycle(drawn + drawn[-2:0:-1])
        coded += itertools.islice(there_and_back, round(act.seconds * RATE))
    frames = {f"{i:04d}": np.frombuffer(frame, np.uint8) for i, frame in enumerate(coded)}
    np.savez(folder / CodedFrames.FRAMES, **frames)  # type: ignore[arg-type]


def simulated(folder: Path) -> str:
    """The round as a ``--source``."""
    asked = urlencode({"folder": folder, "width": 1280, "height": 720, "rate": round(RATE)})
    return f"simulated:{CodedFrames.__name__}?{asked}"


@contextmanager
def on_screen(folder: Path, grabber: str) -> Iterator[str]:
    """The round on this box's display, and the grabber that sees it as a ``--source``."""
    player = subprocess.Popen([sys.executable, "-m", "tests.hil.scanner", folder], cwd=ROOT)
    try:
        yield f"v4l2:{grabber}"
    finally:
        player.kill()
        player.wait()


def play(folder: Path) -> None:
    """Show the round until killed."""
    with np.load(folder / CodedFrames.FRAMES) as stored:
        coded = [stored[name] for name in sorted(stored.files)]
    cv2.namedWindow("scanner", cv2.WINDOW_NORMAL)
    cv2.setWindowProperty("scanner", cv2.WND_PROP_FULLSCREEN, cv2.WINDOW_FULLSCREEN)
    began = time.monotonic()
    for place in itertools.count():
        picture = np.asarray(cv2.imdecode(coded[place % len(coded)], cv2.IMREAD_COLOR))
        cv2.imshow("scanner", picture)
        cv2.waitKey(max(1, round(1e3 * (began + place / RATE - time.monotonic()))))
        if place % round(RATE) == round(RATE) - 1 and not seen(picture):
            map_anew("scanner")


def seen(picture: NDArray[np.uint8]) -> bool:
    """Whether the brightest place of the picture can be seen on the screen: now and then, on a busy machine,
    Qt paints nothing."""
    screen, (height, width) = root_size(), picture.shape[:2]
    y, x = np.unravel_index(int(picture[:, :, 1].argmax()), (height, width))
    if screen is None or picture[y, x, 1] < BRIGHT:
        return True
    there = seen_at(int(x) * screen[0] // width, int(y) * screen[1] // height)
    return there is None or any(there)


if __name__ == "__main__":
    play(Path(sys.argv[1]))
